"""The smaller commands: estimate, retry, export, import. Each reads as its help says."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson

from engine.rereading import read_again
from engine.settings import Settings
from engine.terminal import plain

if TYPE_CHECKING:
    from engine.estimate import Surveyed
from store.errors import PoolError, UsageError
from store.folder import held, ledger_path
from store.pool import Pool
from store.read import has_rows, stage_of
from store.records import CAUSES, UNUSABLE, BadRow

IMPORTED = "imported"
IMPORT_BATCH = 1000


def run_estimate(
    settings: Settings,
    pool: "Surveyed",
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

    if pool.is_stream:
        raise UsageError("estimate reads its pool more than once: give a file, not a pipe")
    asked = 0
    if pilot is not None:
        if run is None:
            raise UsageError("--pilot needs --run DIR: the answers that it buys are kept there")
        if pilot < 1:
            raise UsageError("--pilot wants a number of rows of at least 1")
        online = settings.model_copy(update={"batch": False})  # a pilot is for now, not for tomorrow
        result = run_pilot(online, pool, run, pilot, yes, quiet, confirm)
        if result.stopped:
            raise result.stopped
        asked = result.state.ended
    settings.price()  # raises UsageError before the pool is counted
    told = estimate_pool(settings, pool, run, pilot=asked)
    if as_json:
        sys.stdout.write(orjson.dumps(told.as_json()).decode() + "\n")
        return 0
    print_estimate(told, settings, to_stdout=True, batch=settings.batch)
    return 0


def run_retry(run: Path, cause: str | None, stage: str | None) -> None:
    """Makes failed requests due again; stored replies that can be read by now are answers, unasked."""
    from store.ledger import connect_writer

    if cause is not None and cause not in (*CAUSES, *UNUSABLE):
        raise UsageError(f"--cause {cause}: unknown; there are {', '.join((*CAUSES, *UNUSABLE))}")
    ledger_path(run)
    where, values = "answer IS NULL AND failure IS NOT NULL", []
    unusable = UNUSABLE if cause is None else tuple(name for name in UNUSABLE if name == cause)
    if cause is not None:
        where += " AND failure IN (SELECT id FROM errors WHERE cause = ?)"
        values.append(cast(object, cause))
    of_stage, stage_values = "", []
    if stage is not None:
        of_stage = " AND id IN (SELECT request FROM samples WHERE stage = ?)"
        stage_values.append(stage_of(run, stage)[0])
    where, values = where + of_stage, [*values, *stage_values]
    # replies that hold no answer stay in the ledger; their requests have none again
    marks = ", ".join("?" * len(unusable))
    in_vain = f"answer IN (SELECT id FROM responses WHERE outcome IN ({marks})){of_stage}"
    with held(run):
        connection = connect_writer(run)
        try:
            read = read_again(connection, where, values) if cause in (None, "unparsed") else 0
            count = connection.execute(f"UPDATE requests SET failure = NULL WHERE {where}", values).rowcount
            sql = f"UPDATE requests SET answer = NULL WHERE {in_vain}"
            count += connection.execute(sql, [*unusable, *stage_values]).rowcount
        finally:
            connection.close()
    if read:
        print(f"{read:,} stored replies can be read now and need not be asked again", file=sys.stderr)
    print(
        f"{count:,} failed requests are due again; run the same command to ask them",
        file=sys.stderr,
    )


def run_import(settings: Settings, source: str, run: Path) -> int:
    """Stores rows with an `output` as answers at no cost, under the keys that `generate` would use."""
    import asyncio

    from store.ledger import connect_writer

    with held(run):
        connect_writer(run).close()
        taken, known, empty, bad, first = asyncio.run(_import(settings, source, run))
    why = f"; the first is line {first.line}: {plain(first.reason, 200)}" if first else ""
    left_out = f"; {bad:,} bad rows left out{why}" if bad else ""
    if not (taken or known):
        raise PoolError(f"no row of {source} has an `output`; expected Alpaca's shape{left_out}")
    print(
        f"{taken:,} answers taken in, {known:,} were there already, {empty:,} rows had none{left_out}",
        file=sys.stderr,
    )
    return 0


async def _import(settings: Settings, source: str, run: Path) -> tuple[int, int, int, int, BadRow | None]:
    from engine.collect import known_keys
    from engine.feed import Feed, FeedThread, Placement
    from engine.roles import plan_of
    from engine.rows import Numbered
    from engine.sources import checked
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
        plan, is_new_stage = plan_of(settings, tokenizer), not has_rows(run, stage)

        def place(p: Placement) -> None:
            if is_new_stage and p.item is not None:
                ledger.place(stage, p.position, p.item, plan.fingerprint, p.requests, p.new)
            else:  # the rows of the stage are its pool's; only the answers are taken in
                ledger.add(p.new)

        thread = FeedThread(run, known_keys(run))
        feed = Feed(Numbered(checked(settings, Pool(source))), plan, stage, thread, place, keep_output=True)
        taken = known = empty = bad = 0
        first: BadRow | None = None
        while True:
            chunk = await feed.chunk(IMPORT_BATCH)
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
            bad += len(chunk.bad)
            first = first or next(iter(chunk.bad), None)
            await ledger.committed()
            if chunk.ended:
                thread.close()
                return taken, known, empty, bad, first
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
