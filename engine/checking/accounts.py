"""Whether the accounts of stages hold what their replies add up to, and every reply knows its attempt.

An account may hold more than the replies show where replies are lost: that was spent all the same.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from store.doubt import billed_by_hand

MOST = 10**15  # micro-dollars, tokens; an account beyond this is damaged

# What the replies of each stage add up to, and its attempts and those of them that have ended.
_REPLIES = """
SELECT u.stage, sum(p.cost_micro), sum(p.prompt_tokens), sum(p.completion_tokens) FROM responses p
JOIN attempts t ON t.id = p.attempt JOIN runs u ON u.id = t.run
WHERE p.id NOT IN (SELECT response FROM temp.figureless) GROUP BY 1
"""
_ATTEMPTS = """
SELECT u.stage, count(*), sum(t.id IN (SELECT attempt FROM responses) OR t.id IN (SELECT attempt FROM errors)
  OR t.id IN (SELECT attempt FROM settlements)) FROM attempts t JOIN runs u ON u.id = t.run GROUP BY 1
"""
_LOST = "SELECT ifnull(max(id), 0) - count(*) FROM responses"
# References that nothing else of the check looks at: (what it is, what it names, and where it is named).
LOOSE = (
    ("responses", "attempt", "attempts"), ("errors", "attempt", "attempts"), ("attempts", "run", "runs"),
    ("runs", "stage", "stages"), ("samples", "stage", "stages"), ("enqueued", "attempt", "attempts"),
    ("enqueued", "batch", "batches"), ("batches", "stage", "stages"), ("settlements", "attempt", "attempts"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Account:
    """A row of `spending`: money in micro-dollars."""

    spent: int
    at_risk: int
    prompt_tokens: int
    completion_tokens: int
    sent: int
    ended: int


def wrong_accounts(connection: sqlite3.Connection) -> Iterator[tuple[int, Account]]:
    """Stages whose accounts are damaged or missing, with what they should hold."""
    stored = {
        int(stage): Account(*values)
        for stage, *values in connection.execute(
            "SELECT stage, spent_micro, at_risk_micro, prompt_tokens, completion_tokens, sent, ended "
            "FROM spending"
        )
    }
    replies = {int(stage): values for stage, *values in connection.execute(_REPLIES)}
    attempts = {int(stage): values for stage, *values in connection.execute(_ATTEMPTS)}
    by_hand = billed_by_hand(connection)
    (lost,) = connection.execute(_LOST).fetchone()
    (figureless,) = connection.execute("SELECT count(*) FROM temp.figureless").fetchone()
    for (stage,) in connection.execute("SELECT id FROM stages ORDER BY id").fetchall():
        cost, *tokens = replies.get(stage, (0, 0, 0))
        least = (cost + by_hand.get(stage, 0), *tokens, *attempts.get(stage, (0, 0)))
        right = _righted(stored.get(stage), least, may_be_more=bool(lost or figureless))
        if right != stored.get(stage, Account(0, 0, 0, 0, 0, 0)):
            yield stage, right


def _righted(stored: Account | None, least: tuple[int, ...], may_be_more: bool) -> Account:
    """`least`: spent, tokens of both kinds, sent, ended, as the ledger's rows show them."""
    if stored is None:
        return Account(least[0], 0, *least[1:])
    told = (stored.spent, stored.prompt_tokens, stored.completion_tokens, stored.sent, stored.ended)
    right = [
        said if said == shown or (may_be_more and shown < said < shown + MOST) else shown
        for said, shown in zip(told, least, strict=True)
    ]
    at_risk = stored.at_risk if 0 <= stored.at_risk < MOST else 0
    return Account(right[0], at_risk, *right[1:])


def loose_ends(connection: sqlite3.Connection) -> list[tuple[str, str, str, int]]:
    """(table, column, table that it names, how many rows name what is not there)."""
    found = []
    for table, column, named in LOOSE:
        missing = f"NOT EXISTS (SELECT 1 FROM {named} y WHERE y.id = x.{column})"
        (count,) = connection.execute(f"SELECT count(*) FROM {table} x WHERE {missing}").fetchone()
        if count:
            found.append((table, column, named, int(count)))
    return found
