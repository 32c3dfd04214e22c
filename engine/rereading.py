"""Reads stored replies again that no parser could read when they came: a better one costs no second call."""

import sqlite3
from collections.abc import Sequence

import orjson

from engine.replies import stored_answer
from engine.roles import role, settings_of_stage
from engine.tasks.task import Task
from store.damages import is_intact
from store.errors import DistillError

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
