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

from engine.collect.other_settings import Other, counting, differences
from engine.terminal import Column, plain, print_columns, tell
from store.errors import UsageError
from store.failures import Alike, Failure, alike, failures, stop_reason
from store.provider_batches import enqueued_count, open_batches_told
from store.queries import connect_reader, endpoint_accounts, last_runs, stage_of, stage_status, stages
from store.records import CAUSES, UNUSABLE
from store.run_folder import holder
from store.step_records import steps_told


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
            if others := _others(reader, number):
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


def _others(reader: sqlite3.Connection, stage: int) -> Sequence[Other]:
    """Answers under other settings; none where a damaged ledger does not know the settings."""
    try:
        return counting(reader, stage).others
    except UsageError:
        return ()


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
        raise UsageError(f"--cause {cause}: unknown; there are {', '.join((*CAUSES, *UNUSABLE))}")
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
