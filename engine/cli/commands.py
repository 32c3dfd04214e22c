"""The smaller commands: estimate and retry. Each reads as its help says.

`retry` first reads the stored replies again that no parser could read when they came.
"""

import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import orjson

from engine.collect.plan import role, settings_of_stage
from engine.collect.settings import Settings
from engine.provider.responses import stored_answer
from engine.tasks.task import Task

if TYPE_CHECKING:
    from engine.collect.rows import Surveyed
from store.errors import DistillError, UsageError, is_intact
from store.queries import stage_of
from store.records import CAUSES, UNUSABLE
from store.run_folder import held, ledger_path

IF_NAMED = ("content_filter", "refusal", "length")  # outcomes that are asked again only by name


def send_pilot(
    settings: Settings,
    pool: "Surveyed",
    run: Path | None,
    rows: int,
    yes: bool,
    quiet: bool,
    confirm: Callable[[str], bool],
) -> int:
    """`estimate --pilot`: sends rows drawn at random, and returns how many have ended. Raises UsageError."""
    from engine.run.collect import run_pilot

    _check_file(pool)
    if run is None:
        raise UsageError("--pilot needs --run DIR: the answers that it buys are kept there")
    if rows < 1:
        raise UsageError(f"--pilot {rows}: must be at least 1 row")
    online = settings.model_copy(update={"batch": False})  # a pilot is for now, not for tomorrow
    result = run_pilot(online, pool, run, rows, yes, quiet, confirm)
    if result.stopped:
        raise result.stopped
    return result.state.ended


def _check_file(pool: "Surveyed") -> None:
    if pool.is_stream:
        raise UsageError("estimate reads its pool more than once: give a file, not a pipe")


def run_estimate(settings: Settings, pool: "Surveyed", run: Path | None, sent: int, as_json: bool) -> int:
    """`estimate`: on stdout a table or one JSON object. sent: rows of the pilot."""
    from engine.run.collect import budget_warning, estimate_stage
    from engine.run.tables import print_estimate

    _check_file(pool)
    told, found = estimate_stage(settings, pool, run, sent)
    if as_json:
        shown = {**told.as_json(), "other_settings": found.as_json()}
        sys.stdout.write(orjson.dumps(shown).decode() + "\n")
        return 0
    print_estimate(told, settings, to_stdout=True, batch=settings.batch)
    if warning := budget_warning(run, settings.budget, told.cost_as_asked(settings.batch)):
        print(warning)
    if found.others:
        print(f"{found.words}: generate will want --reuse, --replace or another --stage")
    return 0


def run_retry(run: Path, cause: str | None, stage: str | None) -> None:
    """Makes failed requests pending again; stored replies that can be parsed by now become answers."""
    from store.schema import connect_writer

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
    with held(run):
        connection = connect_writer(run)
        try:
            read = read_again(connection, where, values) if cause in (None, "unparsed") else 0
            count = connection.execute(f"UPDATE requests SET failure = NULL WHERE {where}", values).rowcount
            sql = f"UPDATE requests SET answer = NULL WHERE {in_vain}"
            count += connection.execute(sql, [*outcomes, *stage_values]).rowcount
        finally:
            connection.close()
    if read:
        print(f"{read:,} stored replies can be read now and need not be asked again", file=sys.stderr)
    print(
        f"{count:,} failed requests are pending again: run the same command to send them",
        file=sys.stderr,
    )


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
