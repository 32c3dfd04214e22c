"""What a feed reads: rows with their positions in the stage, from files or from other stages.

Knows nothing of requests or of how rows are asked.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from store.records import BadRow, Item

Placed = tuple[int, Item]  # a row with its position in the stage
NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no row at this position, whatever an earlier run had there."""

    position: int


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a stage has come: its rows below `frontier` are in their places, but for those that
    are `pending`, which may still come."""

    frontier: int = 0
    pending: frozenset[int] = NOTHING


class Rows(Protocol):
    """Where a stage's rows come from. `is_stream`: they may come one by one, for ever."""

    @property
    def source(self) -> str: ...

    @property
    def is_stream(self) -> bool: ...

    @property
    def pending(self) -> frozenset[int]:
        """Positions that were passed over, whose rows may still come."""

    def placed(self, reader: sqlite3.Connection) -> Iterator[Placed | BadRow | Gone | None]:
        """Rows in any order of position; None: there will be more, but not now."""

    def follow(self, stage: str, progress: "Progress") -> None:
        """Told before the run, for each stage that runs at the same time and whose answers these
        rows are made of."""


class Progress(Protocol):
    """How far a stage is that others take their rows from."""

    @property
    def reach(self) -> Reach: ...

    @property
    def is_over(self) -> bool:
        """It will bring no more answers."""


class Source(Protocol):
    """What can be read in order: a pool, or the answers of several models joined."""

    @property
    def source(self) -> str: ...

    @property
    def is_stream(self) -> bool: ...

    def __iter__(self) -> Iterator[Item | BadRow]: ...


class Numbered:
    """The rows of a file: usable ones are numbered in its order."""

    def __init__(self, source: Source) -> None:
        self._rows = source
        self.source, self.is_stream = source.source, source.is_stream
        self.pending = NOTHING

    def placed(self, reader: sqlite3.Connection) -> Iterator[Placed | BadRow | Gone | None]:
        position = 0
        for row in self._rows:
            if isinstance(row, BadRow):
                yield row
            else:
                yield position, row
                position += 1

    def follow(self, stage: str, progress: Progress) -> None:
        """Files follow nobody."""
