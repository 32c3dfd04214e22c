"""`distill browse --run RUN`: Datasette on the ledger, read-only, on loopback.

The database is opened by our own read-only connection, and long counts are cut short. It is always
`mutable` for Datasette, because a run may be writing: an immutable database would be hashed and counted at
the start. Readers hold no transaction between two queries, so the writer can always checkpoint.
"""

import asyncio
import contextlib
import csv
import errno
import io
import re
import socket
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from datasette import hookimpl
from datasette.database import Database
from datasette.utils import InvalidSql, sqlite_timelimit, validate_sql_select
from datasette.utils.asgi import AsgiStream
from datasette.views.base import DatasetteError

from engine.browse import pages
from engine.browse.pages import LEDGER
from engine.browse.queries import QUESTIONS, canned
from engine.tasks import parse_scores as reading
from store.errors import UsageError
from store.queries import connect_reader

CSV_ROWS = 1000  # read at once
# What is wrong with the user's own SQL; a warning: more than one statement (an error from Python 3.12 on).
OF_THE_SQL = (InvalidSql, sqlite3.OperationalError, sqlite3.ProgrammingError, sqlite3.Warning)
COUNT_MS = 400  # for `count(*)` of a view with millions of rows, which nobody waits for


def score_of(item: str, text: str | None, model: int) -> float | None:
    """SQL: the score that a judge's reply gives a model (by its place in the user's order), read as
    the exports read it; NULL where it cannot be."""
    try:
        row = orjson.loads(item)
        scores = reading.scores(text or "", len(row["order"]))
        return None if scores is None else scores[row["order"].index(model)]
    except (KeyError, TypeError, ValueError):
        return None


class LedgerDatabase(Database):  # type: ignore[misc]  # Datasette's own way of adding a database
    """RUN/ledger.db."""

    def __init__(self, datasette: Any, run: Path) -> None:
        super().__init__(datasette, path=str(run / "ledger.db"), is_mutable=True)
        self.run = run

    def connect(self, write: bool = False) -> sqlite3.Connection:
        if write:
            raise PermissionError("the ledger is open for reading only")
        connection = self.reader()
        self._all_file_connections.append(connection)
        return connection

    def reader(self) -> sqlite3.Connection:
        """A connection that its caller closes."""
        connection = connect_reader(self.run)
        connection.execute("PRAGMA query_only = 1")
        connection.create_function("score_of", 3, score_of, deterministic=True)
        return connection

    async def execute(
        self,
        sql: str,
        params: Mapping[str, Any] | None = None,
        custom_time_limit: int | None = None,
        **more: Any,
    ) -> Any:
        if custom_time_limit is None and sql.startswith("select count(*) from "):
            custom_time_limit = COUNT_MS
        return await super().execute(sql, params, custom_time_limit=custom_time_limit, **more)


HOST = "127.0.0.1"
HERE = Path(__file__).resolve().parent
DRAIN_SECONDS = 1
PAGE_ROWS = 50

SETTINGS = {
    "allow_download": False,
    "default_page_size": PAGE_ROWS,
    "max_returned_rows": 2000,
    "num_sql_threads": 4,  # a slow query must not keep the other pages waiting
    "sql_time_limit_ms": 8000,
    "facet_time_limit_ms": 300,  # each; what takes longer is said to, and the page comes all the same
    "suggest_facets": False,  # tries every column, texts too
    "default_facet_size": 12,
    "default_cache_ttl": 0,  # a run may be writing: what is shown is what is there
    "truncate_cells_html": 500,
    "max_csv_mb": 0,
}
TABLES: dict[str, dict[str, Any]] = {
    "answers": {"title": "Answers", "description": "A pool row with its answer.",
                "facets": ["stage", "outcome", "model"]},
    "failures": {"title": "Failures", "description": "A pool row that failed, with the server's message.",
                 "facets": ["stage", "cause", "status"]},
    "unanswered": {"title": "Sent, never answered", "description": "A request without answer or error."},
    "costs": {"title": "Costs", "description": "A stage: spent, at risk, tokens, requests."},
    "replies": {"title": "Replies", "description": "Every reply that ever came, with its raw body.",
                "facets": ["outcome", "model"]},
    "stages": {"description": "What was asked: a task on a pool."},
    "runs": {"description": "One process that worked on a stage, with its settings."},
    "rows": {"description": "The pool as it was read: stage << 40 | position."},
    "samples": {"description": "The request of each sample of a pool row."},
    "requests": {"description": "Each request once: its key, and its answer or failure."},
    "attempts": {"description": "When a request was sent, and the most that it could cost."},
    "responses": {"description": "A reply: outcome, tokens, cost, latency.", "facets": ["outcome", "model"]},
    "bodies": {"description": "The raw reply."},
    "errors": {"description": "What went wrong with an attempt.", "facets": ["cause", "status"]},
    "_sqlite_migrations": {"hidden": True},
    "spending": {"description": "The account of a stage, in micro-dollars."},
}  # fmt: skip


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


def run_browse(run: Path, port: int) -> None:
    """Raises RunFolderError without a ledger, UsageError for a port that cannot be used."""
    connect_reader(run).close()
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: must be from 0 to 65535 (0 picks a free port)")
    bound = bind(port)
    try:
        datasette = build(run)
        import uvicorn

        # the socket listens already: whoever comes as soon as the address is told is answered
        print(f"{run} is at http://{HOST}:{bound.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(
            datasette.app(), log_level="warning", lifespan="on", timeout_graceful_shutdown=DRAIN_SECONDS
        )
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises again what has ended it
            uvicorn.Server(config).run(sockets=[bound])
        sys.stdout.flush()
    finally:
        bound.close()


def bind(port: int) -> socket.socket:
    """A listening socket on loopback."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        bound.listen()
    except OSError as error:
        bound.close()
        words = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise UsageError(f"port {port} {words}; name another with --port, or 0 for a free one") from None
    return bound


def title_of(run: Path) -> str:
    """The folder's name, as the pages' title."""
    return run.resolve().name or str(run)


def build(run: Path) -> Any:
    """Datasette with the ledger, our questions, pages and looks."""
    from datasette.app import Datasette
    from datasette.plugins import pm

    for name, plugin in (("distill", pages), ("distill guard", sys.modules[__name__])):
        if not pm.is_registered(plugin):
            pm.register(plugin, name)
    datasette = Datasette(
        memory=False,
        settings=SETTINGS,
        metadata={
            "title": title_of(run),
            "databases": {LEDGER: {"queries": canned(), "tables": TABLES}},
        },
        template_dir=str(HERE / "templates"),
        static_mounts=[("assets", str(HERE / "static"))],
    )
    datasette.remove_database("_memory")  # that it adds where it is given no file
    datasette.add_database(LedgerDatabase(datasette, run), name=LEDGER)
    return datasette


@hookimpl  # type: ignore[untyped-decorator]
def register_routes() -> list[tuple[str, Callable[..., Any]]]:
    return [(rf"^/{LEDGER}\.csv$", sql_as_csv)]


async def sql_as_csv(request: Any, receive: Any, datasette: Any) -> AsgiStream:
    """All rows of the user's own SQL as CSV: Datasette ends it at `max_returned_rows`. The time limit holds
    for each batch of rows: a long result is complete, and a query that finds nothing is stopped."""
    connection: sqlite3.Connection = datasette.get_database(LEDGER).reader()
    cursor = connection.cursor()

    def batch() -> list[tuple[Any, ...]]:
        with sqlite_timelimit(connection, datasette.sql_time_limit_ms):
            if cursor.description is None:
                cursor.execute(sql, defaultdict(str, {name: request.args[name] for name in request.args}))
            return cursor.fetchmany(CSV_ROWS)

    try:
        sql = request.args.get("sql") or ""
        validate_sql_select(sql)
        rows = await asyncio.to_thread(batch)  # an error of the SQL is told before the first byte is sent
    except Exception as error:
        connection.close()
        if not isinstance(error, OF_THE_SQL):
            raise  # such as a damaged ledger
        raise DatasetteError(str(error), title="Invalid SQL", status=400) from error

    async def stream(writer: Any) -> None:
        nonlocal rows
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            if request.args.get("_header") != "off":
                await writer.write(_csv([[column[0] for column in cursor.description]]))
            while rows and not gone.done():
                await writer.write(_csv(rows))
                rows = await asyncio.to_thread(batch)
        finally:
            gone.cancel()
            connection.close()

    if not request.args.get("_dl"):
        return AsgiStream(stream, content_type="text/plain; charset=utf-8")
    headers = {"content-disposition": f'attachment; filename="{LEDGER}.csv"'}
    return AsgiStream(stream, headers=headers, content_type="text/csv; charset=utf-8")


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _csv(rows: list[Any]) -> str:
    """Bytes are text where they can be read as text, and else hexadecimal, as on the pages."""
    text = io.StringIO()
    write = csv.writer(text).writerow
    for row in rows:
        write([_decoded(cell) if isinstance(cell, bytes) else cell for cell in row])
    return text.getvalue()


def _decoded(cell: bytes) -> str:
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return cell.hex()


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
            # A table or view as CSV is complete: without `_stream` Datasette sends its first 2,000 rows.
            query, table = scope["query_string"].decode("latin-1"), CSV_PATH.fullmatch(scope["path"])
            if table and "_stream=" not in query and table[1] not in NAMED:
                scope = {**scope, "query_string": f"{query}{'&' * bool(query)}_stream=on".encode("latin-1")}

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await app(scope, receive, send_with_headers)

    return guarded
