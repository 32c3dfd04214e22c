"""The smaller commands: estimate, retry, export, import, browse. Each reads as its help says."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson

from engine.replies import loads, read_reply
from engine.settings import Settings
from store.errors import PoolError, UsageError
from store.folder import held, ledger_path
from store.pool import Pool
from store.read import connect_reader, has_rows, last_runs, stages
from store.records import CAUSES, OUTCOMES, Outcome

IMPORTED = "imported"
IMPORT_BATCH = 1000


def run_estimate(
    settings: Settings,
    source: str,
    run: Path | None,
    pilot: int | None,
    as_json: bool,
    yes: bool,
    quiet: bool,
    confirm: Callable[[str], bool],
) -> int:
    """`estimate`: on stdout a table or one JSON object."""
    from engine.collect import estimate_pool, run_pilot
    from engine.show import print_estimate

    if Pool(source).is_stream:
        raise UsageError("estimate reads its pool more than once: give a file, not a pipe")
    if pilot is not None:
        if run is None:
            raise UsageError("--pilot needs --run DIR: the answers that it buys are kept there")
        if pilot < 1:
            raise UsageError("--pilot wants a number of rows of at least 1")
        online = settings.model_copy(update={"batch": False})  # a pilot is for now, not for tomorrow
        result = run_pilot(online, source, run, pilot, yes, quiet, confirm)
        if result.stopped:
            raise result.stopped
    told = estimate_pool(settings, source, run)
    if as_json:
        sys.stdout.write(orjson.dumps(told.as_json()).decode() + "\n")
        return 0
    print_estimate(told, settings, to_stdout=True, batch=settings.batch)
    return 0


def _stage_of(run: Path, name: str | None) -> tuple[int, str]:
    reader = connect_reader(run)
    try:
        there = stages(reader)
    finally:
        reader.close()
    chosen = [(number, n) for number, n in there if name in (None, n)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(n for _, n in there) or "none yet"
    problem = f"no stage '{name}'" if name else "name one with --stage"
    raise UsageError(f"{run}: {problem}; its stages are: {names}")


def run_retry(run: Path, cause: str | None, stage: str | None) -> None:
    """Makes failed requests due again."""
    from store.ledger import connect_writer

    if cause is not None and cause not in CAUSES:
        raise UsageError(f"--cause {cause}: unknown; there are {', '.join(CAUSES)}")
    ledger_path(run)
    where, values = "answer IS NULL AND failure IS NOT NULL", []
    if cause is not None:
        where += " AND failure IN (SELECT id FROM errors WHERE cause = ?)"
        values.append(cast(object, cause))
    if stage is not None:
        where += " AND id IN (SELECT request FROM samples WHERE stage = ?)"
        values.append(_stage_of(run, stage)[0])
    with held(run):
        connection = connect_writer(run)
        try:
            count = connection.execute(f"UPDATE requests SET failure = NULL WHERE {where}", values).rowcount
        finally:
            connection.close()
    print(
        f"{count:,} failed requests are due again; run the same command to ask them",
        file=sys.stderr,
    )


def text_of(raw: bytes) -> str:
    """The teacher's words in a stored body; a filtered request (a 400) has none."""
    body = loads(raw)
    return read_reply(raw).text if isinstance(body, dict) and body.get("choices") else ""


def run_export(run: Path, format: str, out: Path, stage: str | None, outcome: str) -> None:
    """Writes the data set and says what it left out."""
    from store.export import answers, check_format, write

    check_format(format)
    outcomes = tuple(o.strip() for o in outcome.split(",") if o.strip())
    for name in outcomes:
        if name not in OUTCOMES:
            raise UsageError(f"--outcome {name}: unknown; there are {', '.join(OUTCOMES)}")
    number, _ = _stage_of(run, stage)
    reader = connect_reader(run)
    try:
        (samples,) = reader.execute("SELECT samples FROM stages WHERE id = ?", (number,)).fetchone()
        settings = last_runs(reader, number, 1)
        system = settings[0]["settings"].get("system") if settings else None
        rows = answers(reader, number, cast(tuple[Outcome, ...], outcomes), text_of)
        count = write(out, format, rows, samples, system)
    finally:
        reader.close()
    print(f"{count:,} rows written to {out}", file=sys.stderr)


def run_import(settings: Settings, source: str, run: Path) -> int:
    """Stores rows with an `output` as answers at no cost, under the keys that `generate` would use."""
    import asyncio

    from store.ledger import connect_writer

    with held(run):
        connect_writer(run).close()
        taken, known, empty = asyncio.run(_import(settings, source, run))
    if not (taken or known):
        raise PoolError(f"no row of {source} has an `output`; expected Alpaca's shape")
    print(
        f"{taken:,} answers taken in, {known:,} were there already, {empty:,} rows had none",
        file=sys.stderr,
    )
    return 0


async def _import(settings: Settings, source: str, run: Path) -> tuple[int, int, int]:
    from engine.collect import known_keys
    from engine.feed import Feed
    from engine.settings import plan_of
    from engine.tokens import tokenizer_for
    from store.index import ANSWERED
    from store.ledger import Ledger
    from store.records import Response, Usage

    tokenizer = tokenizer_for(settings.model)
    ledger = Ledger(run)
    try:
        stage, number = ledger.begin(
            settings.stage,
            settings.task,
            settings.samples,
            {**settings.public(), "pool": source, IMPORTED: True},
        )
        feed = Feed(
            Pool(source),
            plan_of(settings, tokenizer),
            run,
            stage,
            known_keys(run),
            keep_output=True,
        )
        is_new_stage = not has_rows(run, stage)
        taken = known = empty = 0
        while True:
            chunk = await feed.chunk(IMPORT_BATCH)
            for p in chunk.placements:
                if is_new_stage:
                    ledger.place(stage, p.position, p.item, feed.plan, p.requests, p.new)
                else:  # the rows of the stage are its pool's; only the answers are taken in
                    ledger.add(p.new)
            for request, output in zip(chunk.due, chunk.outputs, strict=True):
                if not output.strip():
                    empty += 1
                    continue
                attempt = ledger.journal(number, stage, request.id, 0)
                usage = Usage(request.prompt_tokens, tokenizer.count(output))
                response = Response(
                    "stop",
                    IMPORTED,
                    usage,
                    _as_reply(settings.model, output),
                    0,
                    0.0,
                    settings.model,
                )
                ledger.put(stage, attempt, request.id, response, 0, final=True)
                feed.index.mark(request.id, ANSWERED)
                taken += 1
            known += chunk.known[ANSWERED]
            await ledger.committed()
            if chunk.ended:
                feed.close()
                return taken, known, empty
    finally:
        await ledger.close()


def _as_reply(model: str, output: str) -> bytes:
    """The shape of a reply, marked as imported, so that one reader serves all."""
    body: dict[str, Any] = {
        "object": IMPORTED,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": output},
            }
        ],
    }
    return orjson.dumps(body)


def run_browse(run: Path, port: int) -> None:
    """Datasette on the ledger, read-only, on loopback."""
    import importlib.util

    path = ledger_path(run)
    if importlib.util.find_spec("datasette") is None:
        raise UsageError("browse needs Datasette; bin/distill browse installs it")
    command = [sys.executable, "-P", "-m", "datasette", "serve", str(path), "--host", "127.0.0.1"]
    try:
        raise SystemExit(subprocess.run([*command, "--port", str(port)], check=False).returncode)
    except KeyboardInterrupt:
        return
