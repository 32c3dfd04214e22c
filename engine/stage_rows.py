"""Rows made of other stages' answers, as soon as they are there.

A row stands at its upstream row's position (times the rows made of one), so that it does not
matter in which order answers come: a re-started run finds every row where it was, and exports
keep the pool's order. What an upstream stage has not answered yet is remembered and looked at
again; what it failed, or answered with nothing usable, makes no row. Of several upstream
stages, which stand on the same pool, all must have ended with a row first. Reads the ledger
only; holds no more than the positions that are being waited for.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engine.feed import Placed, Progress
from engine.replies import text_of
from store.records import BadRow, Item
from store.schema import STAGE_SHIFT

PAGE = 512  # positions looked at together
USABLE = ("stop", "length")

_LOOK = """
SELECT a.position, w.item, r.answer IS NULL AND r.failure IS NULL, p.outcome, b.raw
FROM samples a JOIN rows w ON w.id = ? + a.position JOIN requests r ON r.id = a.request
LEFT JOIN responses p ON p.id = r.answer LEFT JOIN bodies b ON b.response = p.id
WHERE a.stage = ? AND a.sample = 0 AND a.position >= ? AND a.position < ? ORDER BY a.position
"""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A stage that rows are made of. read: its row (as JSON) and the reply's text to a record, or
    None where there is none to be had."""

    stage: str
    read: Callable[[Mapping[str, Any], str], Any]


@dataclass(frozen=True, slots=True)
class _Found:
    """What one upstream stage has at a position. `record` None: nothing usable will come."""

    is_waiting: bool
    record: Any


class StageRows:
    """`make` turns a position's records (in the order of the stages, None where one has none) into
    at most `each` rows."""

    is_stream = False

    def __init__(
        self, stages: Sequence[Upstream], make: Callable[[Sequence[Any]], Sequence[Item]], each: int = 1
    ) -> None:
        self._stages, self._make, self._each = stages, make, each
        self.source = " + ".join(f"stage {upstream.stage}" for upstream in stages)
        self._followed: dict[str, Progress] = {}

    def follow(self, stage: str, progress: Progress) -> None:
        """These rows wait for what that stage still brings; others are taken as they lie."""
        self._followed[stage] = progress

    def placed(self, reader: sqlite3.Connection) -> Iterator[Placed | BadRow | None]:
        """Raises KeyError for a stage that the ledger does not know."""
        numbers = dict(reader.execute("SELECT name, id FROM stages").fetchall())
        stages = [(numbers[upstream.stage], upstream) for upstream in self._stages]
        end = self._end(reader, [number for number, _ in stages])
        waiting: list[int] = []
        cursor = 0
        while True:
            over = all(progress.is_over for progress in self._followed.values())  # before looking
            still: list[int] = []
            for position in waiting:
                yield from self._rows_at(reader, stages, position, position + 1, still)
            frontier = min([p.frontier for p in self._followed.values()], default=end)
            while cursor < frontier:
                stop = min(cursor + PAGE, frontier)
                yield from self._rows_at(reader, stages, cursor, stop, still)
                cursor = stop
            waiting = still
            if over:
                return
            yield None

    def _end(self, reader: sqlite3.Connection, numbers: Sequence[int]) -> int:
        sql = "SELECT ifnull(max(position), -1) + 1 FROM samples WHERE stage = ?"
        return max(int(reader.execute(sql, (number,)).fetchone()[0]) for number in numbers)

    def _rows_at(
        self,
        reader: sqlite3.Connection,
        stages: Sequence[tuple[int, Upstream]],
        start: int,
        stop: int,
        waiting: list[int],
    ) -> Iterator[Placed]:
        found = [_look(reader, number, upstream, start, stop) for number, upstream in stages]
        for position in sorted(set().union(*found)):
            there = [each[position] for each in found if position in each]
            if any(one.is_waiting for one in there):
                waiting.append(position)
                continue
            records = [each[position].record if position in each else None for each in found]
            for offset, item in enumerate(self._make(records)):
                yield position * self._each + offset, item


def _look(
    reader: sqlite3.Connection, number: int, upstream: Upstream, start: int, stop: int
) -> dict[int, _Found]:
    found = {}
    rows = reader.execute(_LOOK, (number << STAGE_SHIFT, number, start, stop))
    for position, item, is_waiting, outcome, raw in rows:
        record = None
        if outcome in USABLE:
            record = upstream.read(orjson.loads(item), text_of(raw.encode() if isinstance(raw, str) else raw))
        found[position] = _Found(bool(is_waiting), record)
    return found
