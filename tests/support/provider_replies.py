"""How replies of the fake provider (provider.py) leave: whole, torn, huge, or not at all.

Knows aiohttp and bytes; what is said, and why, is decided elsewhere.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

import orjson
from aiohttp import web

RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: closing sends RST
SPACES = b" " * 65536


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    raw = body if isinstance(body, bytes) else orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)
    found = {"Content-Type": "application/json"} | dict(headers or {})
    return web.Response(body=raw, status=status, headers=found)


def torn(body: bytes, headers: dict[str, str]) -> web.Response:
    """Half of a reply that says it is whole."""
    response = json_response(body[: len(body) // 2], 200, {"Content-Length": str(len(body))} | headers)
    response.force_close()
    return response


async def huge(request: web.Request, body: bytes, size: int, headers: dict[str, str]) -> web.StreamResponse:
    """A reply with spaces behind it, up to `size` bytes."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"} | headers)
    response.content_length = max(size, len(body))
    await response.prepare(request)
    await response.write(body)
    for start in range(len(body), size, len(SPACES)):
        await response.write(SPACES[: size - start])
    await response.write_eof()
    return response


def drop(request: web.Request) -> web.Response:
    """Reset the connection; the response that is returned goes nowhere."""
    if request.transport is not None:
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        request.transport.abort()
    return web.Response()
