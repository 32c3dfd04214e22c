"""What the ledger knows of batches: rows for each, and the requests that are in them.

All writes go through the ledger's one writer and its group commits; the reads are short. A
request leaves `enqueued` in the transaction that stores its result, so that results can be read
again from the start after a kill. Knows nothing of providers.
"""

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from store.ledger import Ledger
from store.queries import connect_reader
from store.schema import STAGE_SHIFT

INTENDED, WITHDRAWN = "intended", "withdrawn"


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch that is not closed. `price` is JSON; `tokens` are prompt tokens."""

    id: int
    run: int
    stage: int
    plan: int
    base_url: str
    price: str
    requests: int
    bytes: int
    tokens: int
    worst_micro: int
    intended_at: float
    input_file: str | None = None
    tried_at: float | None = None
    remote: str | None = None
    status: str = INTENDED


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A request in a batch that has no result yet."""

    attempt: int
    request: int
    key: bytes
    sample: int
    prompt_tokens: int
    worst: int
    tries: int


_COLUMNS = (
    "id, run, stage, plan, base_url, price, requests, bytes, tokens, worst_micro, intended_at, "
    "input_file, tried_at, remote, status"
)


def folder_id(reader: sqlite3.Connection) -> str:
    """The random id of the run folder."""
    (value,) = reader.execute("SELECT value FROM facts WHERE name = 'folder'").fetchone()
    return str(value)


def open_batches(reader: sqlite3.Connection) -> list[BatchRow]:
    rows = reader.execute(f"SELECT {_COLUMNS} FROM batches WHERE closed_at IS NULL ORDER BY id")
    return [BatchRow(*row) for row in rows]


def has_batches(run: Path, stage: int) -> bool:
    """Whether any batch of the stage is open."""
    reader = connect_reader(run)
    try:
        sql = "SELECT 1 FROM batches WHERE closed_at IS NULL AND stage = ? LIMIT 1"
        return bool(reader.execute(sql, (stage,)).fetchone())
    finally:
        reader.close()


class Items:
    """The rows of the requests in a batch, for tasks that read a reply beside its row."""

    def __init__(self, reader: sqlite3.Connection) -> None:
        self._reader = reader

    def load(self, row: BatchRow) -> None:
        """Notes where they stand, on disk (nothing leads from a request to its row)."""
        self._reader.execute(
            "CREATE TEMP TABLE IF NOT EXISTS asked (request INTEGER PRIMARY KEY, place INTEGER)"
        )
        self._reader.execute(
            "INSERT OR IGNORE INTO temp.asked SELECT a.request, (a.stage << ?) + a.position FROM samples a "
            "WHERE a.stage = ? AND a.request IN (SELECT request FROM enqueued WHERE batch = ?)",
            (STAGE_SHIFT, row.stage, row.id),
        )
        self._reader.commit()

    def find(self, row: BatchRow, request: int) -> dict[str, Any]:
        sql = "SELECT w.item FROM temp.asked t JOIN rows w ON w.id = t.place WHERE t.request = ?"
        return cast(dict[str, Any], orjson.loads(self._reader.execute(sql, (request,)).fetchone()[0]))


def enqueued_in(reader: sqlite3.Connection, batch: int) -> list[Enqueued]:
    rows = reader.execute(
        "SELECT e.attempt, e.request, r.key, r.sample, r.prompt_tokens, a.worst_micro, e.tries "
        "FROM enqueued e JOIN requests r ON r.id = e.request JOIN attempts a ON a.id = e.attempt "
        "WHERE e.batch = ?",
        (batch,),
    )
    return [Enqueued(*row) for row in rows]


def intend(ledger: Ledger, row: BatchRow, requests: Sequence[tuple[int, int, int]]) -> None:
    """Puts a batch down with its requests, (id, worst, tries) each: one commit, before any upload."""
    marks = ", ".join("?" * 15)
    values = tuple(getattr(row, name) for name in _COLUMNS.split(", "))
    ledger.note(f"INSERT INTO batches ({_COLUMNS}) VALUES ({marks})", *values)
    for request, worst, tries in requests:
        attempt = ledger.journal(row.run, row.stage, request, worst)
        ledger.note("INSERT INTO enqueued VALUES (?, ?, ?, ?)", attempt, row.id, request, tries)


def uploaded(ledger: Ledger, batch: int, file: str) -> None:
    ledger.note("UPDATE batches SET input_file = ? WHERE id = ?", file, batch)


def trying(ledger: Ledger, batch: int, at: float) -> None:
    """The provider is about to be asked to make it: from now on it may exist."""
    ledger.note("UPDATE batches SET tried_at = ? WHERE id = ?", at, batch)


def submitted(ledger: Ledger, batch: int, remote: str, status: str) -> None:
    ledger.note("UPDATE batches SET remote = ?, status = ? WHERE id = ?", remote, status, batch)


def held_back(ledger: Ledger, batch: int) -> None:
    """The provider would not enqueue it: what was made there is dead, its file may be used again."""
    ledger.note("UPDATE batches SET remote = NULL, tried_at = NULL, status = ? WHERE id = ?", INTENDED, batch)


def moved(ledger: Ledger, batch: int, status: str) -> None:
    ledger.note("UPDATE batches SET status = ? WHERE id = ?", status, batch)


def settled(ledger: Ledger, attempt: int) -> None:
    """A request's result is stored, in this same commit."""
    ledger.note("DELETE FROM enqueued WHERE attempt = ?", attempt)


def closed(ledger: Ledger, batch: int, status: str) -> None:
    ledger.note("UPDATE batches SET closed_at = ?, status = ? WHERE id = ?", time.time(), status, batch)


def withdraw(ledger: Ledger, row: BatchRow, status: str = WITHDRAWN) -> None:
    """Takes back a batch of which nothing was asked: its requests were never sent."""
    mine = "(SELECT attempt FROM enqueued WHERE batch = ?)"
    ledger.note(
        f"UPDATE spending SET sent = sent - (SELECT count(*) FROM {mine}), at_risk_micro = at_risk_micro - "
        f"(SELECT ifnull(sum(worst_micro), 0) FROM attempts WHERE id IN {mine}) WHERE stage = ?",
        row.id, row.id, row.stage,
    )  # fmt: skip
    ledger.note(f"DELETE FROM attempts WHERE id IN {mine}", row.id)
    ledger.note("DELETE FROM enqueued WHERE batch = ?", row.id)
    closed(ledger, row.id, status)


def open_batches_told(reader: sqlite3.Connection) -> list[dict[str, object]]:
    """Open batches as `status --json` shows them."""
    rows = reader.execute(
        "SELECT b.id, s.name, b.status, b.requests, b.requests - (SELECT count(*) FROM enqueued e "
        "WHERE e.batch = b.id), b.remote FROM batches b JOIN stages s ON s.id = b.stage "
        "WHERE b.closed_at IS NULL ORDER BY b.id"
    )
    names = ("batch", "stage", "status", "requests", "read", "id")
    return [dict(zip(names, row, strict=True)) for row in rows]


def enqueued_count(reader: sqlite3.Connection, stage: int) -> int:
    sql = "SELECT count(*) FROM enqueued e JOIN batches b ON b.id = e.batch WHERE b.stage = ?"
    return int(reader.execute(sql, (stage,)).fetchone()[0])
