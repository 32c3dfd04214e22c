"""A stage's rows: their positions, their counts by settings (`rows.plan`), and those that failed, with why.

Plans are known by fingerprint only; the runs of the stage tell what these stand for. Why a row failed is in
the server's own message, or what the replies held instead of an answer. Why a stage was stopped is kept among
the folder's facts, one for each stage.
"""

import json
import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from store.records import UNUSABLE
from store.schema import STAGE_SHIFT

PAGE = 4096


def stage_facts(reader: sqlite3.Connection, name: str) -> tuple[int, int] | None:
    """(number, samples of each row) of a stage that has rows; None where it has none, or is new."""
    has_rows = "EXISTS (SELECT 1 FROM samples WHERE stage = s.id)"
    row = reader.execute(
        f"SELECT id, samples FROM stages s WHERE name = ? AND {has_rows}", (name,)
    ).fetchone()
    return (int(row[0]), int(row[1])) if row else None


def end_of(reader: sqlite3.Connection, stage: int) -> int:
    """One more than the highest position."""
    sql = "SELECT ifnull(max(position), -1) + 1 FROM samples WHERE stage = ?"
    return int(reader.execute(sql, (stage,)).fetchone()[0])


def first_requests(reader: sqlite3.Connection, stage: int) -> Iterator[int]:
    """The request of each row's first sample."""
    found = reader.execute("SELECT request FROM samples WHERE stage = ? AND sample = 0", (stage,))
    while some := found.fetchmany(PAGE):
        yield from (request for (request,) in some)


def one_row_of_each_plan(
    reader: sqlite3.Connection, stage: int, but: Sequence[int]
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """(row, key of its first sample) of a row for each plan under which rows stand, `but` these."""
    firsts = (
        "SELECT min(id) AS id FROM rows WHERE id >= ? AND id < ? "
        f"AND plan NOT IN ({', '.join('?' * len(but))}) GROUP BY plan"
    )
    found = reader.execute(
        f"SELECT w.item, r.key FROM ({firsts}) p JOIN rows w ON w.id = p.id "
        "JOIN samples a ON a.stage = ? AND a.position = w.id - ? AND a.sample = 0 "
        "JOIN requests r ON r.id = a.request",
        (stage << STAGE_SHIFT, (stage + 1) << STAGE_SHIFT, *but, stage, stage << STAGE_SHIFT),
    )
    for item, key in found:
        yield cast(dict[str, Any], orjson.loads(item)), key


def answer_to(reader: sqlite3.Connection, request: int) -> bytes | None:
    """The raw body of the reply that counts."""
    sql = "SELECT b.raw FROM requests r JOIN bodies b ON b.response = r.answer WHERE r.id = ?"
    row = reader.execute(sql, (request,)).fetchone()
    if row is None:
        return None
    return row[0].encode() if isinstance(row[0], str) else row[0]


def rows_and_pending(reader: sqlite3.Connection, stage: int) -> tuple[int, int]:
    """How many rows the stage has, and how many samples of them are still to be asked for."""
    sql = (
        "SELECT count(*) FILTER (WHERE a.sample = 0), "
        "count(*) FILTER (WHERE r.answer IS NULL AND r.failure IS NULL) "
        "FROM samples a JOIN requests r ON r.id = a.request WHERE a.stage = ?"
    )
    rows, pending = reader.execute(sql, (stage,)).fetchone()
    return int(rows), int(pending)


_UNUSABLE = ", ".join(repr(outcome) for outcome in UNUSABLE)
_OF_PLANS = f"""
FROM rows w WHERE w.id >= ? AND w.id < ? AND w.plan IN ({{plans}}) AND EXISTS (
  SELECT 1 FROM samples a JOIN requests r ON r.id = a.request JOIN responses p ON p.id = r.answer
  WHERE a.stage = ? AND a.position = w.id - ? AND p.outcome NOT IN ({_UNUSABLE}))
"""
_ANSWERED = f"SELECT w.plan, count(*) {_OF_PLANS} GROUP BY w.plan"
_ANSWERED_ITEMS = f"SELECT w.item {_OF_PLANS}"
# (CROSS JOIN: row by row. The other way round every sample would walk through all rows.)
_EXAMPLE = """
SELECT w.item, a.sample, r.key FROM rows w
CROSS JOIN samples a ON a.stage = ? AND a.position = w.id - ? JOIN requests r ON r.id = a.request
WHERE w.id >= ? AND w.id < ? AND w.plan = ? AND r.answer IS NOT NULL LIMIT 1
"""


def rows_by_plan(reader: sqlite3.Connection, stage: int) -> dict[int, int]:
    """How many rows a stage has under each plan."""
    sql = "SELECT plan, count(*) FROM rows WHERE id >= ? AND id < ? GROUP BY plan"
    return dict(reader.execute(sql, _bounds(stage)).fetchall())


def answered_by_plan(reader: sqlite3.Connection, stage: int, plans: Collection[int]) -> dict[int, int]:
    """Of these plans, how many rows have a usable answer to at least one sample."""
    if not plans:
        return {}
    sql = _ANSWERED.format(plans=", ".join("?" * len(plans)))
    values = (*_bounds(stage), *plans, stage, stage << STAGE_SHIFT)
    return dict(reader.execute(sql, values).fetchall())


def answered_row(reader: sqlite3.Connection, stage: int, plan: int) -> tuple[Any, int, bytes] | None:
    """A row that has an answer under a plan: its item, the sample's number and the request's key."""
    base = stage << STAGE_SHIFT
    row = reader.execute(_EXAMPLE, (stage, base, *_bounds(stage), plan)).fetchone()
    return None if row is None else (orjson.loads(row[0]), row[1], row[2])


def items_of(reader: sqlite3.Connection, stage: int, plans: Collection[int]) -> Iterator[Any]:
    """The rows of a stage under these plans that have a usable answer."""
    sql = _ANSWERED_ITEMS.format(plans=", ".join("?" * len(plans)))
    for (item,) in reader.execute(sql, (*_bounds(stage), *plans, stage, stage << STAGE_SHIFT)):
        yield orjson.loads(item)


def settings_of_runs(reader: sqlite3.Connection, stage: int) -> Iterator[dict[str, Any]]:
    """The settings of a stage's runs, the newest first. Of a damaged ledger, those that can be read."""
    sql = "SELECT settings FROM runs WHERE stage = ? ORDER BY id DESC"
    for (text,) in reader.execute(sql, (stage,)):
        try:
            settings = orjson.loads(text)
        except ValueError:
            continue
        if isinstance(settings, dict):
            yield settings


def stage_number(reader: sqlite3.Connection, name: str) -> int | None:
    row = reader.execute("SELECT id FROM stages WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def _bounds(stage: int) -> tuple[int, int]:
    return stage << STAGE_SHIFT, (stage + 1) << STAGE_SHIFT


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
LEFT JOIN responses p ON p.id = r.answer AND p.outcome IN ({_UNUSABLE})
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
