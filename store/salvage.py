"""Brings what can be read of a damaged ledger into a fresh one.

Each record that is found (sqlite_pages.py) goes into the table whose columns it fits. What fits none is
counted and left out. Nothing is judged beyond that: whether the parts still belong together is for the check.

The numbers (rowids) on a leaf rise, and the pages above say between which bounds they lie. A number that
breaks either is wrong, or the bounds are: where the others leave exactly one place, it is that.
"""

import os
import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from store.schema import migrate
from store.sqlite_pages import BadText, Bounds, Pages, Value

AT_ONCE = 1000
LARGEST_ID = 1 << 52  # ids count up from 1, or are made of a stage and a position
NO_CHECKSUM = -1  # that no body has
MIGRATIONS = "_sqlite_migrations"  # the fresh ledger has its own
Place = tuple[int | None, bool]  # a record's number, None where nobody knows it; whether it is certain


@dataclass(frozen=True, slots=True)
class Column:
    """As the schema declares it. `kind`: INTEGER, REAL, TEXT, BLOB, or empty for text or blob."""

    name: str
    kind: str
    can_be_null: bool
    default: str | None


@dataclass(frozen=True, slots=True)
class TableShape:
    """A table as its records show it. `by_rowid`: its first column is the rowid, which records leave out."""

    table: str
    by_rowid: bool
    columns: Sequence[Column]

    def fits(self, is_row: bool, values: Sequence[Value]) -> bool:
        """Whether a record can be one of this table. Those from before a column was added are shorter."""
        if is_row != self.by_rowid or len(values) > len(self.columns):
            return False
        if self.by_rowid and values[0] is not None:
            return False
        missing = self.columns[len(values) :]
        if any(not column.can_be_null and column.default is None for column in missing):
            return False
        first = 1 if self.by_rowid else 0
        if not all(map(_may_hold, self.columns[first:], values[first:])):
            return False
        # Where the types alone could be another table's.
        if self.table == "endpoints":
            return isinstance(values[1], str) and values[1].startswith(("http://", "https://"))
        if self.table == "requests":
            return isinstance(values[1], bytes) and len(values[1]) == 32
        if self.table == "rows":
            return not isinstance(values[1], BadText)  # a row with other words would be another row
        return self.table != MIGRATIONS or (len(values) > 2 and values[1] == "distill")


@dataclass(frozen=True, slots=True)
class Record:
    """rowid: None of an index that holds rows. is_certain: nothing speaks against its number."""

    rowid: int | None
    values: Sequence[Value]
    is_certain: bool


@dataclass
class Salvaged:
    """What was found: records by table, and how many fitted none or could not be read."""

    records: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0


def salvage(damaged: Path, fresh: Path) -> Salvaged:
    """Makes the ledger `fresh` of what `damaged` still holds. Raises OSError, sqlite3.Error."""
    for path in (fresh, Path(f"{fresh}-wal"), Path(f"{fresh}-shm"), Path(f"{fresh}-journal")):
        path.unlink(missing_ok=True)
    connection = sqlite3.connect(fresh, isolation_level=None)
    found = Salvaged()
    try:
        connection.execute("PRAGMA page_size = 8192")
        connection.execute("PRAGMA synchronous = OFF")  # it is made anew if we do not come to the end
        migrate(connection)
        shapes = shapes_of(connection)
        waiting: dict[str, list[Sequence[Value]]] = {shape.table: [] for shape in shapes}
        doubtful: list[tuple[TableShape, Sequence[Value]]] = []
        with Pages(damaged) as pages:
            bounds = pages.bounds()
            for number in pages.in_use():
                for record in records_of(pages, number, bounds.get(number)):
                    shape = None if record is None else _shape_of(shapes, record.rowid, record.values)
                    if record is None or shape is None:
                        found.unreadable += record is None
                        continue
                    row = _row(shape, record.rowid, record.values)
                    if not record.is_certain:
                        doubtful.append((shape, row))
                        continue
                    waiting[shape.table].append(row)
                    if len(waiting[shape.table]) == AT_ONCE:
                        _insert(connection, shape, waiting[shape.table], found)
        for shape in shapes:
            _insert(connection, shape, waiting[shape.table], found)
        for shape, row in doubtful:
            _insert(connection, shape, [row], found, is_certain=False)
    finally:
        connection.close()
    descriptor = os.open(fresh, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return found


def shapes_of(connection: sqlite3.Connection) -> list[TableShape]:
    """The tables of a sound ledger."""
    tables = connection.execute(
        "SELECT name, sql LIKE '%WITHOUT ROWID%' FROM sqlite_master WHERE type = 'table' ORDER BY rowid"
    ).fetchall()
    shapes = []
    for table, is_index in tables:
        told = connection.execute(f"PRAGMA table_info({table})").fetchall()
        columns = [
            Column(name, kind.upper(), not notnull, default) for _, name, kind, notnull, default, _ in told
        ]
        by_rowid = not is_index and bool(told[0][5])
        shapes.append(TableShape(table, by_rowid, columns))
    return shapes


def _shape_of(shapes: Sequence[TableShape], rowid: int | None, values: Sequence[Value]) -> TableShape | None:
    """The table of which a record is: one that has all its columns before one that has had more since."""
    if rowid is not None and not 0 < rowid < LARGEST_ID:
        return None
    fitting = [shape for shape in shapes if shape.fits(rowid is not None, values)]
    return min(fitting, key=lambda shape: len(shape.columns) - len(values), default=None)


def _may_hold(column: Column, value: Value) -> bool:
    if value is None:
        return column.can_be_null
    if column.kind == "INTEGER":
        return isinstance(value, int)
    if column.kind == "REAL":
        return isinstance(value, int | float)  # SQLite writes whole numbers as integers
    if column.kind == "TEXT":
        return isinstance(value, str | BadText)
    return isinstance(value, bytes if column.kind == "BLOB" else str | bytes)


def _row(shape: TableShape, rowid: int | None, values: Sequence[Value]) -> Sequence[Value]:
    """As it is inserted: texts that are not UTF-8 are kept as bytes where a column takes these, else with
    the wrong bytes replaced."""
    row = [rowid, *values[1:]] if shape.by_rowid else list(values)
    for place, (column, value) in enumerate(zip(shape.columns, row, strict=False)):
        if isinstance(value, BadText):
            row[place] = value.decode(errors="replace") if column.kind == "TEXT" else bytes(value)
    return row


def _insert(
    connection: sqlite3.Connection,
    shape: TableShape,
    rows: list[Sequence[Value]],
    found: Salvaged,
    is_certain: bool = True,
) -> None:
    """Of two records with the same number the first is kept, or the certain one. A body whose number another
    has as well may be either's: it gets a checksum that is wrong."""
    if shape.table == MIGRATIONS:
        rows.clear()
    found.records[shape.table] += len(rows)
    how, also = "INSERT OR IGNORE", ""
    if shape.table == "facts":  # the fresh ledger has one of its own
        how = "INSERT OR REPLACE"
    elif shape.table == "bodies" and is_certain:
        how, also = "INSERT", f"ON CONFLICT (response) DO UPDATE SET checksum = {NO_CHECKSUM}"
    connection.execute("BEGIN")
    with connection:
        for width in {len(row) for row in rows}:
            names = ", ".join(column.name for column in shape.columns[:width])
            marks = ", ".join("?" * width)
            some = [row for row in rows if len(row) == width]
            sql = f"{how} INTO {shape.table} ({names}) VALUES ({marks}) {also}"
            connection.executemany(sql, some)
    rows.clear()


def records_of(pages: Pages, number: int, bounds: Bounds | None) -> Iterator[Record | None]:
    """The records of a page. None for what should be one and is not, or has a number that cannot be."""
    found = list(pages.records(number))
    placed = iter(places([record[0] for record in found if record and record[0] is not None], bounds))
    for record in found:
        if record is None:
            yield None
            continue
        rowid, values = record
        place, is_certain = (None, True) if rowid is None else next(placed)
        yield None if rowid is not None and place is None else Record(place, values, is_certain)


def places(rowids: Sequence[int], bounds: Bounds | None) -> list[Place]:
    """For each record of a leaf, in their order on it."""
    if not rowids:
        return []
    if bounds is not None and not _hold(rowids, bounds):
        bounds = None  # it is rather they that are damaged
    low, high = bounds or (None, None)
    inside = [low is None or (low < r and (high is None or r <= high)) for r in rowids]
    rising = _rising([r if fits else None for r, fits in zip(rowids, inside, strict=True)])
    found: list[Place] = []
    for at, rowid in enumerate(rowids):
        if at in rising:
            found.append((rowid, True))
            continue
        before = max((n for n in rising if n < at), default=None)
        after = min((n for n in rising if n > at), default=None)
        first = low if before is None else rowids[before]
        last = None if after is None else rowids[after]
        last = high + 1 if last is None and high is not None else last
        count = (len(rowids) if after is None else after) - (-1 if before is None else before) - 1
        if first is not None and last is not None and last - first - 1 == count:
            found.append((first + at - (-1 if before is None else before), True))
        else:  # out of its bounds, but in order: perhaps it is the bounds that are damaged
            in_order = (first is None or first < rowid) and (last is None or rowid < last)
            found.append((rowid if in_order and not inside[at] else None, False))
    return found


def _hold(rowids: Sequence[int], bounds: Bounds) -> bool:
    """Whether bounds can be believed: more than half of the numbers lie in them, or exactly as many numbers
    as there are records."""
    low, high = bounds
    if high is not None and high <= low:
        return False
    within = sum(low < rowid and (high is None or rowid <= high) for rowid in rowids)
    return 2 * within > len(rowids) or (high is not None and high - low == len(rowids))


def _rising(values: Sequence[int | None]) -> set[int]:
    """Places that are in every longest rising sequence: where two could be the wrong one, neither is. None
    is in no sequence."""
    there = [(at, value) for at, value in enumerate(values) if value is not None]
    ending = _lengths([value for _, value in there])
    starting = _lengths([-value for _, value in reversed(there)])[::-1]
    longest = max(ending, default=0)
    some = [n for n in range(len(there)) if ending[n] + starting[n] - 1 == longest]
    alone = Counter(ending[n] for n in some)
    return {there[n][0] for n in some if alone[ending[n]] == 1}


def _lengths(values: Sequence[int]) -> list[int]:
    """Of the longest rising sequence that ends at each."""
    tails: list[int] = []
    found = []
    for value in values:
        n = bisect_left(tails, value)
        tails[n : n + 1] = [value]
        found.append(n + 1)
    return found
