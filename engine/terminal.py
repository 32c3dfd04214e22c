"""Text from elsewhere, made safe for a terminal; money, counts and times as people read them.

Also what is to be done when the terminal is lost: what asks us to stop, and where words go then.
"""

import errno
import io
import os
import re
import signal
import sys
from decimal import Decimal
from types import FrameType
from typing import Any

from engine.subprocesses import stop_signals

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
    for number in stop_signals():
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:  # the shell and the kernel both send it
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt


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
