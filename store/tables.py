"""Rows of tables: CSV with any usual separator, and Parquet.

A quote that is opened and never closed would take all rows behind it into one field. Such a place is
found, told with the line where the quote opens, and reading continues with the line after it. Knows
nothing about what the columns mean.
"""

import csv
import re
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from store import text_streams as streams
from store.errors import PoolError
from store.records import KNOWN, known_name
from store.text_streams import Complaint, Raw, Stream, too_long

SEPARATORS = (",", ";", "\t", "|")
_SEP_LINE = re.compile(r'"?sep=(.)"?\s*\Z', re.IGNORECASE)  # Excel's own first line
_BROKEN = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as surrogateescape keeps them
# A record of so many lines, each of which has as many separators as a row, is many rows in one field.
_SUSPICIOUS_LINES, _SUSPICIOUS_PAIRS = 5, 12  # of two columns, as prose has a comma in many lines


def separator_of(line: str, usual: str = ",") -> str:
    """The one that splits a header into names that are known, else into the most names."""
    found = {each: _names(line, each) for each in (usual, *SEPARATORS)}
    return max(found, key=lambda each: (sum(n in KNOWN for n in found[each]), len(found[each])))


def names_columns(line: bytes) -> bool:
    """Whether this is the header of a table, for files that have no name to tell it."""
    text = line.decode("utf-8", "replace")
    if _SEP_LINE.match(text):
        return True
    return any(name in KNOWN for each in SEPARATORS for name in _names(text, each))


def _names(line: str, separator: str) -> list[str]:
    fields: list[str] = next(csv.reader([line], delimiter=separator), [])
    return [known_name(name) for name in fields]


@dataclass(slots=True)
class _Record:
    """A record of a table: its physical lines, of which the first has `number`, and its fields, or why
    it has none."""

    number: int
    lines: list[str]
    fields: list[str]
    problem: str = ""


class _Records:
    """The records of a table, one by one. Lines that a damaged one has taken can be given back."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.number = 0  # of the line that was read last
        self._separator = ","
        self._held: deque[str] = deque()
        self._taken: list[str] = []
        self._size = 0
        self._reader = csv.reader(self._feed(), strict=True)

    def separated_by(self, separator: str) -> None:
        self._separator = separator
        self._begin()

    def _begin(self) -> None:
        """Anew: a reader that has found a fault is of no use any more."""
        self._reader = csv.reader(self._feed(), delimiter=self._separator, strict=True)

    def line(self) -> str | None:
        """The next physical line; None at the end. One that is too long comes without its end."""
        if not self._held:
            raw = self.stream.readline(streams.MAX_ROW_BYTES + 1)
            if len(raw) > streams.MAX_ROW_BYTES and not raw.endswith(b"\n") and b"\r" not in raw:
                self.stream.skip_line()
            for piece in raw.splitlines(keepends=True):  # also at a carriage return alone
                self._held.append(piece.decode("utf-8", "surrogateescape"))
            if not raw:
                return None
        self.number += 1
        return self._held.popleft()

    def give_back(self, lines: Sequence[str]) -> None:
        self._held.extendleft(reversed(lines))
        self.number -= len(lines)
        self._begin()

    def next(self) -> _Record | None:
        """None at the end."""
        self._taken, self._size = [], 0
        try:
            fields = next(self._reader, None)
        except csv.Error as error:
            self._begin()
            problem = f"not CSV: {error}"
            if "unexpected end of data" in str(error):
                problem = "a quote opens here and is never closed"
            elif "expected after" in str(error) and len(self._taken) > 1:
                problem = f"a quote opens here and is not closed before the next one, in line {self.number}"
            elif "expected after" in str(error):
                problem = "a quote inside a quoted field is not doubled"
            return _Record(self.number - len(self._taken) + 1, self._taken, [], problem)
        if fields is None:
            self._begin()
            if not self._taken:
                return None
        problem = too_long() if fields is None else ""
        return _Record(self.number - len(self._taken) + 1, self._taken, fields or [], problem)

    def _feed(self) -> Iterator[str]:
        """Ends early in a record that is too long, which is then told."""
        while self._size <= streams.MAX_ROW_BYTES and (line := self.line()) is not None:
            self._taken.append(line)
            self._size += len(line)
            if self._size <= streams.MAX_ROW_BYTES or len(self._taken) > 1:
                yield line.replace("\0", "\ufffd") if "\0" in line else line


def table_rows(stream: Stream, usual: str) -> Iterator[Raw]:
    """Raises PoolError for a header with the same name twice, and for a table of one column in which
    a quote is not closed: there nobody can tell text from rows."""
    csv.field_size_limit(max(csv.field_size_limit(), streams.MAX_ROW_BYTES))
    records = _Records(stream)
    names, separator = _header(records, usual)
    if not names:
        return
    damaged = 0  # the line of a damaged record behind which no intact one has come yet
    while record := records.next():
        if not record.fields and not record.problem:  # an empty line
            continue
        spans = len(record.lines) > 1
        wrong = record.problem or _swallowed(record, separator, len(names))
        if not wrong and (count := len(record.fields)) != len(names):
            hint = ": put fields that hold the separator in quotes" if count > len(names) else ""
            wrong = f"{count} field{'s' * (count != 1)} where the header names {len(names)}{hint}"
        if damaged and not wrong and "".join(record.lines).count('"') % 2:
            wrong = "a quote is not closed"
        if wrong and spans:
            if len(names) == 1 and record.problem:
                raise PoolError(f"pool {stream.source}, line {record.number}: {wrong}: fix that line")
            records.give_back(record.lines[1:])
            wrong += "; reading continues in the next line"
        if wrong:
            behind = f"; it may belong to the damaged row in line {damaged}" if damaged else ""
            damaged = damaged or record.number * (spans or bool(record.problem))
            yield record.number, Complaint(wrong + behind)
            continue
        damaged = 0
        if any(not line.isascii() and _BROKEN.search(line) for line in record.lines):
            yield record.number, Complaint(f"not {stream.encoding}: save the file as UTF-8")
        else:
            yield record.number, dict(zip(names, record.fields, strict=True))


def _header(records: _Records, usual: str) -> tuple[list[str], str]:
    """The names of the columns and what separates them."""
    first = records.line()
    while first is not None and not first.strip():
        first = records.line()
    if first is None:
        return [], usual
    told = _SEP_LINE.match(first)
    separator = told[1] if told else separator_of(first, usual)
    if not told:
        records.give_back([first])
    records.separated_by(separator)
    record = records.next()
    if record is None:
        return [], separator
    where = f"pool {records.stream.source}, line {record.number}"
    if record.problem:
        raise PoolError(f"{where}: the names of the columns cannot be read: {record.problem}")
    names = [known_name(name) for name in record.fields]
    if twice := next((name for name, count in Counter(names).items() if name and count > 1), None):
        raise PoolError(f"{where}: two columns are called {twice!r:.60}; rename one of them")
    return names, separator


def _swallowed(record: _Record, separator: str, count: int) -> str:
    """Of a quote that is closed by another row's: a legal record, all of whose lines look like rows. A
    text that is a table itself gives itself away in its first or last line, which has more columns."""
    lines = len(record.lines)
    if count < 2 or lines < (_SUSPICIOUS_PAIRS if count == 2 else _SUSPICIOUS_LINES):
        return ""
    places = [place for place, text in enumerate(record.fields) if "\n" in text or "\r" in text]
    if len(places) != 1 or any(line.count(separator) != count - 1 for line in record.lines[1:-1]):
        return ""
    first, *_, last = record.fields[places[0]].splitlines()
    if places[0] + first.count(separator) != count - 1 or last.count(separator) != places[0]:
        return ""
    return f"a quote opens here and takes in {lines - 1:,} more lines that look like rows"


def parquet_rows(stream: Stream, file: IO[bytes] | None) -> Iterator[Raw]:
    """Parquet is read from its end: what cannot seek cheaply (`file` None) goes through a temporary
    file. Raises PoolError where it is damaged behind its beginning."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as spooled:
        source: IO[bytes] = file or spooled
        if file is None:
            shutil.copyfileobj(stream, spooled)
        number = 0
        try:
            table = pq.ParquetFile(source)
            names = table.schema_arrow.names
            if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                raise PoolError(f"pool {stream.source} has column {twice[0]!r} twice: rename one of the two")
            for batch in table.iter_batches(batch_size=4096):
                rows: list[dict[str, Any]] = batch.to_pylist()
                for row in rows:
                    number += 1
                    yield number, row
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            if number:
                raise PoolError(f"pool {stream.source} is damaged after row {number:,}: {error}") from error
            yield 1, Complaint(f"the Parquet file cannot be read: {error}")
