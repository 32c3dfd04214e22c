"""How a value of the ledger is shown, chosen by its column's name. Everything is escaped.

A teacher's words may hold HTML, scripts, any script's direction and control characters: they are
text, in a block of its own (`dir=auto`), with line breaks kept.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from markupsafe import Markup, escape

CUT = 500  # characters of a text in a list; a row's own page shows all
LINE = 100  # JSON that is no longer is not indented in a list

TEXTS = {
    "instruction", "input", "output", "message", "last_message", "first_reply", "second_reply",
}  # fmt: skip
JSONS = {"raw", "item", "settings", "estimate", "utilisation", "params"}
TIMES = {"at", "sent_at", "received_at", "started", "ended", "first_at", "last_at"}
SECONDS = {"latency", "mean_latency"}
COUNTS = {"replies", "rows", "asks", "requests", "sent", "unanswered", "total", "answered"}
# Columns that hold the id of a row of another table.
LINKS = {
    "request": "requests", "attempt": "attempts", "run": "runs", "answer": "responses",
    "failure": "errors", "response": "bodies", "stage": "stages",
}  # fmt: skip


def row_link(stage: str, position: int) -> str:
    """The page of one pool row."""
    return "/-/row?" + urlencode({"stage": stage, "position": position})


def show(row: Mapping[str, Any], value: Any, column: str, table: str | None) -> Markup | None:
    """A cell of a list; None for as Datasette shows it."""
    if value is None or value == "":
        return None
    if column in TEXTS and isinstance(value, str):
        return text(value, CUT, _page_of(row))
    if column in JSONS and isinstance(value, str | bytes):
        fits = isinstance(value, str) and len(value) <= LINE
        return text(str(value) if fits else pretty(value), CUT, _page_of(row), "json")
    return _short(row, value, column, table)


def whole(row: Mapping[str, Any], value: Any, column: str, table: str | None) -> Markup:
    """The same on a page of one row: nothing is cut."""
    if value is None or value == "":
        return Markup('<span class="none">{}</span>').format("none" if value is None else "empty")
    if column in JSONS and isinstance(value, str | bytes):
        return text(pretty(value), kind="json")
    if isinstance(value, bytes):
        return text(value.hex(), kind="json")
    return _short(row, value, column, table) or text(str(value))


def _short(row: Mapping[str, Any], value: Any, column: str, table: str | None) -> Markup | None:
    """Numbers with their unit, links to other pages, marks."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_whole = is_number and isinstance(value, int)
    if is_number and column.endswith("_usd"):
        return Markup(f'<span class="number">{money(value)}</span>')
    if is_number and column in TIMES:
        return Markup(f'<time title="{value}">{moment(value)}</time>')
    if is_whole and (column in COUNTS or column.endswith(("_tokens", "_micro"))):
        return Markup(f'<span class="number">{value:,}</span>')
    if is_number and column in SECONDS:
        return Markup(f'<span class="number">{value:,.2f} s</span>')
    if column == "position" and (page := _page_of(row)):
        return Markup('<a class="page" href="{}">{:,}</a>').format(page, value)
    if is_whole and column in LINKS:
        return Markup('<a href="/ledger/{}/{}">{}</a>').format(LINKS[column], value, value)
    if column == "cause" and table is None:  # in a query's result: to the rows (or asks) that failed for it
        where, of_stage = {"cause__exact": value}, "stage" in row.keys()  # noqa: SIM118 - sqlite3.Row
        if of_stage:
            where["stage__exact"] = row["stage"]
        view = "failures" if of_stage else "errors"
        return Markup('<a href="/ledger/{}?{}">{}</a>').format(view, urlencode(where), value)
    if column == "outcome":
        return badge(str(value))
    if column == "key" and isinstance(value, bytes):
        return Markup('<code title="{}">{}…</code>').format(value.hex(), value.hex()[:12])
    return None


def _page_of(row: Mapping[str, Any]) -> str | None:
    names = row.keys()
    if "stage" in names and "position" in names and isinstance(row["stage"], str):
        return row_link(row["stage"], row["position"])
    return None


def text(value: str, cut: int | None = None, page: str | None = None, kind: str = "words") -> Markup:
    """Words as they are, cut to so many characters with the way to the rest."""
    if cut is None or len(value) <= cut + cut // 5:
        return Markup('<div class="text {}" dir="auto">{}</div>').format(kind, value)
    rest = f"… {len(value):,} characters"
    more = Markup('<a class="more" href="{}">{}</a>').format(page, rest) if page else escape(rest)
    return Markup('<div class="text {}" dir="auto">{}</div><div class="more">{}</div>').format(
        kind, value[:cut], more
    )


def badge(outcome: str) -> Markup:
    return Markup('<span class="badge {}">{}</span>').format(quote(outcome), outcome)


def pretty(value: str | bytes) -> str:
    """JSON with indentation; what is no JSON as it came."""
    try:
        return orjson.dumps(orjson.loads(value), option=orjson.OPT_INDENT_2).decode()
    except ValueError:
        return value if isinstance(value, str) else value.decode(errors="backslashreplace")


def money(amount: float) -> str:
    """A single answer may cost less than a hundredth of a cent."""
    if amount >= 1 or amount == 0:
        return f"${amount:,.2f}"
    return f"${amount:.4f}" if amount >= 0.01 else f"${amount:.6f}"


def moment(seconds: float) -> str:
    """A Unix time in this machine's zone."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
