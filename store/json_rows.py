"""Rows of JSON text: a file of lines, or one that begins with a list.

A line may also hold a list of rows, or an object with such a list in it (`{"data": [...]}`), and a value may
go over several lines. Nothing between, inside or behind lists is passed over: it is a row or a complaint.
Numbers are lines, or items of a list. Knows nothing about what the columns mean.
"""

import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from store import text_streams as streams
from store.errors import PoolError
from store.text_streams import BYTE_ORDER_MARK, PIECE, Complaint, Raw, Stream, parsed, too_long

_LINE_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')
_OPEN_END = re.compile(rb"[{\[,:]\s*\Z")
_OBJECT = ord("{")
_CLOSED_BY = {_OBJECT: ord("}"), ord("["): ord("]")}
# What marks an object as a row, and the names under which published files keep their list of rows.
_OF_A_ROW = frozenset(
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
        if line.startswith(b'{"') and line.endswith(b"}\n"):  # nearly all
            row = parsed(line, stream.encoding)
            if isinstance(row, dict) and not _OF_A_ROW.isdisjoint(row):
                yield number, row
                continue
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
    inside = stripped.removesuffix(b",") if stripped.endswith(b"},") else stripped  # of a list without ends
    value, more = parsed(inside, stream.encoding, torn=not line.endswith(b"\n")), 0
    if isinstance(value, Complaint) and _OPEN_END.search(stripped):
        value, more = _over_lines(stream, stripped, number) or (value, 0)
    if isinstance(value, dict) and _OF_A_ROW.isdisjoint(value):
        name = _wrapped(value, stream.source, number)
        value = value[name] if name else value
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return value, more
    return [value], more


def _wrapped(value: Mapping[str, Any], source: str, number: int) -> str:
    """The name of the list of rows that an object holds; empty where it is a row itself."""
    if any(name.lower() in _OF_A_ROW for name in value):
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
                f"{streams.MAX_ROW_BYTES >> 20} MiB: write one row per line, for example with "
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


# The gaps of a JSON list: what may stand between two items, and inside one. Loops are unrolled (Friedl): they
# never look twice, and need no possessive quantifiers, which are wrong in Python 3.11.0 to 3.11.4.
_TEXT = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_BETWEEN = re.compile(rb'[^"\[\]{},]*(?:%s[^"\[\]{},]*)*' % _TEXT, re.DOTALL)  # up to a comma or a bracket
_INSIDE = re.compile(rb'[^"\[\]{}]*(?:%s[^"\[\]{}]*)*' % _TEXT, re.DOTALL)  # up to a bracket
_NEXT_ITEM = re.compile(rb'(?:[}\]"\w]\s*,|\})\s*(?=\{\s*")')  # where another item may begin
_EMPTY = re.compile(rb"\s*\[\s*\]\s*")
_SEVERAL = re.compile(rb"\}\s*,\s*\{")
_LONGEST_LOOK = 1 << 20  # at an item that may follow a damaged one
_MOST_DAMAGED = 1000  # items of one list; each may cost a search to the end of the file


def json_lists(stream: Stream) -> Iterator[Raw]:
    """A file that begins with a list. What stands behind it, another list or lines, is read too."""
    number = yield from _List(stream, 0).items()
    while sign := _next_sign(stream):
        if sign in b",]}":
            number = yield from _closed_early(stream, number)
            continue
        line = stream.readline(streams.MAX_ROW_BYTES + 1)
        if _EMPTY.fullmatch(line):
            continue
        is_part = len(line) > streams.MAX_ROW_BYTES and not line.endswith(b"\n")
        is_list = sign == b"[" or (sign == b"{" and _SEVERAL.search(line) is not None)
        rows: list[object] = [too_long()] if is_part and is_list else line_rows(stream, line, number + 1)[0]
        if not isinstance(rows[0], Complaint):
            yield from enumerate(rows, number + 1)
            number += len(rows)
        elif is_list:
            stream.give_back(line)
            part = _List(stream, number).items() if sign == b"[" else _closed_early(stream, number)
            number = yield from part
        else:
            number += 1
            yield number, Complaint(f"after the end of the JSON list: {rows[0]}")


def _closed_early(stream: Stream, number: int) -> Generator[Raw, None, int]:
    """A list whose end comes too soon: what follows is more of it."""
    number += 1
    yield number, Complaint("the JSON list is closed before its end")
    sign, last = _next_sign(stream), b","
    while sign and sign in b",]}":
        last = stream.read(1)
        sign = _next_sign(stream)
    if sign and last == b",":
        number = yield from _List(stream, number, is_open=True).items()
    return number


def _next_sign(stream: Stream) -> bytes:
    """The next byte that is not white space, which is not taken; empty at the end."""
    while held := bytes(stream.look(1)[:PIECE]):
        stripped = held.lstrip()
        stream.read(len(held) - len(stripped))
        if not stream.starts_with(BYTE_ORDER_MARK):  # files that were put behind each other keep theirs
            if stripped:
                return stripped[:1]
        else:
            stream.read(len(BYTE_ORDER_MARK))
    return b""


class _List:
    """The items of a JSON list, cut at the commas between them and parsed one by one, so that a bad
    one costs no other and a pipe hands them over as they come.

    Where an item does not end, or takes others into itself (a quote, a bracket or a comma is missing),
    it is a bad row, and reading continues with the next intact row behind its beginning.
    """

    def __init__(self, stream: Stream, number: int, is_open: bool = False) -> None:
        self._stream, self._number, self._depth = stream, number, int(is_open)
        self._data, self._start, self._at = b"", 0, 0  # where the item begins, and how far we have looked
        self._damaged = 0

    def items(self) -> Generator[Raw, None, int]:
        """Returns the last item's number. What stands behind the list is given back to the stream."""
        while True:
            gap = _INSIDE if self._depth > 1 else _BETWEEN
            self._at = gap.match(self._data, self._at).end()  # type: ignore[union-attr]
            sign = self._data[self._at : self._at + 1]
            if sign in (b"", b'"'):  # the end of the piece, or a text that goes on in the next one
                if self._fill():
                    continue
                yield self._item(self._without_end())
                if not self._resumed(len(self._data)):
                    return self._number
                continue
            self._at += 1
            if sign == b"}" and self._depth == 1:  # closes nothing: part of a damaged item
                continue
            self._depth += (sign in b"[{") - (sign in b"]}")
            if self._depth == 0 or (self._depth == 1 and sign == b","):
                if text := self._data[self._start : self._at - 1].strip():
                    value = parsed(text, self._stream.encoding)
                    yield self._item(value)
                    if isinstance(value, Complaint) and self._resumed(self._at):
                        continue
                self._start = self._at
                if self._depth == 0:
                    self._stream.give_back(self._data[self._at :])
                    return self._number
            elif self._depth == 1 and sign == b"[":
                self._start = self._at

    def _item(self, value: object) -> Raw:
        self._number += 1
        return self._number, value

    def _fill(self) -> bool:
        """Reads on; False at the end, and where an item is too long."""
        held = len(self._data) - self._start
        if held > streams.MAX_ROW_BYTES:
            return False
        # A long item is looked at again from its beginning: twice as much of it each time.
        piece = self._stream.read(held) if held > _LONGEST_LOOK else self._stream.read1()
        if not piece:
            return False
        self._data, self._at, self._start = self._data[self._start :] + piece, self._at - self._start, 0
        return True

    def _without_end(self) -> Complaint:
        """Of an item that the file, or our patience, ends in."""
        if self._next_row(len(self._data)):
            return Complaint("not JSON: a quote or a bracket is missing, so that it does not end")
        if len(self._data) - self._start > streams.MAX_ROW_BYTES:
            where = f"pool {self._stream.source}: item {self._number + 1:,} of its JSON list"
            raise PoolError(f"{where} is {too_long()}, or a quote or a bracket is missing in it")
        last = f"after item {self._number}"
        return Complaint(f"the JSON list breaks off {last}: the file ends in the middle")

    def _resumed(self, end: int) -> bool:
        """Goes back to the first intact row that the damaged item has taken into itself, if any."""
        found = self._next_row(end)
        if not found:
            return False
        self._damaged += 1
        if self._damaged > _MOST_DAMAGED:
            raise PoolError(f"pool {self._stream.source} is not JSON: {self._damaged:,} items are damaged")
        self._at = self._start = found
        self._depth = 1
        return True

    def _next_row(self, end: int) -> int:
        """Where it begins, among what was read from the item's beginning to `end`; 0 for nowhere."""
        for match in _NEXT_ITEM.finditer(self._data, self._start + 1, end):
            value = _object_at(self._data, match.end(), self._stream.encoding)
            if isinstance(value, dict) and any(name.lower() in _OF_A_ROW for name in value):
                return match.end()
        return 0


def _object_at(data: bytes, start: int, encoding: str) -> object:
    """The value of the object that begins there; a Complaint where it is none, or far too long."""
    at, depth, end = start, 0, min(len(data), start + _LONGEST_LOOK)
    while at < end:
        at = _INSIDE.match(data, at, end).end()  # type: ignore[union-attr]
        sign = data[at : at + 1]
        if sign in (b"", b'"'):
            break
        at += 1
        depth += (sign in b"[{") - (sign in b"]}")
        if depth == 0:
            return parsed(data[start:at], encoding)
    return Complaint("it does not end")
