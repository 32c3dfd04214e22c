"""Text from elsewhere, made safe for a terminal; money, counts and times as people read them."""

import os
import re
import sys
from decimal import Decimal

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def tell(text: str) -> None:
    """Writes to stderr. A reader that has gone away (`2>&1 | head`, a closed terminal) ends the
    talk, not the run."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


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
