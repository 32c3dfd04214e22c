"""FastChat's published reviewer prompts, for exact reproduction: one JSON object a line.

`system_prompt`, `prompt_template` with {question}, {answer_1}, {answer_2} and the names of
`defaults` (there {prompt}), `category`. Filled in as FastChat's eval_gpt_review.py does, with
str.format, which never looks for braces in the values.
"""

from dataclasses import dataclass
from string import Formatter
from typing import Any

import orjson

from store.columns import kind_of
from store.errors import UsageError

SHOWN = ("question", "answer_1", "answer_2")


@dataclass(frozen=True, slots=True)
class ReviewPrompt:
    """One reviewer. defaults: what else the template names, in pairs of name and text."""

    category: str
    system: str
    template: str
    defaults: tuple[tuple[str, str], ...]

    def fill(self, question: str, answer_1: str, answer_2: str) -> str:
        return self.template.format(
            question=question, answer_1=answer_1, answer_2=answer_2, **dict(self.defaults)
        )


def read_prompts(text: str, name: str) -> tuple[ReviewPrompt, ...]:
    """All prompts of a file's text. Raises UsageError with the file's name and the line of one that
    cannot be used."""
    lines = text.encode().splitlines()
    prompts = [_prompt(line, f"{name}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UsageError(f"{name} holds no prompt; expected FastChat's shape, one JSON object a line")
    return tuple(prompts)


def chosen(prompts: tuple[ReviewPrompt, ...], category: str) -> ReviewPrompt:
    """The first of the category, else the general one, else the first (as FastChat does)."""
    for wanted in (category, "general"):
        for prompt in prompts:
            if prompt.category == wanted:
                return prompt
    return prompts[0]


def _prompt(line: bytes, where: str) -> ReviewPrompt:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{where}: not JSON ({error}); expected one prompt in FastChat's shape") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where}: not an object but {kind_of(row)}")
    defaults = row.get("defaults") or {}
    if not isinstance(defaults, dict) or not all(isinstance(text, str) for text in defaults.values()):
        raise UsageError(f"{where}: `defaults` must be an object of texts")
    template = _text(row, "prompt_template", where)
    _check_template(template, set(defaults), where)
    system = _text(row, "system_prompt", where) if "system_prompt" in row else ""
    return ReviewPrompt(_text(row, "category", where), system, template, tuple(defaults.items()))


def _text(row: dict[str, Any], name: str, where: str) -> str:
    if not isinstance(value := row.get(name), str):
        raise UsageError(f"{where}: `{name}` must be a text, found {value!r:.60}")
    return value


def _check_template(template: str, defaults: set[str], where: str) -> None:
    """Nothing but plain names: {question.__class__} or {answer_1!r} would be another text."""
    if clash := defaults.intersection(SHOWN):
        raise UsageError(f"{where}: `defaults` must not name {', '.join(sorted(clash))}")
    try:
        fields = [(name, spec, how) for _, name, spec, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UsageError(
            f"{where}: `prompt_template`: {error}; write a brace itself as {{{{ or }}}}"
        ) from error
    known = {*SHOWN, *defaults}
    for name, spec, how in fields:
        if name not in known or spec or how:
            shown = name + (f"!{how}" if how else "") + (f":{spec}" if spec else "")
            names = ", ".join(f"{{{n}}}" for n in sorted(known))
            raise UsageError(f"{where}: `prompt_template` has {{{shown}}}; it may have {names}")
    if missing := [name for name in SHOWN if name not in {field for field, *_ in fields}]:
        raise UsageError(f"{where}: `prompt_template` never shows {{{missing[0]}}}")
