"""Reads what a server said: status, headers and body become a reply or a typed error.

Pure functions, no I/O. Only structure is trusted (status, error.code, error.type, usage);
texts are for people. A reply of 200 whose text cannot be read is a BadReply that keeps the raw.
"""

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from engine.errors import (
    AskError,
    AuthRefused,
    BadReply,
    QuotaExhausted,
    RateLimited,
    RowRefused,
    ServerFault,
)
from engine.prices import Price, Prices
from engine.tasks.task import Check, Verdict
from store.records import Cause, Outcome, Response, Usage

MESSAGE_LENGTH = 500
UNREAD_LENGTH = 200
LONGEST_WAIT = 86400.0  # no server is believed that wants more than a day
MOST_TOKENS = 10**9  # a count beyond this is no count
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|d|h|m|s)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_REFUSED: dict[int, Cause] = {404: "not_found", 413: "too_large"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one reply's headers said of one resource; None where they said nothing."""

    limit: float | None
    remaining: float | None
    reset: float | None  # seconds until full


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of 200 that could be read. `usage` is None where the server sent none."""

    outcome: Outcome
    text: str
    finish_reason: str
    usage: Usage | None
    model: str


def parse_duration(text: str) -> float | None:
    """`1s`, `6m0s`, `120ms`, `1h2m3.5s` or plain seconds, in seconds."""
    parts = _DURATION.findall(text)
    if parts and "".join(n + u for n, u in parts) == text.strip():
        return _finite(sum(float(n) * _SECONDS[u] for n, u in parts))
    seconds = _number(text.strip().removeprefix("-"))
    return 0.0 if text.strip().startswith("-") and seconds is not None else seconds


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms` or `retry-after` (seconds or a date), or None."""
    if (text := headers.get("retry-after-ms")) and (wait := parse_duration(text + "ms")) is not None:
        return min(wait, LONGEST_WAIT)
    text = headers.get("retry-after")
    if not text:
        return None
    if (wait := parse_duration(text)) is not None:
        return min(wait, LONGEST_WAIT)
    try:
        return min(LONGEST_WAIT, max(0.0, parsedate_to_datetime(text).timestamp() - time.time()))
    except (ValueError, TypeError, OverflowError):
        return None


def read_limits(headers: Mapping[str, str], resource: str) -> Limits:
    """The `x-ratelimit-*` headers of `requests` or `tokens`."""
    return Limits(
        _number(headers.get(f"x-ratelimit-limit-{resource}")),
        _number(headers.get(f"x-ratelimit-remaining-{resource}")),
        parse_duration(headers.get(f"x-ratelimit-reset-{resource}", "")),
    )


def _number(text: str | None) -> float | None:
    try:
        return _finite(float(text)) if text else None
    except ValueError:
        return None


def _finite(value: float) -> float | None:
    """None for what is no amount: infinite, not a number, below zero."""
    return value if math.isfinite(value) and value >= 0 else None


def _whole_characters(text: str) -> str:
    """Half a surrogate pair can neither be stored nor printed."""
    return text.encode(errors="replace").decode()


def loads(raw: bytes) -> Any:
    """JSON, with lone surrogates (legal in escapes) let through; raises ValueError."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json.loads(raw.decode())


def read_reply(raw: bytes) -> Reply:
    """A chat completion's first choice. Raises BadReply when there is nothing to use."""
    try:
        body = loads(raw)
        choice = body["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        finish = choice.get("finish_reason") or ""
        usage = _usage(body.get("usage"))
        model = body.get("model")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadReply(_why_unreadable(raw, error), raw) from error
    outcome = _outcome(finish, content, refusal)
    if outcome is None:
        raise BadReply("the reply has no text", raw)
    text = content if isinstance(content, str) else refusal
    return Reply(
        outcome,
        text if isinstance(text, str) else "",
        _whole_characters(str(finish)),
        usage,
        _whole_characters(model) if isinstance(model, str) else "",
    )


def _outcome(finish: object, content: object, refusal: object) -> Outcome | None:
    if finish == "content_filter":
        return "content_filter"
    if isinstance(refusal, str) and refusal:
        return "refusal"
    if finish == "length":
        return "length" if content is None or isinstance(content, str) else None
    return "stop" if isinstance(content, str) and content.strip() else None


def _usage(given: object) -> Usage | None:
    if not isinstance(given, dict):
        return None
    prompt = _count(given.get("prompt_tokens"))
    completion = _count(given.get("completion_tokens") or 0)
    if prompt is None or completion is None:
        return None
    cached = _count(_detail(given, "prompt_tokens_details", "cached_tokens")) or 0
    reasoning = _count(_detail(given, "completion_tokens_details", "reasoning_tokens")) or 0
    return Usage(prompt, completion, min(cached, prompt), reasoning)


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_TOKENS:
        return value
    return None


def _detail(usage: dict[str, Any], group: str, name: str) -> object:
    details = usage.get(group)
    return details.get(name) if isinstance(details, dict) else None


def usage_in(raw: bytes) -> Usage | None:
    """The usage of a body whose text could not be read, if that much can be read."""
    try:
        return _usage(loads(raw).get("usage"))
    except (ValueError, AttributeError, RecursionError):
        return None


def _why_unreadable(raw: bytes, error: Exception) -> str:
    message, _, _ = error_fields(raw)
    if message:
        return f"status 200 with an error: {message}"
    kind = "not JSON" if isinstance(error, ValueError) else "no choice in it"
    return f"the reply cannot be read: {kind}"


def error_fields(raw: bytes) -> tuple[str, str, str]:
    """(message, code, type) of an error body; empty strings where it has none."""
    try:
        error = loads(raw).get("error")
    except (ValueError, AttributeError, RecursionError):
        return "", "", ""
    if isinstance(error, str):
        return _whole_characters(error[:MESSAGE_LENGTH]), "", ""
    if not isinstance(error, dict):
        return "", "", ""
    message, code, kind = (str(error.get(k) or "") for k in ("message", "code", "type"))
    return _whole_characters(message[:MESSAGE_LENGTH]), code, kind


def is_filtered(status: int, raw: bytes) -> bool:
    """A 400 that is the content filter's doing: an outcome, not an error."""
    return status == 400 and error_fields(raw)[1] in ("content_filter", "content_policy_violation")


def read_error(
    status: int, headers: Mapping[str, str], raw: bytes
) -> AskError | AuthRefused | QuotaExhausted:
    """The error for a status other than 200, in the server's own words."""
    message, code, kind = error_fields(raw)
    said = message or raw[:MESSAGE_LENGTH].decode(errors="replace").strip() or "no message"
    said = f"HTTP {status}: {said}"
    if status in (401, 403):
        return AuthRefused(said)
    if status == 429:
        return _rate_error(said, code, kind, headers)
    if status in (408, 409) or status >= 500:
        return ServerFault(said, status, retry_after(headers))
    if code in ("context_length_exceeded", "string_above_max_length"):
        return RowRefused(said, status, "too_large")
    return RowRefused(said, status, _REFUSED.get(status, "bad_request"))


def _rate_error(said: str, code: str, kind: str, headers: Mapping[str, str]) -> AskError | QuotaExhausted:
    if "insufficient_quota" in (code, kind) or code == "billing_hard_limit_reached":
        return QuotaExhausted(said)
    if "request too large" in said.lower():  # OpenAI's code is the same as for a full bucket
        return RowRefused(said, 429, "too_large")
    return RateLimited(said, retry_after(headers), kind if kind in ("requests", "tokens") else "")


def text_of(raw: bytes) -> str:
    """The teacher's words in a stored body; a filtered request (a 400) has none."""
    body = loads(raw)
    return read_reply(raw).text if isinstance(body, dict) and body.get("choices") else ""


def judged(reply: Reply, check: Check | None, row: Callable[[], Any]) -> Verdict:
    """What the task makes of a reply; one that was cut off or filtered says so itself."""
    return reply.outcome if check is None or reply.outcome != "stop" else check(row(), reply.text)


def malformed(raw: bytes, price: Price | Prices) -> tuple[Response, bool]:
    """How a 200 that is no reply of the API is stored, and whether it told its usage: what it cost is
    unknown otherwise."""
    usage = usage_in(raw)
    cost = price.cost(usage) if usage else 0
    return Response("malformed", "", usage or Usage(), raw, cost, 0.0), usage is not None


def unread_words(reply: Reply) -> str:
    """What to say of a reply in which the task finds no record."""
    return f"the reply cannot be read: {reply.text[:UNREAD_LENGTH]!r}"
