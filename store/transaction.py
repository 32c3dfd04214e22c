"""What one commit of the ledger holds: rows for each table, applied in one transaction."""

import sqlite3
from asyncio import Future
from collections import defaultdict
from dataclasses import dataclass, field


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
    spending: defaultdict[int, Spending] = field(default_factory=lambda: defaultdict(Spending))  # by stage
    notes: list[tuple[str, tuple[object, ...]]] = field(default_factory=list)
    waiters: list[Future[None]] = field(default_factory=list)

    @property
    def has_work(self) -> bool:
        return bool(self.waiters or self.notes) or any(getattr(self, name) for name in _SQL)

    def apply(self, connection: sqlite3.Connection) -> None:
        """Executes everything in one transaction; raises sqlite3.Error with nothing done."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            for name, sql in _SQL.items():
                if values := getattr(self, name):
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
