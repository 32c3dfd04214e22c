"""What a report is made of, before it is a page: tables, figures, and sections of blocks.

A teacher's words are plain text everywhere here; they become HTML in the templates, which escape all.

Colours are Okabe and Ito's, which colour-blind people can tell apart. Bars have hatches, lines have markers
and dashes, so grey prints work. In the SVG a colour is a CSS variable: the page sets the light and the dark
ones. Text stays text. Each figure is drawn twice, for wide and narrow screens. The same table always gives
the same bytes, and it is also what the page's table and the CSV show.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from engine.terminal import dollars, duration, percent, plain
from evaluators.tables import csv_text

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
class FigureTable:
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
        shown: list[list[str]] = []
        for row in self.rows:
            shown.append([])
            for value, kind in zip(row, self.kinds, strict=True):
                if value is None or value != value:
                    shown[-1].append("–")
                elif isinstance(value, int | float) or kind == "text":
                    shown[-1].append(KINDS[kind](value))
                else:
                    shown[-1].append(plain(str(value)))
        return shown

    @property
    def csv(self) -> str:
        return csv_text(self.columns, self.rows)


def table(name: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> FigureTable:
    """columns: 'name' or 'name:kind'; without a kind it is text."""
    split = [column.rpartition(":") if ":" in column else (column, "", "text") for column in columns]
    names, kinds = tuple(s[0] for s in split), tuple(s[2] for s in split)
    return FigureTable(name, names, kinds, tuple(tuple(row) for row in rows))


COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6d1f", "#7f7f7f")
INK, QUIET, GRID, PAPER = "#1b2733", "#5d6a77", "#d5dbe1", "#fefefe"
VARIABLES = {colour: f"--series-{n}" for n, colour in enumerate(COLOURS)} | {
    INK: "--ink", QUIET: "--quiet", GRID: "--grid", PAPER: "--paper",
}  # fmt: skip
WIDE, NARROW = 7.4, 4.0  # inches; a page shows the narrow one where there is no room for the other
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a model's name may hold a dollar sign
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}

Draw = Callable[
    [Any, FigureTable, bool], None
]  # (matplotlib's Figure, the numbers, whether it is the wide one)


@dataclass(frozen=True, slots=True)
class Figure:
    """A table and how it is drawn. alt: what it shows, in words, for who cannot see it. heights: inches of
    the wide and of the narrow drawing. Drawn when it is asked for: that is what takes time."""

    title: str
    alt: str
    caption: str
    table: FigureTable
    draw: Draw
    heights: tuple[float, float]

    @property
    def wide(self) -> str:
        return svg(self.table, self.draw, True, (WIDE, self.heights[0]), self.alt)

    @property
    def narrow(self) -> str:
        return svg(self.table, self.draw, False, (NARROW, self.heights[1]), self.alt)


def figure(
    title: str, alt: str, caption: str, table: FigureTable, draw: Draw, height: float = 2.8, tall: float = 0.0
) -> Figure:
    """height, tall: inches of the wide and of the narrow drawing (the same, unless said). Raises
    ValueError, TypeError where a column of numbers holds something else."""
    for name, kind in zip(table.columns, table.kinds, strict=True):
        if kind != "text":
            table.numbers(name)
    return Figure(title, alt, caption, table, draw, (height, tall or height))


def svg(table: FigureTable, draw: Draw, wide: bool, size: tuple[float, float], alt: str) -> str:
    """One drawing as an SVG element."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    salt = f"{table.name}-{'wide' if wide else 'narrow'}"
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's font lacks: the reader's has them
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas, table, wide)
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(text, format="svg", transparent=True, metadata=nothing)
    return inlined(text.getvalue(), alt)


def inlined(text: str, alt: str) -> str:
    """Without what a page has already: prolog, styles, fonts, a size, ids that nobody refers to."""
    from markupsafe import escape

    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    box = re.search(r'viewBox="([^"]*)"', text)
    head = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{escape(alt)}">'
    text = head + text[text.index(">") + 1 :].replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r' fill="(#[0-9a-f]{6})"', r' style="fill: \1"', text)  # of hatches
    text = re.sub(r' style="([^"]*)"', lambda m: _styled(m[1]), text)
    return re.sub(r"\s*\n\s*", "\n", text)


def _styled(style: str) -> str:
    style = re.sub(r"font-family:[^;]*;? ?", "", style)
    for colour, variable in VARIABLES.items():
        style = style.replace(colour, f"var({variable}, {colour})")
    style = style.strip("; ")
    return f' style="{style}"' if style else ""


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph. weak: it says what a reader must not overlook before believing a number."""

    text: str
    weak: bool = False
    kind: ClassVar[str] = "words"


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with a short value each."""

    pairs: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True, slots=True)
class Listing:
    """A table. caption: what it shows. folded: what it is called where it is folded away."""

    table: FigureTable
    caption: str
    folded: str = ""
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure with its numbers beside it."""

    figure: Figure
    kind: ClassVar[str] = "drawing"


@dataclass(frozen=True, slots=True)
class Quote:
    """Somebody's words: what they are, and the text as it came."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A row behind a number: where it stands, a few facts, and its words."""

    title: str
    about: str
    quotes: Sequence[Quote]


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows behind a number, folded away. summary: what they are, how they were drawn."""

    summary: str
    samples: Sequence[Sample]
    kind: ClassVar[str] = "samples"


Block: TypeAlias = Words | Heading | Facts | Listing | Drawing | Samples


@dataclass(frozen=True, slots=True)
class Headline:
    """A number for the front. weak: the reason why it proves little, where there is one."""

    value: str
    label: str
    note: str = ""
    weak: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """id: its anchor. about: a sentence under the title."""

    id: str
    title: str
    about: str
    blocks: Sequence[Block]
    headlines: Sequence[Headline] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Report:
    """left_out: (what, why) of what could not be told."""

    title: str
    about: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    left_out: Sequence[tuple[str, str]]

    @property
    def headlines(self) -> list[tuple[str, Headline]]:
        return [(section.id, found) for section in self.sections for found in section.headlines]
