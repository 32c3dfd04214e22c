"""A teacher on loopback that refuses what the real models refuse, and thinks within its bound as they do.

strict = Strict()
async with scripted(strict.answer) as url: ... strict.bodies, strict.refused

What it knows of the models is written down here a second time, from their makers' documents, so that a
mistake in the engine's table shows. Its answers are those of the scripted teacher, which knows all roles.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from engine.serve.scripted_teacher import reply

ONLY_ONE = (
    "Unsupported value: '{0}' does not support {1} with this model. Only the default (1) value is supported."
)
UNSUPPORTED = "Unsupported parameter: '{0}' is not supported with this model."
NOT_BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
DEPRECATED = "`{0}` is deprecated for this model."
EFFORT = "Unsupported value: '{0}' does not support '{1}' with this model. Supported values are: {2}."
SAMPLING = ("temperature", "top_p")


@dataclass(frozen=True)
class Kind:
    """efforts: those that are taken, the default first; none where the parameter is refused. plain: the
    effort at which it does not think, and takes what it refuses otherwise."""

    efforts: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    words: str = UNSUPPORTED
    one_of: tuple[str, ...] = ()
    plain: str = ""
    thinks: bool = True


OPENAI = ("max_tokens", *SAMPLING)
KINDS = {
    r"gpt-(4|3\.5)|teacher": Kind(thinks=False),
    r"gpt-5(-mini|-nano)?(-2025-08-07)?": Kind(("medium", "minimal", "low", "high"), OPENAI),
    r"gpt-5\.1": Kind(("none", "low", "medium", "high"), OPENAI, plain="none"),
    r"gpt-5\.[24](-mini)?": Kind(("none", "low", "medium", "high", "xhigh"), OPENAI, plain="none"),
    r"o[134](-mini)?": Kind(("medium", "low", "high"), OPENAI),
    r"claude-(opus-4-1|sonnet-4-5|haiku-4-5)": Kind(words=NOT_BOTH, one_of=SAMPLING, thinks=False),
    r"claude-opus-4-[78]": Kind(refuses=SAMPLING, words=DEPRECATED, thinks=False),
    r"kimi-k2\.5": Kind(refuses=SAMPLING, words="invalid {0}: only 1 is allowed for this model"),
    r"gemini-2\.5-(pro|flash)": Kind(("medium", "minimal", "low", "high")),
    r"qwen3-8b": Kind(),
}  # fmt: skip
THOUGHT = 700  # tokens before each answer


def kind_of(model: str) -> Kind:
    name = model.split("/")[-1].lower()
    return next(kind for pattern, kind in KINDS.items() if re.fullmatch(pattern, name))


def complaint(body: dict[str, Any]) -> tuple[str, str] | None:
    """(parameter, words) that a request is refused for."""
    kind = kind_of(body["model"])
    effort = body.get("reasoning_effort", kind.efforts[0] if kind.efforts else "")
    if "reasoning_effort" in body and effort not in kind.efforts:
        words = EFFORT if kind.efforts else UNSUPPORTED
        return "reasoning_effort", words.format("reasoning_effort", effort, ", ".join(kind.efforts))
    for name in kind.refuses:
        takes = name in SAMPLING and bool(kind.plain) and effort == kind.plain
        if name in body and not takes:
            words = ONLY_ONE if kind.plain and name == "temperature" else kind.words
            return name, words.format(name, body[name])
    if kind.one_of and all(name in body for name in kind.one_of):
        return "top_p", kind.words
    return None


class Strict:
    """Counts what it refused, by (model, parameter); keeps every body it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.refused: Counter[tuple[str, str]] = Counter()
        self.empty = 0

    async def answer(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        self.bodies.append(body)
        if found := complaint(body):
            self.refused[body["model"], found[0]] += 1
            error = {"message": found[1], "type": "invalid_request_error", "param": found[0], "code": None}
            return web.json_response({"error": error}, status=400)
        return web.json_response(self._reply(body))

    async def lenient(self, request: web.Request) -> web.Response:
        """Takes everything."""
        body = orjson.loads(await request.read())
        self.bodies.append(body)
        return web.json_response(self._reply(body | {"max_tokens": 100_000}))

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        kind = kind_of(body["model"])
        bound = body.get("max_completion_tokens") or body["max_tokens"]
        effort = body.get("reasoning_effort", kind.efforts[0] if kind.efforts else "")
        thought = min(THOUGHT, bound) if kind.thinks and effort != "none" else 0
        said = reply(body["messages"], body.get("response_format"))[: 4 * (bound - thought)]
        self.empty += not said
        usage = {
            "prompt_tokens": 40,
            "completion_tokens": thought + len(said) // 4,
            "completion_tokens_details": {"reasoning_tokens": thought},
        }
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop" if said else "length"}
        return {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}
