"""`distill retry`: failed requests become pending again. Stored replies that no parser could read when they
came are read again first: those that can be read by now become answers."""

import contextlib
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import orjson

from engine.collect.plan import role, settings_of_stage
from engine.provider.responses import stored_answer
from engine.tasks.task import Task
from store.errors import DistillError, UsageError, is_intact
from store.queries import stage_of
from store.records import CAUSES, UNUSABLE
from store.run_folder import held, ledger_path
from store.schema import connect_writer

IF_NAMED = ("content_filter", "refusal", "length")  # outcomes that are asked again only by name


@dataclass(frozen=True, slots=True)
class Retried:
    """pending: requests that are pending again. read: stored replies that became answers."""

    pending: int
    read: int


def run_retry(run: Path, cause: str | None, stage: str | None) -> None:
    """`retry`, as the command line shows it."""
    found = retry(run, cause, stage)
    if found.read:
        print(f"{found.read:,} stored replies can be read now and need not be asked again", file=sys.stderr)
    print(
        f"{found.pending:,} failed requests are pending again: run the same command to send them",
        file=sys.stderr,
    )


def retry(run: Path, cause: str | None, stage: str | None) -> Retried:
    """Nothing is sent before the next run. Raises UsageError, RunFolderError."""
    outcomes = UNUSABLE if cause is None else tuple(o for o in (*UNUSABLE, *IF_NAMED) if o == cause)
    if cause is not None and not outcomes and cause not in CAUSES:
        known = ", ".join((*CAUSES, *UNUSABLE, *IF_NAMED))
        raise UsageError(f"--cause {cause}: unknown; there are {known}")
    ledger_path(run)
    where, values = "answer IS NULL AND failure IS NOT NULL", []
    if cause is not None:
        where += " AND failure IN (SELECT id FROM errors WHERE cause = ?)"
        values.append(cast(object, cause))
    of_stage, stage_values = "", []
    if stage is not None:
        of_stage = " AND id IN (SELECT request FROM samples WHERE stage = ?)"
        stage_values.append(stage_of(run, stage)[0])
    where, values = where + of_stage, [*values, *stage_values]
    # these replies stay in the ledger; their requests have no answer again
    marks = ", ".join("?" * len(outcomes))
    in_vain = f"answer IN (SELECT id FROM responses WHERE outcome IN ({marks})){of_stage}"
    with held(run), contextlib.closing(connect_writer(run)) as connection:
        read = read_again(connection, where, values) if cause in (None, "unparsed") else 0
        count = connection.execute(f"UPDATE requests SET failure = NULL WHERE {where}", values).rowcount
        sql = f"UPDATE requests SET answer = NULL WHERE {in_vain}"
        count += connection.execute(sql, [*outcomes, *stage_values]).rowcount
    return Retried(count, read)


_FAILED = """
SELECT a.request, a.stage, CAST(w.item AS BLOB) FROM samples a JOIN requests r ON r.id = a.request
JOIN rows w ON w.id = (a.stage << 40) + a.position JOIN errors e ON e.id = r.failure
WHERE e.cause = 'unparsed' AND r.id IN (SELECT id FROM requests WHERE {where})
"""
_REPLIES = """
SELECT p.id, p.request, CAST(b.raw AS BLOB), b.checksum FROM responses p JOIN bodies b ON b.response = p.id
WHERE p.outcome = 'unparsed' ORDER BY p.id
"""


def read_again(connection: sqlite3.Connection, where: str, values: Sequence[object]) -> int:
    """Of the failed requests that `where` selects: those with a reply that can be read by now get it
    as their answer. Returns how many."""
    tasks: dict[int, Task] = {}
    rows: dict[int, tuple[Task, bytes]] = {}
    for request, stage, item in connection.execute(_FAILED.format(where=where), values).fetchall():
        if stage not in tasks:
            tasks[stage] = role(settings_of_stage(connection, stage))
        rows[request] = (tasks[stage], item)
    found: dict[int, tuple[int, str]] = {}
    for response, request, raw, checksum in connection.execute(_REPLIES):
        if request in rows and request not in found and is_intact(raw, checksum):
            outcome = _outcome(*rows[request], raw)
            if outcome != "unparsed":
                found[request] = (response, outcome)
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for request, (response, outcome) in found.items():
            connection.execute("UPDATE responses SET outcome = ? WHERE id = ?", (outcome, response))
            connection.execute(
                "UPDATE requests SET answer = ?, failure = NULL WHERE id = ?", (response, request)
            )
    return len(found)


def _outcome(task: Task, item: bytes, raw: bytes) -> str:
    """What is damaged cannot be read now either."""
    found = stored_answer(raw)
    if found is None:
        return "unparsed"
    try:
        row = task.decode(orjson.loads(item))
    except (ValueError, LookupError, TypeError, AttributeError, DistillError):
        return "unparsed"
    return task.check(row, found[0]) if task.check else "stop"
