"""One answer while it is written: its sampling parameters, its text so far, its thinking, its end.

A character may take several tokens (UTF-8), and a stop string may begin in one token and end in another.
Text is found by decoding the last few tokens with and without the newest one, because the text of a token
may depend on the one before it (SentencePiece's spaces). Thinking is kept apart from the answer while both
still grow.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from store.student import Marks

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
        start = max(0, len(self.text) - self._overlap)
        self.text += now[len(known) :]
        found = [at for stop in self._stops if (at := self.text.find(stop, start)) >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)


class ThinkingParts(NamedTuple):
    """inside: whether more of the thinking may come."""

    thought: str
    answer: str
    inside: bool


def parts(text: str, marks: Marks | None, final: bool) -> ThinkingParts:
    """What of a text is thinking. Thinking comes first or not at all, and begins with its opening mark unless
    the prompt ended with that; one that is never closed has no answer. marks: None where nothing is looked
    for. final: no more text comes; until then what may still turn out to be a mark is held back."""
    if marks is None:
        return ThinkingParts("", text, False)
    opening, closing = marks.before.strip(), marks.after.strip()
    begins = text.lstrip()
    if opening and begins.startswith(opening):
        begins = begins.removeprefix(opening)
    elif not marks.opened:
        undecided = not final and opening.startswith(begins)
        return ThinkingParts("", "" if undecided else text, False)
    elif opening.startswith(begins) and not final:
        return ThinkingParts("", "", True)
    thought, closed, answer = begins.partition(closing)
    if closed:
        return ThinkingParts(thought.strip(), answer.lstrip(), False)
    if not final:  # signs at the end that may be the beginning of the mark
        longest = min(len(thought), len(closing) - 1)
        begun = next((n for n in range(longest, 0, -1) if closing.startswith(thought[-n:])), 0)
        thought = thought[: len(thought) - begun]
    return ThinkingParts(thought.strip(), "", True)


Finish = Literal["stop", "length", "error"]


@dataclass(eq=False, slots=True)
class Generation:
    """prompt: its tokens. most: tokens that may be written. matcher: its place in a grammar, None where it is
    free. tell: called from the worker's thread when the row has left the batch, and after every token where
    it is streamed. marks: of thinking, None where it is not told apart. gone: nobody waits for it any more.
    written: tokens, with the one that ended it. thought: how many of them are thinking, with its marks."""

    prompt: Sequence[int]
    most: int
    temperature: float
    top_p: float
    draws: random.Random
    writing: Writing
    matcher: Any
    tell: Callable[["Generation"], None]
    streamed: bool = False
    marks: Marks | None = None
    written: int = 0
    thought: int = 0
    answering: bool = False
    finish: Finish | None = None
    gone: bool = field(default=False)

    def take(self, token: int, ends: frozenset[int]) -> None:
        """The next token. Nobody is told yet."""
        self.written += 1
        if self.matcher is not None and not self.matcher.accept_token(token):
            self.finish = "error"  # the grammar allows nothing more, not even the end
        elif token in ends:
            self.writing.end()
            self.finish = "stop"
        elif self.writing.add(token) or (self.matcher is not None and self.matcher.is_terminated()):
            self.finish = "stop"
        elif self.written >= self.most:
            self.finish = "stop" if self.writing.end() else "length"
        if not self.answering:
            # thinking counts up to and with the token that closes it; what may be its opening mark waits
            found = parts(self.writing.text, self.marks, final=False)
            if found.inside or self.thought:
                self.thought = self.written
            self.answering = bool(found.answer) or bool(self.thought and not found.inside)

    def said(self) -> ThinkingParts:
        """What it has to say so far that no more tokens can take back."""
        final = self.finish is not None  # read once, before the text: another thread writes both
        settled = None if final else self.writing.settled()
        return parts(self.writing.text[:settled], self.marks, final)

    def report(self) -> None:
        """Tells the one who waits, where there is something to tell."""
        if self.finish or self.streamed:
            self.tell(self)

    def fail(self) -> None:
        self.finish = "error"
        self.tell(self)
