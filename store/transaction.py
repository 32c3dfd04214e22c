"""What one commit of the ledger holds: rows for each table, applied in one transaction."""

import sqlite3
import zlib
from asyncio import Future
from dataclasses import dataclass, field

from store.records import Fault, Request, Response


@dataclass(slots=True)
class Spending:
    """What a commit adds to a stage's account; money in micro-dollars."""

    spent: int = 0
    at_risk: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    sent: int = 0
    ended: int = 0


@dataclass(slots=True)
class Transaction:
    """Grows on the event loop, is applied once by the writer thread."""

    rows: list[tuple[int, bytes, int, int]] = field(default_factory=list)
    samples: list[tuple[int, int, int, int]] = field(default_factory=list)
    requests: list[tuple[int, bytes, int, int]] = field(default_factory=list)
    attempts: list[tuple[int, int, int, float, int, int | None]] = field(default_factory=list)
    responses: list[tuple[object, ...]] = field(default_factory=list)
    bodies: list[tuple[object, ...]] = field(default_factory=list)
    errors: list[tuple[int, int, int, str, int | None, str, float, int]] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)
    failures: list[tuple[int, int]] = field(default_factory=list)
    spending: dict[int, Spending] = field(default_factory=dict)
    notes: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)
    waiters: list[Future[None]] = field(default_factory=list)

    def account(self, stage: int) -> Spending:
        return self.spending.setdefault(stage, Spending())

    def add_request(self, request: Request) -> None:
        self.requests.append((request.id, request.key, request.sample, request.prompt_tokens))

    def add_response(self, number: int, attempt: int, request: int, response: Response, at: float) -> None:
        usage = response.usage
        self.responses.append(
            (
                number,
                attempt,
                request,
                response.outcome,
                _storable(response.finish_reason),
                _storable(response.served_model),
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.cached_tokens,
                usage.reasoning_tokens,
                response.cost_micro,
                response.latency,
                at,
                usage.cache_write_tokens,
                response.service_tier,
                response.listed_micro,
                response.estimated,
            )
        )
        checksum = zlib.crc32(response.raw)
        self.bodies.append((number, _as_text(response.raw), response.text, response.reasoning, checksum))

    def add_error(
        self, number: int, attempt: int, request: int, fault: Fault, at: float, at_risk: int
    ) -> None:
        words = _storable(fault.words)
        self.errors.append((number, attempt, request, fault.cause, fault.status, words, at, at_risk))

    def apply(self, connection: sqlite3.Connection) -> None:
        """Executes everything in one transaction; raises sqlite3.Error with nothing done."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            for sql, values in self._statements():
                if values:
                    connection.executemany(sql, values)
            for stage, s in self.spending.items():
                connection.execute(
                    _SPEND,
                    (
                        stage,
                        s.spent,
                        s.at_risk,
                        s.prompt_tokens,
                        s.completion_tokens,
                        s.sent,
                        s.ended,
                    ),
                )
            for sql, note in self.notes:
                connection.execute(sql, note)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _statements(self) -> list[tuple[str, list[tuple[object, ...]]]]:
        tables: list[tuple[str, list[tuple[object, ...]]]] = []
        for name, sql in _SQL.items():
            tables.append((sql, getattr(self, name)))
        return tables


def _storable(text: str) -> str:
    """SQLite takes no lone surrogates."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _as_text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


_SQL = {
    "rows": "INSERT OR REPLACE INTO rows VALUES (?, CAST(? AS TEXT), ?, ?)",
    "samples": "INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?)",
    "requests": "INSERT INTO requests VALUES (?, ?, ?, ?, NULL, NULL)",
    "attempts": "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?)",
    "responses": "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    "bodies": "INSERT INTO bodies VALUES (?, ?, ?, ?, ?)",
    "errors": "INSERT INTO errors VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "answers": "UPDATE requests SET answer = ?, failure = NULL WHERE id = ?",
    "failures": "UPDATE requests SET failure = ? WHERE id = ?",
}
_SPEND = """
INSERT INTO spending VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (stage) DO UPDATE SET
  spent_micro = spent_micro + excluded.spent_micro,
  at_risk_micro = at_risk_micro + excluded.at_risk_micro,
  prompt_tokens = prompt_tokens + excluded.prompt_tokens,
  completion_tokens = completion_tokens + excluded.completion_tokens,
  sent = sent + excluded.sent, ended = ended + excluded.ended
"""
