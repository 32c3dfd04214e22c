"""Small servers for tests, told word for word what to say: over HTTP, or on the bare connection.

For replies that the provider (provider.py) cannot give, since it is a sane server with faults.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def completion(
    text: str = "Fine.",
    *,
    finish_reason: str = "stop",
    model: str = "teacher",
    usage: dict[str, Any] | None = USAGE,
) -> bytes:
    """A chat completion in ASCII; lone surrogates stay, as the escapes that some servers send."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": model, "choices": [choice]}
    return json.dumps(body if usage is None else body | {"usage": usage}).encode()


@asynccontextmanager
async def scripted(reply: Reply) -> AsyncIterator[str]:
    """Serves `reply` as the chat API on loopback; yields the base URL."""
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", reply)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[str]:
    """Serves connections byte by byte."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
