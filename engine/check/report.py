"""What a check has found, for people and programs."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from engine.check.damage import Findings
from engine.check.integrity import is_json, loose_ends, wrong_accounts
from engine.terminal import exact_dollars, plain
from store.schema import STAGE_SHIFT

NAMED = 1000  # of each kind, for programs; people are shown a few
SHOWN = 5

# Nothing leads from a request to its row: one pass over the samples finds the first of each.
_REQUESTS = f"""
WITH bad AS MATERIALIZED (
  SELECT request, why FROM temp.bad_requests
  UNION ALL SELECT request, 'it is missing' FROM temp.lost_requests),
placed AS MATERIALIZED (
  SELECT b.request, a.stage, min(a.position) AS position, a.sample
  FROM samples a CROSS JOIN bad b ON b.request = a.request GROUP BY b.request)
SELECT s.name, p.position, p.sample, CAST(w.item AS BLOB), b.request, b.why,
  b.request IN (SELECT request FROM temp.mends) OR b.request IN (SELECT request FROM temp.orphans)
FROM bad b LEFT JOIN placed p ON p.request = b.request LEFT JOIN stages s ON s.id = p.stage
LEFT JOIN rows w ON w.id = (p.stage << {STAGE_SHIFT}) + p.position ORDER BY b.request LIMIT {NAMED}
"""
_ROWS = f"""
SELECT ifnull(s.name, b.stage), b.position, NULL, CAST(w.item AS BLOB), NULL, b.why, 0 FROM temp.bad_rows b
LEFT JOIN stages s ON s.id = b.stage LEFT JOIN rows w ON w.id = (b.stage << {STAGE_SHIFT}) + b.position
ORDER BY b.stage, b.position LIMIT {NAMED}
"""
# Damaged replies that are nobody's answer: they are known by their request.
_OTHERS = f"""
SELECT NULL, NULL, NULL, NULL, p.request, x.why, 1
FROM temp.bad_replies x JOIN responses p ON p.id = x.response
WHERE NOT EXISTS (SELECT 1 FROM requests r WHERE r.id = p.request AND r.answer = p.id) LIMIT {NAMED}
"""
_COUNTS = {
    "replies": "SELECT count(*) FROM temp.bad_replies",
    "requests": "SELECT (SELECT count(*) FROM temp.bad_requests) + (SELECT count(*) FROM temp.lost_requests)",
    "linked": "SELECT (SELECT count(*) FROM temp.mends) + (SELECT count(*) FROM temp.orphans)",
    "rows": "SELECT count(*) FROM temp.bad_rows",
    "keys": "SELECT count(*) FROM temp.bad_keys",
    "figures": "SELECT count(*) FROM temp.figureless",
}
_PAID = """
SELECT ifnull(sum(p.cost_micro), 0) FROM temp.bad_replies x JOIN responses p ON p.id = x.response
JOIN requests r ON r.id = p.request AND r.answer = p.id
WHERE x.response NOT IN (SELECT response FROM temp.figureless)
  AND r.id NOT IN (SELECT request FROM temp.mends)
"""


@dataclass(frozen=True, slots=True)
class Named:
    """One thing that is damaged, by the row that it stands at; None where nobody knows that."""

    what: str
    stage: str | None
    position: int | None
    sample: int | None
    id: str | None
    request: int | None
    why: str
    is_saved: bool


@dataclass
class CheckReport:
    """A check's result. faults: of the file, in SQLite's words. loose: what else does not fit together."""

    ledger: str
    faults: Sequence[str]
    found: Findings = field(default_factory=Findings)
    counts: Counter[str] = field(default_factory=Counter)
    named: list[Named] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    paid_micro: int = 0
    unreadable: int = 0

    @property
    def is_intact(self) -> bool:
        return not (self.faults or self.loose or any(self.counts.values()))

    @property
    def pending(self) -> int:
        return max(0, self.counts["requests"] - self.counts["linked"])

    def as_json(self) -> dict[str, Any]:
        named = [{name: getattr(one, name) for name in Named.__slots__} for one in self.named]
        return {
            "intact": self.is_intact, "ledger": self.ledger, "sqlite": list(self.faults),
            "replies_checked": self.found.replies, "rows_checked": self.found.rows,
            "rows_unverified": self.found.unverified,
            "damaged": {name: self.counts[name] for name in _COUNTS if name != "linked"},
            "asked_again": self.pending, "paid_usd": self.paid_micro / 1e6,
            "unreadable_records": self.unreadable, "named": named, "loose": self.loose,
        }  # fmt: skip


def told(connection: sqlite3.Connection, ledger: str, faults: Sequence[str], found: Findings) -> CheckReport:
    """Reads the notes of `find`."""
    result = CheckReport(ledger, faults, found)
    for name, sql in _COUNTS.items():
        (result.counts[name],) = connection.execute(sql).fetchone()
    (result.paid_micro,) = connection.execute(_PAID).fetchone()
    for what, sql in (("answer", _REQUESTS), ("reply", _OTHERS), ("row", _ROWS)):
        for stage, position, sample, item, request, why, is_saved in connection.execute(sql):
            at, id = None if stage is None else str(stage), None
            with contextlib.suppress(ValueError, TypeError, LookupError):
                id = str(orjson.loads(item or b"")["id"])
            result.named.append(Named(what, at, position, sample, id, request, why, bool(is_saved)))
    result.loose = list(_loose(connection))
    return result


def _loose(connection: sqlite3.Connection) -> Iterator[str]:
    for table, column, named, count in loose_ends(connection):
        yield f"{_n(count, 'record')} of {table} whose {column} is missing from {named}"
    (gaps,) = connection.execute(
        "SELECT ifnull(max(id), 0) - count(*) - (SELECT count(*) FROM temp.lost_requests WHERE request < "
        "(SELECT max(id) FROM requests)) FROM requests"
    ).fetchone()
    if gaps:
        yield f"{_n(gaps, 'request')} missing that nothing names"
    (misplaced,) = connection.execute("SELECT count(*) FROM temp.misplaced").fetchone()
    if misplaced:
        yield f"{_n(misplaced, 'reply', 'replies')} with the number of another request"
    texts = connection.execute("SELECT settings, estimate, utilisation FROM runs").fetchall()
    bad = sum(not all(text is None or is_json(text) for text in run) for run in texts)
    if bad:
        yield f"unreadable settings of {_n(bad, 'run')}"
    names = dict(connection.execute("SELECT id, name FROM stages").fetchall())
    for stage, _ in wrong_accounts(connection):
        yield f"the account of stage '{names[stage]}' is not what its replies add up to"


def _n(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def lines(told: CheckReport, run: str) -> Iterator[str]:
    """In plain sentences."""
    counts = told.counts
    looked = f"{_n(told.found.replies, 'reply', 'replies')} and {_n(told.found.rows, 'row')} were checked"
    if told.is_intact:
        yield f"{told.ledger} is intact: {looked}"
        yield from _unverified(told.found.unverified)
        return
    yield f"{told.ledger} is damaged: {looked}"
    for fault in told.faults[:SHOWN]:
        yield f"  the file: {plain(fault, 200)}"
    if len(told.faults) > SHOWN:
        yield f"  and {len(told.faults) - SHOWN:,} more faults of the file"
    if told.unreadable:
        yield f"  {told.unreadable:,} records in it cannot be read at all"
    yield from _some("answers are damaged or missing", counts["requests"], told.named, "answer")
    aside = sum(one.what == "reply" for one in told.named)
    yield from _some("further replies, which are not answers, are damaged", aside, told.named, "reply")
    yield from _some("rows are damaged or have lost their place", counts["rows"], told.named, "row")
    for name, words in (
        ("keys", "keys of requests are damaged"),
        ("figures", "replies have lost their figures"),
    ):
        if counts[name]:
            yield f"  {counts[name]:,} {words}"
    for words in told.loose:
        yield f"  {plain(words, 200)}"
    if told.pending:
        paid = f"; {exact_dollars(told.paid_micro)} were paid for what is damaged" if told.paid_micro else ""
        yield f"to be sent again: {_n(told.pending, 'request')}{paid}"
    if saved := counts["linked"]:
        yield f"saved from what is left: {_n(saved, 'answer')}"
    if counts["rows"]:
        yield f"put back from the pool by the next run, which costs nothing: {_n(counts['rows'], 'row')}"
    yield from _unverified(told.found.unverified)


def _some(words: str, count: int, named: Sequence[Named], what: str) -> Iterator[str]:
    if not count:
        return
    yield f"  {words}: {count:,}"
    shown = [one for one in named if one.what == what][:SHOWN]
    for one in shown:
        id = f" (id {plain(one.id, 40)})" if one.id is not None else ""
        sample = f" sample {one.sample}" if one.sample else ""
        place = f"stage '{plain(one.stage or '', 40)}' row {one.position}{id}{sample}"
        yield f"    {place if one.stage is not None else f'request {one.request}'}: {one.why}"
    if count > len(shown):
        yield f"    and {count - len(shown):,} more"


def _unverified(stages: Mapping[str, int]) -> Iterator[str]:
    for name, count in stages.items():
        yield (
            f"stage '{plain(name, 40)}': {_n(count, 'row')} could not be compared with what was sent, since "
            "no run with the same settings is known; the replies were checked"
        )
