"""What a run folder holds: done, failed by cause, spent, unanswered, utilisation, changed settings; and the
rows that failed, with the server's messages."""

import contextlib
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from engine.collect.other_settings import counting, differences
from engine.terminal import (
    Cell,
    Column,
    counted,
    dollars,
    duration,
    plain,
    print_columns,
    show,
    tell,
)
from store.errors import UsageError
from store.provider_batches import enqueued_count, open_batches_told
from store.queries import connect_reader, endpoint_accounts, last_runs, stage_of, stage_status, stages
from store.records import CAUSES, UNUSABLE
from store.run_folder import holder, steps_told
from store.stage_rows import Alike, Failure, alike, failures, stop_reason


def status_of(run: Path) -> dict[str, Any]:
    """As `status --json` prints it. Raises RunFolderError where there is no ledger."""
    reader = connect_reader(run)
    try:
        reader.execute("BEGIN")
        found: dict[str, Any] = {"stages": {}, "changed": {}, "other_settings": {}}
        found["endpoints"] = endpoint_accounts(reader)
        newest: dict[str, Any] | None = None
        found["batches"] = open_batches_told(reader)
        process = holder(run)
        found["running"] = process is not None
        for number, name in stages(reader):
            found["stages"][name] = stage_status(reader, number)
            found["stages"][name]["unanswered"] -= enqueued_count(reader, number)
            with contextlib.suppress(UsageError):  # a damaged ledger does not know the settings
                if others := counting(reader, number).others:
                    found["other_settings"][name] = sum(other.rows for other in others)
            runs = last_runs(reader, number, 2)
            if runs and (newest is None or runs[0]["id"] > newest["id"]):
                newest = runs[0]
            found["stages"][name]["last_run"] = _last_run(reader, number, runs, process)
            known = [run for run in runs if run["settings"]]  # all but those of a damaged ledger
            if len(known) == 2 and (changes := differences(runs[1]["settings"], runs[0]["settings"])):
                found["changed"][name] = changes
    finally:
        reader.close()
    every = found["stages"].values()
    found["spent_usd"] = sum(s["cost_usd"] for s in every)
    found["at_risk_usd"] = sum(s["at_risk_usd"] for s in every)
    found["unanswered"] = sum(s["unanswered"] for s in every)
    used = (newest or {}).get("utilisation") or {}
    found["utilisation"] = {name: used.get(name) for name in ("requests", "tokens")}
    for url, account in found["endpoints"].items():
        account["utilisation"] = used.get("endpoints", {}).get(url, {})
    found["steps"] = steps_told(run)
    found["estimate"] = (newest or {}).get("estimate")
    return found


def _last_run(
    reader: sqlite3.Connection, stage: int, runs: Sequence[dict[str, Any]], process: int | None
) -> dict[str, Any]:
    """When it began and ended, and why if it was stopped early. `ended` is null while it runs, and for ever
    if its process was killed."""
    if not runs:
        return {"started": None, "ended": None, "exit_code": None, "running": False, "reason": None}
    last = runs[0]
    found = {name: last[name] for name in ("started", "ended", "exit_code")}
    found["running"] = last["ended"] is None and process in (0, last["pid"])
    found["reason"] = stop_reason(reader, stage, last["id"]) if last["exit_code"] else None
    return found


def failed_alike(run: Path, status: Mapping[str, Any]) -> dict[str, list[Alike]]:
    """By stage, what the server said of rows that failed."""
    reader = connect_reader(run)
    try:
        return {
            name: alike(failures(reader, number))
            for number, name in stages(reader)
            if status["stages"][name]["failed"] or status["stages"][name]["unusable"]["replies"]
        }
    finally:
        reader.close()


SHOWN = 100  # failures that people are shown


def failures_of(run: Path, stage: str | None = None, cause: str | None = None) -> Iterator[Failure]:
    """The rows that failed, one by one. Raises UsageError."""
    if cause is not None and cause not in (*CAUSES, *UNUSABLE):
        raise UsageError(f"--cause {cause}: unknown; choose from {', '.join((*CAUSES, *UNUSABLE))}")
    chosen = stage_of(run, stage) if stage is not None else None
    with contextlib.closing(connect_reader(run)) as reader:
        numbers = [chosen[0]] if chosen else [number for number, _ in stages(reader)]
    return _failures(run, numbers, cause)


def _failures(run: Path, numbers: Sequence[int], cause: str | None) -> Iterator[Failure]:
    with contextlib.closing(connect_reader(run)) as reader:
        for number in numbers:
            yield from (one for one in failures(reader, number) if cause in (None, one.cause))


def list_failures(run: Path, stage: str | None, cause: str | None, as_json: bool) -> None:
    """`failures`: each row that failed, on stdout. Raises UsageError."""
    found = failures_of(run, stage, cause)
    if as_json:
        lines = (orjson.dumps(asdict(one)).decode() for one in found)
        sys.stdout.write('{"failures":[')
        sys.stdout.writelines(f"{',' * (n > 0)}{line}" for n, line in enumerate(lines))
        sys.stdout.write("]}\n")
        return
    first = list(islice(found, SHOWN))
    more = sum(1 for _ in found)
    if not first:
        tell("no row has failed\n" if cause is None else f"no row has failed for the cause {cause}\n")
        return
    columns = [Column(head, is_text=True) for head in ("stage", "row", "cause", "at")]
    rows = [
        [
            plain(one.stage, 24),
            plain(one.id, 24) + (f" (sample {one.sample})" if one.sample else ""),
            one.cause + (f" {one.status}" if one.status else ""),
            time.strftime("%m-%d %H:%M", time.localtime(one.at)),
            plain(one.message, 600),
        ]
        for one in first
    ]
    print_columns([*columns, Column("message", is_text=True, wraps=True)], rows)
    if more:
        tell(f"and {more:,} more (--json lists all)\n")


def print_status(status: Mapping[str, Any], run: Path, failed: Mapping[str, Sequence[Alike]]) -> None:
    """`status` for people, on stdout. failed: by stage, what was said of the rows that failed."""
    from rich.text import Text  # `status --json` starts without it

    from engine.run.tables import done_of

    columns = [
        Column("stage", is_text=True), Column("done"), Column("failed", is_text=True, wraps=True),
        Column("outcomes", is_text=True, wraps=True), Column("tokens in"), Column("tokens out"),
        Column("cost"),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            plain(name, 40),
            done_of(s["done"], s["total"]),
            ", ".join(f"{c} {n:,}" for c, n in s["failed"].items()) or "0",
            ", ".join(f"{o} {n:,}" for o, n in s["outcomes"].items()) or "-",
            s["prompt_tokens"],
            s["completion_tokens"],
            dollars(s["cost_usd"]),
        ]
        for name, s in status["stages"].items()
    ]
    print_columns(columns, rows)
    for line in _status_lines(status, run, failed):
        show(Text(line))


def _status_lines(
    status: Mapping[str, Any], run: Path, failed: Mapping[str, Sequence[Alike]]
) -> Iterator[str]:
    """What the table does not hold, in the order in which people ask."""
    from engine.run.results import spent_in_vain
    from engine.run.tables import failed_words, used_words

    yield from _how_stopped(status)
    for name, groups in failed.items():
        yield from failed_words(f"stage {plain(name, 40)}", groups)
    if any(failed.values()):
        yield f"all of them: distill failures --run {run}; send them again: distill retry --run {run}"
    for name, s in status["stages"].items():
        yield from (f"stage {plain(name, 40)}: {words}" for words in spent_in_vain(s))
    used = used_words(status["utilisation"])
    yield f"spent {dollars(status['spent_usd'])}" + (f"; of the limit: {', '.join(used)}" if used else "")
    for url, e in status["endpoints"].items():
        if e["answered"] or e["cost_usd"]:
            limits = used_words(e["utilisation"])
            of_limit = f"; of its limit: {', '.join(limits)}" if limits else ""
            yield f"{plain(url, 100)}: {e['answered']:,} answers, {dollars(e['cost_usd'])}{of_limit}"
    for b in status["batches"]:
        yield (
            f"batch {b['batch']} of {plain(str(b['stage']), 40)}: {plain(str(b['status']), 40)}, "
            f"{b['read']:,} of {b['requests']:,} requests have their result"
        )
    for name, step in status["steps"].items():
        said = f"done in {duration(step['seconds'])}" if step["done"] else "not done"
        yield f"step {plain(name, 40)}: {step['run']}, {said}"
    if status["unanswered"]:
        count = f"{status['unanswered']:,} request{'s' * (status['unanswered'] != 1)}"
        if status["running"]:
            yield f"{count} in flight now, or lost when an earlier process ended"
        else:
            yield f"{count} sent and lost when the process ended: without an answer, and pending again"
    if status["at_risk_usd"]:
        worst = f"at most {dollars(status['at_risk_usd'])} may have been billed"
        yield f"{worst} for requests without an answer (distill settle lists them)"
    for name, changes in status["changed"].items():
        yield f"{plain(name, 40)}: keys differ from the run before: {plain('; '.join(changes), 400)}"
    for name, count in status["other_settings"].items():
        rows = "1 row has" if count == 1 else f"{count:,} rows have"
        words = f"{rows} an answer under other settings than the last run's"
        yield f"{plain(name, 40)}: {words}; an export leaves them out"
    for name, s in status["stages"].items():
        if s["damaged"]:
            yield f"{plain(name, 40)}: {counted(s['damaged'], 'damaged answer')} (distill check says more)"
    if bad := sum(s["bad_rows"] for s in status["stages"].values()):
        yield f"{counted(bad, 'pool row')} could not be used"


def _how_stopped(status: Mapping[str, Any]) -> Iterator[str]:
    """Stages that are not complete: whether they run, or why they do not. Those of one fate together."""
    fates: dict[str, list[str]] = {}
    for name, s in status["stages"].items():
        last, pending = s["last_run"], s["pending"]
        rows = "rows are still to be counted" if pending is None else f"{pending:,} pending"
        if last["running"]:
            fate = "running"
        elif last["ended"] is None and last["started"]:
            fate = "its process was killed or crashed; run the same command to continue"
        elif last["exit_code"] in (0, 1, None) or not (pending or last["reason"]):
            continue
        else:
            fate = plain(last["reason"] or "stopped early; the reason was not kept", 600)
        fates.setdefault(fate, []).append(f"{plain(name, 40)} ({rows})")
    for fate, names in fates.items():
        yield f"{'stages' if len(names) > 1 else 'stage'} {', '.join(names)}: {fate}"
