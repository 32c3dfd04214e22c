"""Micro batches: which rows of a step go through the model at once.

They change no loss: what a step learns is divided by what is in all of it. On a GPU they are as large as
memory allows, for a small one leaves it idle: by arithmetic at first, then as the first steps have measured.
On a CPU, where size gains nothing, and with `--micro-batch`, they are so many rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

BUCKETS = 16  # widths of padded rows on a GPU: few shapes
ALIKE = 0.75  # of the longest row, that every padded row has at least there
MOST_TOKENS = 1 << 16  # in a micro batch: more is no faster on any GPU of today
FILLED = 0.9  # of a GPU's memory: the rest goes to fragments and to the kernels' own use


@dataclass(frozen=True)
class Room:
    """What a micro batch may hold. rows, tokens: at most, None: any number; padding counts. packed: nothing
    is padded. multiple: that widths of padded rows are rounded up to."""

    rows: int | None
    tokens: int | None
    packed: bool = True
    multiple: int = 1

    def width(self, length: int) -> int:
        return -(-length // self.multiple) * self.multiple

    def cost(self, lengths: Sequence[int]) -> int:
        """Tokens that rows of these lengths are together."""
        return sum(lengths) if self.packed else self.width(max(lengths)) * len(lengths)

    def holds(self, lengths: Sequence[int]) -> bool:
        """One row always has room."""
        if len(lengths) == 1:
            return True
        if self.rows is not None and len(lengths) > self.rows:
            return False
        alike = self.packed or min(lengths) >= ALIKE * max(lengths)
        return self.tokens is None or (alike and self.cost(lengths) <= self.tokens)


def split(lengths: Sequence[int], room: Room, least: int = 1) -> list[list[int]]:
    """Places of rows, shortest first, by micro batch: as few as have room, but at least so many (or a row
    each). Packed ones are about equal; padded ones hold rows of about one length."""
    count = len(lengths)
    if not room.packed:
        return _of_one_length(lengths, room, least)
    few = math.ceil(count / room.rows) if room.rows else 1
    small = math.ceil(sum(lengths) / room.tokens) if room.tokens else 1
    for number in range(min(max(few, small, least), count), count + 1):
        found = [list(range(first, count, number)) for first in range(number)]
        if all(room.holds([lengths[place] for place in group]) for group in found):
            return found
    return []


def _of_one_length(lengths: Sequence[int], room: Room, least: int) -> list[list[int]]:
    found: list[list[int]] = []
    for place in reversed(range(len(lengths))):
        if found and room.holds([lengths[n] for n in (*found[-1], place)]):
            found[-1].append(place)
        else:
            found.append([place])
    while len(found) < min(least, len(lengths)):
        largest = max(found, key=len)
        found.remove(largest)
        found += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    return [group[::-1] for group in reversed(found)]


def shared(lengths: Sequence[int], processes: int, room: Room) -> list[list[list[int]]]:
    """For each process its micro batches of a step's rows, shortest first: the same number of rows and of
    micro batches for each (ZeRO-3 wants them to keep step), and about the same work."""
    own = [range(process, len(lengths), processes) for process in range(processes)]
    least = 1
    while True:
        found = [split([lengths[row] for row in rows], room, least) for rows in own]
        most = max(map(len, found))
        if all(len(groups) == most for groups in found):
            break
        least = most
    return [
        [[rows[place] for place in group] for group in groups]
        for rows, groups in zip(own, found, strict=True)
    ]


def room_for(tokens: int | None, rows: int, packed: bool, longest: int) -> Room:
    """tokens: that memory has room for, None: `rows` decides. longest: any row may be."""
    if tokens is None:
        return Room(rows, None, packed)
    multiple = 1 if packed else -(-longest // (8 * BUCKETS)) * 8
    return Room(None, tokens, packed, multiple)
