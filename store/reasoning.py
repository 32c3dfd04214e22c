"""Thinking apart from answers: the marks that a student writes around it, and texts cut at them.

Trainers and the server of a student must agree about them, so both ask here. A tokenizer is known by the few
methods that are called; nothing is imported for it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# How published models mark their thinking; the first is by far the most common.
PAIRS = (
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"), ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"), ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
)  # fmt: skip
# How some of them mark what comes after it.
_ANSWER_MARKS = (("<|START_RESPONSE|>", "<|END_RESPONSE|>"), ("<|begin_of_solution|>", "<|end_of_solution|>"))
# Where a row or a message holds it; the first is what chat templates and most servers use.
FIELDS = ("reasoning_content", "reasoning", "thinking")
_QUESTION, _THOUGHT, _ANSWER = "question-5d1c", "thought-8e07", "answer-b3f2"


@dataclass(frozen=True)
class Marks:
    """What stands before and after the thinking, with its line breaks.

    opened: the prompt ends with `before` already, so a student begins inside its thinking. field: the
    message's field that the chat template writes between the marks; empty where it writes none. end: what
    the template writes after an answer.
    """

    before: str
    after: str
    opened: bool = False
    field: str = ""
    end: str = ""


def reasoning_in(row: Mapping[str, Any]) -> str:
    """The thinking that a row or a message holds in a field of its own, without marks around it; empty where
    there is none."""
    found = (row.get(name) for name in FIELDS)
    text = next((text.strip() for text in found if isinstance(text, str) and text.strip()), "")
    thought, answer = apart(text)
    return text if answer else thought


def apart(text: str) -> tuple[str, str]:
    """(thinking, answer) of a text that begins with marked thinking, else ("", text). Thinking that was
    never closed has no answer."""
    begins = text.lstrip()
    for opening, closing in PAIRS:
        if begins[: len(opening)].lower() == opening.lower():
            rest = begins[len(opening) :]
            end = re.search(re.escape(closing), rest, re.IGNORECASE)
            if end is None:
                return rest.strip(), ""
            return rest[: end.start()].strip(), rest[end.end() :].lstrip()
    return "", text


def unwrapped(answer: str) -> str:
    """An answer without the marks that some models write around what follows their thinking."""
    begins = answer.strip()
    for opening, closing in _ANSWER_MARKS:
        if begins.startswith(opening):
            return begins.removeprefix(opening).removesuffix(closing).strip()
    return answer


def usual_marks(tokenizer: Any) -> Marks:
    """The pair that the tokenizer knows as tokens, else the most common one."""
    known = tokenizer.get_added_vocab()
    opening, closing = next((pair for pair in PAIRS if known.keys() >= set(pair)), PAIRS[0])
    return Marks(f"{opening}\n", f"\n{closing}\n\n")


def marks_of(tokenizer: Any) -> Marks:
    """What the tokenizer's chat template makes of thinking, found by showing it some."""
    if not tokenizer.chat_template:
        return usual_marks(tokenizer)
    question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
    asked = _rendered(tokenizer, [question], add_generation_prompt=True)
    plain = _rendered(tokenizer, [question, answer])
    if asked is None or plain is None:
        return usual_marks(tokenizer)
    end = plain.rpartition(_ANSWER)[2] if _ANSWER in plain else ""
    for field in FIELDS:
        shown = _rendered(tokenizer, [question, {**answer, field: _THOUGHT}]) or ""
        head, _, tail = shown.partition(_THOUGHT)
        if _ANSWER in tail:
            return _written(asked, head, tail[: tail.index(_ANSWER)], field, end)
    return replace(_unwritten(tokenizer, asked), end=end)


def _written(asked: str, head: str, after: str, field: str, end: str) -> Marks:
    """Of a template that writes thinking from a field. head: all that stands before it."""
    if head.startswith(asked) and head != asked:
        return Marks(head.removeprefix(asked), after, False, field, end)
    before = _opened_by(asked)
    return Marks(before, after, head == asked or bool(before), field, end)


def _unwritten(tokenizer: Any, asked: str) -> Marks:
    """Of a template that writes no thinking, though it may open it for the answer that comes."""
    template = str(tokenizer.chat_template)
    for opening, closing in PAIRS:
        if asked.rstrip().endswith(opening):
            return Marks(_opened_by(asked), f"\n{closing}\n\n", opened=True)
        if opening in template and closing in template:
            return Marks(f"{opening}\n", f"\n{closing}\n\n")
    return usual_marks(tokenizer)


def _opened_by(asked: str) -> str:
    """The opening mark at the end of a prompt, with what follows it; empty where there is none."""
    at = max((asked.rfind(opening) for opening, _ in PAIRS if asked.rstrip().endswith(opening)), default=-1)
    return asked[at:] if at >= 0 else ""


def _rendered(tokenizer: Any, messages: list[dict[str, str]], **options: bool) -> str | None:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception:  # whatever a template of others raises at such a chat
        return None
