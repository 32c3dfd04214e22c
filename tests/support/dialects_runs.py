"""What is sent and where to: parameters that models refuse, waits that servers ask for, addresses as people
write them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

from tests.support.dialects import GOOD, Asked, Row, Sent, Serve, error, good, refusal, says
from tests.support.dialects_stops import violated

# Models that are known: with the usual flags nothing is sent that they refuse.

SAMPLING = ("temperature", "top_p")
REASONING = ("temperature", "top_p", "max_tokens")
KNOWN_MODELS = {
    "gpt-5-mini": REASONING,
    "gpt-5": REASONING,
    "o3": REASONING,
    "o4-mini": REASONING,
    "openai/gpt-5": REASONING,
    "openrouter/openai/o3-mini": REASONING,
    "azure/gpt-5-nano-2025-08-07": REASONING,
    "claude-opus-4-1": SAMPLING,
    "anthropic/claude-sonnet-4-5": SAMPLING,
    "us.anthropic.claude-haiku-4-5-20251001-v1:0": SAMPLING,
}
BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."


def unsupported(name: str) -> Sent:
    words = f"Unsupported parameter: '{name}' is not supported with this model."
    return refusal(400, words, "unsupported_parameter", "invalid_request_error", param=name)


def strict(refused: tuple[str, ...]) -> Serve:
    """Refuses each of the parameters, or where they are the two of sampling, both at once."""

    def serve(asked: Asked) -> Sent:
        found = [name for name in refused if name in asked.body]
        if refused == SAMPLING:
            return refusal(400, BOTH, "400") if len(found) == 2 else good(asked)
        return unsupported(found[0]) if found else good(asked)

    return serve


@dataclass(frozen=True)
class Unknown:
    """A model that nobody knows refuses a parameter; the message must hold one of the flags."""

    name: str
    refused: tuple[str, ...]
    sent: Sent
    flags: tuple[str, ...]

    def serve(self, asked: Asked) -> Sent:
        return self.sent if all(name in asked.body for name in self.refused) else good(asked)


TOP_P = ("--omit top_p",)
FORBIDDEN = {"type": "extra_forbidden", "loc": ["body", "top_p"], "msg": "Extra inputs are not permitted"}
GEMINI_WORDS = 'Invalid JSON payload received. Unknown name "top_p": Cannot find field.'
UNKNOWN_MODELS = [
    Unknown("unsupported_parameter (OpenAI)", ("top_p",), unsupported("top_p"), TOP_P),
    Unknown(
        "unsupported_value (OpenAI)",
        ("temperature",),
        refusal(
            400,
            "Unsupported value: 'temperature' does not support 1.0 with this model.",
            "unsupported_value",
            "invalid_request_error",
            param="temperature",
        ),
        ("--omit temperature",),
    ),
    Unknown("one of two (Anthropic)", SAMPLING, refusal(400, BOTH, "400"), (*TOP_P, "--omit temperature")),
    Unknown(
        "max_tokens that has another name (OpenAI)",
        ("max_tokens",),
        refusal(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "unsupported_parameter",
            "invalid_request_error",
            param="max_tokens",
        ),
        ("--model-kind reasoning", "--omit max_tokens"),
    ),
    Unknown("extra_forbidden (vLLM, Mistral)", ("top_p",), error(422, {"detail": [FORBIDDEN]}), TOP_P),
    Unknown("Unknown name (Gemini)", ("top_p",), error(400, [says(GEMINI_WORDS, 400)]), TOP_P),
    Unknown(
        "extraneous key (Bedrock)",
        ("top_p",),
        refusal(400, "Malformed input request: extraneous key [top_p] is not permitted", "400"),
        TOP_P,
    ),
    Unknown(
        "only 1 is allowed (Moonshot)",
        ("temperature",),
        refusal(400, "invalid temperature: only 1 is allowed for this model"),
        ("--omit temperature",),
    ),
    Unknown(
        "a model that is named before the parameter",
        ("top_p",),
        refusal(400, "Model m: `top_p` is not available with thinking enabled"),
        TOP_P,
    ),
    Unknown(
        "a valid range (DeepSeek)",
        ("max_tokens",),
        refusal(400, "Invalid max_tokens value, the valid range of max_tokens is [1, 256]"),
        ("lower --max-tokens",),
    ),
    Unknown(
        "a bound, and a context window (Groq)",
        ("max_tokens",),
        refusal(400, "`max_tokens` must be less than or equal to `256`, less than the `context_window`"),
        ("lower --max-tokens",),
    ),
    Unknown(
        "Unrecognized request argument (OpenAI)",
        ("top_p",),
        refusal(400, "Unrecognized request argument supplied: top_p", None, "invalid_request_error"),
        TOP_P,
    ),
]

# Waits: a reply that asks for one, then a good one. The server must not be asked before.


@dataclass(frozen=True)
class Wait:
    name: str
    sent: Sent
    seconds: float

    @property
    def row(self) -> Row:
        return Row(self.name, (self.sent, GOOD))


def limited(body: Any = None, **headers: str) -> Sent:
    return error(429, says("Rate limit reached") if body is None else body, **headers)


def words(message: str) -> Sent:
    return refusal(429, message, "rate_limit_exceeded")


def later(seconds: float, shape: Callable[[float], Any]) -> Callable[[], Any]:
    return lambda: shape(time.time() + seconds)


def reset_in_metadata(at: float) -> dict[str, Any]:
    headers = {
        "X-RateLimit-Limit": "20",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str(int(at * 1000)),
    }
    return {"error": {"message": "Rate limit exceeded", "code": 429, "metadata": {"headers": headers}}}


def timed(name: str, seconds: float, shape: Callable[[float], str]) -> Sent:
    """A 429 one of whose headers names a moment."""
    return Sent(says("Rate limit reached"), 429, {name: later(seconds, shape)})


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


WAITS = [
    Wait("retry-after in seconds", limited(retry_after="1"), 1),
    Wait("retry-after-ms", limited(retry_after_ms="900"), 0.9),
    Wait("retry-after as a date", timed("Retry-After", 2, lambda at: formatdate(at, usegmt=True)), 1),
    Wait("RetryInfo in a list (Gemini)", limited(violated("RequestsPerMinute", "1s")), 1),
    Wait("RetryInfo in parts of a second (Gemini)", limited(violated("RequestsPerMinute", "1.05s")), 1.05),
    Wait("Please retry in 1.1s (Gemini)", words("Quota exceeded for metric: x. Please retry in 1.1s."), 1.1),
    Wait("Please try again in 1.1s (Groq)", words("Limit 30, Used 30. Please try again in 1.1s."), 1.1),
    Wait("try again in 900ms (OpenAI)", words("Limit 3, Used 3. Please try again in 900ms."), 0.9),
    Wait("retry after 1 second (Azure)", words("Exceeded token rate limit. Please retry after 1 second."), 1),
    Wait("try again after 1 seconds (Moonshot)", words("max RPM: 3, please try again after 1 seconds"), 1),
    Wait("X-RateLimit-Reset in metadata (OpenRouter)", error(429, later(1.1, reset_in_metadata)), 1.1),
    Wait("x-ratelimit-reset as a moment", timed("X-RateLimit-Reset", 2, lambda at: str(int(at))), 1),
    Wait("x-ratelimit-reset in ms", timed("X-RateLimit-Reset", 1.1, lambda at: str(int(at * 1000))), 1.1),
    Wait("anthropic-ratelimit-requests-reset", timed("anthropic-ratelimit-requests-reset", 2, iso), 1),
    Wait("anthropic-ratelimit-tokens-reset", timed("anthropic-ratelimit-output-tokens-reset", 2, iso), 1),
    Wait("RateLimit of the IETF", limited(ratelimit="limit=10, remaining=0, reset=1"), 1),
    Wait("RateLimit of the IETF, as a list", limited(ratelimit='"default";r=0;t=1'), 1),
    Wait("x-ratelimit-reset-after", limited(x_ratelimit_reset_after="1"), 1),
    Wait("x-ratelimit-timeremaining (GitHub)", limited(x_ratelimit_timeremaining="1"), 1),
    Wait(
        "a reset of a minute's tokens (Cerebras)",
        limited(x_ratelimit_remaining_tokens_minute="0", x_ratelimit_reset_tokens_minute="1.1"),
        1.1,
    ),
    Wait("resets_in_seconds", limited({"error": {"message": "Slow down", "resets_in_seconds": 1.1}}), 1.1),
    Wait("seconds in Chinese", words("请求过于频繁,请在1秒后重试"), 1),
    Wait("a moment in words", Sent(later(2, lambda at: says(f"Try again at {iso(at)}.")), 429), 1),
    Wait("a 200 that is a 429 with a wait", Sent(later(1.1, reset_in_metadata)), 1.1),
    Wait(
        "x-ratelimit-reset-requests",
        limited(x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="1.1s"),
        1.1,
    ),
]

# Addresses: what follows the server's root, and the path that is asked.

CLASSIC = "/openai/deployments/D/chat/completions?api-version=2024-10-21"
ADDRESSES = {
    "as it should be": ("{root}/v1", "/v1/chat/completions"),
    "a slash behind": ("{root}/v1/", "/v1/chat/completions"),
    "a blank behind": ("{root}/v1 ", "/v1/chat/completions"),
    "blanks around, and a line's end": (" {root}/v1\n", "/v1/chat/completions"),
    "the full path": ("{root}/v1/chat/completions", "/v1/chat/completions"),
    "the full path, a slash and a blank": ("{root}/v1/chat/completions/ ", "/v1/chat/completions"),
    "a query (Azure)": ("{root}/openai/deployments/D?api-version=2024-10-21", CLASSIC),
    "a slash before a query": ("{root}/openai/deployments/D/?api-version=2024-10-21", CLASSIC),
    "the full path and a query": ("{root}" + CLASSIC, CLASSIC),
}
