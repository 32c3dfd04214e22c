"""Rows of JSON text that begins with no list: one in each line, or values over several lines.

A line may also hold a list of rows, or an object with such a list in it (`{"data": [...]}`). Every line is
a row or a complaint. Knows nothing about what the columns mean.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from store import text_streams as streams
from store.errors import PoolError
from store.text_streams import BYTE_ORDER_MARK, Complaint, Raw, Stream

_LINE_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_OPEN_END = re.compile(rb"[{\[,:]\s*\Z")
_OBJECT = ord("{")
_CLOSED_BY = {_OBJECT: ord("}"), ord("["): ord("]")}
# What marks an object as a row, and the names under which published files keep their list of rows.
OF_A_ROW = frozenset(
    ("instruction", "question", "prompt", "question_id", "user_input", "messages", "conversations", "turns",
     "instances", "answers", "candidates", "scores", "models", "text", "chosen")
)  # fmt: skip
_OF_A_PROMPT = frozenset(("instruction", "question", "prompt", "question_id", "messages", "conversations"))
_WRAPPERS = frozenset(
    ("data", "dataset", "rows", "items", "records", "examples", "samples", "entries", "instructions",
     "questions", "prompts", "pool", "train", "results")
)  # fmt: skip


def json_lines(stream: Stream) -> Iterator[Raw]:
    number = 0
    while line := stream.readline(streams.MAX_ROW_BYTES + 1):
        number += 1
        rows, more = line_rows(stream, line, number)
        for row in rows:
            yield number, row
        number += more


def line_rows(stream: Stream, line: bytes, number: int) -> tuple[list[object], int]:
    """The rows of a line, and how many more lines they took."""
    if len(line) > streams.MAX_ROW_BYTES and not line.endswith(b"\n"):
        stream.skip_line()
        return [too_long()], 0
    if not (stripped := line.strip().removeprefix(BYTE_ORDER_MARK)):
        return [], 0
    inside = (
        stripped.removesuffix(b",") if stripped.endswith(b"},") else stripped
    )  # of a list without its ends
    value, more = parsed(inside, stream.encoding, torn=not line.endswith(b"\n")), 0
    if isinstance(value, Complaint) and _OPEN_END.search(stripped):
        value, more = _over_lines(stream, stripped, number) or (value, 0)
    return _rows_of(value, stream.source, number), more


def too_long() -> Complaint:
    return Complaint(f"longer than {streams.MAX_ROW_BYTES >> 20} MiB")


def parsed(text: bytes, encoding: str, torn: bool = False) -> object:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return _parsed_leniently(text, str(error), encoding, torn)
    return _once_each(text) if _may_repeat(value, text) else value


def _may_repeat(value: object, text: bytes) -> bool:
    """Whether a name may stand in an object twice: in a row, or in one of a list of rows. Readers of JSON
    keep the last one and say nothing."""
    row = value if isinstance(value, dict) else {}
    if any(text.count(b'"%b"' % name.encode()) > 1 for name in row):
        return True
    several = value if isinstance(value, list) else next((v for v in row.values() if isinstance(v, list)), ())
    first = next((one for one in several if isinstance(one, dict)), {})
    return any(text.count(b'"%b"' % name.encode()) > len(several) for name in first)


def _once_each(text: bytes) -> object:
    """The value, with a complaint in the place of each object that has a name twice with different values."""

    def checked(pairs: list[tuple[str, Any]]) -> object:
        found = dict(pairs)
        for name, value in pairs:
            if isinstance(value, Complaint):
                return value
            if value != found[name]:
                return Complaint(f"'{name:.40}' stands in it twice, with different values")
        return found

    return json.loads(text, object_pairs_hook=checked)


def _parsed_leniently(line: bytes, complaint: str, encoding: str, torn: bool) -> object:
    """Lone surrogates are legal in JSON escapes, though not in Unicode: they become U+FFFD."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        where = f" (byte {error.start}: 0x{line[error.start]:02x})" if encoding == "UTF-8" else ""
        return Complaint(f"not {encoding}{where}")
    try:
        return _mended(json.loads(text))
    except (ValueError, RecursionError):
        return Complaint(f"not JSON: {complaint}" + ("; the last line is torn" if torn else ""))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_mended(k): _mended(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_mended(v) for v in value]
    return value


def _rows_of(value: object, source: str, number: int) -> list[object]:
    """A line's value: a row, a list of rows, or an object that holds one."""
    if isinstance(value, dict):
        if not OF_A_ROW.isdisjoint(value):
            return [value]
        if name := _wrapped(value, source, number):
            value = value[name]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return value
    return [value]


def _wrapped(value: Mapping[str, Any], source: str, number: int) -> str:
    """The name of the list of rows that an object holds; empty where it is a row itself."""
    if any(name.lower() in OF_A_ROW for name in value):
        return ""
    lists = {n: v for n, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    found = [n for n, v in lists.items() if any(key.lower() in _OF_A_PROMPT for key in v[0])]
    if len(found) > 1:
        names = " and ".join(f"`{name:.40}`" for name in found)
        raise PoolError(
            f"pool {source}, line {number}: an object with several lists of rows, {names}: "
            "write the one that you mean to a file of its own"
        )
    return found[0] if found else next((n for n in lists if len(lists) == 1 and n.lower() in _WRAPPERS), "")


def _over_lines(stream: Stream, first: bytes, number: int) -> tuple[object, int] | None:
    """A value that is written over several lines, and how many more than the first. None where these
    lines are no such value: then nothing was taken. Each line must go on where the one before it
    stopped, so that a torn line does not take others with it."""
    open_: list[int] = []
    lines, last, size = [first], 0, 0
    raw: list[bytes] = []
    while True:
        bare = _LINE_TEXT.sub(b'"', lines[-1])
        if bare.count(b'"') != len(_LINE_TEXT.findall(lines[-1])) or not _follows(last, bare, open_):
            break
        if not _balance(bare, open_):
            break
        if not open_:
            value = parsed(b"\n".join(lines), stream.encoding)
            if isinstance(value, Complaint):
                break
            return value, len(raw)
        size += len(lines[-1])
        if size > streams.MAX_ROW_BYTES:
            raise PoolError(
                f"pool {stream.source}, line {number}: one JSON value of more than "
                f"{streams.MAX_ROW_BYTES >> 20} MiB: write a row a line, for example with "
                f"`jq -c '.NAME[]'`"
            )
        last = bare.rstrip()[-1] if bare.strip() else last
        line = stream.readline(streams.MAX_ROW_BYTES + 1)
        if not line and raw:
            return Complaint("the file ends in the middle of the value that begins here"), len(raw)
        if not line:
            break
        raw.append(line)
        lines.append(line.strip())
    stream.give_back(b"".join(raw))
    return None


def _follows(last: int, line: bytes, open_: list[int]) -> bool:
    """Whether JSON can go on with this line behind that byte."""
    if not (line and open_):
        return not (line and last)
    first, is_object = line[0], open_[-1] == _OBJECT
    if last in b"{,":
        wanted = b'"}' if last == _OBJECT else b'"'
        return first in wanted if is_object else first not in b",:}]"
    if last in b"[:":
        return first not in b",:}" and (first not in b"]" or last in b"[")
    return first in b",}]:"


def _balance(line: bytes, open_: list[int]) -> bool:
    """Takes the brackets of a line without its texts; False where one closes what is not open."""
    for sign in line:
        if sign in b"{[":
            open_.append(sign)
        elif sign in b"}]" and (not open_ or _CLOSED_BY[open_.pop()] != sign):
            return False
    return True
