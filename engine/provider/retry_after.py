"""How long a server wants to be left alone: headers, bodies and words, in anybody's format. Pure but for
the clock."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

LONGEST_WAIT = 86400.0  # seconds; no server is believed that wants more than a day
SHORT = 900.0  # seconds; a limit that is gone by then is waited for
_UNITS = "ms|milliseconds?|days?|d|hours?|h|minutes?|mins?|m|seconds?|secs?|s"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|d|h|m|s)")
_SPOKEN = re.compile(rf"(\d+(?:\.\d+)?)\s*({_UNITS})(?![a-z])")
_SECONDS = {"ms": 0.001, "milli": 0.001, "d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_IN_WORDS = re.compile(
    r"(?:(?:try again|retry|wait|available|reset\w*)[^.\d]{0,40}?\b(?:in|after|for)\b[^\d]{0,12}"
    r"|\bwait[^.\d]{0,12})"
    rf"((?:\d+(?:\.\d+)?\s*(?:{_UNITS})(?![a-z0-9]|\d)[\s,]*(?:and\s+)?|\d+(?:\.\d+)?(?:ms|d|h|m|s)(?=\d))+)"
)
_EPOCH = 1e9  # a larger number of seconds is a date
_MOMENT = re.compile(
    r"\b(?:at|until|on|after) (\d{4}-\d\d-\d\d[t ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?) ?(z|utc|gmt|[+-]\d\d:?\d\d)?"
)
_CHINESE = re.compile(r"(\d+(?:\.\d+)?)\s*(秒|分钟|小时)(?:钟)?(?:之?后|再)")
_CHINESE_UNITS = {"秒": 1.0, "分钟": 60.0, "小时": 3600.0}
# The IETF's one header for all: `limit=10, remaining=0, reset=2` or `"default";r=0;t=2`.
_USED_UP = re.compile(r"\b(?:remaining|r)=0\b.*?\b(?:reset|t)=(\d+)")
_WAITS = (
    "retry-after-ms", "retry-after", "x-ms-retry-after-ms", "x-retry-after", "ratelimit-reset",
    "x-ratelimit-reset-after", "x-ratelimit-timeremaining",
)  # fmt: skip
_RESETS = (
    "x-ratelimit-reset", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens",
    "anthropic-ratelimit-requests-reset", "anthropic-ratelimit-tokens-reset",
    "anthropic-ratelimit-input-tokens-reset", "anthropic-ratelimit-output-tokens-reset",
)  # fmt: skip
_IN_BODY = (
    "retrydelay",
    "retry_after",
    "retry_after_seconds",
    "retryafter",
    "retry-after",
    "x-ratelimit-reset",
    "resets_in_seconds",
    "reset_in_seconds",
    "resets_at",
    "reset_at",
)


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds from now, or None where the server said nothing."""

    seconds: float | None = None

    @property
    def is_short(self) -> bool:
        return self.seconds is not None and self.seconds <= SHORT


@dataclass(frozen=True, slots=True)
class RateHeaders:
    """What one reply's headers said of one resource; None where they said nothing."""

    limit: float | None
    remaining: float | None
    reset: float | None  # seconds until full


SILENT = RateHeaders(None, None, None)
_LIMIT_HEADERS = [
    tuple(f"x-ratelimit-{what}-{resource}" for what in ("limit", "remaining", "reset"))
    for resource in ("requests", "tokens")
]


def read_limits(headers: Mapping[str, str]) -> tuple[RateHeaders, RateHeaders]:
    """The `x-ratelimit-*` headers of (requests, tokens)."""
    found = []
    for limit, remaining, reset in _LIMIT_HEADERS:
        told = headers.get(limit), headers.get(remaining), headers.get(reset)
        if told == (None, None, None):
            found.append(SILENT)
        else:
            found.append(RateHeaders(number(told[0]), number(told[1]), parse_duration(told[2] or "")))
    return found[0], found[1]


def wait_for(headers: Mapping[str, str], body: Any, message: str) -> Wait:
    """What a refusal says of the wait: its headers, then its body, then its words."""
    lower = {str(name).lower(): str(value) for name, value in headers.items()}
    for name in _WAITS:
        if (wait := _header(lower, name)) is not None:
            return Wait(wait)
    if (wait := next(_in_body(body, 8), None)) is not None:
        return Wait(wait)
    if (wait := _in_words(message.lower())) is not None:
        return Wait(wait)
    if found := _USED_UP.search(lower.get("ratelimit", "")):
        return Wait(_bounded(float(found[1])))
    # Last, since a bucket that leaks is usable long before it is full again.
    resets = [_header(lower, name) for name in lower if _is_reset(lower, name)]
    return Wait(max((wait for wait in resets if wait is not None), default=None))


def _in_words(said: str) -> float | None:
    if found := _IN_WORDS.search(said):
        return _bounded(_sum(_SPOKEN.findall(found[1])))
    if found := _CHINESE.search(said):
        return _bounded(float(found[1]) * _CHINESE_UNITS[found[2]])
    if found := _MOMENT.search(said):
        zone = "Z" if found[2] in ("z", "utc", "gmt") else found[2] or ""
        return _bounded(seconds_until(found[1].upper() + zone))
    return None


def _is_reset(lower: Mapping[str, str], name: str) -> bool:
    """Whether a header tells when a limit that is used up is full again. Of a name that we do not know
    another header must say that nothing is left."""
    if name in _RESETS:
        return _is_used_up(lower, name)
    if "ratelimit" not in name or "-reset" not in name:
        return False
    return name.replace("-reset", "-remaining") in lower and _is_used_up(lower, name)


def _is_used_up(lower: Mapping[str, str], reset: str) -> bool:
    """Whether nothing is left of the limit that a header of resets is about; if it is not said, yes."""
    left = lower.get(reset.replace("-reset", "-remaining"), "0")
    return (number(left) or 0.0) < 1


def _header(lower: Mapping[str, str], name: str) -> float | None:
    if not (text := lower.get(name, "").strip()):
        return None
    return _bounded(parse_duration(text + "ms") if name.endswith("-ms") else seconds_until(text))


def _in_body(value: Any, depth: int) -> Iterator[float]:
    """Google's RetryInfo, OpenRouter's copies of headers, and fields of the same meaning."""
    if depth and isinstance(value, Mapping):
        for name, inner in value.items():
            if (
                str(name).lower() in _IN_BODY
                and isinstance(inner, str | int | float)
                and not isinstance(inner, bool)
            ):
                if (wait := _bounded(seconds_until(str(inner)))) is not None:
                    yield wait
            else:
                yield from _in_body(inner, depth - 1)
    elif depth and isinstance(value, list):
        for inner in value:
            yield from _in_body(inner, depth - 1)


def seconds_until(text: str) -> float | None:
    """Seconds from now to a moment in anybody's format: a duration, seconds, seconds or milliseconds since
    1970, an ISO or an HTTP date. A moment in the past is 0."""
    text = text.strip()
    if (number := parse_duration(text)) is not None:
        if number > _EPOCH * 1000:
            return max(0.0, number / 1000 - time.time())
        return max(0.0, number - time.time()) if number > _EPOCH else number
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
        except (ValueError, TypeError, OverflowError):
            continue
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time())
    return None


def parse_duration(text: str) -> float | None:
    """`1s`, `6m0s`, `120ms`, `1h2m3.5s` or plain seconds, in seconds."""
    parts = _DURATION.findall(text)
    if parts and "".join(amount + unit for amount, unit in parts) == text.strip():
        return _sum(parts)
    seconds = number(text.strip().removeprefix("-"))
    return 0.0 if text.strip().startswith("-") and seconds is not None else seconds


def _sum(parts: list[tuple[str, str]]) -> float | None:
    return finite(sum(float(amount) * _unit(unit) for amount, unit in parts))


def _unit(name: str) -> float:
    """Seconds in a unit of time, by the first of its names that it begins with."""
    return next(seconds for start, seconds in _SECONDS.items() if name.startswith(start))


def number(text: str | None) -> float | None:
    try:
        return finite(float(text)) if text else None
    except ValueError:
        return None


def finite(value: float) -> float | None:
    """None for what is not an amount: infinite, not a number, below zero."""
    return value if isfinite(value) and value >= 0 else None


def _bounded(wait: float | None) -> float | None:
    return None if wait is None else min(wait, LONGEST_WAIT)


def midnight_pacific() -> float:
    """Seconds until Google's quotas for a day are reset: midnight, Pacific time."""
    try:
        now = datetime.now(ZoneInfo("America/Los_Angeles"))
    except ZoneInfoNotFoundError:  # a machine without a time zone database
        now = datetime.now(UTC) - timedelta(hours=8)
    tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return (tomorrow - now).total_seconds()


def back_at(seconds: float) -> str:
    """In words, when a limit is over."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%d %H:%M} UTC"
