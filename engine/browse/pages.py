"""Two pages that Datasette does not have, how a value of the ledger is shown, and Datasette's hooks for both.

The front page, and one row of a pool with its complete history. Queries run in Datasette's threads with
time limits: on a ledger of millions, a part that takes too long is left out and the page says so.

A value is shown by its column's name, and everything is escaped. A teacher's words may hold HTML, scripts,
any script's direction and control characters: they are text, in a block of its own (`dir=auto`), with line
breaks kept.
"""

import logging
import sqlite3
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from datasette import hookimpl
from datasette.database import QueryInterrupted
from datasette.utils import sqlite_timelimit
from datasette.utils.asgi import NotFound, Response
from markupsafe import Markup, escape

from engine.browse.queries import HISTORY, ITEM, QUESTIONS, SAMPLES, STAGES
from engine.provider.responses import stored_answer
from store.errors import is_intact
from store.queries import stage_status, stages
from store.run_folder import holder
from store.stage_rows import stop_reason_in

COUNT_MS = 2500  # for what the front page counts: a million rows take about one second
HISTORY_MS = 2000
LEDGER = "ledger"
ENDS = {0: "done", 1: "finished, with failures", 130: "interrupted"}  # by a process's exit code


async def front(request: Any, datasette: Any) -> Any:
    """What the run holds, and what can be asked of it."""
    database = datasette.get_database(LEDGER)
    found = [dict(row) for row in (await database.execute(STAGES)).rows]
    counted = await database.execute_fn(_counted)
    process = holder(database.run)  # the one that holds the folder's lock at this moment, which goes with it
    for stage in found:
        if stage["started"] is None:
            stage["state"] = "not begun"
        elif stage["ended"] is not None:
            stage["state"] = ENDS.get(stage["exit_code"], "stopped early")
        else:
            stage["state"] = "running" if process in (0, stage["pid"]) else "killed"
        stage["counts"] = counted.get(stage["name"]) if counted else None
        stage["reason"] = stop_reason_in(stage["stopped"], stage["run"]) if stage["exit_code"] else None
    context = {"stages": found, "questions": QUESTIONS, "is_counted": counted is not None}
    return Response.html(await datasette.render_template("front.html", context, request))


def _counted(connection: sqlite3.Connection) -> dict[str, dict[str, Any]] | None:
    """`status` of every stage; None where counting takes too long."""
    try:
        with sqlite_timelimit(connection, COUNT_MS):
            return {name: stage_status(connection, number) for number, name in stages(connection)}
    except sqlite3.OperationalError:
        return None


async def row(request: Any, datasette: Any) -> Any:
    """One pool row: what was asked, every answer in full, and how it came about."""
    position = request.args.get("position") or ""
    is_place = position.isascii() and position.isdigit() and len(position) < 13
    if not (is_place and request.args.get("stage")):
        raise NotFound("a row's page needs ?stage=NAME&position=NUMBER")
    place: dict[str, Any] = {"stage": request.args.get("stage"), "position": int(position)}
    database = datasette.get_database(LEDGER)
    item = (await database.execute(ITEM, place)).first()
    if item is None:
        raise NotFound(f"stage {place['stage']} has no row {place['position']}")
    place["number"] = item["number"]
    samples = [await _sample(database, dict(s)) for s in (await database.execute(SAMPLES, place)).rows]
    context = {
        "stage": item["stage"], "task": item["task"], "position": place["position"],
        "item": _item(item), "samples": samples, "database": LEDGER,
        "before": row_link(item["stage"], place["position"] - 1) if place["position"] else None,
        "after": row_link(item["stage"], place["position"] + 1) if item["has_next"] else None,
    }  # fmt: skip
    return Response.html(await datasette.render_template("pool_row.html", context, request))


async def _sample(database: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """A sample with its words, and every attempt behind it (None where looking takes too long)."""
    raw = sample["raw"]
    sample["damaged"] = raw is not None and not is_intact(raw, sample["checksum"])
    sample["words"] = sample["thinking"] = None
    if raw:  # what the teacher said and thought, as far as it can be read
        text, thinking = stored_answer(raw) or (sample["text"], sample["reasoning"])
        sample["words"], sample["thinking"] = text or None, thinking or None
    sample["raw"] = None if raw is None else raw.decode(errors="backslashreplace")
    try:
        found = await database.execute(HISTORY, {"request": sample["request"]}, custom_time_limit=HISTORY_MS)
        sample["history"] = [dict(ask) for ask in found.rows]
    except QueryInterrupted:
        sample["history"] = None
    return sample


def _item(row: Any) -> dict[str, Any]:
    """A row's JSON; what is left of it where it is damaged."""
    text: str = row["item"]
    if not is_intact(row["stored"], row["checksum"]):
        return {"damaged row": text}
    try:
        found = orjson.loads(text)
    except ValueError:
        return {"damaged row": text}
    return found if isinstance(found, dict) else {"damaged row": text}


CUT = 500  # characters of a text in a list; a row's own page shows all
LINE = 100  # JSON that is no longer is not indented in a list

TEXTS = {
    "instruction", "input", "output", "message", "last_message", "first_reply", "second_reply",
}  # fmt: skip
JSONS = {"raw", "item", "settings", "estimate", "utilisation", "params"}
TIMES = {"at", "sent_at", "received_at", "started", "ended", "first_at", "last_at"}
SECONDS = {"latency", "mean_latency"}
COUNTS = {"replies", "rows", "attempts", "requests", "sent", "unanswered", "total", "answered"}
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


@hookimpl  # type: ignore[untyped-decorator]
def register_routes() -> list[tuple[str, Callable[..., Any]]]:
    return [(r"^/$", front), (r"^/-/row$", row)]


@hookimpl  # type: ignore[untyped-decorator]
def extra_css_urls() -> list[str]:
    return ["/assets/browse.css"]


@hookimpl  # type: ignore[untyped-decorator]
def render_cell(row: Any, value: Any, column: str, table: str | None) -> Any:
    return show(row, value, column, table)


@hookimpl  # type: ignore[untyped-decorator]
def prepare_jinja2_environment(env: Any, datasette: Any) -> None:
    env.filters.update(
        whole_cell=_whole_cell, text=text, pretty=pretty, money=money,
        moment=moment, badge=badge,
    )  # fmt: skip
    tables = datasette.metadata("tables", database=LEDGER) or {}
    env.globals.update(
        run_name=datasette.metadata("title"),
        about=lambda table: tables.get(table, {}).get("description", ""),
    )


def _whole_cell(cell: Any, row: Any, table: str) -> Any:
    values = {other["column"]: other["raw"] for other in row}
    return whole(values, cell["raw"], cell["column"], table)


@hookimpl  # type: ignore[untyped-decorator]
def handle_exception(datasette: Any, request: Any, exception: Exception) -> Callable[[], Any]:
    """A page that says it, in the place of Datasette's, which prints a traceback with all values to the
    terminal as well. What nobody foresaw is logged."""

    async def page() -> Any:
        status = getattr(exception, "status", 500)
        message = getattr(exception, "message", None) or str(exception) or type(exception).__name__
        if isinstance(exception, sqlite3.DatabaseError):
            message = f"The ledger may be damaged here ({message}): `distill check` on its folder says more."
        elif status == 500:
            logging.getLogger("distill").error("a page of browse failed", exc_info=exception)
        told = {"ok": False, "error": message, "status": status, "title": getattr(exception, "title", None)}
        if request.path.split("?")[0].endswith(".json"):
            return Response.json(told, status=status)
        template = datasette.jinja_env.select_template([f"{status}.html", "error.html"])
        context = {**told, "urls": datasette.urls, "app_css_hash": datasette.app_css_hash()}
        return Response.html(await template.render_async({**context, "menu_links": list}), status=status)

    return page
