"""Which keys the ledger knows, in 17 bytes a key: fingerprint -> request id, and its state.

What was stored when the run began lies in one sorted array of 64-bit fingerprints; what comes
after goes into 4096 small sorted buckets, so that no rehash ever stalls the run and the
ten-millionth key costs what the first did. A hit is a candidate; the caller confirms it.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator

DUE, ANSWERED, FAILED, TAKEN = 0, 1, 2, 3  # taken: being asked in this run
_BUCKET_BITS = 12


class KeyIndex:
    """Keys are 32 random bytes (SHA-256); ids count from 1 without gaps."""

    def __init__(self) -> None:
        self._base, self._base_ids = array("Q"), array("Q")
        self._states = bytearray(1)
        self._make_buckets()

    def _make_buckets(self) -> None:
        self._fingerprints = [array("Q") for _ in range(1 << _BUCKET_BITS)]
        self._ids = [array("Q") for _ in range(1 << _BUCKET_BITS)]

    def __len__(self) -> int:
        return len(self._states) - 1

    def load(self, heads: bytes | bytearray, states: bytes | bytearray) -> None:
        """Fills an empty index. heads: the first 8 bytes of each key in order of id, end to end;
        states: a byte for each."""
        import pyarrow as pa
        import pyarrow.compute as pc

        fingerprints = array("Q", bytes(heads))
        fingerprints.byteswap()  # keys are big-endian, so that buckets follow their first bits
        buffers = [None, pa.py_buffer(fingerprints)]  # as it lies: a million numbers are not copied
        unsorted = pa.Array.from_buffers(pa.uint64(), len(fingerprints), buffers)
        order = pc.sort_indices(unsorted)
        column = unsorted.take(order)
        self._base.frombytes(memoryview(column.buffers()[1])[: len(heads)])
        self._base_ids.frombytes(memoryview(order.buffers()[1])[: len(heads)])
        self._states = bytearray(1) + states

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
        for at in _equal(self._base, fingerprint):
            yield self._base_ids[at] + 1
        bucket = fingerprint >> (64 - _BUCKET_BITS)
        for at in _equal(self._fingerprints[bucket], fingerprint):
            yield self._ids[bucket][at]

    def has_answer(self, key: bytes) -> bool:
        """As good as certain: unconfirmed."""
        return any(self.state(request) == ANSWERED for request in self.candidates(key))

    def copy(self) -> "KeyIndex":
        """One that may be added to and marked without this one noticing."""
        other = KeyIndex()
        other._base, other._base_ids = self._base, self._base_ids  # these never change
        other._fingerprints = [array("Q", bucket) for bucket in self._fingerprints]
        other._ids = [array("Q", bucket) for bucket in self._ids]
        other._states = bytearray(self._states)
        return other

    def state(self, request: int) -> int:
        return self._states[request]

    def mark(self, request: int, state: int) -> None:
        self._states[request] = state


def _equal(fingerprints: "array[int]", fingerprint: int) -> Iterator[int]:
    at = bisect_left(fingerprints, fingerprint)
    while at < len(fingerprints) and fingerprints[at] == fingerprint:
        yield at
        at += 1
