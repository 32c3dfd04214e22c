"""Requests, replies and whole ledgers for tests, made in a line each."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from store.ledger import Ledger
from store.records import Fault, Request, Response, Usage
from tests.support.cli import ROOT, ledger

USAGE = Usage(100, 50)
PLAN = 7  # any number: what decides a key beside the item


@contextlib.asynccontextmanager
async def opened(run: Path, on_full: Callable[[], None] = lambda: None) -> AsyncIterator[Ledger]:
    ledger = Ledger(run, on_full)
    try:
        yield ledger
    finally:
        await ledger.close()


def item(number: int, text: str | None = None) -> bytes:
    """A pool row as the ledger keeps it."""
    return orjson.dumps({"id": f"row {number}", "instruction": text or f"Question {number}?", "input": ""})


def request(number: int, sample: int = 0) -> Request:
    key = hashlib.sha256(f"{number} {sample}".encode()).digest()
    return Request(number, key, sample, b"{}", 100, 512)


def chat(text: object) -> bytes:
    message = {"role": "assistant", "content": text}
    return orjson.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


def reply(
    text: object = "An answer.", outcome: Any = "stop", cost: int = 1500, usage: Usage = USAGE
) -> Response:
    return Response(outcome, "stop", usage, chat(text), cost, 0.25, "gpt-4-0613")


class Book:
    """A stage of a ledger that is being filled, position by position; request n stands at n - 1."""

    def __init__(
        self,
        ledger: Ledger,
        stage: str = "generate",
        samples: int = 1,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.ledger = ledger
        self.stage, self.run = ledger.begin(stage, "generate", samples, settings or {"model": "gpt-4"})

    def place(self, number: int, text: str | None = None) -> None:
        self.ledger.place(self.stage, number - 1, item(number, text), PLAN, [(0, number)], [request(number)])

    def ask(self, number: int, worst: int = 5000) -> int:
        """Returns the attempt's number."""
        return self.ledger.journal(self.run, self.stage, number, worst)

    def answer(self, number: int, response: Response | None = None, worst: int = 5000) -> None:
        attempt = self.ask(number, worst)
        self.ledger.put(
            self.stage, attempt, number, response or reply(f"Answer {number}."), worst, final=True
        )

    def add(self, number: int, response: Response | None = None) -> None:
        """A row with its answer."""
        self.place(number)
        self.answer(number, response)

    def fail(self, number: int, cause: Any = "bad_request", words: str = "HTTP 400: No.") -> None:
        attempt = self.ask(number)
        error = self.ledger.error(self.stage, attempt, number, Fault(cause, 400, words), 5000)
        self.ledger.fail(number, error)


def rows(run: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """A query by nothing but Python's own sqlite3."""
    connection = sqlite3.connect(f"{(run / 'ledger.db').resolve().as_uri()}?mode=ro", uri=True)
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


VERSIONS = (2, 3)  # of the ledger's schema, with run folders in tests/data/


def unpacked(name: str, folder: Path, version: int = 2) -> Path:
    """A run folder of an older version, and what that said of it: tests/data/make_older.py tells more."""
    with zipfile.ZipFile(ROOT / f"tests/data/version{version}/{name}.zip") as file:
        file.extractall(folder / name)
    assert ledger(folder / name / "run", "PRAGMA user_version") == [(version,)]
    return folder / name
