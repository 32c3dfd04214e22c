"""The lines of a batch's files: what goes in, and what a line that comes back means. Pure.

Input:  {"custom_id", "method", "url", "body"}           custom_id: the request's key in hex (64 characters)
Output: {"custom_id", "response": {"status_code", "body"} | null, "error": {"code", "message"} | null}
A status other than 200 stands in the error file, and so do the requests that were not executed.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from engine.bodies import loads
from engine.errors import AskError, BadReply, RowRefused, RunStopped, ServerFault
from engine.refusals import is_filtered, read_error
from engine.replies import FILTERED_REPLY, Reply, read_reply

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
NOT_RUN = ("batch_expired", "batch_cancelled")
WORDS_KEPT = 500
_HEAD, _ID = b'{"custom_id":"', 64
_REST = b'","method":"POST","url":"' + ENDPOINT.encode() + b'","body":'
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]{64})"')


@dataclass(frozen=True, slots=True)
class NotRun:
    """The batch ended before this request's turn: it cost nothing."""

    words: str


# What a line means for its request: an answer (with the raw body), nothing, or an error.
Meaning = Reply | NotRun | AskError | RunStopped


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was read. `raw` is the reply's body, as an online reply would be stored."""

    key: bytes
    status: int | None
    raw: bytes
    meaning: Meaning


def input_line(key: bytes, body: bytes) -> bytes:
    return _HEAD + key.hex().encode() + _REST + body + b"}\n"


def body_of(line: bytes) -> tuple[bytes, bytes]:
    """(key, body) of an input line of ours."""
    start = len(_HEAD) + _ID
    return bytes.fromhex(line[len(_HEAD) : start].decode()), line[start + len(_REST) : -2]


def read_line(line: bytes) -> Line | None:
    """None for a line that belongs to no request of ours, or is blank."""
    found = _CUSTOM_ID.search(line)
    if found is None:
        return None
    key = bytes.fromhex(found[1].decode())
    try:
        record = loads(line)
        response, error = record.get("response"), record.get("error")
        key = bytes.fromhex(record["custom_id"])
        if isinstance(response, dict) and response.get("status_code") is not None:
            return _answered(key, int(response["status_code"]), _as_bytes(response.get("body")))
        return Line(key, None, b"", _unanswered(error if isinstance(error, dict) else {}))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Line(key, 200, line, BadReply("the line of the batch's output cannot be read", line))


def _answered(key: bytes, status: int, raw: bytes) -> Line:
    if is_filtered(status, raw):
        return Line(key, status, raw, FILTERED_REPLY)
    if not 200 <= status < 300:
        return Line(key, status, raw, read_error(status, {}, raw))
    try:
        return Line(key, status, raw, read_reply(raw))
    except RowRefused as error:  # an error inside a reply of 200
        return Line(key, status, raw, FILTERED_REPLY if error.about == "filter" else error)
    except (AskError, RunStopped) as error:
        return Line(key, status, raw, error)


def _unanswered(error: dict[str, Any]) -> Meaning:
    code = str(error.get("code") or "no code")
    words = f"{code}: {error.get('message') or 'no message'}"[:WORDS_KEPT]
    words = words.encode(errors="replace").decode()
    return NotRun(words) if code in NOT_RUN else ServerFault(words, 500)


def _as_bytes(body: object) -> bytes:
    """A body is given as JSON inside JSON; some servers give text, or what is no JSON at all."""
    if isinstance(body, str):
        return body.encode(errors="replace")
    try:
        return orjson.dumps(body)
    except TypeError:  # lone surrogates, numbers beyond 64 bits
        return json.dumps(body).encode()
