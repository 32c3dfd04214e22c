"""One answer while it is written: its sampling parameters, its text so far, its thinking, its end; and
the next token of each.

A character may take several tokens (UTF-8), and a stop string may begin in one token and end in another.
Text is found by decoding the last few tokens with and without the newest one, because the text of a token
may depend on the one before it (SentencePiece's spaces). Thinking is kept apart from the answer while both
still grow.

The next token is one that the row's grammar allows (xgrammar: Dong et al., arXiv 2411.15100), drawn by the
row's own parameters. A row draws one number a token from its own generator, so that its numbers do not depend
on the other rows in the batch. The last digits of its logits do: see `Student.repeats`.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import orjson
import torch

from engine.serve.http import Refused
from engine.serve.model_loader import Student
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


GREEDY_BELOW = 1e-4
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
PARAM = "response_format"
PLACE_IN_XGRAMMAR = re.compile(r"^\[[\d:]+\] \S+:\d+: ")  # [hour] file:line:


class Grammars:
    """Compiles schemas for one model's vocabulary; a schema that was seen is at hand."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._compiler: Any = None

    def compiled(self, response_format: Mapping[str, Any] | None) -> Any:
        """The grammar of a reply, or None where it is free. Raises Refused for a schema that is none."""
        kind = (response_format or {}).get("type", "text")
        if response_format is None or kind == "text":
            return None
        if self._compiler is None:
            try:
                import xgrammar
            except ImportError as error:
                words = "response_format needs xgrammar: pip install 'distill[schemas]'"
                raise Refused(400, words, PARAM, "unsupported_parameter") from error
            told = xgrammar.TokenizerInfo.from_huggingface(
                self._student.texts.tokenizer,
                vocab_size=self._student.vocabulary,
                stop_token_ids=sorted(self._student.ends),
            )
            self._compiler = xgrammar.GrammarCompiler(told, max_threads=2)
        schema = response_format["json_schema"]["schema"] if kind == "json_schema" else ANY_OBJECT
        try:
            # No white space but one after a sign: small models write it for ever.
            return self._compiler.compile_json_schema(orjson.dumps(schema).decode(), any_whitespace=False)
        except (RuntimeError, ValueError, TypeError) as error:
            words = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            words = PLACE_IN_XGRAMMAR.sub("", words)
            raise Refused(400, f"the schema cannot be followed: {words}", PARAM, "invalid_value") from error


def matcher(grammar: Any) -> Any:
    """A row's place in its grammar, from the beginning; None where it has none."""
    if grammar is None:
        return None
    import xgrammar

    return xgrammar.GrammarMatcher(grammar)


def keep_allowed(logits: torch.Tensor, matchers: Sequence[Any]) -> None:
    """Puts -inf where the row's grammar does not go on. matchers: one for each row, None where it is free."""
    held = [place for place, one in enumerate(matchers) if one is not None]
    if not held:
        return
    import xgrammar

    allowed = xgrammar.allocate_token_bitmask(len(matchers), logits.shape[-1])
    for place in held:
        matchers[place].fill_next_token_bitmask(allowed, place)
    xgrammar.apply_token_bitmask_inplace(logits, allowed.to(logits.device), indices=held)


class SamplingParams(Protocol):
    """How a row is sampled."""

    temperature: float
    top_p: float
    draws: random.Random


def next_tokens(logits: torch.Tensor, rows: Sequence[SamplingParams]) -> list[int]:
    """logits: (rows, vocabulary) float32; -inf where a token must not come. Draws by the inverse of the
    distribution function, in float64: the sum of many small numbers counts."""
    found = logits.argmax(-1)
    places = [place for place, row in enumerate(rows) if row.temperature >= GREEDY_BELOW]
    if places:
        drawn = [rows[place] for place in places]
        temperatures = logits.new_tensor([row.temperature for row in drawn])
        chances = (logits[places] / temperatures[:, None]).softmax(-1).double()
        cut = [place for place, row in enumerate(drawn) if row.top_p < 1]
        if cut:
            chances[cut] = nucleus(chances[cut], [drawn[place].top_p for place in cut])
        below = chances.cumsum(-1)
        wanted = chances.new_tensor([row.draws.random() for row in drawn]) * below[:, -1]
        tokens = torch.searchsorted(below, wanted[:, None], right=True)[:, 0]
        found[places] = tokens.clamp(max=logits.shape[-1] - 1)
    return [int(token) for token in found.tolist()]


def nucleus(chances: torch.Tensor, top_p: Sequence[float]) -> torch.Tensor:
    """The likeliest tokens that together reach top_p, at least one; the others get 0. (Holtzman et al.,
    arXiv 1904.09751)"""
    ordered, places = chances.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    outside = before >= chances.new_tensor(top_p)[:, None]
    outside[:, 0] = False
    return chances.masked_fill(outside.scatter(-1, places, outside), 0.0)
