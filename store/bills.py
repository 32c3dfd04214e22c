"""What replies have cost, as the ledger has them: of each request, and of all replies to a stage."""

import sqlite3
from typing import Any

from store.records import UNUSABLE

NEWEST = 10_000  # replies that an estimate learns from
UNREAD = ("malformed", "unparsed")  # paid for, and asked again

# Of requests to a model that were asked in one role, with one effort and under one bound. What was imported
# cost nothing here, and does not tell of its thinking.
_PAID = f"""
SELECT sum(completion_tokens), sum(reasoning_tokens), sum(prompt_tokens > 0),
  max(:most > 0 AND completion_tokens >= :most)
FROM (
  SELECT p.* FROM responses p JOIN attempts t ON t.id = p.attempt WHERE t.run IN (
    SELECT u.id FROM runs u JOIN stages s ON s.id = u.stage
    WHERE s.task = :task AND json_extract(u.settings, '$.model') = :model
      AND json_extract(u.settings, '$.params.reasoning_effort') IS :effort
      AND max(ifnull(json_extract(u.settings, '$.params.max_tokens'), 0),
        ifnull(json_extract(u.settings, '$.params.max_completion_tokens'), 0)) = :bound)
    AND NOT (:thinks AND p.finish_reason = 'imported')
  ORDER BY p.id DESC LIMIT {NEWEST})
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
    reader: sqlite3.Connection, model: str, task: str, effort: str | None, bound: int, most: int, thinks: bool
) -> list[tuple[int, int, int, bool]]:
    """What the newest requests have cost, each with all its replies: (completion tokens, thinking in them,
    replies that were paid for, whether one of them reached `most`). bound: as it was sent, 0 for none."""
    names = {"model": model, "task": task, "effort": effort, "bound": bound, "most": most, "thinks": thinks}
    return [(int(c), int(r), int(n), bool(cut)) for c, r, n, cut in reader.execute(_PAID, names)]


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
