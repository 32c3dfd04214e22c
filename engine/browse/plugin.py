"""Datasette's hooks: which function of ours answers which of them. Registered by server.py."""

import logging
import sqlite3
from collections.abc import Callable
from typing import Any

from datasette import Response, hookimpl

from engine.browse import cells, pages

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
    return [(r"^/$", pages.front), (r"^/-/row$", pages.row)]


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
    tables = datasette.metadata("tables", database=pages.LEDGER) or {}
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
        if scope["type"] == "http" and not _is_local(dict(scope["headers"]).get(b"host", b"")):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"ask for 127.0.0.1 or localhost\n"})
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await app(scope, receive, send_with_headers)

    return guarded


def _is_local(host: bytes) -> bool:
    name, _, port = host.decode("latin-1").rpartition(":")
    return (name if port.isdigit() else host.decode("latin-1")).lower() in LOCAL_NAMES
