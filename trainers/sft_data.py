"""Rows of a data set as tokens, with the loss on the response only.

A row is Alpaca's (`instruction`, `input`, `output`) or OpenAI chat `messages`. What a row teaches is what
the student will be asked to write: the response and its end-of-sequence, after exactly the tokens that
its prompt has when it is asked. Rows that cannot be used are counted by reason, never mangled.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from store.errors import PoolError, UsageError
from store.pool import Pool, as_instruction
from store.records import BadRow, Instruction
from trainers.recipe import SftRecipe
from trainers.rows import Rows, gathered
from trainers.templates import alpaca_prompt

ROLES = ("system", "user", "assistant")
BAD_SHOWN = 3
Template = Literal["alpaca", "chat"]
Messages = list[dict[str, str]]
Encoded = tuple[list[int], list[bool]]


@dataclass
class Counts:
    """What became of the rows of a file."""

    read: int = 0
    used: int = 0
    too_long: int = 0  # dropped
    cut: int = 0  # lost their end
    no_room: int = 0  # the prompt alone fills the length
    bad: int = 0
    tokens: int = 0
    learnt: int = 0  # tokens that the loss is taken on
    reasons: Counter[str] = field(default_factory=Counter)
    bad_shown: list[str] = field(default_factory=list)
    template: str = ""

    def refuse(self, line: int, reason: str) -> None:
        self.bad += 1
        self.reasons[reason] += 1
        if len(self.bad_shown) < BAD_SHOWN:
            self.bad_shown.append(f"line {line}: {reason}")


def tokenized(recipe: SftRecipe, tokenizer: Any) -> tuple[Rows, Counts]:
    """All rows of the recipe's file. Raises PoolError where none can be used."""
    pool, counts = Pool(recipe.data), Counts()
    rows = gathered(_encoded(pool, recipe, tokenizer, counts), recipe.held_out, recipe.seed)
    if not counts.used:
        told = "; ".join(counts.bad_shown) or "it is empty"
        if counts.too_long or counts.no_room:
            told = f"{counts.too_long + counts.no_room} are over --max-length {recipe.max_length}"
        raise PoolError(f"no row of {recipe.data} can be trained on: {told}")
    return rows, counts


def _encoded(pool: Pool, recipe: SftRecipe, tokenizer: Any, counts: Counts) -> Iterator[Encoded]:
    for line, raw in pool.objects():
        if recipe.limit is not None and counts.read == recipe.limit:
            return
        counts.read += 1
        row = raw.reason if isinstance(raw, BadRow) else as_row(raw)
        if isinstance(row, str):
            counts.refuse(line, row)
            continue
        template = recipe.template or ("alpaca" if isinstance(row, Instruction) else "chat")
        encoded = encode(row, template, tokenizer)
        if isinstance(encoded, str):
            counts.refuse(line, encoded)
        elif fitted := fit(encoded, recipe.max_length, recipe.too_long, counts):
            counts.template = counts.template or template
            if counts.template != template:
                raise UsageError(f"{recipe.data}, line {line}: both shapes in one file; say --template")
            counts.used += 1
            counts.tokens += len(fitted[0])
            counts.learnt += sum(fitted[1])
            yield fitted


def as_row(raw: dict[str, Any]) -> Instruction | Messages | str:
    """What a JSON object teaches, or what is wrong with it."""
    if "messages" in raw:
        return _as_messages(raw["messages"])
    row = as_instruction(raw, 0)
    if isinstance(row, Instruction) and not row.output.strip():
        return "no output"
    return row


def _as_messages(found: object) -> Messages | str:
    if not isinstance(found, list) or not found or not all(isinstance(m, dict) for m in found):
        return "messages is not a list of objects"
    for message in found:
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            return "a message without a role (system, user, assistant) or without text"
    if found[-1]["role"] != "assistant" or not found[-1]["content"].strip():
        return "the last message is not an answer"
    return [{"role": m["role"], "content": m["content"]} for m in found]


def encode(row: Instruction | Messages, template: Template, tokenizer: Any) -> Encoded | str:
    """(tokens, learn) at full length, or what is wrong with the row."""
    if template == "chat":
        return _chat(row if isinstance(row, list) else _as_chat(row), tokenizer)
    if isinstance(row, Instruction):
        return _alpaca(alpaca_prompt(row.instruction, row.input), row.output, tokenizer)
    if [m["role"] for m in row] != ["user", "assistant"]:
        return "Alpaca's template takes one question and its answer; use --template chat"
    return _alpaca(alpaca_prompt(row[0]["content"]), row[1]["content"], tokenizer)


def _as_chat(row: Instruction) -> Messages:
    """As `export --format chat` writes it."""
    asked = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row.output}]


def _alpaca(prompt: str, response: str, tokenizer: Any) -> Encoded:
    before = prompt_ids(prompt, tokenizer)
    after = _continuation(before, prompt, response, tokenizer)
    if after[-1:] != [tokenizer.eos_token_id]:
        after = [*after, tokenizer.eos_token_id]
    return before + after, [False] * len(before) + [True] * len(after)


def prompt_ids(prompt: str, tokenizer: Any) -> list[int]:
    """A prompt as it is asked: with a beginning-of-sequence where the model has one, and no end."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids


def _continuation(before: list[int], prompt: str, response: str, tokenizer: Any) -> list[int]:
    """The response's tokens as they follow the prompt's; where the two texts would melt into one
    token, the prompt's end stands, for so it will be asked."""
    both = prompt_ids(prompt + response, tokenizer)
    if both[: len(before)] == before:
        return both[len(before) :]
    alone: list[int] = tokenizer(response, add_special_tokens=False)["input_ids"]
    return alone


def _chat(messages: Messages, tokenizer: Any) -> Encoded | str:
    """Every answer of the assistant is learnt, up to and with its end-of-turn."""
    tokens = _render(messages, tokenizer)
    learn = [False] * len(tokens)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = _render(messages[:place], tokenizer, add_generation_prompt=True)
            answered = _render(messages[: place + 1], tokenizer)
            if tokens[: len(asked)] != asked or tokens[: len(answered)] != answered:
                return _chat_by_text(messages, tokenizer)
            for position in range(len(asked), len(answered)):
                learn[position] = True
    return _ended(tokens, learn, tokenizer.eos_token_id)


def _chat_by_text(messages: Messages, tokenizer: Any) -> Encoded | str:
    """The same where an answer's beginning would melt with its prompt's end into one token (an answer that
    begins with a line break): each stands alone, for so it will be asked."""
    whole, done = _text(messages, tokenizer), 0
    tokens: list[int] = []
    learn: list[bool] = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = _text(messages[:place], tokenizer, add_generation_prompt=True)
            answered = _text(messages[: place + 1], tokenizer)
            if not (whole.startswith(answered) and answered.startswith(asked)):
                return "the chat template writes a turn differently once it has been answered"
            for text, learnt in ((asked[done:], False), (answered[len(asked) :], True)):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                tokens, learn = tokens + ids, learn + [learnt] * len(ids)
            done = len(answered)
    return _ended(tokens, learn, tokenizer.eos_token_id)


def _text(messages: Messages, tokenizer: Any, **options: bool) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def _render(messages: Messages, tokenizer: Any, **options: bool) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    return ids


def _ended(tokens: list[int], learn: list[bool], eos: int) -> Encoded:
    """Nothing is learnt after the last end-of-sequence; one is added where the template writes none."""
    last = len(tokens) - 1
    while last >= 0 and tokens[last] != eos and len(tokens) - last < 4:
        last -= 1
    if last >= 0 and tokens[last] == eos and learn[last]:
        return tokens[: last + 1], learn[: last + 1]
    return [*tokens, eos], [*learn, True]


def fit(encoded: Encoded, most: int, too_long: str, counts: Counts) -> Encoded | None:
    """The row within `most` tokens, or None where it is left out; counted either way."""
    tokens, learn = encoded
    if len(tokens) <= most:
        return encoded
    if not any(learn[:most]):
        counts.no_room += 1
        return None
    if too_long == "drop":
        counts.too_long += 1
        return None
    counts.cut += 1
    return tokens[:most], learn[:most]


def prompt_length(learn: Iterable[bool]) -> int:
    """How many tokens stand before the first that is learnt."""
    return next(place for place, learnt in enumerate(learn) if learnt)
