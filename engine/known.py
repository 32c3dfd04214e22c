"""Which requests the ledger knows or is about to know: finds a key's number, hands out new ones.

Look-up is by the fingerprint index, confirmed in SQLite; keys whose commit may still be on its
way are remembered here. Used by one thread only, whichever stage asks.
"""

from pathlib import Path

from store.index import ANSWERED, TAKEN, KeyIndex
from store.read import connect_reader, note_asked, times_asked

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
            if self._stored_key(candidate) == key:
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
            self._forget_committed()
        return number

    def asked(self, request: int) -> int:
        """How often earlier runs have asked it in vain."""
        if not self._asked_noted:
            note_asked(self.reader)
            self._asked_noted = True
        return times_asked(self.reader, request)

    def close(self) -> None:
        self.reader.close()

    def _stored_key(self, request: int) -> bytes | None:
        row = self.reader.execute("SELECT key FROM requests WHERE id = ?", (request,)).fetchone()
        return row[0] if row else self._fresh.get(request)

    def _forget_committed(self) -> None:
        (last,) = self.reader.execute("SELECT ifnull(max(id), 0) FROM requests").fetchone()
        self._fresh = {number: key for number, key in self._fresh.items() if number > last}
