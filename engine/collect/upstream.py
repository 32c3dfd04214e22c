"""Rows made of other stages' answers, as soon as they are there.

A row stands at its upstream row's position (times the rows made of one), so that it does not
matter in which order answers come: a re-started run finds every row where it was, and exports
keep the pool's order. What an upstream stage has not answered yet is remembered and looked at
again; what it failed, or answered with nothing usable, makes no row, and a row that an earlier
run had made there is gone. Of several upstream stages, which stand on the same pool, all must
have ended with a row first. Reads the ledger only; holds no more than the positions that are
being waited for.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from engine.collect.rows import Gone, Placed, Progress, Reach
from engine.provider.responses import stored_answer
from engine.terminal import plain, tell
from store.errors import is_intact
from store.records import BadRow, Item, Outcome
from store.schema import STAGE_SHIFT

PAGE = 512  # positions looked at together
CLOSE = 4  # so near to each other they are looked at together again
USABLE: tuple[Outcome, ...] = ("stop", "length")

_LOOK = """
SELECT a.position, CAST(w.item AS BLOB), w.checksum, r.answer IS NULL AND r.failure IS NULL, p.outcome,
  CAST(b.raw AS BLOB), b.checksum
FROM samples a JOIN rows w ON w.id = ? + a.position JOIN requests r ON r.id = a.request
LEFT JOIN responses p ON p.id = r.answer LEFT JOIN bodies b ON b.response = p.id
WHERE a.stage = ? AND a.sample = ? AND a.position >= ? AND a.position < ? AND w.plan IN ({plans})
ORDER BY a.position
"""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A stage that rows are made of. read: its row (as JSON) and the reply's text to a record, or
    None where there is none to be had. outcomes: of replies that rows are made of. is_whole: where it
    has no row, none will come, unless it runs now. limit: how many of its rows belong to it, whatever an
    earlier run had."""

    stage: str
    read: Callable[[Mapping[str, Any], str], Any]
    outcomes: tuple[Outcome, ...] = USABLE
    is_whole: bool = True
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class UpstreamRecord:
    """What one upstream stage has at a position. `record` None: nothing usable will come."""

    is_waiting: bool
    record: Any
    item: bytes = b""


def answers_at(
    reader: sqlite3.Connection,
    number: int,
    upstream: Upstream,
    positions: range,
    sample: int = 0,
    plans: Sequence[int] | None = None,
    damages: set[int] | None = None,
) -> dict[int, UpstreamRecord]:
    """What a stage has at these positions; `plans`: of rows that belong to these settings. A damaged
    answer is waited for as if it were pending, which `check --repair` makes it; `damages` is told of it."""
    found = {}
    sql = _LOOK.format(plans="w.plan" if plans is None else ", ".join("?" * len(plans)))
    values = (number << STAGE_SHIFT, number, sample, positions.start, positions.stop, *(plans or ()))
    for position, item, of_row, is_waiting, outcome, raw, checksum in reader.execute(sql, values):
        found[position] = UpstreamRecord(bool(is_waiting), None, item)
        if outcome in upstream.outcomes and raw is not None:
            if is_intact(raw, checksum) and is_intact(item, of_row) and _is_row(item):
                answer = stored_answer(raw)
                record = upstream.read(orjson.loads(item), answer[0]) if answer else None
                found[position] = UpstreamRecord(False, record, item)
            else:
                found[position] = UpstreamRecord(True, None, item)
                if damages is not None:
                    damages.add(position)
    return found


@dataclass(slots=True)
class _Above:
    """An upstream stage while its rows are read; `reach` None: it does not run now."""

    number: int
    upstream: Upstream
    is_whole: bool
    reach: Reach | None = None
    damages: set[int] = field(default_factory=set)  # positions of answers that are damaged

    def look(self, reader: sqlite3.Connection, start: int, stop: int) -> dict[int, UpstreamRecord]:
        """What it has at positions [start, stop). Rows that it has not put in their places yet may
        lie there as an earlier run left them."""
        found = answers_at(reader, self.number, self.upstream, range(start, stop), damages=self.damages)
        if self.reach:
            waited = self.reach.pending
            several = waited if stop - start > len(waited) else waited.intersection(range(start, stop))
            found |= {position: _WAITING for position in several if start <= position < stop}
        return found


_WAITING, _NOTHING = UpstreamRecord(True, None), UpstreamRecord(False, None)


def _is_row(item: bytes) -> bool:
    try:
        return isinstance(orjson.loads(item), dict)
    except ValueError:
        return False


def _damaged(one: _Above) -> str:
    first = ", ".join(map(str, sorted(one.damages)[:5]))
    count = len(one.damages)
    answers = "1 answer is" if count == 1 else f"{count:,} answers are"
    return (
        f"stage '{one.upstream.stage}': {answers} damaged (row {first}{', …' if count > 5 else ''}); rows "
        "made of damaged answers wait until `distill check --run RUN --repair` makes these pending again"
    )


class StageRows:
    """`make` turns a position's records (in the order of the stages, None where one has none) into
    at most `each` rows. `limit`: only rows that stand below it."""

    is_stream = False

    def __init__(
        self,
        stages: Sequence[Upstream],
        make: Callable[[Sequence[Any]], Sequence[Item]],
        each: int = 1,
        limit: int | None = None,
        bad: Callable[[], Iterator[BadRow]] | None = None,
    ) -> None:
        """`bad`: the rows of files beside the stages that could not be read."""
        self._stages, self._make, self._each, self._limit = stages, make, each, limit
        self._bad = bad
        self.source = " + ".join(f"stage {upstream.stage}" for upstream in stages)
        self._followed: dict[str, Progress] = {}
        self._waiting: set[int] = set()

    @property
    def pending(self) -> frozenset[int]:
        each = range(self._each)
        return frozenset(position * self._each + offset for position in self._waiting for offset in each)

    def follow(self, stage: str, progress: Progress) -> None:
        """These rows wait for what that stage still brings; others are taken as they lie."""
        self._followed[stage] = progress

    def placed(self, reader: sqlite3.Connection) -> Iterator[Placed | BadRow | Gone | None]:
        """Raises KeyError for a stage that the ledger does not know."""
        if self._bad:
            yield from self._bad()
        numbers = dict(reader.execute("SELECT name, id FROM stages").fetchall())
        above = [_Above(numbers[u.stage], u, u.is_whole or u.stage in self._followed) for u in self._stages]
        try:
            yield from self._looked_through(reader, above)
        finally:
            for one in above:
                if one.damages:
                    tell(f"distill: {plain(_damaged(one), 600)}\n")

    def _looked_through(
        self, reader: sqlite3.Connection, above: Sequence["_Above"]
    ) -> Iterator[Placed | Gone | None]:
        sql = "SELECT ifnull(max(position), -1) + 1 FROM samples WHERE stage = ?"
        end = max(int(reader.execute(sql, (one.number,)).fetchone()[0]) for one in above)
        end = min([end, *(one.upstream.limit for one in above if one.upstream.limit is not None)])
        if self._limit is not None:
            end = min(end, -(-self._limit // self._each))
        cursor = 0
        while True:
            over = all(progress.is_over for progress in self._followed.values())  # before looking
            for one in above:
                if one.upstream.stage in self._followed:
                    one.reach = self._followed[one.upstream.stage].reach
            waiting = frozenset(self._waiting)
            for first, last in _stretches(waiting):
                yield from self._rows_at(reader, above, first, last + 1, waiting)
            frontier = min([one.reach.frontier for one in above if one.reach], default=end)
            if self._limit is not None:
                frontier = min(frontier, -(-self._limit // self._each))
            while cursor < frontier:
                stop = min(cursor + PAGE, frontier)
                yield from self._rows_at(reader, above, cursor, stop)
                cursor = stop
            is_full = self._limit is not None and cursor * self._each >= self._limit
            if over or (is_full and not self._waiting):
                return
            yield None

    def _rows_at(
        self,
        reader: sqlite3.Connection,
        above: Sequence[_Above],
        start: int,
        stop: int,
        only: frozenset[int] | None = None,
    ) -> Iterator[Placed | Gone]:
        """The rows of a stretch; of these positions, if `only` names some."""
        found = [one.look(reader, start, stop) for one in above]
        absent = [_NOTHING if one.is_whole else _WAITING for one in above]
        for position in range(start, stop):
            if only is not None and position not in only:
                continue
            there = [each.get(position, none) for each, none in zip(found, absent, strict=True)]
            if any(one.is_waiting for one in there):
                self._waiting.add(position)
                continue
            self._waiting.discard(position)
            records = [one.record for one in there]
            rows = self._make(records) if any(record is not None for record in records) else []
            for offset in range(self._each):
                place = position * self._each + offset
                if self._limit is None or place < self._limit:
                    yield (place, rows[offset]) if offset < len(rows) else Gone(place)


def _stretches(positions: frozenset[int]) -> list[tuple[int, int]]:
    """First and last of each run of positions that lie close together."""
    found: list[tuple[int, int]] = []
    for position in sorted(positions):
        if found and position - found[-1][1] <= CLOSE and position - found[-1][0] < PAGE:
            found[-1] = (found[-1][0], position)
        else:
            found.append((position, position))
    return found
