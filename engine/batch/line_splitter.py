"""Cuts a file into lines as it comes, in bounded memory: no line is held that is too long to be read."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.provider.client import KEPT_BYTES, MAX_REPLY_BYTES

MOST_SKIPPED = 64 * 2**20  # of one line that is too long


@dataclass(frozen=True, slots=True)
class Text:
    """A line without its end. `is_cut`: the file ends in it; `is_long`: this is only its start."""

    raw: bytes
    is_cut: bool = False
    is_long: bool = False


class Endless(Exception):
    """A line that does not end."""


class Splitter:
    def __init__(self) -> None:
        self._line = bytearray()
        self._skipped = 0  # of a line that is too long: only its start is kept

    def feed(self, chunk: bytes) -> Iterator[Text]:
        """The lines that end in this chunk. Raises Endless."""
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            self._grow(piece)
            yield self._take()
        self._grow(rest)

    def rest(self) -> Text | None:
        """What stands behind the last line end."""
        return self._take(is_cut=True) if self._line else None

    def _grow(self, piece: bytes) -> None:
        if self._skipped or len(self._line) + len(piece) > MAX_REPLY_BYTES:
            self._line += piece[: max(0, KEPT_BYTES - len(self._line))]
            del self._line[KEPT_BYTES:]
            self._skipped += len(piece)
        else:
            self._line += piece
        if self._skipped > MOST_SKIPPED:
            raise Endless(f"a line is longer than {(MAX_REPLY_BYTES + MOST_SKIPPED) >> 20} MiB")

    def _take(self, is_cut: bool = False) -> Text:
        text = Text(bytes(self._line), is_cut, self._skipped > 0)
        self._line.clear()
        self._skipped = 0
        return text
