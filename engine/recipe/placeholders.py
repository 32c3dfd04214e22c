"""The rows of a stage that reads others, before these have run: of their answers, or of imagined ones.

Where the ledger has an answer, the row is the one that will be asked. Where it has none, the answer
is imagined: of the usual length, and marked by its request's key. Two answers are imagined equal
only where the same request would be asked, so that requests are counted as a run will ask them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from engine.collect.plan import Plan
from engine.collect.rows import Surveyed
from engine.collect.upstream import PAGE, Upstream, UpstreamRecord, answers_at
from store.queries import connect_reader
from store.records import BadRow, Item
from store.run_folder import LEDGER
from store.stage_rows import stage_number

MARK = 10  # hexadecimal digits: of a million rows no two are alike but for one time in two


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A stage that rows are made of. `sample`: which of its answers."""

    upstream: Upstream
    plan: Plan
    rows: Surveyed
    run: Path
    sample: int = 0

    def records(self) -> Iterator[Any]:
        """What comes of each of its rows, by position; None where nothing usable will come."""
        reader = connect_reader(self.run) if (self.run / LEDGER).exists() else None
        number = stage_number(reader, self.upstream.stage) if reader else None
        items, start = islice(_by_position(self.rows), self.upstream.limit), 0
        try:
            while page := list(islice(items, PAGE)):
                there: dict[int, UpstreamRecord] = {}
                if reader and number is not None:
                    places = range(start, start + len(page))
                    there = answers_at(reader, number, self.upstream, places, self.sample, self.plan.accepted)
                for position, item in enumerate(page, start):
                    yield None if item is None else self._record(item, there.get(position))
                start += len(page)
        finally:
            if reader:
                reader.close()

    def _record(self, item: Item, there: UpstreamRecord | None) -> Any:
        if there and not there.is_waiting and there.item == self.plan.task.encode(item):
            return there.record
        (*_, key) = replace(self.plan, samples=self.sample + 1).seal(item)[2]
        return self.plan.task.imagined(item, key.hex()[:MARK])


class Expected:
    """What a stage will be asked. `make`, `each` and `limit` as for StageRows."""

    is_stream = False

    def __init__(
        self,
        above: Sequence[Foreseen],
        make: Callable[[Sequence[Any]], Sequence[Item]],
        each: int = 1,
        limit: int | None = None,
    ) -> None:
        self._above, self._make, self._each, self._limit = above, make, each, limit
        self.source = "answers to " + " + ".join(one.rows.source for one in above)

    @property
    def fraction(self) -> float:
        return self._above[0].rows.fraction

    def __iter__(self) -> Iterator[Item | BadRow]:
        return (item for item in self.by_position() if item is not None)

    def by_position(self) -> Iterator[Item | None]:
        return islice(self._made(), self._limit)

    def _made(self) -> Iterator[Item | None]:
        for records in zip(*(one.records() for one in self._above), strict=False):  # (limits may differ)
            made = self._make(records) if any(record is not None for record in records) else []
            yield from made
            yield from [None] * (self._each - len(made))


def _by_position(rows: Surveyed) -> Iterator[Item | None]:
    if isinstance(rows, Expected):
        return rows.by_position()
    return (item for item in rows if not isinstance(item, BadRow))
