"""What a role of the teacher is: pure functions from a row to messages and from words to a record.

What score, judge and compare have in common is below: the question's text, languages, messages, JSON
schemas. A task knows nothing of the ledger, limits or the network. Its rows are frozen dataclasses of
store/records.py; what the ledger remembers of a row is its JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from store.errors import UsageError
from store.records import Contest, Instruction, Item, Message, Outcome

Verdict = Outcome | Literal["unparsed"]
Check = Callable[[Any, str], Verdict]  # of a row and the reply's text


@dataclass(frozen=True, slots=True)
class Prior:
    """Completion tokens of a reply before any was seen: log-normal, or, where `of_imagined`,
    so many times the tokens of the imagined reply. low and high: of the expectation, what the
    mean of a whole pool may come to (95 %)."""

    median: float
    sigma: float
    low: float
    high: float
    of_imagined: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """One role. `decisive`: all that decides a request beside the row, the model and the parameters.

    record: what a row and the reply's text amount to, None where the text cannot be read.
    check: the outcome of a reply that ended by itself, None where every text is an answer.
    schema: the `response_format` of a row's request (structured outputs), sent where asked for.
    imagine: a typical reply, for counting its tokens where the prior is relative to it.
    imagined: what such a reply to a row amounts to, for counting what a later stage will be asked. The
    mark is in it, by which it is another than the replies to other requests.
    """

    name: str
    decisive: Sequence[Any]
    build: Callable[[Any], Sequence[Message]]
    encode: Callable[[Any], bytes]
    decode: Callable[[Mapping[str, Any]], Item]
    record: Callable[[Any, str], Any]
    prior: Prior
    check: Check | None = None
    schema: Callable[[Any], Mapping[str, Any] | None] | None = None
    imagine: Callable[[Any], str] | None = None
    imagined: Callable[[Any, str], Any] = lambda item, mark: item


def encode_instruction(item: Instruction) -> bytes:
    """What the ledger remembers of a pool row: not its output, which decides nothing."""
    row = {"id": item.id, "instruction": item.instruction, "input": item.input}
    return orjson.dumps({**row, "category": item.category} if item.category else row)


def encode_answered(item: Instruction) -> bytes:
    """The same with the output, for tasks that are about it."""
    return orjson.dumps({**orjson.loads(encode_instruction(item)), "output": item.output})


def decode_instruction(row: Mapping[str, Any]) -> Instruction:
    return Instruction(
        row["id"], row["instruction"], row["input"], row.get("output", ""), row.get("category", "")
    )


def encode_contest(item: Contest) -> bytes:
    """What the ledger remembers of a contest. `instruction` is the prompt, as in pool rows."""
    row = {"id": item.id, "instruction": item.prompt, "input": item.input, "category": item.category}
    return orjson.dumps({**row, "models": item.models, "answers": item.answers, "order": item.order})


def decode_contest(row: Mapping[str, Any]) -> Contest:
    return Contest(
        row["id"], row["instruction"], row["input"], row["category"],
        tuple(row["models"]), tuple(row["answers"]), tuple(row["order"]),
    )  # fmt: skip


LANGUAGES = ("English", "Chinese")
Build = Callable[[Contest], list[Message]]
GRADES = [half / 2 if half % 2 else half // 2 for half in range(2, 21)]  # 1, 1.5, ..., 10


def contest_task(
    name: str,
    prior: Prior,
    decisive: Sequence[Any],
    build: Build,
    read: Callable[[Contest, str], Any],
    schema: Callable[[Contest], dict[str, Any]],
) -> Task:
    """A role that looks at several answers; a reply that `read` cannot read is unparsed."""
    return Task(
        name,
        decisive,
        build,
        encode_contest,
        decode_contest,
        record=read,
        prior=prior,
        check=lambda contest, text: "unparsed" if read(contest, text) is None else "stop",
        schema=schema,
    )


def question(contest: Contest) -> str:
    """The prompt as one text: the instruction, an empty line, and the input where there is one."""
    return f"{contest.prompt}\n\n{contest.input}" if contest.input else contest.prompt


def messages(system: str, user: str) -> list[Message]:
    """The system message, where there is one, and the user's."""
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": user}]


def check_language(language: str) -> None:
    """Raises UsageError for a language in which there is no prompt."""
    if language not in LANGUAGES:
        raise UsageError(f"no judge's prompt is in {language!r}; there are {', '.join(LANGUAGES)}")


def response_format(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's `response_format` for a strict JSON schema; the model fills it in this order."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def grades(names: Sequence[str]) -> dict[str, Any]:
    """A property for each score. The grades are listed, since not every server knows `minimum`."""
    return {name: {"type": "number", "enum": GRADES} for name in names}


def score_names(count: int) -> list[str]:
    return [f"score_{place}" for place in range(1, count + 1)]
