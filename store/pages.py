"""Reads the records of an SQLite file page by page, trusting nothing but the pages themselves.

SQLite gives up on a table when one page of its tree is damaged, and on a file when its first page is.
Answers that were paid for lie on the other pages still. Every leaf shows its own records; which table
a record belongs to is seen from its columns (salvage.py), not from the tree. What cannot be true (a
size beyond the page, a header that does not add up) is no record. The write-ahead log is read, too.

The format is SQLite's 'Database File Format' (sqlite.org/fileformat2.html).
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

PAGE_SIZES = {512 << n for n in range(8)}  # to 65536
OUR_PAGE_SIZE = 8192
LEAF_TABLE, LEAF_INDEX, INNER_INDEX = 0x0D, 0x0A, 0x02
MOST_BYTES = 256 << 20  # of one record; a reply is never so long
MOST_COLUMNS = 64
_WAL_HEADER, _FRAME_HEADER = 32, 24

Value = int | float | str | bytes | None


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
        self._log_file = self._frames = None
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size > _WAL_HEADER:
            self._log_file = log.open("rb")
            self._frames, size = _frames(self._log_file.read(_WAL_HEADER), self._log_file, self.size)
            self.count = max(self.count, size)

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
        if self._frames and self._log_file and number in self._frames:
            file, at = self._log_file, self._frames[number]
        else:
            file, at = self._file, (number - 1) * self.size
        file.seek(at)
        return file.read(self.size).ljust(self.size, b"\0")

    def in_use(self) -> Iterator[int]:
        """All pages but those of the list of free ones, which hold what was deleted."""
        free = self._free()
        return (number for number in range(1, self.count + 1) if number not in free)

    def _free(self) -> set[int]:
        free: set[int] = set()
        (trunk,) = struct.unpack(">I", self.page(1)[32:36]) if self.count else (0,)
        while 0 < trunk <= self.count and trunk not in free:
            free.add(trunk)
            page = self.page(trunk)
            trunk, count = struct.unpack(">II", page[:8])
            if count > self.size // 4 - 2:
                break
            free.update(struct.unpack(f">{count}I", page[8 : 8 + 4 * count]))
        return free

    def records(self, number: int) -> Iterator[tuple[int | None, list[Value]] | None]:
        """(rowid, columns) of each record on a leaf, or of an index that holds rows; rowid None there. None
        for what should be a record and is not one. Other pages have none."""
        page = self.page(number)
        start = 100 if number == 1 else 0
        kind = page[start]
        if kind not in (LEAF_TABLE, LEAF_INDEX, INNER_INDEX):
            return
        (count,) = struct.unpack(">H", page[start + 3 : start + 5])
        pointers = start + (12 if kind == INNER_INDEX else 8)
        count = min(count, (self.size - pointers) // 2)
        for (at,) in struct.iter_unpack(">H", page[pointers : pointers + 2 * count]):
            try:
                yield self._record(page, at, kind)
            except (Broken, IndexError, struct.error):
                yield None

    def _record(self, page: bytes, at: int, kind: int) -> tuple[int | None, list[Value]]:
        if kind == INNER_INDEX:
            at += 4  # the left child
        size, at = _varint(page, at)
        rowid: int | None = None
        if kind == LEAF_TABLE:
            rowid, at = _varint(page, at)
        return rowid, _columns(self._payload(page, at, size, kind == LEAF_TABLE))

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


def _frames(head: bytes, file: BinaryIO, size: int) -> tuple[dict[int, int], int]:
    """Where the log has the newest copy of each page, and how many pages there were at its last commit.
    Its checksums are not looked at: behind the first that is wrong SQLite would see nothing any more."""
    found: dict[int, int] = {}
    committed: dict[int, int] = {}
    count, at = 0, _WAL_HEADER
    while len(frame := file.read(_FRAME_HEADER)) == _FRAME_HEADER:
        number, pages, *salt = struct.unpack(">II8s8s", frame)
        if salt[0] != head[16:24]:
            break  # of an earlier round
        found[number] = at + _FRAME_HEADER
        at += _FRAME_HEADER + size
        file.seek(at)
        if pages:
            count = pages
            committed |= found
            found.clear()
    return committed, count


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
