"""Finds pairs of sets of hashes that are alike: MinHash with LSH, then the true Jaccard.

datasketch makes the sketches and chooses the bands (for recall, as each candidate is measured anyway). Its
index holds half a gigabyte for 52,000 texts; here the sketches lie side by side (512 bytes each) and each
band is sorted in turn.
"""

from array import array
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

PERMUTATIONS = 128
WEIGHTS = (0.1, 0.9)  # of false positives, which cost a comparison, and of false negatives, which stay
MIXING = 0x9E3779B97F4A7C15  # odd, so that a band's hashes mix into 64 bits without loss


class Near:
    """All sets that were added; `pairs` when all are there."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        bands = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=WEIGHTS)
        self._threshold, self._bands, self._band = threshold, int(bands.b), int(bands.r)
        self._none: Any = MinHash(num_perm=PERMUTATIONS, hashfunc=int)  # what comes in is hashed already
        self._sketches = bytearray()
        self._keys = array("q")
        self._sets: list[array[int]] = []

    def add(self, key: int, hashes: "array[int]") -> None:
        """hashes: 32 bits each, every one once."""
        sketch = self._none.copy()
        sketch.update_batch(hashes)
        self._sketches += sketch.hashvalues.tobytes()
        self._keys.append(key)
        self._sets.append(hashes)

    def pairs(self, together: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
        """Keys of sets whose similarity is at least the threshold; none that are `together` already."""
        for one, other in self._candidates():
            keys = self._keys[one], self._keys[other]
            if not together(*keys) and self._alike(self._sets[one], self._sets[other]):
                yield keys

    def _candidates(self) -> Iterator[tuple[int, int]]:
        """Those with a band in common."""
        import numpy as np

        sketches = np.frombuffer(self._sketches, np.uint32).reshape(-1, PERMUTATIONS)
        for band in range(self._bands):
            keys: Any = np.zeros(len(sketches), np.uint64)
            for column in sketches[:, band * self._band : (band + 1) * self._band].T:
                keys = (keys ^ column) * np.uint64(MIXING)
            order = np.argsort(keys, kind="stable")
            ends: Any = np.flatnonzero(np.diff(keys[order])) + 1
            for group in np.split(order, ends):
                yield from combinations(group.tolist(), 2)

    def _alike(self, one: "array[int]", other: "array[int]") -> bool:
        both = len(set(one).intersection(other))
        return both >= self._threshold * (len(one) + len(other) - both)
