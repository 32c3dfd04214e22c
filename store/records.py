"""The types that flow: what goes in, what is asked, what came back, what goes out.

Frozen dataclasses without behaviour, and Alpaca's two prompts. Money is integer micro-dollars, times are Unix
seconds.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

Message = Mapping[str, str]

Outcome = Literal[
    "stop", "length", "content_filter", "refusal", "untranslated", "empty", "other", "tool_calls"
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
UNUSABLE: tuple[Outcome, ...] = ("empty", "other", "tool_calls")  # paid for, and not an answer

Cause = Literal[
    "rate_limit",
    "timeout",
    "connection",
    "server",
    "bad_request",
    "too_large",
    "not_found",
    "auth",
    "malformed",
    "unparsed",
]
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


@dataclass(frozen=True, slots=True)
class Request:
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
