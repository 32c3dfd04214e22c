"""A chat request as a student takes it: checked, with OpenAI's defaults.

What is asked for and cannot be done is refused by its name; nothing that would change the answer is
passed over in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.serve.http import Body, Refused, body_of, format_of, messages_of, most_tokens_of
from store.records import Message

MOST_CHOICES = 128
MOST_STOPS = 16
TAKEN = {
    "model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n",
    "response_format", "stream", "stream_options",
}  # fmt: skip
# These say who asks and what becomes of the reply; they do not change it.
WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Not offered; the values that ask for nothing pass.
NEUTRAL: Mapping[str, object] = {
    "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "logprobs": False, "top_logprobs": 0,
    "tools": [], "tool_choice": "none", "functions": [], "modalities": ["text"],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """temperature 0 is greedy. most_tokens: None where the request sets no bound. usage_streamed: whether
    the last piece of a stream tells it."""

    messages: list[Message]
    response_format: dict[str, Any] | None
    most_tokens: int | None
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None
    choices: int
    stream: bool
    usage_streamed: bool


def understand(raw: bytes, model: str) -> ChatRequest:
    """Reads a request's body. Raises Refused with what is wrong with it."""
    body = body_of(raw, model)
    _check_names(body)
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise Refused(400, "stream_options must be an object", "stream_options")
    return ChatRequest(
        messages=messages_of(body),
        response_format=format_of(body),
        most_tokens=most_tokens_of(body),
        temperature=_number(body, "temperature", 0.0, 2.0),
        top_p=_number(body, "top_p", 0.0, 1.0),
        stop=_stop(body.get("stop")),
        seed=_whole(body, "seed", -(2**63), 2**64 - 1),
        choices=_whole(body, "n", 1, MOST_CHOICES) or 1,
        stream=_yes(body, "stream"),
        usage_streamed=_yes(options or {}, "include_usage"),
    )


def _check_names(body: Body) -> None:
    for name, value in body.items():
        if name in NEUTRAL:
            if value is not None and value != NEUTRAL[name]:
                raise Refused(400, f"{name} is not offered here", name, "unsupported_parameter")
        elif name not in TAKEN | WITHOUT_EFFECT:
            raise Refused(400, f"unrecognized request argument: {name}", name, "unknown_parameter")


def _number(body: Body, name: str, low: float, high: float, default: float = 1.0) -> float:
    given = body.get(name)
    if given is None:
        return default
    if not isinstance(given, int | float) or isinstance(given, bool) or not low <= given <= high:
        raise Refused(400, f"{name} must be a number from {low:g} to {high:g}", name, "invalid_value")
    return float(given)


def _whole(body: Body, name: str, low: int, high: int) -> int | None:
    given = body.get(name)
    if given is None:
        return None
    if not isinstance(given, int) or isinstance(given, bool) or not low <= given <= high:
        raise Refused(400, f"{name} must be a whole number from {low} to {high}", name, "invalid_value")
    return given


def _yes(body: Body, name: str) -> bool:
    given = body.get(name)
    if given is not None and not isinstance(given, bool):
        raise Refused(400, f"{name} must be true or false", name, "invalid_type")
    return bool(given)


def _stop(given: object) -> tuple[str, ...]:
    found = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise Refused(400, "stop must be a text or a list of texts, none of them empty", "stop")
    if len(found) > MOST_STOPS:
        raise Refused(400, f"stop may have {MOST_STOPS} texts at most", "stop", "invalid_value")
    return tuple(found)
