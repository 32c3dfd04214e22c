"""What the front page offers by name: a question, a sentence about it, and its SQL.

Written for ledgers with millions of rows: the narrow table is cut to a hundred first, then each of
those finds its pool row by one pass over `samples` (CROSS JOIN keeps SQLite to that order; an index
would cost every insert). Column names decide how a value is shown (pages.py); a `stage` with a
`position` becomes a link to the row's page.
"""

from dataclasses import dataclass
from typing import Any

from store.records import UNUSABLE

SHOWN = 100
POSITION_SHIFT = "(a.stage << 40) + a.position"  # rows.id, see store/schema.py
INSTRUCTION = "CASE WHEN json_valid(w.item) THEN json_extract(w.item, '$.instruction') END AS instruction"
_PLAIN = """CASE WHEN typeof(b.raw) = 'text' AND json_valid(b.raw)
    THEN json_extract(b.raw, '$.choices[0].message.content') END"""
OUTPUT = f"coalesce(b.text, {_PLAIN}) AS output"


@dataclass(frozen=True, slots=True)
class SavedQuery:
    """`sql` None: the answer is a view with a filter, at `path`."""

    name: str
    title: str
    about: str
    sql: str | None = None
    path: str = ""


def _of_replies(order: str, columns: str, where: str = "1", text: str = "") -> str:
    """The first replies (t) in an order, each with the first pool row that it answers.

    `text`: a column over the replies' bodies (b), where they are to be read.
    """
    body = "JOIN bodies b ON b.response = t.id" if text else ""
    return f"""
WITH top AS MATERIALIZED (
  SELECT t.* FROM responses t WHERE {where} ORDER BY {order} LIMIT {SHOWN}),
placed AS MATERIALIZED (
  SELECT t.id, a.stage, min(a.position) AS position, a.sample
  FROM samples a CROSS JOIN top t ON t.request = a.request GROUP BY t.id)
SELECT s.name AS stage, a.position, a.sample, {columns},
  {INSTRUCTION}{", " + text if text else ""}
FROM placed a CROSS JOIN top t ON t.id = a.id
  JOIN stages s ON s.id = a.stage JOIN rows w ON w.id = {POSITION_SHIFT} {body}
ORDER BY {order}""".strip()


LATEST = _of_replies("t.id DESC", "t.outcome, t.model, t.received_at", text=OUTPUT)
SLOWEST = _of_replies(
    "t.latency DESC",
    "t.latency, t.completion_tokens, round(t.completion_tokens / max(t.latency, 0.001), 1) AS tokens_per_s, "
    "t.outcome, t.model, t.received_at",
)
COSTLIEST = _of_replies(
    "t.cost_micro DESC, t.completion_tokens DESC",
    "t.cost_micro / 1e6 AS cost_usd, t.prompt_tokens, t.completion_tokens, t.outcome, t.model",
)
NO_ANSWER = _of_replies(
    "t.id DESC",
    "t.outcome, t.finish_reason, t.completion_tokens, t.reasoning_tokens, t.cost_micro / 1e6 AS cost_usd, "
    "t.id = (SELECT answer FROM requests WHERE id = t.request) AS is_last, t.model, t.received_at",
    f"t.outcome IN ({', '.join(repr(outcome) for outcome in UNUSABLE)})",
    text="b.raw",
)
MALFORMED = _of_replies(
    "t.id DESC", "t.cost_micro / 1e6 AS cost_usd, t.received_at", "t.outcome = 'malformed'", text="b.raw"
)

FAILURES_BY_CAUSE = """
SELECT s.name AS stage, e.cause, e.status, count(*) AS rows, max(e.at) AS last_at,
  e.message AS last_message
FROM samples a JOIN stages s ON s.id = a.stage JOIN requests r ON r.id = a.request
  JOIN errors e ON e.id = r.failure
WHERE r.answer IS NULL GROUP BY 1, 2, 3 ORDER BY rows DESC""".strip()

ERRORS_BY_CAUSE = """
SELECT cause, status, count(*) AS attempts, count(DISTINCT request) AS requests,
  min(at) AS first_at, max(at) AS last_at, message AS last_message
FROM errors GROUP BY cause, status ORDER BY attempts DESC""".strip()

SPENDING = f"""
SELECT s.name AS stage, p.model, count(*) AS replies, sum(p.cost_micro) / 1e6 AS spent_usd,
  sum(p.cost_micro) / 1e6 / count(*) AS mean_usd,
  sum(p.prompt_tokens) AS prompt_tokens, sum(p.completion_tokens) AS completion_tokens,
  sum(p.cached_tokens) AS cached_tokens, sum(p.reasoning_tokens) AS reasoning_tokens,
  sum(p.outcome IN ({", ".join(repr(outcome) for outcome in UNUSABLE)})) AS without_answer,
  sum(p.estimated) AS counted_by_distill,
  avg(p.latency) AS mean_latency
FROM responses p JOIN attempts t ON t.id = p.attempt JOIN runs u ON u.id = t.run
  JOIN stages s ON s.id = u.stage
GROUP BY 1, 2 ORDER BY spent_usd DESC""".strip()

UNANSWERED = f"""
WITH lost AS MATERIALIZED (
  SELECT t.id, t.request, t.run, t.sent_at, t.worst_micro FROM attempts t
  WHERE t.id NOT IN (SELECT attempt FROM responses) AND t.id NOT IN (SELECT attempt FROM errors)
  ORDER BY t.id DESC LIMIT {10 * SHOWN}),
placed AS MATERIALIZED (
  SELECT t.id, a.stage, min(a.position) AS position, a.sample
  FROM samples a CROSS JOIN lost t ON t.request = a.request GROUP BY t.id)
SELECT s.name AS stage, a.position, a.sample, t.run, t.sent_at, t.worst_micro / 1e6 AS worst_usd,
  CASE WHEN r.answer IS NOT NULL THEN 'answered later' WHEN r.failure IS NOT NULL THEN 'failed later'
    ELSE 'still pending' END AS since, {INSTRUCTION}
FROM placed a CROSS JOIN lost t ON t.id = a.id JOIN requests r ON r.id = t.request
  JOIN stages s ON s.id = a.stage JOIN rows w ON w.id = {POSITION_SHIFT}
ORDER BY t.id DESC""".strip()

_NTH_REPLY = f"""(SELECT coalesce(b.text, {_PLAIN}, p.outcome)
  FROM samples c JOIN requests r ON r.id = c.request JOIN responses p ON p.id = r.answer
    JOIN bodies b ON b.response = p.id
  WHERE c.stage = a.stage AND c.position = a.position ORDER BY c.sample LIMIT 1 OFFSET {{}})"""

# Replies to one pool row, those first that differ most: in outcome, then in length. A stage that
# scores or judges has its samples here too, with the raw words.
DISAGREEMENTS = f"""
WITH several AS MATERIALIZED (
  SELECT a.stage, a.position, count(*) AS answered, count(DISTINCT p.outcome) AS outcomes,
    min(p.completion_tokens) AS shortest, max(p.completion_tokens) AS longest
  FROM stages s CROSS JOIN samples a ON a.stage = s.id JOIN requests r ON r.id = a.request
    JOIN responses p ON p.id = r.answer
  WHERE s.samples > 1 GROUP BY a.stage, a.position HAVING count(*) > 1
  ORDER BY outcomes DESC, 1.0 * longest / max(shortest, 1) DESC LIMIT {SHOWN})
SELECT s.name AS stage, a.position, {INSTRUCTION}, a.answered, a.outcomes,
  a.shortest, a.longest,
  {_NTH_REPLY.format(0)} AS first_reply, {_NTH_REPLY.format(1)} AS second_reply
FROM several a JOIN stages s ON s.id = a.stage JOIN rows w ON w.id = {POSITION_SHIFT}
ORDER BY a.outcomes DESC, 1.0 * a.longest / max(a.shortest, 1) DESC""".strip()

# A question that was judged in both orders, or by several stages: by how much a judge's preference
# (score of the first model less that of the second) changes.
SCORE_DISAGREEMENTS = f"""
WITH judged AS MATERIALIZED (
  SELECT s.name AS stage, a.position, w.item, json_extract(w.item, '$.id') AS id,
    json_extract(w.item, '$.order[0]') AS first_shown,
    coalesce(b.text, {_PLAIN}) AS reply
  FROM stages s CROSS JOIN samples a ON a.stage = s.id JOIN rows w ON w.id = (a.stage << 40) + a.position
    JOIN requests r ON r.id = a.request JOIN responses p ON p.id = r.answer
    JOIN bodies b ON b.response = p.id
  WHERE s.task = 'judge' AND a.sample = 0 AND json_valid(w.item)
    AND (b.text IS NOT NULL OR json_valid(b.raw))),
scored AS MATERIALIZED (
  SELECT *, score_of(item, reply, 0) AS a, score_of(item, reply, 1) AS b FROM judged)
SELECT x.stage, x.position, y.stage AS other_stage, y.position AS other_position,
  json_extract(x.item, '$.instruction') AS instruction,
  x.a || ' : ' || x.b AS scores, y.a || ' : ' || y.b AS other_scores,
  abs((x.a - x.b) - (y.a - y.b)) AS disagreement, x.reply AS first_reply, y.reply AS second_reply
FROM scored x JOIN scored y ON y.id = x.id
  AND json_extract(y.item, '$.instruction') = json_extract(x.item, '$.instruction')
  AND (y.stage, y.position) > (x.stage, x.position)
WHERE disagreement > 0 ORDER BY disagreement DESC LIMIT {SHOWN}""".strip()

RUNS = """
SELECT u.id AS run, s.name AS stage, u.started, u.ended, u.exit_code,
  json_extract(iif(json_valid(u.settings), u.settings, NULL), '$.model') AS model,
  json_extract(iif(json_valid(u.settings), u.settings, NULL), '$.base_url') AS address,
  json_extract(iif(json_valid(u.settings), u.settings, NULL), '$.pool') AS pool,
  json_extract(iif(json_valid(u.settings), u.settings, NULL), '$.params') AS params,
  u.utilisation
FROM runs u JOIN stages s ON s.id = u.stage ORDER BY u.id DESC""".strip()

SEARCH = f"""
SELECT stage, position, sample, outcome, model, instruction, input, output FROM answers
WHERE :words <> '' AND (instruction LIKE '%' || :words || '%' OR input LIKE '%' || :words || '%'
  OR output LIKE '%' || :words || '%') LIMIT {SHOWN}""".strip()

QUESTIONS = (
    SavedQuery("all", "Answers", "every pool row with its answer, in pool order", path="answers"),
    SavedQuery("latest", "Latest answers", "the newest replies first, also during a run", LATEST),
    SavedQuery(
        "failures-by-cause",
        "Failures by cause",
        "rows that failed, with the server's message",
        FAILURES_BY_CAUSE,
    ),
    SavedQuery("cut", "Cut short", "answers that reached max_tokens", path="answers?outcome__exact=length"),
    SavedQuery(
        "filtered",
        "Filtered or refused",
        "content_filter, refusal, untranslated",
        path="answers?outcome__in=content_filter%2Crefusal%2Cuntranslated",
    ),
    SavedQuery("slowest", "Slowest", f"the {SHOWN} replies that took longest", SLOWEST),
    SavedQuery("costliest", "Costliest", f"the {SHOWN} replies that cost most", COSTLIEST),
    SavedQuery("spending", "Spending", "by stage and model: money, tokens, mean latency", SPENDING),
    SavedQuery(
        "disagreements",
        "Side by side",
        "rows with several replies; those that differ most come first",
        DISAGREEMENTS,
    ),
    SavedQuery(
        "score-disagreements",
        "Score disagreements",
        "questions judged twice (in both orders, by two judges), those first where the scores differ most",
        SCORE_DISAGREEMENTS,
    ),
    SavedQuery(
        "never-answered",
        "Sent, never answered",
        "may have been billed; during a run: what is in flight",
        UNANSWERED,
    ),
    SavedQuery(
        "no-answer",
        "No answer",
        "paid, and empty or incomplete; is_last: the row was not sent again",
        NO_ANSWER,
    ),
    SavedQuery(
        "malformed",
        "Unreadable replies",
        "stored and paid, but not an answer: the row is sent again",
        MALFORMED,
    ),
    SavedQuery(
        "errors-by-cause",
        "Errors on the way",
        "every attempt that failed, even where a later one succeeded",
        ERRORS_BY_CAUSE,
    ),
    SavedQuery(
        "runs-and-settings", "Runs", "when, with what model, parameters and pool, and how it ended", RUNS
    ),
    SavedQuery("search", "Search", "words in instruction, input or answer", SEARCH),
)


def canned() -> dict[str, dict[str, Any]]:
    """As Datasette's metadata wants named queries. Their SQL is a click away, not in the way."""
    return {
        q.name: {"sql": q.sql, "title": q.title, "description": q.about, "hide_sql": True}
        for q in QUESTIONS
        if q.sql
    }


# What the front page, and the page of one pool row, are made of.
STAGES = """
SELECT s.id, s.name, s.task, s.samples, s.total, s.bad_rows, u.id AS run, u.started, u.ended, u.exit_code,
  u.pid, (SELECT value FROM facts WHERE name = 'stopped stage ' || s.id) AS stopped,
  json_extract(iif(json_valid(u.settings), u.settings, NULL), '$.model') AS model,
  json_extract(iif(json_valid(u.utilisation), u.utilisation, NULL), '$.requests') AS requests_share,
  json_extract(iif(json_valid(u.utilisation), u.utilisation, NULL), '$.tokens') AS tokens_share,
  c.spent_micro / 1e6 AS cost_usd,
  c.at_risk_micro / 1e6 AS at_risk_usd, c.prompt_tokens, c.completion_tokens, c.sent - c.ended AS unanswered
FROM stages s LEFT JOIN spending c ON c.stage = s.id
  LEFT JOIN runs u ON u.id = (SELECT max(id) FROM runs WHERE stage = s.id) ORDER BY s.id"""
ITEM = """
SELECT s.id AS number, s.name AS stage, s.task, w.item, CAST(w.item AS BLOB) AS stored, w.checksum,
  EXISTS (SELECT 1 FROM rows WHERE id = w.id + 1) AS has_next
FROM stages s JOIN rows w ON w.id = (s.id << 40) + :position WHERE s.name = :stage"""
SAMPLES = """
SELECT a.sample, a.request, r.answer, r.prompt_tokens AS counted, e.cause, e.status, e.message, e.at,
  p.outcome, p.model, p.finish_reason, p.prompt_tokens, p.completion_tokens, p.cached_tokens,
  p.reasoning_tokens, p.cost_micro / 1e6 AS cost_usd, p.latency, p.received_at, p.estimated,
  p.service_tier, p.listed_micro / 1e6 AS listed_usd, CAST(b.raw AS BLOB) AS raw, b.text, b.reasoning,
  b.checksum
FROM samples a JOIN requests r ON r.id = a.request LEFT JOIN responses p ON p.id = r.answer
  LEFT JOIN bodies b ON b.response = p.id LEFT JOIN errors e ON e.id = r.failure
WHERE a.stage = :number AND a.position = :position ORDER BY a.sample"""
HISTORY = """
SELECT t.id AS attempt, t.run, t.sent_at, p.id AS response, p.outcome, p.latency,
  p.cost_micro / 1e6 AS cost_usd, e.cause, e.status, e.message
FROM attempts t LEFT JOIN responses p ON p.request = :request AND p.attempt = t.id
  LEFT JOIN errors e ON e.request = :request AND e.attempt = t.id
WHERE t.request = :request ORDER BY t.id"""
