"""The types that flow: what goes in, what is asked, what came back, what goes out; Alpaca's two prompts, and
the columns of data sets.

The types are frozen, without behaviour. Money is integer micro-dollars, times are Unix seconds.

Names of columns are matched in any case (`Instruction`). An instruction must be text. Elsewhere a number is
its text (`0` is "0"): programs that write JSON or Parquet turn an answer like `42` into a number. true and
false are text too, except in answers, where they make a bad row. Null, NaN and a missing column are the empty
text. A list or an object where text is needed makes a bad row.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

Message = Mapping[str, str]

Outcome = Literal[
    "stop", "length", "content_filter", "refusal", "untranslated", "empty", "other", "tool_calls"
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
UNUSABLE: tuple[Outcome, ...] = ("empty", "other", "tool_calls")  # paid for, and not an answer

Cause = Literal[
    "rate_limit", "timeout", "connection", "server", "bad_request", "too_large", "not_found", "auth",
    "malformed", "unparsed",
]  # fmt: skip
CAUSES: tuple[Cause, ...] = get_args(Cause)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One row of a pool in Alpaca's shape; `output` is empty until somebody answers. category: of a
    question that has one (FastChat's, by which a judge's prompt is chosen)."""

    id: str
    instruction: str
    input: str = ""
    output: str = ""
    category: str = ""


# As the paper's Algorithm 1 quotes them.
ALPACA_WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:"""

ALPACA_WITHOUT_INPUT = """\
Below is an instruction that describes a task. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:"""

_FIELD = re.compile(r"(\{instruction\}|\{input\})")


def template_parts(template: str) -> list[str]:
    """Of a text with {instruction} and {input}; other braces are left alone."""
    return _FIELD.split(template)


def filled(parts: Sequence[str], instruction: str, input: str) -> str:
    """A template's text with these values, which are not expanded themselves."""
    values = {"{instruction}": instruction, "{input}": input}
    return "".join(values.get(part, part) for part in parts)


def alpaca_prompt(instruction: str, input: str = "") -> str:
    return filled(template_parts(ALPACA_WITH_INPUT if input else ALPACA_WITHOUT_INPUT), instruction, input)


@dataclass(frozen=True, slots=True)
class Contest:
    """The answers of several models to one prompt, in the order in which they are shown.

    models, answers: one for each place shown. order[i]: where the model shown at place i stands in
    the order of files that the user gave. category: of the question, empty where it has none.
    """

    id: str
    prompt: str
    input: str
    category: str
    models: tuple[str, ...]
    answers: tuple[str, ...]
    order: tuple[int, ...]


Item: TypeAlias = Instruction | Contest  # a row of a stage


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: where it stands and what is wrong with it."""

    line: int
    reason: str


class Request(NamedTuple):
    """One question to the teacher, ready to be sent.

    key: SHA-256 of the canonical JSON of what is sent and the sample's index (32 bytes).
    body: the JSON sent, without the sample's index. prompt_tokens: as the API bills them.
    max_tokens: the most that the reply may cost, 0 where the request sets no bound.
    item: the row that it is made of, where its reply can only be read beside it.
    asked: how often earlier runs have asked it in vain; refused: whether the server would not take it then.
    """

    id: int
    key: bytes
    sample: int
    body: bytes
    prompt_tokens: int
    max_tokens: int
    item: Item | None = None
    asked: int = 0
    refused: bool = False


class Usage(NamedTuple):
    """Tokens as billed. cached_tokens and cache_write_tokens are part of prompt, reasoning_tokens of
    completion."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0


class Response(NamedTuple):
    """A reply as it is stored; `outcome` is `malformed` where it is not a reply of the API, `unparsed`
    where it is one that the task cannot read.

    text, reasoning: the answer and the thinking, where `raw` does not hold them plainly (parts, marks
    inside the text); None otherwise. listed_micro: the cost by our own price, where `cost_micro` is
    what the provider told. estimated: we counted the tokens, because the reply does not tell them.
    """

    outcome: Outcome | Literal["malformed", "unparsed"]
    finish_reason: str
    usage: Usage
    raw: bytes
    cost_micro: int
    latency: float
    served_model: str = ""
    text: str | None = None
    reasoning: str | None = None
    service_tier: str | None = None
    listed_micro: int | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong with an attempt. status: of HTTP, if there was an answer; words: what is said of it."""

    cause: Cause
    status: int | None
    words: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt with a better and a worse answer; the scores are None where none were given."""

    prompt: str
    chosen: str
    rejected: str
    margin: float | None
    chosen_model: str
    rejected_model: str
    chosen_score: float | None
    rejected_score: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's scores of model `first` against model `second`, whoever was shown first.

    order: (0, 1) where `first` was shown first, else (1, 0). reason: the reply as it came.
    Both scores are None where the reply could not be read.
    """

    question: str
    category: str
    first: str
    second: str
    score_first: float | None
    score_second: float | None
    order: tuple[int, ...]
    reason: str


def text_of(value: object) -> str | None:
    """The text that a value stands for; None where it stands for none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return None


def content_of(message: object) -> str | None:
    """The text of a chat message: its content, or the text parts of it; None where there is none."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return text_of(content)
    parts = [p for p in content if isinstance(p, dict) and p.get("type") in ("text", "output_text")]
    if not parts or not all(isinstance(part.get("text"), str) for part in parts):
        return None
    return "".join(part["text"] for part in parts)


# Columns that some reader of ours looks for.
KNOWN = frozenset(
    ("id", "question_id", "instruction", "input", "output", "text", "category", "instances", "messages",
     "conversations", "prompt", "question", "completion", "response", "answer", "prediction", "target",
     "reference", "references", "turns", "candidates", "answers", "user_input", "completion_a",
     "completion_b", "chosen", "rejected", "score", "scores", "model", "models", "judge")
)  # fmt: skip
_LIKELY = {
    "instruction": ("question", "prompt", "user_input", "query", "text", "task"),
    "output": ("completion", "response", "answer", "text"),
}
_CHATS = ("messages", "conversations", "turns")
_NAMES_SHOWN, _NAME_WIDTH = 8, 24


def known_name(name: str) -> str:
    """A column's name without blanks around it, in lower case where that is a name we know."""
    stripped = name.strip()
    return low if (low := stripped.lower()) in KNOWN else stripped


def with_known_names(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns are called as we look for them; where that would make two of one, as it is."""
    if all(name in KNOWN or known_name(name) not in KNOWN for name in row):
        return row
    renamed = {known_name(name): value for name, value in row.items()}
    return renamed if len(renamed) == len(row) else row


def as_text(value: object) -> str | None:
    """A column's value as text by the rule above; None where it is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return json.dumps(value) if isinstance(value, bool) else text_of(value)


def kind_of(value: object) -> str:
    """A value of JSON by its kind, in JSON's words."""
    kinds = {dict: "object", list: "list", str: "text", bool: "true or false", int: "number", float: "number"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def no_text(name: str, value: object) -> str:
    """Of a column in which a list or an object stands."""
    return f"{name} is not text: {value!r:.60}"


def missing(row: Mapping[str, Any], wanted: str) -> str:
    """That a column is not there or empty, which ones are there, and which may be meant."""
    if wanted in row:
        return f"no {wanted}: it is empty"
    there = f"no {wanted}; {columns_of(row)}"
    if likely := next((name for name in _LIKELY.get(wanted, ()) if name in row), ""):
        return f"{there} (rename `{likely}`?)"
    if chat := next((name for name in _CHATS if name in row), ""):
        return f"{there} (a chat in `{chat}` is not read here)"
    return there


def columns_of(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, as far as a sentence can hold them."""
    if not row:
        return "the row is empty"
    names = [name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…" for name in row]
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"its columns are {shown}" + (" and others" if len(names) > _NAMES_SHOWN else "")
