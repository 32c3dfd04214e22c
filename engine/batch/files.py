"""The input and output files of a batch.

RUN/batches/NAME.jsonl is kept until all results are stored. Requests that expired are asked again from it,
without the pool.

Input:  {"custom_id", "method", "url", "body"}           custom_id: the request's key in hex (64 characters)
Output: {"custom_id", "response": {"status_code", "body"} | null, "error": {"code", "message"} | null}

Requests with a status other than 200, and those that were not executed, are in the error file. A line that
cannot be read may be a paid answer, so it is not treated like a line that says there is no answer.
"""

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from engine.provider.errors import AskError, BadReply, RowRefused, RunStopped, ServerFault
from engine.provider.refusals import is_filtered, read_error
from engine.provider.responses import FILTERED_REPLY, Reply, claim_in, read_reply
from store.files import loads

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
NOT_RUN = ("batch_expired", "batch_cancelled")
WORDS_KEPT = 500
_HEAD, _ID = b'{"custom_id":"', 64
_REST = b'","method":"POST","url":"' + ENDPOINT.encode() + b'","body":'
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]{64})"')
_KEY = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class NotRun:
    """The batch ended before this request's turn: it cost nothing."""

    words: str


@dataclass(frozen=True, slots=True)
class Unclear:
    """The line can be read and does not say what became of the request. `is_refusal`: it names a
    status by which a request is refused, but not only that."""

    words: str
    status: int | None
    is_refusal: bool = False


# What a line means for its request: an answer (with the raw body), nothing, or an error.
Meaning = Reply | NotRun | Unclear | AskError | RunStopped


@dataclass(frozen=True, slots=True)
class Line:
    """A line that was read. `raw` is the reply's body, as an online reply would be stored."""

    key: bytes
    status: int | None
    raw: bytes
    meaning: Meaning

    @property
    def is_paid(self) -> bool:
        """Whether the request was executed with success, whatever can be made of the reply."""
        return self.status is not None and is_success(self.status)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line that cannot be read; `key` where it shows whose it is."""

    key: bytes | None
    raw: bytes


@dataclass(frozen=True, slots=True)
class Stranger:
    """A line that can be read, of a request that is not ours."""


def input_line(key: bytes, body: bytes) -> bytes:
    return _HEAD + key.hex().encode() + _REST + body + b"}\n"


def body_of(line: bytes) -> tuple[bytes, bytes]:
    """(key, body) of an input line of ours."""
    start = len(_HEAD) + _ID
    return bytes.fromhex(line[len(_HEAD) : start].decode()), line[start + len(_REST) : -2]


def read_line(text: bytes) -> Line | Damaged | Stranger | None:
    """None for a blank line."""
    if not text.strip():
        return None
    try:
        record = loads(text.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return damaged(text)
    name = record.get("custom_id") if isinstance(record, dict) else None
    if not isinstance(name, str):
        return Damaged(None, text)
    if not _KEY.fullmatch(name):
        return Stranger()
    return _read(bytes.fromhex(name), record.get("response"), record.get("error"))


def damaged(text: bytes) -> Damaged:
    found = _CUSTOM_ID.search(text)
    return Damaged(bytes.fromhex(found[1].decode()) if found else None, text)


def is_success(status: int) -> bool:
    return 200 <= status < 300


def _read(key: bytes, response: object, error: object) -> Line | Damaged:
    told = response if isinstance(response, dict) and response else None
    status, raw = None, b""
    if told:
        with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
            status = int(told["status_code"])
        raw = _as_bytes(told.get("body"))
    # what an error says, empty where it is none (null, {}, or a code and a message that are null)
    if isinstance(error, dict) and isinstance(error.get("error"), dict):  # vLLM's stands inside another
        error = error["error"]
    if isinstance(error, dict):
        code, message = error.get("code"), error.get("message")
        said = f"{code or 'no code'}: {message or 'no message'}" if code or message else ""
        if not said and any(error.values()):
            said = f"no code: {json.dumps(error)}"
    else:
        said = f"no code: {error}" if error else ""
    words = said[:WORDS_KEPT].encode(errors="replace").decode()
    if words and not told:
        not_run = words.startswith(tuple(f"{code}: " for code in NOT_RUN))
        return Line(key, None, b"", NotRun(words) if not_run else ServerFault(words, 500))
    if not told:
        return _unclear(key, None, raw, "the line has neither a response nor an error")
    if words:
        return _unclear(key, status, raw, f"the line has a response (status {status}) and an error: {words}")
    if status is None or not (is_success(status) or 400 <= status < 600):
        shown = str(told.get("status_code"))[:20]
        return _unclear(key, None, raw, f"the line has a response with status_code {shown}")
    if is_filtered(status, raw):
        return Line(key, status, raw, FILTERED_REPLY)
    if not is_success(status):
        return Line(key, status, raw, read_error(status, {}, raw))
    try:
        return Line(key, status, raw, read_reply(raw))
    except BadReply as bad:  # without an answer or usage it does not show what was paid for
        return Damaged(key, raw) if claim_in(raw).is_empty else Line(key, status, raw, bad)
    except RowRefused as refused:  # an error inside a reply of 200
        return Line(key, status, raw, FILTERED_REPLY if refused.about == "filter" else refused)
    except (AskError, RunStopped) as failed:
        return Line(key, status, raw, failed)


def _unclear(key: bytes, status: int | None, raw: bytes, words: str) -> Line:
    """What was executed may be billed: it is stored and counted as other replies that cannot be used."""
    if not claim_in(raw).is_empty or (status is not None and is_success(status)):
        return Line(key, status, raw, BadReply(words, raw))
    refusal = status is not None and 400 <= status < 500
    return Line(key, status, raw, Unclear(words, status, refusal))


def _as_bytes(body: object) -> bytes:
    """A body is given as JSON inside JSON; some servers give text, or what is no JSON at all."""
    if isinstance(body, str):
        return body.encode(errors="replace")
    try:
        return orjson.dumps(body)
    except TypeError:  # lone surrogates, numbers beyond 64 bits
        return json.dumps(body).encode()


FOLDER = "batches"


def name_of(folder: str, number: int) -> str:
    """Of the file, here and at the provider; no two run folders share one."""
    return f"distill-{folder}-{number}.jsonl"


def sweep(run: Path, kept: set[str]) -> None:
    """Removes the files of batches that are closed, or were never put down."""
    for path in (run / FOLDER).glob("*.jsonl"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
