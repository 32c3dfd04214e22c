"""A student's server as a process of its own, for tests that come in through HTTP."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.support import tiny
from tests.support.cli import ROOT

QUESTION = "Say sea."
ON_CPU = tiny.env() | {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Place:
    """Where it serves, under which name."""

    url: str
    model: str

    def body(self, **changes: Any) -> dict[str, Any]:
        asked = {"model": self.model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
        return asked | changes


@contextlib.contextmanager
def served(folder: Path, *more: object) -> Iterator[Place]:
    command = [sys.executable, "-P", "-m", "engine", "serve", folder, "--port", 0, *more]
    server = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=ON_CPU, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert server.stdout
        line = server.stdout.readline().decode()
        assert line.startswith("serving "), server.communicate()[1].decode()
        yield Place(line.split(" at ")[1].split(" ")[0], line.rsplit(": ", 1)[1].rstrip(")\n"))
        assert server.poll() is None
    finally:
        server.terminate()
        _, said = server.communicate(timeout=tiny.SECONDS)
    assert server.returncode == 0, said.decode()
    assert b"Traceback" not in said, said.decode()


@contextlib.asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as found:
        yield found


async def ask(client: aiohttp.ClientSession, place: Place, **changes: Any) -> dict[str, Any]:
    async with client.post(f"{place.url}/chat/completions", json=place.body(**changes)) as response:
        found: dict[str, Any] = await response.json()
        assert response.status == 200, found
    return found


def texts(reply: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] for choice in reply["choices"]]
