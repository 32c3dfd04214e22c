"""Results as a terminal table, as one JSON object, or as CSV: one format for all evaluators.

On a terminal, names and texts from files are made safe, numbers are shortened, and wide tables are split.
CSV has every digit, and no cell that a spreadsheet would run as a formula. Only one result may go to
standard output.
"""

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from engine.terminal import console_of, counted, plain, tell
from store.errors import UsageError
from store.files import is_plain, is_stdout, replacing

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take for the beginning of one


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_inert(head) for head in heads])
    writer.writerows([_inert(value) for value in row] for row in rows)
    return text.getvalue()


def write_csv(path: Path, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Raises UsageError, StorageError."""
    with replacing(path) as file:
        file.write(csv_text(heads, rows).encode())


def _inert(value: Any) -> Any:
    """Names and a model's words come from others."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "replace").decode()
    return f"'{text}" if text.startswith(FORMULA) else text


WIDEST, NARROW = 60, 24  # of a column of words: cut beyond; never narrower, where it has as much
GAP = 2  # between columns


@dataclass(frozen=True)
class Span:
    """A number with its interval: one cell for people, three in CSV."""

    value: float | None
    low: float | None
    high: float | None


Value = str | int | float | Span | None


@dataclass(frozen=True)
class Sheet:
    """title: over it. notes: sentences below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]
    notes: Sequence[str] = field(default=())


def publish(report: Mapping[str, Any], sheets: Sequence[Sheet], json: bool, out: Path | None) -> None:
    """To standard output the JSON object or the tables, and to `out` the first table as CSV."""
    if out is not None:
        write_sheet(out, sheets[0])
        where = "standard output" if is_stdout(out) else plain(str(out))
        tell(f"{counted(len(sheets[0].rows), 'row')} written to {where}\n")
    if json:
        sys.stdout.write(orjson.dumps(report, option=orjson.OPT_NON_STR_KEYS).decode() + "\n")
    else:
        print_sheets(sheets)


def print_sheets(sheets: Sequence[Sheet]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = console_of()
    for number, sheet in enumerate(sheets):
        if number:
            console.print()
        console.print(Text(plain(sheet.title)), style="bold")
        for part, columns in enumerate(_parts(sheet, console.width)):
            if part:
                console.print()
            table = Table(box=None, header_style="dim", pad_edge=False)
            for place in columns:  # words may go over several lines, numbers never do
                words = _is_words(sheet, place)
                justify: Any = "left" if words else "right"
                table.add_column(
                    Text(plain(sheet.columns[place], WIDEST)), justify=justify, no_wrap=not words
                )
            for row in sheet.rows:
                table.add_row(*(Text(shown(row[place])) for place in columns))
            console.print(table)
        for note in sheet.notes:
            console.print(Text(plain(note)), style="dim")


def _parts(sheet: Sheet, width: int) -> list[list[int]]:
    """The columns that are shown beside each other, so that numbers stay whole: what does not fit goes
    below, behind the words with which the rows begin."""
    from rich.cells import cell_len

    widths = []
    for place in range(len(sheet.columns)):
        widest = max(cell_len(shown(row[place])) for row in (sheet.columns, *sheet.rows))
        # of words that can go over several lines, the least that is pleasant
        widths.append((min(widest, NARROW) if _is_words(sheet, place) else widest) + GAP)
    first = next((p for p in range(len(widths)) if not _is_words(sheet, p)), len(widths))
    keys, rest = list(range(first)), range(first, len(widths))
    room = max(width + GAP - sum(widths[:first]), max((widths[p] for p in rest), default=0))
    parts: list[list[int]] = [[]]
    for place in rest:
        if sum(widths[p] for p in parts[-1]) + widths[place] > room:
            parts.append([])
        parts[-1].append(place)
    return [keys + part for part in parts]


def _is_words(sheet: Sheet, place: int) -> bool:
    """A share in per cent is a number."""
    cells = [row[place] for row in sheet.rows]
    return all(isinstance(cell, str) and not cell.endswith("%") for cell in cells)


def shown(value: Value) -> str:
    """A cell for people."""
    match value:
        case None:
            return "-"
        case int():
            return f"{value:,}"
        case float():
            return (
                f"{value:,.1f}"
                if abs(value) >= 100
                else f"{value:.4g}"
                if abs(value) >= 10
                else f"{value:.4f}"
            )
        case Span():
            rest = f" [{value.low:.3f}, {value.high:.3f}]" if None not in (value.low, value.high) else ""
            return "-" if value.value is None else f"{value.value:.3f}{rest}"
        case str():
            return plain(value, WIDEST)


def write_sheet(path: Path, sheet: Sheet) -> None:
    """As CSV. Raises UsageError, StorageError."""
    heads: list[str] = []
    first = sheet.rows[0] if sheet.rows else [None] * len(sheet.columns)
    for column, value in zip(sheet.columns, first, strict=True):  # one with intervals has three heads
        heads += [column, f"{column} low", f"{column} high"] if isinstance(value, Span) else [column]
    rows: list[list[str | float | None]] = []
    for row in sheet.rows:
        cells = ([v.value, v.low, v.high] if isinstance(v, Span) else [v] for v in row)
        rows.append(list(chain.from_iterable(cells)))
    write_csv(path, heads, rows)


@contextmanager
def outputs(json: bool, **files: Path | None) -> Iterator[None]:
    """Checks the places of all files, by flag, before the work. Where one is standard output, the tables for
    people go to stderr. Raises UsageError where two things want standard output."""
    wanted = [f"--{name}" for name, path in files.items() if is_stdout(path)]
    if len(wanted) + json * bool(wanted) > 1:
        both = " and ".join([*wanted, *["--json"] * json])
        raise UsageError(f"{both} cannot share standard output: name a file for one of them")
    for path in files.values():
        if path is not None:
            is_plain(path)
    if not wanted:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
