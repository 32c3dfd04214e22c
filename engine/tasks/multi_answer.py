"""What score, judge and compare have in common: the question's text, languages, messages, JSON schemas."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.tasks.task import Prior, Task, decode_contest, encode_contest
from store.errors import UsageError
from store.records import Contest, Message

LANGUAGES = ("English", "Chinese")
Build = Callable[[Contest], list[Message]]
Builder = Callable[[str | None, str, bool], Build]  # of a system message, a language, whether for JSON
GRADES = [half / 2 if half % 2 else half // 2 for half in range(2, 21)]  # 1, 1.5, ..., 10


def contest_task(
    name: str,
    prior: Prior,
    texts: Sequence[Mapping[str, str]],
    builder: Builder,
    read: Callable[[Contest, str], Any],
    schema: Callable[[Contest], dict[str, Any]],
    system: str | None,
    language: str | None,
    structured: bool,
    further: Sequence[Any] = (),
) -> Task:
    """A role that looks at several answers; a reply that `read` cannot read is unparsed. `texts`: all
    that it may say, by language; `further`: what else decides its requests. Raises UsageError for a
    language that it has no prompt in."""
    language = language or LANGUAGES[0]
    build = builder(system, language, structured)
    return Task(
        name,
        (*(text[language] for text in texts), *further, system, structured),
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
