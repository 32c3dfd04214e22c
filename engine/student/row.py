"""One answer that is being written: what it was asked with, what it has so far, whether it has ended."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.student.writing import Writing

Finish = Literal["stop", "length", "error"]


@dataclass(eq=False, slots=True)
class Row:
    """prompt: its tokens. most: tokens that may be written. matcher: its place in a grammar, None where it is
    free. tell: called from the worker's thread when the row has left the batch, and after every token where
    it is streamed. gone: nobody waits for it any more. written: tokens, with the one that ended it."""

    prompt: Sequence[int]
    most: int
    temperature: float
    top_p: float
    draws: random.Random
    writing: Writing
    matcher: Any
    tell: Callable[["Row"], None]
    streamed: bool = False
    written: int = 0
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

    def report(self) -> None:
        """Tells the one who waits, where there is something to tell."""
        if self.finish or self.streamed:
            self.tell(self)

    def fail(self) -> None:
        self.finish = "error"
        self.tell(self)
