"""How a batch server (tests/batch_server.py) hands out a file that is not as it should be."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import repeat

from aiohttp import web

from tests.support.batch_work import Stored
from tests.support.provider_replies import drop

MIB = 2**20


@dataclass(frozen=True)
class Sent:
    """`length`: what is said of it, where that is not its length; `then`: goes on with this for ever,
    every so many seconds."""

    raw: bytes
    status: int = 200
    length: int | None = None
    encoding: str | None = None
    then: bytes = b""
    every: float = 0.0


# What comes of a file, by how often a content has been asked for.
Serve = Callable[[Stored, int], Sent]


async def send(request: web.Request, sent: Sent) -> web.StreamResponse:
    headers = {"Content-Encoding": sent.encoding} if sent.encoding else {}
    response = web.StreamResponse(status=sent.status, headers=headers)
    if sent.length is not None:
        response.content_length = sent.length
    await response.prepare(request)
    await response.write(sent.raw)
    async for more in _more(sent):
        await response.write(more)
    if sent.length is not None and sent.length > len(sent.raw):
        return drop(request)
    await response.write_eof()
    return response


async def _more(sent: Sent) -> AsyncIterator[bytes]:
    if sent.then:
        for more in repeat(sent.then):
            await asyncio.sleep(sent.every)
            yield more


def bomb(size: int) -> bytes:
    """So many zeros, in a thousandth."""
    return gzip.compress(bytes(size), 6)
