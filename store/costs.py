"""What replies have cost, as the ledger has them: of each request, and of all replies to a stage. And
attempts in doubt: sent, and nobody knows whether they were billed; listed by row, settled by hand.

In doubt is an attempt whose error kept a part of its cost at risk (a time-out, a connection that broke),
and one that has neither reply nor error (its process was killed, or was told to stop at once). Requests in
open batches are not. Ledgers of earlier versions know the sums of a stage only: what no attempt explains
is settled as a sum.
"""

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from store.records import UNUSABLE
from store.schema import STAGE_SHIFT

NEWEST = 10_000  # replies that an estimate learns from
UNREAD = ("malformed", "unparsed")  # paid for, and asked again

INDIFFERENT = ("temperature", "top_p", "service_tier")  # parameters that do not decide how long replies are

_PAID = """
SELECT sum(completion_tokens), sum(reasoning_tokens), sum(prompt_tokens > 0),
  max(:most > 0 AND completion_tokens >= :most), sum(prompt_tokens), max(counted)
FROM (
  SELECT p.*, r.prompt_tokens AS counted
  FROM responses p JOIN attempts t ON t.id = p.attempt JOIN requests r ON r.id = p.request
  WHERE t.run IN (SELECT value FROM json_each(:runs)) AND NOT (:thinks AND p.finish_reason = 'imported')
  ORDER BY p.id DESC LIMIT :newest)
GROUP BY request
"""
_OF_STAGE = "JOIN attempts t ON t.id = p.attempt WHERE t.run IN (SELECT id FROM runs WHERE stage = ?)"
_SUMS = f"""
SELECT count(*), ifnull(sum(p.prompt_tokens), 0), ifnull(sum(p.completion_tokens), 0),
  ifnull(sum(p.reasoning_tokens), 0), ifnull(sum(p.estimated), 0)
FROM responses p {_OF_STAGE}
"""
_IN_VAIN = f"""
SELECT p.outcome, count(*), sum(p.cost_micro) FROM responses p {_OF_STAGE}
  AND p.outcome IN ({{}}) GROUP BY 1 ORDER BY 1
"""


def paid_requests(
    reader: sqlite3.Connection, model: str, task: str, params: Mapping[str, Any], most: int, thinks: bool
) -> list[tuple[int, int, int, bool, int, int]]:
    """What the newest requests to a model have cost that were asked in one role and in this way, each with
    all its replies: (completion tokens, thinking in them, replies that were paid for, whether one of them
    reached `most`, prompt tokens as billed, those of the request by our count). What was imported cost
    nothing here and does not tell of its thinking."""
    runs = reader.execute(
        "SELECT u.id, json_extract(u.settings, '$.params') FROM runs u JOIN stages s ON s.id = u.stage "
        "WHERE s.task = ? AND json_valid(u.settings) AND json_extract(u.settings, '$.model') = ?",
        (task, model),
    ).fetchall()
    alike = [number for number, sent in runs if _decisive(orjson.loads(sent or b"{}")) == _decisive(params)]
    names = {"runs": str(alike), "most": most, "thinks": thinks, "newest": NEWEST}
    found = reader.execute(_PAID, names)
    return [(int(c), int(r), int(n), bool(cut), int(p), int(own)) for c, r, n, cut, p, own in found]


def _decisive(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name not in INDIFFERENT}


def billed(reader: sqlite3.Connection, stage: int, spent_micro: int) -> dict[str, Any]:
    """All that was paid for a stage, whatever came of it. estimated_replies: whose tokens we counted,
    because the server does not report them. spent_micro: as `spending` has it, with what was settled by
    hand."""
    replies, prompt, completion, reasoning, estimated = reader.execute(_SUMS, (stage,)).fetchone()
    return {
        "replies": replies,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "reasoning_tokens": reasoning,
        "cost_usd": spent_micro / 1e6,
        "estimated_replies": estimated,
    }


def in_vain(reader: sqlite3.Connection, stage: int) -> dict[str, dict[str, Any]]:
    """Replies to a stage that hold no answer (`unusable`) or cannot be read (`unread`), by outcome, with
    their cost."""
    outcomes = (*UNUSABLE, *UNREAD)
    rows = reader.execute(_IN_VAIN.format(", ".join("?" * len(outcomes))), (stage, *outcomes)).fetchall()
    found: dict[str, dict[str, Any]] = {
        name: {"replies": 0, "cost_usd": 0.0, "outcomes": {}} for name in ("unusable", "unread")
    }
    for outcome, count, cost in rows:
        kind = found["unread" if outcome in UNREAD else "unusable"]
        kind["replies"] += count
        kind["cost_usd"] += cost / 1e6
        kind["outcomes"][outcome] = count
    return found


SETTLED = "settled without an attempt"  # the beginning of a fact's name

_DOUBT = """
CREATE TEMP TABLE doubt AS
  SELECT t.id AS attempt, u.stage, t.request, t.sent_at, max(e.at_risk_micro) AS most, e.cause, e.message,
    0 AS is_open
  FROM errors e JOIN attempts t ON t.id = e.attempt JOIN runs u ON u.id = t.run
  WHERE e.at_risk_micro > 0 AND t.id NOT IN (SELECT attempt FROM settlements) GROUP BY t.id
  UNION ALL
  SELECT t.id, u.stage, t.request, t.sent_at, t.worst_micro, NULL, NULL, 1
  FROM attempts t JOIN runs u ON u.id = t.run
  WHERE t.id NOT IN (SELECT attempt FROM responses) AND t.id NOT IN (SELECT attempt FROM errors)
    AND t.id NOT IN (SELECT attempt FROM enqueued) AND t.id NOT IN (SELECT attempt FROM settlements)
"""
# Nothing leads from a request to its row: one pass over the samples finds the places of all.
_PLACED = """
CREATE TEMP TABLE placed AS
  SELECT d.attempt, min(a.position) AS position, a.sample FROM samples a CROSS JOIN doubt d
    ON d.request = a.request AND d.stage = a.stage GROUP BY d.attempt
"""
_LIST = """
SELECT d.attempt, s.name, p.position, p.sample,
  CASE WHEN json_valid(w.item) THEN json_extract(w.item, '$.id') END, d.sent_at, d.most,
  ifnull(d.cause, 'unanswered'), ifnull(d.message, 'the process ended before a reply came')
FROM doubt d JOIN stages s ON s.id = d.stage LEFT JOIN placed p ON p.attempt = d.attempt
LEFT JOIN rows w ON w.id = (d.stage << {shift}) + p.position ORDER BY d.attempt
"""
# What no attempt explains: of earlier versions, or of a process killed between a reply and its error.
_REST = """
SELECT s.id, s.name, c.at_risk_micro
  - (SELECT ifnull(sum(most), 0) FROM temp.doubt WHERE stage = s.id)
  - (SELECT ifnull(sum(t.worst_micro), 0) FROM enqueued e JOIN attempts t ON t.id = e.attempt
      JOIN batches b ON b.id = e.batch WHERE b.stage = s.id)
FROM spending c JOIN stages s ON s.id = c.stage ORDER BY s.id
"""
_SETTLE = """
UPDATE spending SET spent_micro = spent_micro + ?, at_risk_micro = max(0, at_risk_micro - ?),
  ended = ended + ? WHERE stage = ?
"""


@dataclass(frozen=True, slots=True)
class Doubt:
    """An attempt in doubt and the row it was for; position, sample and id are None where that row is gone.
    cause: as in `errors`, or `unanswered`."""

    attempt: int
    stage: str
    position: int | None
    sample: int | None
    id: str | None
    sent_at: float
    most_micro: int
    cause: str
    why: str


@dataclass(frozen=True, slots=True)
class Settled:
    """What has been settled: attempts, stages' sums of earlier versions, what they could cost together at
    the most, and what they are booked as."""

    attempts: int
    sums: int
    most_micro: int
    billed_micro: int

    @property
    def released_micro(self) -> int:
        return self.most_micro - self.billed_micro


def note_doubt(connection: sqlite3.Connection) -> None:
    """Notes what is in doubt, in tables of this connection; the other functions read these."""
    connection.execute(_DOUBT)
    connection.execute(_PLACED)
    connection.commit()


def choose(
    connection: sqlite3.Connection, stage: str | None, ids: Collection[str], attempts: Collection[int]
) -> set[str]:
    """Keeps those in doubt that were named: of a stage, and if any are given, with these ids of rows or
    numbers. Returns what was named and is not in doubt."""
    if stage is not None:
        connection.execute(
            "DELETE FROM temp.doubt WHERE stage <> (SELECT id FROM stages WHERE name = ?)", (stage,)
        )
    if ids or attempts:
        found = [one for one in in_doubt(connection) if one.id in ids or one.attempt in attempts]
        connection.execute("CREATE TEMP TABLE chosen (attempt INTEGER PRIMARY KEY)")
        connection.executemany("INSERT INTO temp.chosen VALUES (?)", [(one.attempt,) for one in found])
        connection.execute("DELETE FROM temp.doubt WHERE attempt NOT IN (SELECT attempt FROM temp.chosen)")
        there = {f"row {one.id}" for one in found} | {f"attempt {one.attempt}" for one in found}
        missing = {*(f"row {one}" for one in ids), *(f"attempt {one}" for one in attempts)} - there
    else:
        missing = set()
    connection.commit()
    return missing


def in_doubt(connection: sqlite3.Connection) -> Iterator[Doubt]:
    """In the order in which they were sent."""
    for row in connection.execute(_LIST.format(shift=STAGE_SHIFT)):
        yield Doubt(*row)


def unexplained(connection: sqlite3.Connection, stage: str | None = None) -> dict[str, int]:
    """Micro-dollars at risk that no attempt explains, by stage. Asked before anything is chosen."""
    found = connection.execute(_REST).fetchall()
    return {str(name): int(most) for _, name, most in found if most > 0 and stage in (None, name)}


def most_in_doubt(connection: sqlite3.Connection) -> int:
    """The most that the chosen attempts can cost together, in micro-dollars."""
    return int(connection.execute("SELECT ifnull(sum(most), 0) FROM temp.doubt").fetchone()[0])


def settle(connection: sqlite3.Connection, sums: dict[str, int], billed: int) -> Settled:
    """Books the chosen attempts and the stages' sums: `billed` micro-dollars of them together, each by its
    share of the most; the rest is released. One transaction."""
    total, now = most_in_doubt(connection) + sum(sums.values()), time.time()
    done = share = 0

    def part(amount: int) -> int:
        """So that the parts add up to what was billed."""
        nonlocal done, share
        before, done = share, done + amount
        share = billed * done // total if total else 0
        return share - before

    connection.execute("BEGIN IMMEDIATE")
    with connection:
        chosen = connection.execute("SELECT attempt, stage, most, is_open FROM temp.doubt ORDER BY attempt")
        count = 0
        for attempt, stage, amount, is_open in chosen.fetchall():
            cost = part(amount)
            connection.execute("INSERT INTO settlements VALUES (?, ?, ?)", (attempt, cost, now))
            connection.execute(_SETTLE, (cost, amount, is_open, stage))
            count += 1
        for number, (name, amount) in enumerate(sums.items()):
            cost = part(amount)
            (stage,) = connection.execute("SELECT id FROM stages WHERE name = ?", (name,)).fetchone()
            told = json.dumps({"stage": stage, "billed_micro": cost, "released_micro": amount - cost})
            connection.execute("INSERT INTO facts VALUES (?, ?)", (f"{SETTLED} {now:.6f} {number}", told))
            connection.execute(_SETTLE, (cost, amount, 0, stage))
    return Settled(count, len(sums), total, share)


def billed_by_hand(connection: sqlite3.Connection) -> dict[int, int]:
    """What has been settled as billed so far, in micro-dollars by stage."""
    found = connection.execute(
        "SELECT u.stage, sum(x.billed_micro) FROM settlements x JOIN attempts t ON t.id = x.attempt "
        "JOIN runs u ON u.id = t.run GROUP BY 1"
    ).fetchall()
    billed = {int(stage): int(amount) for stage, amount in found}
    for (told,) in connection.execute("SELECT value FROM facts WHERE name LIKE ?", (f"{SETTLED}%",)):
        fact = json.loads(told)
        billed[fact["stage"]] = billed.get(fact["stage"], 0) + fact["billed_micro"]
    return billed
