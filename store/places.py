"""Where the rows of a stage stand, read for whoever adds rows to a stage that may have some already."""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, cast

import orjson

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
