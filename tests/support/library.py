"""Calls of the library against a provider that has a thread and a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

import distill
from tests.support.cli import MODEL, rows
from tests.support.provider import Config, Provider

FREE = {"model": MODEL, "price_in": 0, "price_out": 0, "progress": False}


T = TypeVar("T")


@contextmanager
def apart(serving: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """A server with a thread and a loop of its own: the calls under test may hold up theirs."""
    found: Queue[T] = Queue()
    loop, end = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with serving() as server:
            found.put(server)
            await end.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield found.get(timeout=10)
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
        loop.close()


def served(config: Config | None = None) -> AbstractContextManager[Provider]:
    return apart(Provider(config or Config()).running)


def generate(provider: Provider, run: Path, pool: Any = None, **settings: Any) -> distill.Result:
    given = {"base_url": provider.base_url, **FREE, **settings}
    return distill.generate(rows(5) if pool is None else pool, run=run, **given)
