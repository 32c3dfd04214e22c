"""Rows that failed and why: the server's own message, or what the replies held instead of an answer.

Also why a stage was stopped. That is kept among the folder's facts, one for each stage.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from store.records import UNUSABLE
from store.schema import STAGE_SHIFT

STOPPED = "stopped stage "  # the beginning of a fact's name
IDS_KEPT = 5  # of rows that failed alike
_VARYING = re.compile(r"[0-9a-f]{8,}|\d+|req[_-]\w+", re.IGNORECASE)  # of messages that mean the same
_FAILED = f"""
SELECT s.name, a.position, a.sample,
  CASE WHEN json_valid(w.item) THEN json_extract(w.item, '$.id') END,
  CASE WHEN json_valid(w.item) THEN json_extract(w.item, '$.instruction') END,
  e.cause, e.status, e.message, e.at, p.outcome, p.finish_reason, p.received_at
FROM samples a JOIN stages s ON s.id = a.stage
JOIN rows w ON w.id = (a.stage << {STAGE_SHIFT}) + a.position
JOIN requests r ON r.id = a.request
LEFT JOIN errors e ON e.id = r.failure AND r.answer IS NULL
LEFT JOIN responses p ON p.id = r.answer AND p.outcome IN ({", ".join(f"'{name}'" for name in UNUSABLE)})
WHERE (e.id IS NOT NULL OR p.id IS NOT NULL) AND a.stage = ? ORDER BY a.position, a.sample
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample of a row that has failed. cause: as `retry --cause` takes it; status: of HTTP, if there was
    one; at: Unix seconds."""

    stage: str
    position: int
    sample: int
    id: str
    instruction: str
    cause: str
    status: int | None
    message: str
    at: float


@dataclass(slots=True)
class Alike:
    """Failures with the same cause and, but for numbers in it, the same message; with the first ids."""

    cause: str
    message: str
    rows: int = 0
    ids: list[str] = field(default_factory=list)


def failures(reader: sqlite3.Connection, stage: int) -> Iterator[Failure]:
    """In the order of the pool."""
    for row in reader.execute(_FAILED, (stage,)):
        name, position, sample, id, instruction, cause, status, message, at, outcome, reason, received = row
        if cause is None:
            message = f"the reply holds no answer (finish_reason {reason or 'not given'})"
        yield Failure(
            name, position, sample, str(position + 1 if id is None else id), str(instruction or ""),
            cause or outcome, status, message, at or received,
        )  # fmt: skip


def alike(found: Iterable[Failure]) -> list[Alike]:
    """The most frequent first."""
    groups: dict[tuple[str, str], Alike] = {}
    for one in found:
        key = one.cause, _VARYING.sub("#", one.message)
        group = groups.setdefault(key, Alike(one.cause, one.message))
        group.rows += 1
        if len(group.ids) < IDS_KEPT:
            group.ids.append(one.id)
    return sorted(groups.values(), key=lambda group: -group.rows)


def note_stop(stage: int, run: int, reason: str) -> tuple[str, str, str]:
    """The statement, with its values, that keeps why a run of a stage was stopped."""
    told = json.dumps({"run": run, "reason": reason})
    return "INSERT OR REPLACE INTO facts VALUES (?, ?)", f"{STOPPED}{stage}", told


def stop_reason(reader: sqlite3.Connection, stage: int, run: int) -> str | None:
    """Why this run of the stage was stopped, if it was and is the newest that was."""
    row = reader.execute("SELECT value FROM facts WHERE name = ?", (f"{STOPPED}{stage}",)).fetchone()
    return stop_reason_in(row[0] if row else None, run)


def stop_reason_in(fact: str | None, run: int) -> str | None:
    """The same of the fact's value."""
    try:
        told = json.loads(fact or "{}")
        return str(told["reason"]) if told.get("run") == run else None
    except (ValueError, LookupError, AttributeError):  # of a damaged ledger
        return None
