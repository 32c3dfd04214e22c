"""What servers with a chat API send, as data: how a behaviour is described, and a server that behaves so.

    async with serving(by_row(REPLIES)) as server: ... server.url, server.log

The behaviours are in dialects_replies.py (rows of one run, each with an odd reply), dialects_refusals.py
(rows of one run, each refused in other words), dialects_money.py (usage and prices) and dialects_runs.py
(servers that need a run of their own). Bodies follow public reports of what providers send; the text is ours
where the wording does not matter.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

JSON = "application/json"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
PRICE_IN, PRICE_OUT = 10, 30  # USD a million tokens, which is micro-dollars a token
COST = 10 * PRICE_IN + 5 * PRICE_OUT  # of a reply with USAGE, in micro-dollars

Body = bytes | str | dict[str, Any] | list[Any]


@dataclass(frozen=True)
class Sent:
    """One reply. What depends on the time of the reply is a function: the body, or a header."""

    body: Body | Callable[[], Body]
    status: int = 200
    headers: Mapping[str, str | Callable[[], str]] = field(default_factory=dict)
    type: str = JSON

    def response(self) -> web.Response:
        body = self.body() if callable(self.body) else self.body
        if isinstance(body, str):
            body = body.encode()
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {name: value() if callable(value) else value for name, value in self.headers.items()}
        return web.Response(body=raw, status=self.status, headers={"Content-Type": self.type, **headers})


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it. number: of all, from 0; times: of this row, from 0."""

    at: float
    number: int
    times: int
    row: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


Serve = Callable[[Asked], Sent]


@dataclass(frozen=True)
class Row:
    """A pool row whose name is its instruction, what the server says to it one after the other (the last
    again and again), and what is wanted.

    outcome: accepted ones, with | between them; a failure is "!" and its cause, "!" alone any failure.
    asked: how many requests the server sees, or the least and the most. cost: micro-dollars of all replies.
    listed: the same by our own price, where the server told its price. counted: whether the tokens are by our
    own count. retried: causes under which attempts were recorded before the row ended.
    """

    name: str
    sent: tuple[Sent, ...]
    outcome: str = "stop"
    asked: int | tuple[int, int] = 1
    output: str | None = None
    reasoning: str | None = None
    cost: int | tuple[int, int] | None = None
    listed: int | None = None
    counted: bool | None = None
    retried: str | None = None
    says: str | None = None  # words of the server that the failure keeps
    pad: int = 0  # words of the instruction behind its name

    @property
    def text(self) -> str:
        return self.name + " word" * self.pad


@dataclass
class Server:
    url: str
    root: str
    log: list[Asked]

    @property
    def asked(self) -> Counter[str]:
        return Counter(asked.row for asked in self.log)


def chat(
    content: Any = "Fine.",
    finish: Any = "stop",
    *,
    usage: Any = USAGE,
    message: dict[str, Any] | None = None,
    choice: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A chat completion. `finish` and `usage` are left out where they are Ellipsis."""
    said = {"role": "assistant", "content": content, **(message or {})}
    one: dict[str, Any] = {"index": 0, "message": said, "finish_reason": finish, **(choice or {})}
    if finish is ...:
        del one["finish_reason"]
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "teacher"}
    return {**body, "choices": [one], **({} if usage is ... else {"usage": usage}), **more}


def used(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    """Usage in the names of the API, with a total that fits where both are counts."""
    total = {"total_tokens": prompt + completion} if isinstance(prompt, int) else {}
    return {"prompt_tokens": prompt, "completion_tokens": completion, **total, **more}


def says(message: str, code: Any = None, type: Any = None, **more: Any) -> dict[str, Any]:
    """An error body as OpenAI writes it."""
    return {"error": {"message": message, "type": type, "param": None, "code": code, **more}}


def reply(*arguments: Any, **more: Any) -> Sent:
    return Sent(chat(*arguments, **more))


def error(status: int, body: Body | Callable[[], Body], type: str = JSON, **headers: str) -> Sent:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Sent(body, status, named, type)


def refusal(status: int, /, *arguments: Any, **more: Any) -> Sent:
    return Sent(says(*arguments, **more), status)


def anthropic(status: int, type: str, message: str) -> Sent:
    return Sent({"type": "error", "error": {"type": type, "message": message}}, status)


def events(*said: dict[str, Any], done: bool = True) -> bytes:
    """Server-sent events, as a stream sends them."""
    lines = [b"data: " + orjson.dumps(each) for each in said] + [b"data: [DONE]"] * done
    return b"\n\n".join(lines) + b"\n\n"


def chunk(text: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One piece of a streamed completion."""
    delta = {} if text is None else {"role": "assistant", "content": text}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "teacher"}
    return {**body, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


GOOD = reply("Fine after all.")


def healed(name: str, sent: Sent, **more: Any) -> Row:
    """An odd reply once, then a good one."""
    return Row(name, (sent, GOOD), "stop", 2, output="Fine after all.", **more)


def read(name: str, sent: Sent, output: str, reasoning: str | None = None, outcome: str = "stop") -> Row:
    return Row(name, (sent,), outcome, 1, output=output, reasoning=reasoning)


def good(asked: Asked) -> Sent:
    return reply(f"Fine: {asked.row}")


def by_row(rows: Iterable[Row]) -> Serve:
    """Each row its own replies; all others are answered well."""
    sent = {row.text: row.sent for row in rows}

    def serve(asked: Asked) -> Sent:
        own = sent.get(asked.row)
        return good(asked) if own is None else own[min(asked.times, len(own) - 1)]

    return serve


def after(count: int, sent: Sent) -> Serve:
    """So many good answers, then only this."""
    return lambda asked: good(asked) if asked.number < count else sent


def always(sent: Sent) -> Serve:
    return lambda _: sent


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[Server]:
    """A server on loopback that takes any method and path."""
    log: list[Asked] = []
    times: Counter[str] = Counter()

    async def answer(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = orjson.loads(raw) if raw else {}
        row = body["messages"][-1]["content"] if body else ""
        headers = dict(request.headers)
        asked = Asked(time.time(), len(log), times[row], row, request.method, request.raw_path, headers, body)
        log.append(asked)
        times[row] += 1
        await asyncio.sleep(0)
        return serve(asked).response()

    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        root = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield Server(f"{root}/v1", root, log)
    finally:
        await runner.cleanup()
