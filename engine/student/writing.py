"""An answer as it grows: tokens in, text out, up to the first of the stop strings. Pure.

A character may come in several tokens (UTF-8), and a stop string may begin in one and end in another. Text
is found by decoding the last few tokens with and without the newest, since what a token says may depend
on the one before it (SentencePiece's spaces).
"""

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"  # how a piece of a character decodes
LONGEST_CHARACTER = 8  # tokens; more of them unfinished are no character at all


class Writing:
    """text: what was written so far, without the stop string that ended it."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self.text = ""
        self._decode = decode
        self._stops = stops
        self._overlap = max(map(len, stops), default=1) - 1
        self._recent: list[int] = []  # the tokens before the new ones, for context, and the new ones
        self._known = 0  # how many of them are in the text

    def add(self, token: int) -> bool:
        """Whether a stop string was completed, and the answer ends before it."""
        self._recent.append(token)
        return self._read(final=False)

    def end(self) -> bool:
        """Takes in what was held back as the beginning of a character; whether that completed a stop."""
        return self._read(final=True)

    def settled(self) -> int:
        """How much of the text no stop string can take back any more."""
        longest = min(self._overlap, len(self.text))
        ends = (n for n in range(longest, 0, -1) if any(s.startswith(self.text[-n:]) for s in self._stops))
        return len(self.text) - next(ends, 0)

    def _read(self, final: bool) -> bool:
        known = self._decode(self._recent[: self._known])
        now = self._decode(self._recent)
        waits = now.endswith(UNFINISHED) and len(self._recent) - self._known < LONGEST_CHARACTER
        if waits and not final:
            return False
        self._recent = self._recent[self._known :]
        self._known = len(self._recent)
        return self._write(now[len(known) :])

    def _write(self, piece: str) -> bool:
        start = max(0, len(self.text) - self._overlap)
        self.text += piece
        found = [at for stop in self._stops if (at := self.text.find(stop, start)) >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)
