"""Which number a record on a leaf has, where its own may be damaged.

The numbers (rowids) on a leaf rise, and the pages above say between which bounds they lie. A number that
breaks either is wrong, or the bounds are: where the others leave exactly one place, it is that.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

Bounds = tuple[int, int | None]  # more than the first, at most the second; None: no end
Place = tuple[int | None, bool]  # a record's number, None where nobody knows it; whether it is certain


def places(rowids: Sequence[int], bounds: Bounds | None) -> list[Place]:
    """For each record of a leaf, in their order on it."""
    if not rowids:
        return []
    if bounds is not None and not _hold(rowids, bounds):
        bounds = None  # it is rather they that are damaged
    low, high = bounds or (None, None)
    inside = [low is None or (low < r and (high is None or r <= high)) for r in rowids]
    rising = _rising([r if fits else None for r, fits in zip(rowids, inside, strict=True)])
    found: list[Place] = []
    for at, rowid in enumerate(rowids):
        if at in rising:
            found.append((rowid, True))
            continue
        before = max((n for n in rising if n < at), default=None)
        after = min((n for n in rising if n > at), default=None)
        first = low if before is None else rowids[before]
        last = None if after is None else rowids[after]
        last = high + 1 if last is None and high is not None else last
        count = (len(rowids) if after is None else after) - (-1 if before is None else before) - 1
        if first is not None and last is not None and last - first - 1 == count:
            found.append((first + at - (-1 if before is None else before), True))
        else:  # out of its bounds, but in order: perhaps it is the bounds that are damaged
            in_order = (first is None or first < rowid) and (last is None or rowid < last)
            found.append((rowid if in_order and not inside[at] else None, False))
    return found


def _hold(rowids: Sequence[int], bounds: Bounds) -> bool:
    """Whether bounds can be believed: more than half of the numbers lie in them, or exactly as many numbers
    as there are records."""
    low, high = bounds
    if high is not None and high <= low:
        return False
    within = sum(low < rowid and (high is None or rowid <= high) for rowid in rowids)
    return 2 * within > len(rowids) or (high is not None and high - low == len(rowids))


def _rising(values: Sequence[int | None]) -> set[int]:
    """Places that are in every longest rising sequence: where two could be the wrong one, neither is. None
    is in no sequence."""
    there = [(at, value) for at, value in enumerate(values) if value is not None]
    ending = _lengths([value for _, value in there])
    starting = _lengths([-value for _, value in reversed(there)])[::-1]
    longest = max(ending, default=0)
    some = [n for n in range(len(there)) if ending[n] + starting[n] - 1 == longest]
    alone = Counter(ending[n] for n in some)
    return {there[n][0] for n in some if alone[ending[n]] == 1}


def _lengths(values: Sequence[int]) -> list[int]:
    """Of the longest rising sequence that ends at each."""
    tails: list[int] = []
    found = []
    for value in values:
        n = bisect_left(tails, value)
        tails[n : n + 1] = [value]
        found.append(n + 1)
    return found
