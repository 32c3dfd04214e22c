"""What stands in a reply's body, whatever stands around it: JSON behind a byte order mark, comments, blank
lines, or cut into the events of a stream. Pure; knows nothing of what the JSON means."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from store.files import loads, storable

_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_LINE_END = re.compile(r"\r\n|\r|\n")  # in a text there may be others
_DONE = re.compile(r"data: ?\[DONE\]\s*")
_PAGE = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")


def parse_body(raw: bytes) -> tuple[Any, bool]:
    """(value, plain): the JSON of a body, and whether it stands there plainly, so that others can read it
    with a JSON path. Its texts can be stored. A list of one object is that object. Raises ValueError,
    RecursionError."""
    try:
        value, plain = orjson.loads(raw), True
    except orjson.JSONDecodeError:
        value, plain = storable(_parsed(raw)), False
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        return value[0], False
    return value, plain


def _parsed(raw: bytes) -> Any:
    """The JSON of a body that orjson does not read; never plain, for SQLite's functions do not either."""
    try:
        return loads(raw)
    except ValueError:
        mark, encoding = next((one for one in _MARKS if raw.startswith(one[0])), (b"", "utf-8"))
        text = raw[len(mark) :].decode(encoding).strip()
    try:
        return json.loads(text, strict=False)  # line breaks in a text that are not escaped
    except ValueError:
        lines = [line for line in _LINE_END.split(text) if line.strip() and not line.startswith(":")]
    said = [line for line in lines if not _DONE.fullmatch(line)]
    try:
        return json.loads("\n".join(said), strict=False)
    except ValueError:
        events = [line for line in said if line.startswith("data:")]
        if not events and len(said) > 1 and all(line.startswith("{") for line in said):
            events = said  # a stream that does without the name of its lines
        if not events:
            raise
    return _joined(_events(events), ended=len(said) < len(lines))


def _events(lines: list[str]) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a stream of server-sent events."""
    for line in lines:
        if data := line.removeprefix("data:").strip():
            event = loads(data.encode())
            if isinstance(event, Mapping):
                yield event


def _joined(events: Iterator[Mapping[str, Any]], ended: bool) -> dict[str, Any]:
    """The one reply that a stream's chunks make. An event that is a reply, or an error, speaks for itself.
    `ended`: the stream came to its end; one that broke off before a chunk said why is half a reply, and
    raises ValueError."""
    body: dict[str, Any] = {}
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    finish = None
    for event in events:
        choice = next(iter(event.get("choices") or ()), None)
        if event.get("error") or (isinstance(choice, Mapping) and "message" in choice):
            return dict(event)
        body |= {name: value for name, value in event.items() if name != "choices" and value is not None}
        if isinstance(groq := event.get("x_groq"), Mapping) and groq.get("usage"):
            body["usage"] = groq["usage"]
        if isinstance(choice, Mapping):
            body |= {"usage": choice["usage"]} if choice.get("usage") else {}  # Moonshot
            finish = choice.get("finish_reason") or finish
            for name, part in (choice.get("delta") or {}).items():
                if isinstance(part, str) and name != "role":
                    held = message.get(name) or ""
                    message[name] = held + part if isinstance(held, str) else [*_listed(held), part]
                elif isinstance(part, list) and message.get(name):
                    message[name] = [*_listed(message[name]), *part]
                elif part is not None and name != "role":
                    message[name] = part
    if not (ended or finish):
        raise ValueError("the stream broke off")
    body["choices"] = [{"index": 0, "message": message, "finish_reason": finish}]
    return body


def _listed(held: Any) -> list[Any]:
    return held if isinstance(held, list) else [held]


def is_page(raw: bytes) -> bool:
    """Whether it is a page for people (HTML) and not an API's reply."""
    start = raw.lstrip(b"\xef\xbb\xbf \t\r\n")[:512].lower()
    return start.startswith(_PAGE)


def is_prose(raw: bytes) -> bool:
    """Whether it is plain words, such as some servers greet with: no model's reply, not even a torn one."""
    try:
        text = raw[:512].decode().lstrip()
    except UnicodeDecodeError:
        return False
    return text[:1].isalpha() and not text.startswith("data:")
