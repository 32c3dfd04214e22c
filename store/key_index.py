"""Known request keys in memory: a compact index, confirmed in SQLite.

17 bytes a key: fingerprint -> request id and state. Keys stored before the run are one sorted array of
64-bit fingerprints. Later ones go into 4096 small sorted buckets, so no rehash ever stalls the run. A hit
is only a candidate and is confirmed in SQLite; keys whose commit may still be on its way are remembered
beside it. Used by one thread, whichever stage asks.
"""

import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

from store.errors import DamagedLedger
from store.files import LEDGER
from store.queries import IN_UNUSABLE, PAGE_OF_KEYS, connect_reader, ledger_name, note_asked, times_asked

DUE, ANSWERED, FAILED, TAKEN = 0, 1, 2, 3  # taken: being asked in this run
_BUCKET_BITS = 12


class KeyIndex:
    """Keys are 32 random bytes (SHA-256); ids count from 1 without gaps."""

    def __init__(self) -> None:
        self._base, self._base_ids = array("Q"), array("Q")
        self._states = bytearray(1)
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
        bucket = fingerprint >> (64 - _BUCKET_BITS)
        for known, ids, first in (
            (self._base, self._base_ids, 1),
            (self._fingerprints[bucket], self._ids[bucket], 0),
        ):
            at = bisect_left(known, fingerprint)
            while at < len(known) and known[at] == fingerprint:
                yield ids[at] + first
                at += 1

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


FRESH_KEPT = 8192  # keys that may not be in the ledger yet


class Known:
    """Numbers count from 1 without gaps, over all stages of a run folder."""

    def __init__(self, run: Path, index: KeyIndex) -> None:
        self.reader = connect_reader(run)
        self.index = index
        self._next = len(index) + 1
        self._fresh: dict[int, bytes] = {}
        self._asked_noted = False

    def find(self, key: bytes) -> int | None:
        """The request with this key."""
        for candidate in self.index.candidates(key):
            row = self.reader.execute("SELECT key FROM requests WHERE id = ?", (candidate,)).fetchone()
            if (row[0] if row else self._fresh.get(candidate)) == key:
                return candidate
        return None

    def has_answer(self, key: bytes) -> bool:
        number = self.find(key)
        return number is not None and self.index.state(number) == ANSWERED

    def new(self, key: bytes) -> int:
        """A number for a key that is not known; it counts as taken from now on."""
        number, self._next = self._next, self._next + 1
        self.index.add(key, number, TAKEN)
        self._fresh[number] = key
        if len(self._fresh) > FRESH_KEPT:
            (last,) = self.reader.execute("SELECT ifnull(max(id), 0) FROM requests").fetchone()
            self._fresh = {n: held for n, held in self._fresh.items() if n > last}
        return number

    def asked(self, request: int) -> tuple[int, bool]:
        """How often earlier runs have asked it in vain, and whether the server refused it."""
        if not self._asked_noted:
            note_asked(self.reader)
            self._asked_noted = True
        return times_asked(self.reader, request)

    def close(self) -> None:
        self.reader.close()


def load_index(reader: sqlite3.Connection, index: KeyIndex) -> None:
    """All requests' keys with their state. Ids have no gaps: requests are never deleted. Raises
    DamagedLedger where they have."""
    reader.execute("BEGIN")
    try:
        keys = reader.execute("SELECT CAST(substr(key, 1, 8) AS BLOB) FROM requests ORDER BY id")
        heads = bytearray()
        while some := keys.fetchmany(PAGE_OF_KEYS):  # a join of all would hold a million small objects
            heads += b"".join([head for (head,) in some])
        count, last = reader.execute("SELECT count(*), ifnull(max(id), 0) FROM requests").fetchone()
        if not count == last == len(heads) // 8:
            raise DamagedLedger(ledger_name(reader), "requests are missing in it")
        states = bytearray([ANSWERED]) * count
        others = reader.execute("SELECT id, failure FROM requests WHERE answer IS NULL")
        for request, failure in others:
            states[request - 1] = DUE if failure is None else FAILED
        unusable = reader.execute(
            f"SELECT request FROM responses p WHERE outcome IN {IN_UNUSABLE} "
            "AND id = (SELECT answer FROM requests WHERE id = p.request)"
        )
        for (request,) in unusable:  # what was paid for in vain is not asked again
            states[request - 1] = FAILED
        index.load(heads, states)
    finally:
        reader.execute("ROLLBACK")


def known_keys(run: Path | None) -> KeyIndex:
    """What a run folder knows already; empty for a folder that is new."""
    index = KeyIndex()
    if run is not None and (run / LEDGER).exists():
        reader = connect_reader(run)
        try:
            load_index(reader, index)
        finally:
            reader.close()
    return index
