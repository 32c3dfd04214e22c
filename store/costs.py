"""What replies have cost, as the ledger has them: of each request, and of all replies to a stage."""

import sqlite3
from collections.abc import Mapping
from typing import Any

import orjson

from store.records import UNUSABLE

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
    because the server does not tell them. spent_micro: as `spending` has it, with what was settled by
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
