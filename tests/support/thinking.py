"""A teacher on loopback that thinks before it answers, and now and then uses its bound up without an answer.

    async with teaching(Thinker(empty=0.03)) as server: ... server.url, server.bill

Replies are drawn by the row and the number of the attempt, so that they are the same in every order.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import orjson
from aiohttp import web

NORMAL = NormalDist()


@dataclass(frozen=True)
class Thinker:
    """median and sigma: of the log-normal tokens of thinking; answer: tokens of every answer; empty: the
    share of replies that think to their bound; tells: whether usage says how much was thought; refuses:
    parameters that are answered with a 400; silent: rows whose reply comes without usage, by their words."""

    median: float = 300
    sigma: float = 1.0
    answer: int = 40
    empty: float = 0.0
    tells: bool = True
    refuses: tuple[str, ...] = ()
    silent: str = "no usage"
    seed: int = 0


@dataclass
class Server:
    url: str
    bill: Counter[str] = field(default_factory=Counter)  # prompt, completion, reasoning, replies, empty
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: Counter[str] = field(default_factory=Counter)


def luck(*seeds: object) -> tuple[float, float]:
    """Two numbers inside (0, 1)."""
    digest = hashlib.sha256(":".join(map(str, seeds)).encode()).digest()
    return tuple((int.from_bytes(digest[n : n + 4], "big") + 0.5) / 2**32 for n in (0, 4))  # type: ignore[return-value]


def said(thinker: Thinker, row: str, times: int, bound: int) -> tuple[int, bool]:
    """(tokens of thinking, whether they left no room for an answer)."""
    one, two = luck(thinker.seed, row, times)
    thought = round(thinker.median * math.exp(thinker.sigma * NORMAL.inv_cdf(one)))
    if two < thinker.empty or thought + thinker.answer > bound:
        return bound, True
    return thought, False


def reply(thinker: Thinker, server: Server, body: dict[str, Any]) -> dict[str, Any]:
    row = body["messages"][-1]["content"]
    bound = body.get("max_completion_tokens") or body.get("max_tokens") or 10**6
    thought, is_empty = said(thinker, row, server.times[row], bound)
    server.times[row] += 1
    completion = thought if is_empty else thought + thinker.answer
    prompt = len(row.split()) + 8
    server.bill.update(prompt=prompt, completion=completion, reasoning=thought, replies=1, empty=is_empty)
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    usage["total_tokens"] = prompt + completion
    if thinker.tells:
        usage["completion_tokens_details"] = {"reasoning_tokens": thought}
    message = {"role": "assistant", "content": "" if is_empty else f"An answer to: {row}"}
    message["reasoning_content"] = f"Thinking of: {row[-40:]}"
    choice = {"index": 0, "message": message, "finish_reason": "length" if is_empty else "stop"}
    made = {"object": "chat.completion", "model": body["model"], "choices": [choice]}
    return made if thinker.silent in row else {**made, "usage": usage}


@asynccontextmanager
async def teaching(thinker: Thinker) -> AsyncIterator[Server]:
    server = Server("")

    async def chat(request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        server.bodies.append(body)
        for name in thinker.refuses:
            if name in body:
                words = f"Unsupported parameter: '{name}' is not supported with this model."
                error = {"message": words, "code": "unsupported_parameter", "param": name}
                return web.json_response({"error": error}, status=400)
        return web.json_response(reply(thinker, server, body))

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()
