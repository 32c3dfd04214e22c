"""The ledger as Datasette opens it: by our own read-only connection, and never counting for long.

Always `mutable` to Datasette, for a run may be writing: the other kind is hashed and counted whole
at the start. A reader holds no transaction between two queries, so the writer can always checkpoint.
"""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from datasette.database import Database

from engine.judging import reading
from store.read import connect_reader

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
        self._run = run

    def connect(self, write: bool = False) -> sqlite3.Connection:
        if write:
            raise PermissionError("the ledger is open for reading only")
        connection = connect_reader(self._run)
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
