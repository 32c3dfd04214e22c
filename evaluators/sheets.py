"""Results on the terminal, as one JSON object, or as CSV: the same sheets for every command of ours.

A sheet is a table of plain values. On a terminal names and texts from files are made safe; numbers are
shortened. CSV has every digit.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from engine.terminal import plain, tell
from evaluators.csv_files import write_csv

WIDEST = 60


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
        tell(f"{len(sheets[0].rows):,} rows written to {plain(str(out))}\n")
    if json:
        sys.stdout.write(orjson.dumps(report, option=orjson.OPT_NON_STR_KEYS).decode() + "\n")
    else:
        print_sheets(sheets)


def print_sheets(sheets: Sequence[Sheet]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for number, sheet in enumerate(sheets):
        if number:
            console.print()
        table = Table(title=Text(plain(sheet.title)), title_justify="left", title_style="bold", box=None)
        table.header_style, table.pad_edge = "dim", False
        for place, column in enumerate(sheet.columns):
            words = all(isinstance(row[place], str) for row in sheet.rows)
            table.add_column(Text(plain(column, WIDEST)), justify="left" if words else "right")
        for row in sheet.rows:
            table.add_row(*(Text(shown(value)) for value in row))
        console.print(table)
        for note in sheet.notes:
            console.print(Text(plain(note)), style="dim")


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
            rest = f" ({value.low:.3f} to {value.high:.3f})" if None not in (value.low, value.high) else ""
            return "-" if value.value is None else f"{value.value:.3f}{rest}"
        case str():
            return plain(value, WIDEST)


def write_sheet(path: Path, sheet: Sheet) -> None:
    """As CSV. Raises StorageError."""
    write_csv(path, _heads(sheet), (list(chain.from_iterable(map(_cells, row))) for row in sheet.rows))


def _heads(sheet: Sheet) -> list[str]:
    """A column with intervals has three heads."""
    first = sheet.rows[0] if sheet.rows else [None] * len(sheet.columns)
    pairs = zip(sheet.columns, first, strict=True)
    return [h for c, v in pairs for h in ((c, f"{c} low", f"{c} high") if isinstance(v, Span) else (c,))]


def _cells(value: Value) -> list[str | float | None]:
    if isinstance(value, Span):
        return [value.value, value.low, value.high]
    return [value]
