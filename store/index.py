"""Which keys the ledger knows, in 17 bytes a key: fingerprint -> request id, and its state.

4096 sorted buckets of 64-bit fingerprints: no rehash ever stalls the run, and the
ten-millionth key costs what the first did. A hit is a candidate; the caller confirms it.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator

DUE, ANSWERED, FAILED, TAKEN = 0, 1, 2, 3  # taken: being asked in this run
_BUCKET_BITS = 12


class KeyIndex:
    """Keys are 32 random bytes (SHA-256); ids count from 1."""

    def __init__(self) -> None:
        self._fingerprints = [array("Q") for _ in range(1 << _BUCKET_BITS)]
        self._ids = [array("Q") for _ in range(1 << _BUCKET_BITS)]
        self._states = bytearray(1)

    def __len__(self) -> int:
        return len(self._states) - 1

    def add(self, key: bytes, request: int, state: int = DUE) -> None:
        fingerprint = int.from_bytes(key[:8], "big")
        bucket = fingerprint >> (64 - _BUCKET_BITS)
        at = bisect_left(self._fingerprints[bucket], fingerprint)
        self._fingerprints[bucket].insert(at, fingerprint)
        self._ids[bucket].insert(at, request)
        if request >= len(self._states):
            self._states.extend(bytes(request + 1 - len(self._states)))
        self._states[request] = state

    def candidates(self, key: bytes) -> Iterator[int]:
        """Ids whose fingerprint equals the key's: none or one, but for one in 2**64."""
        fingerprint = int.from_bytes(key[:8], "big")
        bucket = fingerprint >> (64 - _BUCKET_BITS)
        prints = self._fingerprints[bucket]
        at = bisect_left(prints, fingerprint)
        while at < len(prints) and prints[at] == fingerprint:
            yield self._ids[bucket][at]
            at += 1

    def copy(self) -> "KeyIndex":
        other = KeyIndex()
        other._fingerprints = [array("Q", bucket) for bucket in self._fingerprints]
        other._ids = [array("Q", bucket) for bucket in self._ids]
        other._states = bytearray(self._states)
        return other

    def state(self, request: int) -> int:
        return self._states[request]

    def mark(self, request: int, state: int) -> None:
        self._states[request] = state
