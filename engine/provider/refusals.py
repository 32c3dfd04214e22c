"""Reads a refusal: status, headers and body become a typed error, whoever's words they are.

Pure. The status and the codes in the body decide; where servers tell apart by words alone, the words are
kept here as data, by kind. One order holds for all: a filter, an empty account, a model that is gone,
a parameter that the model does not take, a row that is too large, then the status.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from engine.provider import refusal_words as words
from engine.provider.errors import (
    AddressWrong,
    AskError,
    AuthRefused,
    ModelGone,
    QuotaExhausted,
    RateLimited,
    RowRefused,
    RunStopped,
    ServerFault,
)
from engine.provider.json_body import is_page, parse_body
from engine.provider.retry_after import Wait, back_at, midnight_pacific, wait_for
from store.files import storable
from store.records import Cause

MESSAGE_LENGTH = 500
LONG_WAIT = 3600.0  # seconds; a limit that wants more is a quota
_DEPTH = 10
FINISH_LENGTH = 100  # of what a reply says of its end
_CODES = {
    "code", "type", "status", "reason", "reasons", "error_code", "errorcode", "err_code", "error_type",
    "categories", "quotaid", "internal_code", "status_code",
}  # fmt: skip
_MESSAGES = (
    "message", "msg", "detail", "error_msg", "errmsg", "status_msg", "error_message", "error", "errors",
    "title", "Error", "Message",
)  # fmt: skip

_QUOTED_PARAMETER = re.compile(rf"[`'\"](?:{'|'.join(words.PARAMETERS)})[`'\"]")
_QUOTED_NAME = re.compile(r"[`'\"]\w+[`'\"]")
_PASSING = (408, 409, 425, 498, 499)  # passes by itself; Groq's 498: no capacity in the flex tier
_NEVER_FILTERS = (401, 402, 404, 405, 407, 408, 409, 410, 413, 425, 429, 498, 499)
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What stands in the body of a refusal: the message, all codes (lower case), and the body itself."""

    message: str
    codes: tuple[str, ...]
    body: Any
    page: bool = False

    def has(self, code: re.Pattern[str], words: re.Pattern[str]) -> bool:
        if any(code.search(one) for one in self.codes):
            return True
        fields = isinstance(self.body, Mapping) and isinstance(self.body.get("detail"), list)
        return not fields and bool(words.search(self.message.lower()))  # validators repeat the row's text


def read_refusal(raw: bytes) -> Refusal:
    try:
        body, _ = parse_body(raw)
    except (ValueError, RecursionError):
        words = (
            "a page for browsers (HTML)" if is_page(raw) else raw[:MESSAGE_LENGTH].decode(errors="replace")
        )
        return Refusal(storable(words.strip()), (), None, is_page(raw))
    return refusal_in(body)


def refusal_in(body: Any) -> Refusal:
    codes = dict.fromkeys(code.lower() for code in _codes(body, _DEPTH))
    return Refusal(storable(_message(body, _DEPTH)[:MESSAGE_LENGTH]), tuple(codes), body)


def _codes(value: Any, depth: int) -> Iterator[str]:
    """All that is called a code, type, status or reason, at any depth; also in JSON that is told as text."""
    if depth == 0:
        return
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if str(name).lower() in _CODES:
                for one in inner if isinstance(inner, list) else [inner]:
                    if isinstance(one, str | int) and not isinstance(one, bool):
                        yield str(one)[:100]
            yield from _codes(inner, depth - 1)
    elif isinstance(value, list):
        for inner in value[:20]:
            yield from _codes(inner, depth - 1)
    elif isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            inner, _ = parse_body(value.encode())
        except (ValueError, RecursionError):
            return
        yield from _codes(inner, depth - 1)


def _message(value: Any, depth: int) -> str:
    """The server's words: what is called error or message, the outer before the inner."""
    if isinstance(value, str):
        return value
    if depth and isinstance(value, list):
        return next((text for one in value if (text := _message(one, depth - 1))), "")
    if not (depth and isinstance(value, Mapping)):
        return ""
    inner = value.get("error")
    places = [inner, *(value.get(name) for name in _MESSAGES), value.get("base_resp"), value.get("Response")]
    own = next((text for place in places if (text := _message(place, depth - 1))), "")
    raw = value.get("metadata", {}).get("raw") if isinstance(value.get("metadata"), Mapping) else None
    if isinstance(value.get("loc"), list) and own:  # of validators: which field it is about
        return f"{'.'.join(map(str, value['loc']))}: {own}"
    return f"{own}: {_message(raw, 1)}" if isinstance(raw, str) and own and raw else own


def is_filtered(status: int, raw: bytes) -> bool:
    """A refusal that is a content filter's doing, in anybody's words: an outcome, not an error."""
    if status < 400 or status in _NEVER_FILTERS:
        return False
    refusal = read_refusal(raw)
    if status >= 500:
        return refusal.has(words.FILTER_FAULT, words.FILTER_FAULT)
    return _is_filter(status, refusal)


def _is_filter(status: int, refusal: Refusal) -> bool:
    if status == 451:
        return True
    if words.ACCOUNT.search(refusal.message.lower()) or refusal.page:
        return False
    metadata = refusal.body.get("error") if isinstance(refusal.body, Mapping) else None
    metadata = metadata.get("metadata") if isinstance(metadata, Mapping) else None
    flagged = isinstance(metadata, Mapping) and bool(metadata.get("reasons") or metadata.get("flagged_input"))
    return flagged or refusal.has(words.FILTER_CODE, words.FILTER_WORDS)


def read_error(status: int, headers: Mapping[str, str], raw: bytes) -> AskError | RunStopped:
    """The error for a status other than 2xx, in the server's own words."""
    refusal = read_refusal(raw)
    if status in _REDIRECTS:
        said = refusal.message or "the server has moved"
        return AddressWrong(f"HTTP {status}: {said}{_place(headers.get('location'))}")
    return _error(status, headers, refusal)


def _place(location: str | None) -> str:
    parts = urlsplit(location or "")
    if not parts.hostname:
        return ""
    path = parts.path.removesuffix("/").removesuffix("/chat/completions")
    port = f":{parts.port}" if parts.port else ""
    return f"; give --base-url {parts.scheme}://{parts.hostname}{port}{path}"


@lru_cache(maxsize=256)
def ended(finish: str) -> str:
    """How a reply ended, in one spelling: lower case, and '_' for all that is no letter or digit."""
    plain = re.sub(r"[^a-z0-9]+", "_", finish[:FINISH_LENGTH].lower()).strip("_")
    return re.sub("^finish_?reason_", "", plain)


def embedded_error(body: Any) -> AskError | RunStopped | None:
    """The error that a body of 200 holds in the place of an answer, or None. Its code is read as if it
    were the status."""
    if isinstance(body, list):
        body = next((one for one in body if isinstance(one, dict)), None)
    if not isinstance(body, dict):
        return None
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    shown = "error" in body or "error" in choice or "base_resp" in body
    if not shown and choice.get("finish_reason") in ("stop", "length"):
        return None  # nearly all
    finish = ended(str(choice.get("finish_reason") or ""))
    failed = bool(words.FAILED_FINISH.match(finish))
    inner = _told(body.get("error")) or _told(choice.get("error"))
    named = not choices and any(
        body.get(name) for name in ("message", "msg", "detail", "error_msg", "errors")
    )
    base = body.get("base_resp")
    base_failed = isinstance(base, dict) and base.get("status_code") not in (None, 0)
    tencent = not choices and isinstance(body.get("Response"), dict)
    if not (inner or failed or named or base_failed or tencent):
        return None
    told = {"error": inner} if inner else {"error": f"the reply ended with '{finish}'"} if failed else body
    refusal = refusal_in(told)
    status = _status_of(refusal, told)
    if _is_filter(status, refusal):  # whatever its status: this row's prompt or answer was refused
        return RowRefused(f"filtered: {refusal.message}", status, "bad_request", about="filter")
    return _error(status, {}, refusal, "status 200 with an error")


def _told(error: Any) -> Any:
    """An error that says something. Some gateways put one with nothing in it, or with a code that means
    success, beside each answer."""
    if not isinstance(error, Mapping):
        return error
    code = str(error.get("code", "")).lower()
    return error if any(error.values()) and code not in ("0", "200", "success", "ok") else None


def _status_of(refusal: Refusal, told: Mapping[str, Any]) -> int:
    for code in refusal.codes:
        if code.isdecimal() and 400 <= int(code) <= 599:
            return int(code)
    for code in refusal.codes:
        if code in words.AS_STATUS:
            return words.AS_STATUS[code]
    if refusal.has(words.QUOTA_CODE, words.QUOTA_WORDS):
        return 402
    return 500


def _error(
    status: int, headers: Mapping[str, str], refusal: Refusal, where: str = ""
) -> AskError | RunStopped:
    said = f"{where or f'HTTP {status}'}: {refusal.message or 'no message'}"
    wait = wait_for(headers, refusal.body, refusal.message)
    if status == 429 and any("perday" in code for code in refusal.codes):
        wait = Wait(midnight_pacific())  # when Google's days end, whatever wait it tells
    if error := _of_account(status, refusal, said, wait):
        return error
    if status == 401 or (status in (400, 403, 422) and refusal.has(words.KEY_CODE, words.KEY_WORDS)):
        return AuthRefused(said)
    if status in (404, 410, 400, 403, 422) and _is_gone(status, refusal):
        return ModelGone(said)
    if status == 429:
        return _limited(refusal, said, wait)
    if status in _PASSING or status >= 500 or "capacity_exceeded" in refusal.codes:
        return ServerFault(said, status, wait.seconds)
    return _row_refused(status, refusal, said)


def _is_gone(status: int, refusal: Refusal) -> bool:
    """Whether the model is not there. Anthropic's words for it are 'model: NAME' alone."""
    named = status == 404 and refusal.message.lower().startswith("model:")
    if _QUOTED_PARAMETER.search(refusal.message.lower()):
        return False
    return named or refusal.has(words.GONE_CODE, words.GONE_WORDS)


def _of_account(status: int, refusal: Refusal, said: str, wait: Wait) -> RunStopped | None:
    """An empty account, or a quota for a day: nothing more will be answered now."""
    daily = status == 429 and bool(
        words.DAILY.search(refusal.message.lower()) or any(words.DAILY.search(code) for code in refusal.codes)
    )
    if daily:
        at = wait.seconds
        if at is None or at > LONG_WAIT:
            back = f"; it resets at {back_at(at)}" if at is not None else ""
            return QuotaExhausted(f"the daily quota is used up{back}: {said}")
        return None
    if status == 402:
        return QuotaExhausted(said)
    is_empty = status < 500 and refusal.has(words.QUOTA_CODE, words.QUOTA_WORDS)
    if not is_empty or (status == 429 and wait.is_short):
        return None  # Google calls a limit for a minute a quota, and says when to come back
    return QuotaExhausted(said)


def _limited(refusal: Refusal, said: str, wait: Wait) -> AskError:
    if re.search(r"request too large|too large for", refusal.message.lower()):
        return RowRefused(said, 429, "too_large", about="row")  # OpenAI's code is that of a full bucket
    kind = next((code for code in refusal.codes if code in ("requests", "tokens")), "")
    return RateLimited(said, wait.seconds, kind)


def _row_refused(status: int, refusal: Refusal, said: str) -> AskError:
    lower, codes = refusal.message.lower(), " ".join(refusal.codes)
    name = _refused_parameter(refusal) if status in (400, 422) else None
    unquoted = _QUOTED_NAME.sub("", lower)
    if status == 413 or words.TOO_LARGE.search(unquoted) or words.TOO_LARGE_CODE.search(codes):
        return RowRefused(said, status, "too_large", about="row")
    if name:
        return RowRefused(f"{said}; {_advice(name, lower)}", status, "bad_request", about="run")
    if status == 403:
        return RowRefused(said, status, "auth")
    cause: Cause = "not_found" if status in (404, 410) else "bad_request"
    return RowRefused(said, status, cause, about="run" if refusal.page or status == 405 else "")


def _refused_parameter(refusal: Refusal) -> str | None:
    """The parameter that the model does not take, by its name in the body or the words."""
    error = refusal.body.get("error") if isinstance(refusal.body, Mapping) else None
    named = error.get("param") if isinstance(error, Mapping) else None
    lower = refusal.message.lower()
    if not (words.PARAMETER.search(lower) or any(code.startswith("unsupported_") for code in refusal.codes)):
        return None
    if isinstance(named, str) and named in words.PARAMETERS:
        return named
    if words.SYSTEM.search(lower):
        return "system"
    return next((name for name in words.PARAMETERS if re.search(rf"(?<!\w){name}(?!\w)", lower)), None)


def _advice(name: str, lower: str) -> str:
    if "temperature" in lower and "top_p" in lower:
        return "send one of the two: --omit top_p"
    too_much = re.search(r"too large|at most|less than|maximum|exceed|valid range", lower)
    if name in ("max_tokens", "max_completion_tokens") and too_much:
        return "lower --max-tokens or --thinking-tokens"
    if name == "max_tokens":
        return "--model-kind reasoning sends max_completion_tokens in its place"
    if name == "max_completion_tokens":
        return "--model-kind plain sends max_tokens in its place"
    if name == "system":
        return "leave out --system: the model does not accept such messages"
    if name == "reasoning_effort":
        return "choose another --reasoning-effort, or leave it out with --omit reasoning_effort"
    return f"leave it out with --omit {name}"
