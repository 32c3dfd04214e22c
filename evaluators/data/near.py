"""Finds earlier sets of hashes that are like a new one: MinHash with LSH, then the true Jaccard.

datasketch does both; its bands are chosen for recall, as each candidate is measured anyway.
"""

from array import array
from typing import Any

PERMUTATIONS = 128
WEIGHTS = (0.1, 0.9)  # of false positives, which cost a comparison, and of false negatives, which stay


class Near:
    """All that was added so far."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self._threshold = threshold
        self._index: Any = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=WEIGHTS)
        self._empty: Any = MinHash(num_perm=PERMUTATIONS, hashfunc=int)  # what comes in is hashed already
        self._sets: dict[int, array[int]] = {}

    def add(self, key: int, hashes: "array[int]") -> list[int]:
        """The keys of sets whose Jaccard similarity to this one is at least the threshold."""
        sketch = self._empty.copy()
        sketch.update_batch(hashes)
        mine = set(hashes)
        found = [other for other in self._index.query(sketch) if self._alike(mine, self._sets[other])]
        self._index.insert(key, sketch, check_duplication=False)
        self._sets[key] = hashes
        return sorted(found)

    def _alike(self, mine: set[int], other: "array[int]") -> bool:
        both = len(mine.intersection(other))
        return both >= self._threshold * (len(mine) + len(other) - both)
