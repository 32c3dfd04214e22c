"""Rows of data sets as texts, whatever published shape they have: one reader for all statistics.

Alpaca's, Self-Instruct's (tasks and predictions), FastChat's questions and answers, OpenAI chat. Knows
nothing of what is counted, but what a word is: in scripts written without spaces each character.
`word_count` is for lengths: pieces between white space, as the paper's figures count. `plain_words` is for
comparing texts: no case, no punctuation, compatible forms made one (NFKC).
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.tasks.language_check import PACKED
from engine.tasks.languages import LETTERS
from store.answers import model_names
from store.errors import PoolError, UsageError
from store.pool import Pool
from store.records import BadRow, as_text, columns_of, content_of, no_text, text_of
from store.student import apart, reasoning_in

SHOWN = 3
Field = Literal["instruction", "input", "output", "prompt", "all"]
FIELDS: tuple[Field, ...] = ("instruction", "input", "output", "prompt", "all")
ANSWERS = ("prediction", "output", "completion", "response")  # the first that is text is the answer


@dataclass(frozen=True, slots=True)
class Record:
    """A row of a file. id: its own, else its place among the usable rows, from 0. reasoning: the thinking
    before the output, which is no part of it."""

    id: str
    line: int
    instruction: str
    input: str
    output: str
    reasoning: str = ""

    def text(self, field: Field) -> str:
        """`prompt` is instruction and input; `all` the answer as well."""
        match field:
            case "prompt":
                parts = [self.instruction, self.input]
            case "all":
                parts = [self.instruction, self.input, self.output]
            case _:
                parts = [getattr(self, field)]
        return "\n".join(part for part in parts if part)

    @property
    def where(self) -> dict[str, Any]:
        """What an example says of itself."""
        return {"id": self.id, "line": self.line}


@dataclass
class DataSet:
    """A named file that is read row by row; counts what it could not use."""

    name: str
    pool: Pool
    rows: int = 0
    bad: int = 0
    complaints: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Record]:
        """Raises PoolError where nothing is usable."""
        self.rows, self.bad = 0, 0
        for line, raw in self.pool.objects():
            row = raw.reason if isinstance(raw, BadRow) else row_of(raw, line, self.rows)
            if isinstance(row, str):
                self.bad += 1
                if len(self.complaints) < SHOWN:
                    self.complaints.append(f"line {line}: {row}")
            else:
                self.rows += 1
                yield row
        if not self.rows:
            why = self.complaints[0] if self.complaints else "it is empty"
            raise PoolError(f"no usable row in {self.pool.source}: {why}")


def data_sets(files: list[Path], names: list[str] | None = None) -> list[DataSet]:
    """The files under their names. Raises UsageError, PoolError."""
    if sum(str(file) == "-" for file in files) > 1:
        raise UsageError("standard input ('-') is named twice; it can be read only once")
    called = model_names(files, names)
    return [DataSet(name, Pool(file)) for name, file in zip(called, files, strict=True)]


def at_least_one(flag: str, given: int | None) -> None:
    """Raises UsageError for a number below; None is a default."""
    if given is not None and given < 1:
        raise UsageError(f"{flag} must be a number of at least 1, not {given}")


def field_of(given: str) -> Field:
    """Raises UsageError."""
    for known in FIELDS:
        if given == known:
            return known
    raise UsageError(f"--field {given}: unknown; choose from {', '.join(FIELDS)}")


def row_of(raw: dict[str, Any], line: int, position: int) -> Record | str:
    """A row of any known shape, or what is wrong with it."""
    identity = raw.get("id") if raw.get("id") is not None else raw.get("question_id", position)
    if isinstance(raw.get("messages"), list):
        # all that was said to the model before its last answer, that answer, and its thinking
        turns = [(m.get("role"), content_of(m) or "", m) for m in raw["messages"] if isinstance(m, dict)]
        instruction = "\n".join(content for role, content, _ in turns if role == "user" and content)
        answered = [(content, reasoning_in(m)) for role, content, m in turns if role == "assistant"]
        given, (output, thinking) = "", answered[-1] if answered else ("", "")
    else:
        # where input and output are: Self-Instruct's tasks have theirs in an instance
        instances, source = raw.get("instances"), raw
        if (
            "input" not in raw
            and isinstance(instances, list)
            and instances
            and isinstance(instances[0], dict)
        ):
            source = instances[0]
        for name in ("instruction", "input"):
            if as_text((raw if name == "instruction" else source).get(name)) is None:
                return no_text(name, (raw if name == "instruction" else source)[name])
        instruction, given = _text(raw, "instruction"), _text(source, "input")
        output = next(filter(None, (_text(source, a) for a in ANSWERS)), "")
        if not instruction and not output:  # a question has a category, an answer has none
            text = _text(raw, "text")
            instruction, output = (text, "") if "category" in raw else ("", text)
        # an answer of another type must not pass for an empty one
        given_answers = (a for a in ANSWERS if source.get(a) is not None)
        if wrong := next((a for a in given_answers if text_of(source[a]) is None), None):
            return no_text(wrong, source[wrong])
        thinking = reasoning_in(raw)
    answers = (text_of(raw.get(name)) for name in (*ANSWERS, "text"))  # an empty one is an answer, too
    if not instruction.strip() and not output.strip() and all(answer is None for answer in answers):
        expected = "expected instruction and output, id and text, or messages"
        return f"no text: {expected}; {columns_of(raw)}"
    inline, answer = apart(output)
    return Record(str(identity), line, instruction, given, answer, thinking or inline)


def _text(row: dict[str, Any], name: str) -> str:
    return as_text(row.get(name)) or ""


PACKED_LETTERS = "".join(LETTERS[script] for script in PACKED) + "\U00020000-\U0003ffff"
_PACKED = re.compile(f"[{PACKED_LETTERS}]")
_WORD = re.compile(rf"[{PACKED_LETTERS}]|[^\W_{PACKED_LETTERS}]+")


def word_count(text: str) -> int:
    """Pieces between white space; a character of a script without spaces is a piece of its own."""
    if text.isascii():
        return len(text.split())
    spaced, packed = _PACKED.subn(" ", text)
    return packed + sum(any(c.isalnum() for c in piece) or not packed for piece in spaced.split())


def plain_words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.lower())
