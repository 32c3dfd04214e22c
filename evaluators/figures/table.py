"""The numbers behind a figure: what is drawn, what stands in the page's table, and what goes out as CSV.

One value for all three, so that none can say something else than the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from engine.terminal import dollars, duration, percent, plain
from evaluators.csv_files import csv_text

Cell: TypeAlias = Any  # str, int, float or None
KINDS = {
    "text": lambda value: plain(str(value)),
    "count": lambda value: f"{value:,.0f}",
    "number": lambda value: f"{value:,.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}",
    "score": lambda value: f"{value:.3f}",
    "share": lambda value: f"{value:.1%}",
    "percent": percent,
    "usd": dollars,
    "seconds": duration,
}


@dataclass(frozen=True, slots=True)
class Table:
    """name: of its CSV file. kinds: how each column is shown, a key of KINDS. None in a cell: unknown."""

    name: str
    columns: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def column(self, name: str) -> list[Cell]:
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def numbers(self, name: str) -> list[float]:
        """A column of numbers; what is unknown is NaN."""
        return [float("nan") if v is None else float(v) for v in self.column(name)]

    def names(self, name: str) -> list[str]:
        return [plain(str(value)) for value in self.column(name)]

    @property
    def shown(self) -> list[list[str]]:
        """The cells as people read them."""
        return [[_shown(v, kind) for v, kind in zip(row, self.kinds, strict=True)] for row in self.rows]

    @property
    def csv(self) -> str:
        return csv_text(self.columns, self.rows)


def table(name: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """columns: 'name' or 'name:kind'; without a kind it is text."""
    split = [column.rpartition(":") if ":" in column else (column, "", "text") for column in columns]
    names, kinds = tuple(s[0] for s in split), tuple(s[2] for s in split)
    return Table(name, names, kinds, tuple(tuple(row) for row in rows))


def _shown(value: Cell, kind: str) -> str:
    if value is None or value != value:
        return "–"
    return KINDS[kind](value) if isinstance(value, int | float) or kind == "text" else plain(str(value))
