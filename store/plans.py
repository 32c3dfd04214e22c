"""Counts the rows of a stage by the settings that they belong to (`rows.plan`). Read-only.

Knows plans by their fingerprints alone; what these stand for, the runs of the stage tell.
"""

import sqlite3
from collections.abc import Collection, Iterator
from typing import Any

import orjson

from store.records import UNUSABLE
from store.schema import STAGE_SHIFT

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
