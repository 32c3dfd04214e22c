"""One answer that is being written: what it was asked with, what it has so far, whether it has ended."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.student.thinking import Parts, parts
from engine.student.writing import Writing
from store.reasoning import Marks

Finish = Literal["stop", "length", "error"]


@dataclass(eq=False, slots=True)
class Row:
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
    tell: Callable[["Row"], None]
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
            self._count_thinking()

    def _count_thinking(self) -> None:
        """Up to and with the token that closes it; all that may be its opening mark waits uncounted."""
        found = parts(self.writing.text, self.marks, final=False)
        if found.inside or self.thought:
            self.thought = self.written
        self.answering = bool(found.answer) or bool(self.thought and not found.inside)

    def said(self) -> Parts:
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
