"""Reads the records of an SQLite file page by page, trusting nothing but the pages themselves.

SQLite gives up on a table when one page of its tree is damaged, and on a file when its first page is.
Answers that were paid for lie on the other pages still. Every leaf shows its own records; which table
a record belongs to is seen from its columns (salvage.py), not from the tree. What cannot be true (a
size beyond the page, a header that does not add up) is no record. The write-ahead log is read, too.

The format is SQLite's 'Database File Format' (sqlite.org/fileformat2.html).
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

PAGE_SIZES = {512 << n for n in range(8)}  # to 65536
OUR_PAGE_SIZE = 8192
LEAF_TABLE, INNER_TABLE, LEAF_INDEX, INNER_INDEX = 0x0D, 0x05, 0x0A, 0x02
MOST_BYTES = 256 << 20  # of one record; a reply is never so long
MOST_COLUMNS = 64
_WAL_HEADER, _FRAME_HEADER = 32, 24

Value = int | float | str | bytes | None
Bounds = tuple[int, int | None]  # more than the first, at most the second; None: no end


class BadText(bytes):
    """A text that is not UTF-8."""


class Broken(Exception):
    """This is not a record."""


class Pages:
    """An SQLite file and its write-ahead log, open for reading."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        head = self._file.read(100)
        told = int.from_bytes(head[16:18], "big") or 0
        self.size = told if told in PAGE_SIZES else 65536 if told == 1 else OUR_PAGE_SIZE
        self.count = self._file.seek(0, 2) // self.size
        self._log_file: BinaryIO | None = None
        self._frames: dict[int, int] = {}
        self.is_log_damaged = False
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size > _WAL_HEADER:
            self._log_file = log.open("rb")
            frames, self.is_log_damaged = _frames(self._log_file, self.size)
            self._frames = {frame.page: frame.at for frame in frames}
            self.count = max(self.count, frames[-1].pages if frames else 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._log_file:
            self._log_file.close()

    def page(self, number: int) -> bytes:
        """Pages count from 1. A page that is not there, or is cut off, is filled with zeros."""
        if not 0 < number <= self.count:
            raise Broken
        if self._log_file and number in self._frames:
            file, at = self._log_file, self._frames[number]
        else:
            file, at = self._file, (number - 1) * self.size
        file.seek(at)
        return file.read(self.size).ljust(self.size, b"\0")

    def in_use(self) -> Iterator[int]:
        """All pages but those of the list of free ones, which hold what was deleted."""
        free: set[int] = set()
        (trunk,) = struct.unpack(">I", self.page(1)[32:36]) if self.count else (0,)
        while 0 < trunk <= self.count and trunk not in free:
            free.add(trunk)
            page = self.page(trunk)
            trunk, count = struct.unpack(">II", page[:8])
            if count > self.size // 4 - 2:
                break
            free.update(struct.unpack(f">{count}I", page[8 : 8 + 4 * count]))
        return (number for number in range(1, self.count + 1) if number not in free)

    def bounds(self) -> dict[int, Bounds]:
        """Between which numbers the records of leaves lie, as the pages above them say. Of a tree of one
        page, and below damaged pages, there are none."""
        found: dict[int, Bounds] = {}
        for number in self.in_use():
            page = self.page(number)
            start = 100 if number == 1 else 0
            if page[start] != INNER_TABLE:
                continue
            low = 0
            for at in self._cells(page, start + 12, start):
                try:
                    child, (high, _) = int.from_bytes(page[at : at + 4], "big"), _varint(page, at + 4)
                except IndexError:
                    continue
                found[child] = (low, high)
                low = high
            found[int.from_bytes(page[start + 8 : start + 12], "big")] = (low, None)
        return found

    def _cells(self, page: bytes, pointers: int, start: int) -> list[int]:
        (count,) = struct.unpack(">H", page[start + 3 : start + 5])
        count = min(count, (self.size - pointers) // 2)
        return list(struct.unpack(f">{count}H", page[pointers : pointers + 2 * count]))

    def records(self, number: int) -> Iterator[tuple[int | None, list[Value]] | None]:
        """(rowid, columns) of the records of a leaf, or of an index that holds rows, which have no rowid.
        None for what should be a record and is not one. Other pages have none."""
        page = self.page(number)
        start = 100 if number == 1 else 0
        kind = page[start]
        if kind not in (LEAF_TABLE, LEAF_INDEX, INNER_INDEX):
            return
        for at in self._cells(page, start + (12 if kind == INNER_INDEX else 8), start):
            try:
                size, begin = _varint(page, at + 4 if kind == INNER_INDEX else at)  # behind the left child
                rowid: int | None = None
                if kind == LEAF_TABLE:
                    rowid, begin = _varint(page, begin)
                record = rowid, _columns(self._payload(page, begin, size, kind == LEAF_TABLE))
            except (Broken, IndexError, struct.error):
                yield None
            else:
                yield record

    def _payload(self, page: bytes, at: int, size: int, of_table: bool) -> bytes:
        """What a cell holds, from this page and the pages that it flows over to."""
        if not 0 < size <= MOST_BYTES:
            raise Broken
        usable = self.size
        most = usable - 35 if of_table else (usable - 12) * 64 // 255 - 23
        if size <= most:
            if at + size > usable:
                raise Broken
            return page[at : at + size]
        least = (usable - 12) * 32 // 255 - 23
        local = least + (size - least) % (usable - 4)
        local = local if local <= most else least
        parts, left = [page[at : at + local]], size - local
        (following,) = struct.unpack(">I", page[at + local : at + local + 4])
        while left > 0:
            page = self.page(following)
            (following,) = struct.unpack(">I", page[:4])
            parts.append(page[4 : 4 + min(left, usable - 4)])
            left -= usable - 4
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class _Frame:
    """A copy of a page in the log. pages: how many there are, if it ends a commit, else 0."""

    page: int
    at: int
    pages: int


def _frames(file: BinaryIO, size: int) -> tuple[list[_Frame], bool]:
    """What the log has committed, and whether it is damaged.

    Checksums run through all of it: behind a wrong one SQLite sees nothing any more. A commit that was
    being written when the power went ends so, and is dropped; where others follow it, the log is damaged,
    and all that has its mark is read.
    """
    head = file.read(_WAL_HEADER)
    order = ">" if head[3] & 1 else "<"
    sums = _checksum(head[:24], (0, 0), order)
    is_right = sums == struct.unpack(">II", head[24:])
    frames: list[_Frame] = []
    right = at = 0
    while len(frame := file.read(_FRAME_HEADER)) == _FRAME_HEADER and frame[8:16] == head[16:24]:
        page = file.read(size)
        if len(page) < size:
            break
        number, pages = struct.unpack(">II", frame[:8])
        frames.append(_Frame(number, at + _WAL_HEADER + _FRAME_HEADER, pages))
        if is_right:
            sums = _checksum(page, _checksum(frame[:8], sums, order), order)
            is_right = sums == struct.unpack(">II", frame[16:])
            right += is_right
        at += _FRAME_HEADER + size
    is_damaged = sum(frame.pages > 0 for frame in frames[right:]) > 1
    usable = frames if is_damaged else frames[:right]
    last = max((n for n, frame in enumerate(usable, 1) if frame.pages), default=0)
    return usable[:last], is_damaged


def _checksum(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    a, b = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for x, y in zip(words[::2], words[1::2], strict=True):
        a = (a + x + b) & 0xFFFFFFFF
        b = (b + y + a) & 0xFFFFFFFF
    return a, b


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends) of one of SQLite's integers of 1 to 9 bytes, as a signed 64-bit number."""
    value = 0
    for n in range(at, at + 8):
        byte = data[n]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, n + 1
    value = value << 8 | data[at + 8]
    return value - (1 << 64) if value >> 63 else value, at + 9


def _columns(payload: bytes) -> list[Value]:
    """The columns of a record. Raises Broken where its header does not add up."""
    size, at = _varint(payload, 0)
    if not 0 < size <= len(payload):
        raise Broken
    kinds: list[int] = []
    while at < size:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    if at != size or len(kinds) > MOST_COLUMNS:
        raise Broken
    values: list[Value] = []
    for kind in kinds:
        value, at = _column(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise Broken
    return values


_INTEGERS: Sequence[int] = (0, 1, 2, 3, 4, 6, 8)


def _column(payload: bytes, at: int, kind: int) -> tuple[Value, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind <= 7 or kind < 0:
        if kind < 0:
            raise Broken
        length = 8 if kind == 7 else _INTEGERS[kind]
        part = payload[at : at + length]
        if len(part) < length:
            raise Broken
        value = struct.unpack(">d", part)[0] if kind == 7 else int.from_bytes(part, "big", signed=True)
        return value, at + length
    if kind < 12:
        raise Broken
    end = at + (kind - 12) // 2
    if end > len(payload):
        raise Broken
    part = payload[at:end]
    if kind % 2 == 0:
        return part, end
    try:
        return part.decode(), end
    except UnicodeDecodeError:
        return BadText(part), end
