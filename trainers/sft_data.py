"""Rows of a data set as lessons: what is asked, what is answered, and the thinking that led there.

A row is Alpaca's (`instruction`, `input`, `output`, perhaps `reasoning`) or OpenAI chat `messages` (perhaps
with `reasoning_content`). Rows that cannot be used are counted by reason, never mangled; how the others
become tokens is encoding.py's.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from store.errors import PoolError, UsageError
from store.pool import Pool, as_instruction
from store.records import BadRow, Instruction, content_of, text_of
from store.student import TextTokens, apart, reasoning_in
from trainers.config import SftRecipe
from trainers.encoding import THOUGHT, Encoded, Messages, encode
from trainers.rows import TokenRows, gathered

ROLES = ("system", "user", "assistant")
BAD_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Lesson:
    """thought: of an Alpaca row; messages hold their own."""

    row: Instruction | Messages
    thought: str = ""

    @property
    def thinks(self) -> bool:
        return bool(self.thought) or (isinstance(self.row, list) and any(THOUGHT in m for m in self.row))

    def without_thinking(self) -> "Lesson":
        if isinstance(self.row, Instruction):
            return replace(self, thought="")
        return Lesson([{name: text for name, text in m.items() if name != THOUGHT} for m in self.row])


@dataclass
class SftCounts:
    """What became of the rows of a file."""

    read: int = 0
    used: int = 0
    too_long: int = 0  # dropped
    cut: int = 0  # lost their end
    no_room: int = 0  # the prompt alone fills the length
    bad: int = 0
    thinking: int = 0  # with thinking, among all that could be read
    last_only: int = 0  # chats of which only the last answer is learnt
    control: int = 0  # with control tokens in their texts
    tokens: int = 0
    learnt: int = 0  # tokens that the loss is taken on
    reasons: Counter[str] = field(default_factory=Counter)
    bad_shown: list[str] = field(default_factory=list)
    controls: Counter[str] = field(default_factory=Counter)
    template: str = ""

    def refuse(self, line: int, reason: str) -> None:
        self.bad += 1
        self.reasons[reason] += 1
        if self.reasons[reason] == 1 and len(self.bad_shown) < BAD_SHOWN:
            self.bad_shown.append(f"line {line}: {reason}")


def tokenized(recipe: SftRecipe, tokenizer: Any) -> tuple[TokenRows, SftCounts]:
    """All rows of the recipe's file. Raises PoolError where none can be used."""
    pool, counts, texts = Pool(recipe.data), SftCounts(), TextTokens(tokenizer)
    counts.controls = texts.seen
    rows = gathered(_encoded(pool, recipe, texts, counts), recipe.held_out, recipe.seed)
    if not counts.used:
        told = "; ".join(counts.bad_shown) or "it is empty"
        if counts.too_long or counts.no_room:
            told = f"{counts.too_long + counts.no_room} are over --max-length {recipe.max_length}"
            if counts.thinking and recipe.reasoning == "learn":
                told += f" ({counts.thinking} of them with thinking, which --reasoning drop leaves out)"
        raise PoolError(f"no row of {recipe.data} can be trained on: {told}")
    return rows, counts


def _encoded(pool: Pool, recipe: SftRecipe, texts: TextTokens, counts: SftCounts) -> Iterator[Encoded]:
    for line, raw in pool.objects():
        if recipe.limit is not None and counts.read == recipe.limit:
            return
        counts.read += 1
        lesson = raw.reason if isinstance(raw, BadRow) else as_lesson(raw)
        if isinstance(lesson, str):
            counts.refuse(line, lesson)
            continue
        template = recipe.template or ("alpaca" if isinstance(lesson.row, Instruction) else "chat")
        if template == "chat" and not texts.tokenizer.chat_template:
            words = "this model's tokenizer has no chat template, which chats need"
            raise UsageError(f"{recipe.data}, line {line}: {words}; --template alpaca takes single questions")
        thinks, seen = lesson.thinks, texts.seen.total()
        if recipe.reasoning == "drop":
            lesson = lesson.without_thinking()
        encoded = encode(lesson.row, template, texts, lesson.thought)
        if isinstance(encoded, str):
            counts.refuse(line, encoded)
            continue
        counts.thinking += thinks
        counts.control += texts.seen.total() > seen
        if isinstance(lesson.row, list):
            answers = sum(message["role"] == "assistant" for message in lesson.row)
            counts.last_only += stretches(encoded[1]) < answers
        if fitted := fit(encoded, recipe.max_length, recipe.too_long, counts):
            counts.template = counts.template or template
            if counts.template != template:
                raise UsageError(f"{recipe.data}, line {line}: both shapes in one file; say --template")
            counts.used += 1
            counts.tokens += len(fitted[0])
            counts.learnt += sum(fitted[1])
            yield fitted


def as_lesson(raw: dict[str, Any]) -> Lesson | str:
    """What a JSON object teaches, or what is wrong with it."""
    if "messages" in raw:
        found = _as_messages(raw["messages"])
        return Lesson(found) if isinstance(found, list) else found
    row = as_instruction(raw, 0)
    if not isinstance(row, Instruction):
        return row
    source, instances = raw, raw.get("instances")
    if "output" not in raw and isinstance(instances, list) and instances and isinstance(instances[0], dict):
        source = instances[0]
    given = source.get("output")  # whatever its type: as_instruction takes texts only
    given = "" if given is None else given
    output = text_of(given)
    if output is None:
        return f"output is not text: {given!r:.60}"
    inline, answer = apart(output)
    thought = reasoning_in(raw) or inline
    if not answer.strip():
        return "thinking without an answer" if thought else "no output"
    return Lesson(replace(row, output=answer), thought)


def _as_messages(found: object) -> Messages | str:
    if not isinstance(found, list) or not found or not all(isinstance(m, dict) for m in found):
        return "messages is not a list of objects"
    messages: Messages = []
    for message in found:
        content = content_of(message)
        if message.get("role") not in ROLES or (content is None and message is not found[-1]):
            return "a message without a role (system, user, assistant) or without text"
        told = {"role": message["role"], "content": content or ""}
        if message["role"] == "assistant":
            inline, told["content"] = apart(content or "")
            if thought := reasoning_in(message) or inline:
                told[THOUGHT] = thought
        messages.append(told)
    if messages[-1]["role"] != "assistant":
        return "the last message is not an answer"
    if not messages[-1]["content"].strip():
        return (
            "thinking without an answer" if THOUGHT in messages[-1] else "the last message is not an answer"
        )
    return messages


def fit(encoded: Encoded, most: int, too_long: str, counts: SftCounts) -> Encoded | None:
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


def stretches(learn: list[bool]) -> int:
    """How many stretches of tokens are learnt: one for each answer."""
    return sum(now and not before for before, now in zip([False, *learn], learn, strict=False))
