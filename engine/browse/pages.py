"""Two pages that Datasette does not have, and its plugin hooks.

The front page, and one row of a pool with its complete history. Queries run in Datasette's threads with
time limits: on a ledger of millions, a part that takes too long is left out and the page says so.
"""

import logging
import re
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from datasette import hookimpl
from datasette.database import QueryInterrupted
from datasette.utils import sqlite_timelimit
from datasette.utils.asgi import NotFound, Response

from engine.browse import cells
from engine.browse.cells import row_link
from engine.browse.queries import QUESTIONS
from engine.provider.responses import stored_answer
from store.errors import is_intact
from store.queries import stage_status, stages
from store.run_folder import holder
from store.stage_rows import stop_reason_in

COUNT_MS = 2500  # for what the front page counts: a million rows take about one second
HISTORY_MS = 2000
LEDGER = "ledger"

STAGES = """
SELECT s.id, s.name, s.task, s.samples, s.total, s.bad_rows, u.id AS run, u.started, u.ended, u.exit_code,
  u.pid, (SELECT value FROM facts WHERE name = 'stopped stage ' || s.id) AS stopped,
  json_extract(iif(json_valid(u.settings), u.settings, NULL), '$.model') AS model,
  json_extract(iif(json_valid(u.utilisation), u.utilisation, NULL), '$.requests') AS requests_share,
  json_extract(iif(json_valid(u.utilisation), u.utilisation, NULL), '$.tokens') AS tokens_share,
  c.spent_micro / 1e6 AS cost_usd,
  c.at_risk_micro / 1e6 AS at_risk_usd, c.prompt_tokens, c.completion_tokens, c.sent - c.ended AS unanswered
FROM stages s LEFT JOIN spending c ON c.stage = s.id
  LEFT JOIN runs u ON u.id = (SELECT max(id) FROM runs WHERE stage = s.id) ORDER BY s.id"""
ITEM = """
SELECT s.id AS number, s.name AS stage, s.task, w.item, CAST(w.item AS BLOB) AS stored, w.checksum,
  EXISTS (SELECT 1 FROM rows WHERE id = w.id + 1) AS has_next
FROM stages s JOIN rows w ON w.id = (s.id << 40) + :position WHERE s.name = :stage"""
SAMPLES = """
SELECT a.sample, a.request, r.answer, r.prompt_tokens AS counted, e.cause, e.status, e.message, e.at,
  p.outcome, p.model, p.finish_reason, p.prompt_tokens, p.completion_tokens, p.cached_tokens,
  p.reasoning_tokens, p.cost_micro / 1e6 AS cost_usd, p.latency, p.received_at, p.estimated,
  p.service_tier, p.listed_micro / 1e6 AS listed_usd, CAST(b.raw AS BLOB) AS raw, b.text, b.reasoning,
  b.checksum
FROM samples a JOIN requests r ON r.id = a.request LEFT JOIN responses p ON p.id = r.answer
  LEFT JOIN bodies b ON b.response = p.id LEFT JOIN errors e ON e.id = r.failure
WHERE a.stage = :number AND a.position = :position ORDER BY a.sample"""
HISTORY = """
SELECT t.id AS attempt, t.run, t.sent_at, p.id AS response, p.outcome, p.latency,
  p.cost_micro / 1e6 AS cost_usd, e.cause, e.status, e.message
FROM attempts t LEFT JOIN responses p ON p.request = :request AND p.attempt = t.id
  LEFT JOIN errors e ON e.request = :request AND e.attempt = t.id
WHERE t.request = :request ORDER BY t.id"""


async def front(request: Any, datasette: Any) -> Any:
    """What the run holds, and what can be asked of it."""
    database = datasette.get_database(LEDGER)
    found = [dict(row) for row in (await database.execute(STAGES)).rows]
    counted = await database.execute_fn(_counted)
    process = holder(database.run)
    for stage in found:
        stage["state"] = _state(stage, process)
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


def _state(stage: Mapping[str, Any], process: int | None) -> str:
    """process: the one that holds the folder's lock at this moment, which goes with it."""
    if stage["started"] is None:
        return "not begun"
    if stage["ended"] is not None:
        return {0: "done", 1: "finished, with failures", 130: "interrupted"}.get(
            stage["exit_code"], "stopped early"
        )
    return "running" if process in (0, stage["pid"]) else "killed"


async def row(request: Any, datasette: Any) -> Any:
    """One pool row: what was asked, every answer in full, and how it came about."""
    position = request.args.get("position") or ""
    is_place = position.isascii() and position.isdigit() and len(position) < 13
    if not (is_place and request.args.get("stage")):
        raise NotFound("a row's page wants ?stage=NAME&position=NUMBER")
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
    """A sample with its words, and every ask behind it (None where looking takes too long)."""
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


def title_of(run: Path) -> str:
    """The folder's name, as the pages' title."""
    return run.resolve().name or str(run)


NAMED = {question.name for question in QUESTIONS if question.sql}
CSV_PATH = re.compile(rf"/{LEDGER}/([^/]+)\.csv")
LOCAL_NAMES = {"127.0.0.1", "localhost", "[::1]"}
# Answers are escaped; should one ever not be, it can load and call nothing from elsewhere.
HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


@hookimpl  # type: ignore[untyped-decorator]
def register_routes() -> list[tuple[str, Callable[..., Any]]]:
    return [(r"^/$", front), (r"^/-/row$", row)]


@hookimpl  # type: ignore[untyped-decorator]
def extra_css_urls() -> list[str]:
    return ["/assets/browse.css"]


@hookimpl  # type: ignore[untyped-decorator]
def render_cell(row: Any, value: Any, column: str, table: str | None) -> Any:
    return cells.show(row, value, column, table)


@hookimpl  # type: ignore[untyped-decorator]
def prepare_jinja2_environment(env: Any, datasette: Any) -> None:
    env.filters.update(
        whole_cell=_whole_cell, text=cells.text, pretty=cells.pretty, money=cells.money,
        moment=cells.moment, badge=cells.badge,
    )  # fmt: skip
    tables = datasette.metadata("tables", database=LEDGER) or {}
    env.globals.update(
        run_name=datasette.metadata("title"),
        about=lambda table: tables.get(table, {}).get("description", ""),
    )


def _whole_cell(cell: Any, row: Any, table: str) -> Any:
    values = {other["column"]: other["raw"] for other in row}
    return cells.whole(values, cell["raw"], cell["column"], table)


@hookimpl  # type: ignore[untyped-decorator]
def handle_exception(datasette: Any, request: Any, exception: Exception) -> Callable[[], Any]:
    """A page that says it, in the place of Datasette's, which prints a traceback with all values to the
    terminal as well. What nobody foresaw is logged."""

    async def page() -> Any:
        status = getattr(exception, "status", 500)
        message = getattr(exception, "message", None) or str(exception) or type(exception).__name__
        if isinstance(exception, sqlite3.DatabaseError):
            message = f"The ledger may be damaged here ({message}): `distill check` on its folder tells."
        elif status == 500:
            logging.getLogger("distill").error("a page of browse failed", exc_info=exception)
        told = {"ok": False, "error": message, "status": status, "title": getattr(exception, "title", None)}
        if request.path.split("?")[0].endswith(".json"):
            return Response.json(told, status=status)
        template = datasette.jinja_env.select_template([f"{status}.html", "error.html"])
        context = {**told, "urls": datasette.urls, "app_css_hash": datasette.app_css_hash()}
        return Response.html(await template.render_async({**context, "menu_links": list}), status=status)

    return page


@hookimpl  # type: ignore[untyped-decorator]
def asgi_wrapper() -> Callable[[Any], Any]:
    return _guarded


def _guarded(app: Any) -> Any:
    """Answers only to this machine's own names (a web page elsewhere may point its name at
    127.0.0.1), and says what a page may load."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name, _, port = host.rpartition(":")
            if (name if port.isdigit() else host).lower() not in LOCAL_NAMES:
                await send({"type": "http.response.start", "status": 403, "headers": []})
                await send({"type": "http.response.body", "body": b"ask for 127.0.0.1 or localhost\n"})
                return
            scope = _with_all_rows(scope)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await app(scope, receive, send_with_headers)

    return guarded


def _with_all_rows(scope: Any) -> Any:
    """A table or view as CSV comes to its end: without `_stream` Datasette sends the first 2,000 rows of it.
    (The result of SQL is never streamed; its page says where it is cut.)"""
    query = scope["query_string"].decode("latin-1")
    name = CSV_PATH.fullmatch(scope["path"])
    if not name or "_stream=" in query or name[1] in NAMED:
        return scope
    return {**scope, "query_string": f"{query}{'&' * bool(query)}_stream=on".encode("latin-1")}
