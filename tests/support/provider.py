"""A misbehaving OpenAI-compatible chat provider on loopback: a real HTTP server for tests.

    python -m tests.support.provider --port 0 --config config.json --counts counts.jsonl
    async with Provider(Config(rpm=60, p_500=0.1)).running() as p: ... p.base_url, p.counts

A request meets: global states, refused parameters, poison, limits, the faults at the door (503,
429, reset_before: nothing is charged), the charge to the limits, work, the bill, the other faults.
It knows nothing of the engine that it tests. GET /counts and POST /control are for other processes.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from aiohttp import web

from tests.support.provider_bucket import Limits, Shortage, Slots, duration, retry_after
from tests.support.provider_chat import (
    Answer,
    Ask,
    Refused,
    content_key,
    draws,
    fall,
    lognormal,
    reply_body,
    understand,
    written,
)
from tests.support.provider_config import Config, Content, Counts
from tests.support.provider_replies import drop, huge, json_response, torn

__all__ = ["Config", "Content", "Counts", "Provider", "content_key"]

Luck = Sequence[float]  # 0-1: of the time it takes, of the length of its thinking
AT_THE_DOOR = ("503", "429", "reset_before")


class Provider:
    """One server. `config` is changed by `control`; `counts` may be read at any time."""

    def __init__(self, config: Config | None = None, counts_file: Path | None = None) -> None:
        self.config = config or Config()
        self.counts = Counts()
        self.base_url = ""
        self._counts_file = counts_file
        self._file: BinaryIO | None = None
        self._closing = False
        self._odds = self.config.odds()
        self._limits = new_limits(self.config)
        self._slots = Slots(self.config.knee, time.monotonic())

    @property
    def root_url(self) -> str:
        """Where /counts and /control are."""
        return self.base_url.removesuffix("/v1")

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[Provider]:
        """Serve on loopback; may be entered again afterwards, and counts on."""
        self._closing = False
        self._file = self._counts_file.open("ab", buffering=0) if self._counts_file else None
        runner = web.AppRunner(self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.01)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
            self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            yield self
        finally:
            self._closing = True
            await runner.cleanup()
            if self._file is not None:
                self._file.close()

    def control(self, **changes: Any) -> None:
        """Change the config from now on; levels of limits and queues carry over."""
        config, now = replace(self.config, **changes), time.monotonic()
        limits = new_limits(config)
        limits.carry(self._limits, now)
        self.config, self._odds, self._limits = config, config.odds(), limits
        self._slots.resize(self.config.knee, now)

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/counts", self._show_counts)
        app.router.add_post("/control", self._control)
        return app

    # The doors

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.counts.arrive()
        try:
            return await self._answer(request, await request.read())
        except Refused as refused:
            return self._refuse(request, refused)
        finally:
            self.counts.in_flight -= 1

    async def _models(self, request: web.Request) -> web.StreamResponse:
        try:
            self._check_access(request.headers)
        except Refused as refused:
            return self._refuse(request, refused)
        model = {"id": self.config.model, "object": "model", "created": 0, "owned_by": "tests"}
        return json_response({"object": "list", "data": [model]})

    async def _show_counts(self, request: web.Request) -> web.StreamResponse:
        """`?contents=0` leaves the contents out: they are many after a long run."""
        bare = request.query.get("contents") == "0"
        return json_response(replace(self.counts, contents={}) if bare else self.counts)

    async def _control(self, request: web.Request) -> web.StreamResponse:
        try:
            self.control(**orjson.loads(await request.read()))
        except (TypeError, ValueError) as wrong:
            return json_response(Refused("bad_request", str(wrong)).body, 400)
        return json_response(asdict(self.config))

    def _refuse(self, request: web.Request, refused: Refused) -> web.StreamResponse:
        if refused.status == 429:
            self.counts.rejected[refused.cause] += 1
        elif refused.cause not in self._odds:  # drawn faults are counted where they are drawn
            self.counts.faults[refused.cause] += 1
        if refused.status == 0:
            return drop(request)
        return json_response(refused.body, refused.status, refused.headers)

    # One question

    async def _answer(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        ask = self._understand(raw, request.headers.get("Idempotency-Key"))
        self._check_access(request.headers)
        self._check_ask(ask)
        fault, luck = self._admit(ask)
        early = self._rate_headers(200) if self.config.snapshot == "admission" else None
        body = await self._work(ask, fault, luck)
        headers = self._rate_headers(200) if early is None else early
        if fault == "huge":
            return await huge(request, body, self.config.huge_bytes, headers)
        return torn(body, headers) if fault == "truncate" else json_response(body, 200, headers)

    def _understand(self, raw: bytes, idempotency_key: str | None) -> Ask:
        ask = understand(raw, self.config.default_max_tokens, self.config.exact_tokens)
        counted = self.counts.contents.setdefault(ask.key, Content(ask.question[:80]))
        counted.asked += 1
        counted.idempotency_keys += [] if idempotency_key is None else [idempotency_key]
        return ask

    def _check_access(self, headers: Mapping[str, str]) -> None:
        c, key = self.config, headers.get("Authorization", "").removeprefix("Bearer ")
        if c.outage:
            raise Refused("outage", status=0 if c.outage_kind == "drop" else 503)
        if c.bad_key or (c.expect_key is not None and key != c.expect_key):
            raise Refused("bad_key")
        if c.forbidden:
            raise Refused("forbidden")

    def _check_ask(self, ask: Ask) -> None:
        c = self.config
        if c.dead_model:
            raise Refused("dead_model", f"The model `{ask.model}` does not exist.")
        for name in c.refuse_params:
            if name in ask.body:
                words = f"Unsupported parameter: '{name}' is not supported with this model."
                raise Refused("parameter", words, param=name)
        if c.efforts is not None and (effort := ask.body.get("reasoning_effort")) not in (None, *c.efforts):
            words = f"Unsupported value: 'reasoning_effort' does not support '{effort}' with this model."
            raise Refused("effort", words, param="reasoning_effort")
        if c.poison is not None and c.poison in ask.question:
            raise Refused("poison", status=c.poison_status)
        if c.quota_after is not None and self.counts.billed >= c.quota_after:
            raise Refused("quota")

    def _admit(self, ask: Ask) -> tuple[str | None, Luck]:
        """Let a request in and charge it, or refuse it; the fault it meets, and its luck."""
        now, (size, cost) = time.monotonic(), self._size(ask)
        if size > self._too_large():
            raise self._limited("too_large", f"Request too large for {ask.model}", size)
        if short := self._limits.shortage(cost, now):
            words = f"Rate limit reached for {ask.model}"
            raise self._limited(short.kind, words, cost if short.kind == "tokens" else 1, short)
        fault, luck = self._draw(ask)
        if fault in AT_THE_DOOR:
            raise Refused("spurious" if fault == "429" else fault)
        self._limits.take(1, cost, now)
        self.counts.admit(now, cost)
        if fault == "filter_400":
            raise Refused(fault)
        return fault, luck

    def _size(self, ask: Ask) -> tuple[float, float]:
        """In tokens: what is held against 'too large', and what is charged at admission."""
        if self.config.charge == "larger":
            return (max(ask.prompt_tokens, ask.max_tokens),) * 2
        both = ask.prompt_tokens + ask.max_tokens
        return both, both if self.config.charge == "upfront" else 0

    def _too_large(self) -> float:
        c, tokens = self.config, self._limits.tokens
        if c.too_large_tokens is not None:
            return c.too_large_tokens
        return math.inf if tokens is None or c.charge == "actual" else tokens.capacity

    def _limited(self, cause: str, words: str, asked: float, short: Shortage | None = None) -> Refused:
        """The 429 of a limit, with when to come back if that is known."""
        kind = "requests" if cause == "requests" else "tokens"
        bucket = self._limits.requests if kind == "requests" else self._limits.tokens
        unit = "requests per min (RPM)" if kind == "requests" else "tokens per min (TPM)"
        limit = bucket.per_minute if bucket else self._too_large()
        message = f"{words} on {unit}: Limit {limit:.0f}, Requested {asked:.0f}."
        if self.config.rejected_count:
            self._limits.count_rejected(time.monotonic())
        headers = self._rate_headers(429)
        if short is not None:
            message += f" Please try again in {duration(short.seconds)}."
            headers |= retry_after(self.config.retry_after, short.seconds)
        return Refused(cause, message, type=kind, headers=headers)

    def _draw(self, ask: Ask) -> tuple[str | None, Luck]:
        counted = self.counts.contents[ask.key]
        where, *luck = draws(self.config.seed, ask.key, counted.drawn)
        counted.drawn += 1
        fault = fall(where, self._odds)
        if fault is not None:
            self.counts.faults[fault] += 1
        return fault, luck

    def _rate_headers(self, status: int) -> dict[str, str]:
        shown = self.config.headers
        silent = shown == "none" or (shown == "limits_only_on_429" and status != 429)
        return {} if silent else self._limits.headers(time.monotonic())

    async def _work(self, ask: Ask, fault: str | None, luck: Luck) -> bytes:
        """Serve a request as long as it takes, bill it, hold it: the body of the reply."""
        c = self.config
        over = c.overrun_after is not None and self.counts.billed >= c.overrun_after
        given = written(ask, c, fault, luck[1], over)
        free = fault == "500" or (fault == "stall" and not c.stall_billed)
        try:
            service = lognormal(c.latency, c.latency_sigma, luck[0])
            service += c.token_seconds * given.completion_tokens
            await sleep_until(self._slots.finish(service, time.monotonic()))
        except asyncio.CancelledError:
            self._abandon(ask, given, c.bill_abandoned and not free)
            raise
        if not free:
            self._bill(ask, given)
        if fault == "stall":
            await asyncio.sleep(c.stall_seconds)
        if free or fault == "reset_after":
            raise Refused(str(fault))
        return reply_body(ask, given, fault, c.thinking_shown)

    def _abandon(self, ask: Ask, given: Answer, billed: bool) -> None:
        """The client hung up while we worked (and we are not shutting down)."""
        if not self._closing:
            self.counts.faults["abandoned"] += 1
            if billed:
                self._bill(ask, given)

    def _bill(self, ask: Ask, given: Answer) -> None:
        """Before the reply goes out, so that what is on disk is what was billed."""
        self.counts.bill(ask.key, given.prompt_tokens, given.completion_tokens)
        if self.config.charge == "actual":
            total = given.prompt_tokens + given.completion_tokens
            self._limits.take(0, total, time.monotonic())
            self.counts.charged_tokens += total
        if self._file is not None:
            self._file.write(orjson.dumps({"content": ask.key, "at": time.time()}) + b"\n")


def new_limits(c: Config) -> Limits:
    return Limits(c.rpm, c.tpm, c.bucket_seconds, time.monotonic())


async def sleep_until(moment: float) -> None:
    wait = moment - time.monotonic()
    if wait > 0:
        await asyncio.sleep(wait)


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def serve(port: int, config: Config, counts_file: Path | None) -> None:
    async with Provider(config, counts_file).running(port) as provider:
        print(f"listening on {provider.base_url}", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A misbehaving OpenAI-compatible provider.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--config", type=Path, help="a JSON object with fields of Config")
    parser.add_argument("--counts", type=Path, help="a line for each billed answer is added here")
    flags = parser.parse_args()
    config = Config(**orjson.loads(flags.config.read_bytes())) if flags.config else Config()
    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(flags.port, config, flags.counts))


if __name__ == "__main__":
    main()
