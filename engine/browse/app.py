"""`distill browse --run RUN`: Datasette on the ledger, read-only, on loopback.

The database is opened by our own read-only connection, and long counts are cut short. It is always
`mutable` for Datasette, because a run may be writing: an immutable database would be hashed and counted at
the start. Readers hold no transaction between two queries, so the writer can always checkpoint.
"""

import errno
import re
import socket
import sqlite3
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from datasette import hookimpl
from datasette.database import Database

from engine.browse import pages
from engine.browse.pages import LEDGER
from engine.browse.queries import QUESTIONS, canned
from engine.tasks import parse_scores as reading
from store.errors import UsageError
from store.queries import connect_reader

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
        connection = connect_reader(self.run)
        connection.execute("PRAGMA query_only = 1")
        connection.create_function("score_of", 3, score_of, deterministic=True)
        self._all_file_connections.append(connection)
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
    "unanswered": {"title": "Asked, never answered", "description": "An ask without answer or error."},
    "costs": {"title": "Costs", "description": "A stage: spent, at risk, tokens, requests."},
    "replies": {"title": "Replies", "description": "Every reply that ever came, with its raw body.",
                "facets": ["outcome", "model"]},
    "stages": {"description": "What is asked: a task on a pool."},
    "runs": {"description": "One process that worked on a stage, with its settings."},
    "rows": {"description": "The pool as it was read: stage << 40 | position."},
    "samples": {"description": "Which request stands behind a pool row's sample."},
    "requests": {"description": "What was to be asked, once: its key, its answer or failure."},
    "attempts": {"description": "When a request was sent, and the most that it could cost."},
    "responses": {"description": "A reply: outcome, tokens, cost, latency.", "facets": ["outcome", "model"]},
    "bodies": {"description": "The reply as it came."},
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
    """Raises RunFolderError without a ledger, UsageError for a port that cannot be had."""
    connect_reader(run).close()
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: wants 0 (any that is free) to 65535")
    bound = bind(port)
    try:
        datasette = build(run)
        import uvicorn

        # the socket listens already: whoever comes as soon as the address is told is answered
        print(f"{run} is at http://{HOST}:{bound.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(
            datasette.app(), log_level="warning", lifespan="on", timeout_graceful_shutdown=DRAIN_SECONDS
        )
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
        words = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
        raise UsageError(
            f"port {port} {words}; name another with --port, or 0 for any that is free"
        ) from None
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
            # A table or view as CSV comes to its end: without `_stream` Datasette sends the first 2,000 rows.
            # (The result of SQL is never streamed; its page says where it is cut.)
            query, csv = scope["query_string"].decode("latin-1"), CSV_PATH.fullmatch(scope["path"])
            if csv and "_stream=" not in query and csv[1] not in NAMED:
                scope = {**scope, "query_string": f"{query}{'&' * bool(query)}_stream=on".encode("latin-1")}

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await app(scope, receive, send_with_headers)

    return guarded
