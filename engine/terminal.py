"""Text from elsewhere, made safe for a terminal; money, counts, times and tables as people read them.

Also what is to be done when the terminal is lost: what asks us to stop, and where words go then.
"""

import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

from engine.subprocesses import stop_signals

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 100_000  # of lines that no terminal shows: nothing is wrapped or cut

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def tell(text: str) -> None:
    """Writes to stderr. A reader that has gone away (`2>&1 | head`, a closed terminal) ends the
    talk, not the run."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


class _Outliving(io.FileIO):
    """Standard output or error, whose terminal may be gone before us: what is written then goes nowhere."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(data).nbytes


def outlive_the_terminal() -> None:
    """From now on nothing that is written to a lost terminal raises."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None or not stream.isatty():
            continue
        raw = io.BufferedWriter(_Outliving(number, "wb", closefd=False))
        new = io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)
        setattr(sys, name, new)


def stop_on_signals() -> None:
    """All of them are a KeyboardInterrupt until somebody handles them otherwise."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # the shell and the kernel both send it
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in stop_signals():
        signal.signal(number, interrupt)


def plain(text: str, width: int | None = None) -> str:
    """One line without control or bidirectional characters, cut to `width`."""
    line = _CONTROL.sub("�", " ".join(text.split()))
    return line if width is None or len(line) <= width else line[: max(0, width - 1)] + "…"


def plain_lines(text: str) -> str:
    """The same, with line ends and tabs kept."""
    return _CONTROL.sub("�", text.replace("\r\n", "\n"))


def dollars(amount: float | Decimal | None) -> str:
    """Two digits after the point of a dollar and more, four of less, six of very little."""
    if amount is None:
        return "unknown"
    if amount >= 1 or amount == 0:
        return f"${amount:,.2f}"
    return f"${amount:.4f}" if amount >= 0.001 else f"${amount:.6f}"


def exact_dollars(micro: int) -> str:
    """All digits that an amount has, two at the least."""
    units, fraction = divmod(abs(micro), 1_000_000)
    digits = f"{fraction:06}".rstrip("0").ljust(2, "0")
    return f"{'-' if micro < 0 else ''}${units:,}.{digits}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`, `5 d 3 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, size, lower, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{whole} s"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def counted(count: int, noun: str) -> str:
    """`1 row`, `2,769 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def full(count: float) -> str:
    """Every digit: `2,769,123`."""
    return f"{count:,.0f}"


def compact(count: float) -> str:
    """Three digits of a large number: `9,999`, `20k`, `2.76M`. Rounded down: what is not complete never
    looks complete."""
    if count < 10_000:
        return full(count)
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            digits = 2 if count < 10 * size else 1 if count < 100 * size else 0
            text = f"{int(count * 10**digits) // size / 10**digits:.{digits}f}"
            return (text.rstrip("0").rstrip(".") if digits else text) + unit
    return full(count)


def console_of(stderr: bool = False) -> "Console":
    """As wide as the terminal. Elsewhere lines are as long as they need to be."""
    from rich.console import Console

    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, width=None if is_terminal else PIPE_WIDTH)


def show(shown: Any, stderr: bool = False) -> None:
    """Prints a table or a text; on stderr to whoever is still there. No line ends in spaces."""
    to = console_of(stderr)
    with to.capture() as captured:
        to.print(shown)
    text = captured.get()
    if not to.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    if stderr:
        tell(text)
    else:
        sys.stdout.write(text)


@dataclass(frozen=True, slots=True)
class Column:
    """head: over it. is_text: words, which stand left; they may go over several lines if `wraps`. Numbers
    never do. is_spare: left out where a terminal is too narrow for all."""

    head: str
    is_text: bool = False
    wraps: bool = False
    is_spare: bool = False


Cell: TypeAlias = "str | float | Callable[[Callable[[float], str]], str]"  # (a text with counts in it)


def print_columns(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], stderr: bool = False) -> None:
    """A table that is never cut. Where it is wider than the terminal, counts are shortened, then spare
    columns are left out."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    width = console_of(stderr).width
    forms = [(full, 2, True), (full, 1, True), (compact, 2, True), (compact, 1, True), (compact, 1, False)]
    for count, gap, has_spare in forms:
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
        places = [n for n, column in enumerate(columns) if has_spare or not column.is_spare]
        texts: list[list[str]] = []
        for row in rows:
            cells = [row[place] for place in places]
            texts.append([c if isinstance(c, str) else c(count) if callable(c) else count(c) for c in cells])
        least = gap * (len(places) - 1)  # the width that it takes without being cut
        for n, column in enumerate(columns[place] for place in places):
            head = column.head if count is full else column.head.replace(" ", "\n")
            longest = max(cell_len(text) for text in (*head.split("\n"), *(row[n] for row in texts)))
            least += min(longest, 16) if column.wraps else longest
            table.add_column(
                head, justify="left" if column.is_text else "right", no_wrap=not column.wraps, overflow="fold"
            )
        for row in texts:
            table.add_row(*map(Text, row))
        if least <= width:
            break
    show(table, stderr)
