"""What the report asks of a ledger: sums made in SQLite, and rows drawn by their place.

Written for ledgers with millions of rows: nothing is listed whole, and every table is passed over at most
a few times.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

import orjson

from engine.provider.responses import stored_answer
from evaluators.report.inputs import Inputs, StageInput
from store.errors import Damages, is_intact

TRIES = 20  # places drawn for each row wanted: some hold no row of the kind

COSTS = """
SELECT t.run, count(*), sum(p.prompt_tokens), sum(p.completion_tokens), sum(p.cost_micro),
  sum(ifnull(r.answer = p.id, 0)), sum(p.reasoning_tokens)
FROM responses p JOIN attempts t ON t.id = p.attempt JOIN requests r ON r.id = p.request GROUP BY 1"""
SENT = "SELECT run, CAST(sent_at / :bin AS INTEGER), count(*) FROM attempts GROUP BY 1, 2"
CAME = """
SELECT t.run, CAST(p.received_at / :bin AS INTEGER), sum(p.prompt_tokens + p.completion_tokens)
FROM responses p JOIN attempts t ON t.id = p.attempt GROUP BY 1, 2"""
REFUSED = """
SELECT t.run, CAST(e.at / :bin AS INTEGER), count(*) FROM errors e JOIN attempts t ON t.id = e.attempt
WHERE e.cause = 'rate_limit' GROUP BY 1, 2"""
SPANS = """
SELECT u.id, u.started, u.ended, min(t.sent_at), max(t.sent_at) FROM runs u
LEFT JOIN attempts t ON t.run = u.id GROUP BY 1"""
ERRORS = """
SELECT s.name, e.cause, e.status, count(*), count(DISTINCT e.request),
  sum(r.failure = e.id AND r.answer IS NULL) FROM errors e
JOIN attempts t ON t.id = e.attempt JOIN runs u ON u.id = t.run JOIN stages s ON s.id = u.stage
JOIN requests r ON r.id = e.request GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3"""
WORDS = """
SELECT message, count(*) AS asks FROM (SELECT message FROM errors WHERE cause = ? LIMIT 20000)
GROUP BY 1 ORDER BY asks DESC, 1 LIMIT ?"""
TOKENS = """
SELECT p.completion_tokens, count(*) FROM samples a JOIN requests r ON r.id = a.request
JOIN responses p ON p.id = r.answer WHERE a.stage = ? GROUP BY 1 ORDER BY 1"""
SHARED = "SELECT count(*), count(DISTINCT request) FROM samples WHERE stage = ?"
LAST = "SELECT max(position), count(*) FROM samples WHERE stage = ?"
_DRAWN = """
SELECT a.position, a.sample, CAST(w.item AS BLOB), CAST(b.raw AS BLOB), b.checksum, p.outcome, p.model,
  p.completion_tokens, p.cost_micro
FROM samples a JOIN requests r ON r.id = a.request JOIN responses p ON p.id = r.answer
JOIN bodies b ON b.response = p.id JOIN rows w ON w.id = (a.stage << 40) + a.position
WHERE a.stage = ? AND a.position >= ? AND a.position <= ? ORDER BY a.position, a.sample"""
_FAILED = """
SELECT e.id, s.name, e.cause, e.status, e.message, w.item FROM errors e
JOIN requests r ON r.failure = e.id AND r.answer IS NULL JOIN attempts t ON t.id = e.attempt
JOIN runs u ON u.id = t.run JOIN stages s ON s.id = u.stage
LEFT JOIN rows w ON w.id = (u.stage << 40) + (SELECT min(a.position) FROM samples a
  WHERE a.stage = u.stage AND a.request = e.request)
WHERE e.id >= ? LIMIT 1"""


class SampleRow(NamedTuple):
    """A pool row with its answer. item: its JSON; text: the teacher's words."""

    position: int
    sample: int
    item: dict[str, Any]
    text: str
    outcome: str
    model: str
    tokens: int
    cost_micro: int


def _row(found: Sequence[Any], damages: Damages) -> SampleRow | None:
    """None for one that is damaged, which `damages` is told of."""
    position, sample, item, raw, checksum, *rest = found
    if not is_intact(raw, checksum):
        damages.add(position, "its checksum differs")
        return None
    if (answer := stored_answer(raw)) is None:  # of an older version's body, which has no checksum
        damages.add(position, "it cannot be read")
        return None
    try:
        return SampleRow(position, sample, orjson.loads(item), answer[0], *rest)
    except Exception as error:  # of a damaged row
        damages.add(position, f"it cannot be read ({type(error).__name__})")
        return None


def drawn(of: Inputs, stage: StageInput, count: int, what: str) -> list[SampleRow]:
    """Answered rows of a stage, drawn by their places with the report's seed, in pool order. what: for
    which they are drawn, so that others are drawn elsewhere."""
    last, _ = of.reader.execute(LAST, (stage.number,)).fetchone()
    if last is None:
        return []
    random = Random(f"{of.seed} {what} {stage.number}")
    if last + 1 <= count * TRIES:
        places = random.sample(range(last + 1), last + 1)
    else:
        places = [random.randrange(last + 1) for _ in range(count * TRIES)]
    found: dict[int, SampleRow] = {}
    for place in places:
        if len(found) == count:
            break
        row = of.reader.execute(_DRAWN + " LIMIT 1", (stage.number, place, place)).fetchone()
        if row and (read := _row(row, of.damaged(stage))):
            found[place] = read
    return [found[place] for place in sorted(found)]


def answered(of: Inputs, stage: StageInput, most: int, what: str) -> Iterator[SampleRow]:
    """All answered rows in pool order; of many, so many in runs of neighbours that begin at drawn places."""
    last, samples = of.reader.execute(LAST, (stage.number,)).fetchone()
    if last is None:
        return
    if samples <= most:
        yield from _rows(of, stage, 0, last)
        return
    length = 100
    random = Random(f"{of.seed} {what} {stage.number}")
    starts = sorted(random.sample(range(0, last + 1, length), max(1, most * (last + 1) // samples // length)))
    for start in starts:
        yield from _rows(of, stage, start, start + length - 1)


def _rows(of: Inputs, stage: StageInput, first: int, last: int) -> Iterator[SampleRow]:
    for found in of.reader.execute(_DRAWN, (stage.number, first, last)):
        if row := _row(found, of.damaged(stage)):
            yield row


def failed(reader: sqlite3.Connection, count: int, seed: str) -> list[tuple[Any, ...]]:
    """Failed requests, drawn: (error, stage, cause, status, message, item or None)."""
    (last,) = reader.execute("SELECT max(id) FROM errors").fetchone()
    if last is None:
        return []
    random = Random(seed)
    found: dict[int, tuple[Any, ...]] = {}
    for _ in range(count * 4):
        row = reader.execute(_FAILED, (random.randint(1, last),)).fetchone()
        if row and len(found) < count:
            found[row[0]] = row
    return [found[number] for number in sorted(found)]
