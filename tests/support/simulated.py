"""Servers in simulated time: one with rate limits, one with a queue. No HTTP, no waiting.

They keep their accounts with the same buckets and slots as the fake provider (provider_bucket.py).
To be used inside virtual_time.run().
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from engine.limits.charging import RequestSize
from engine.limits.rate_limiter import Limiter
from store.records import Usage
from tests.support import provider_bucket
from tests.support.virtual_time import now

Way = Literal["upfront", "larger", "actual"]


@dataclass(frozen=True)
class Question:
    """A request, and how long its answer will be."""

    size: RequestSize
    completion: int

    @property
    def usage(self) -> Usage:
        return Usage(self.size.prompt, self.completion)


@dataclass
class LimitedServer:
    """Charges one of three ways, tells its limits in headers, refuses what does not fit."""

    way: Way = "upfront"
    rpm: float | None = None
    tpm: float | None = None
    bucket_seconds: float = 60
    latency: float = 1.0
    token_seconds: float = 0.0
    silent: bool = False  # no headers
    early: bool = False  # headers tell the level at admission, not at the reply
    random: random.Random = field(default_factory=lambda: random.Random(7))
    served: list[tuple[float, float]] = field(default_factory=list)  # (time, tokens charged)
    refused: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.limits = provider_bucket.Limits(self.rpm, self.tpm, self.bucket_seconds, now())

    def headers(self) -> Mapping[str, str]:
        return {} if self.silent else self.limits.headers(now())

    def cost(self, question: Question) -> float:
        """In tokens, at admission."""
        size = question.size
        both = {
            "upfront": size.prompt + size.max_tokens,
            "larger": max(size.prompt, size.max_tokens),
        }
        return both.get(self.way, 0)

    async def ask(self, question: Question) -> tuple[provider_bucket.Shortage | None, Mapping[str, str]]:
        """(The limit that refused it, or None when it was answered; the headers.)"""
        cost = self.cost(question)
        if short := self.limits.shortage(cost, now()):
            self.refused.append(now())
            return short, self.headers()
        self.limits.take(1, cost, now())
        at_admission = self.headers()
        thinking = self.token_seconds * question.completion
        await asyncio.sleep(self.latency * self.random.lognormvariate(0, 0.3) + thinking)
        if self.way == "actual":
            cost = question.size.prompt + question.completion
            self.limits.take(0, cost, now())
        self.served.append((now(), cost))
        return None, at_admission if self.early else self.headers()

    def used(self, start: float, stop: float) -> tuple[float, float]:
        """Share of the limits (requests, tokens) that was used between two times."""
        inside = [tokens for at, tokens in self.served if start <= at < stop]
        minutes = (stop - start) / 60
        requests = len(inside) / (self.rpm * minutes) if self.rpm else 0.0
        return requests, sum(inside) / (self.tpm * minutes) if self.tpm else 0.0


def questions(
    seed: int = 1, prompt: float = 100, completion: float = 120, most: int = 512
) -> Iterator[Question]:
    """An endless pool: lengths are lognormal, completions end at `most`."""
    source = random.Random(seed)
    while True:
        long = min(most, round(source.lognormvariate(0, 0.6) * completion))
        yield Question(RequestSize(round(source.lognormvariate(0, 0.4) * prompt), most), max(1, long))


def thoughts(seed: int = 1, most: int = 512 + 16_384) -> Iterator[Question]:
    """Of a teacher that thinks: 1,350 tokens on average, and now and then all of its bound."""
    source = random.Random(seed)
    while True:
        thinking, answer = source.lognormvariate(0, 1) * 700, source.lognormvariate(0, 0.6) * 200
        long = most if source.random() < 0.03 else min(most, round(thinking + answer))
        yield Question(RequestSize(round(source.lognormvariate(0, 0.4) * 60), most), long)


async def drive(
    limiter: Limiter,
    server: LimitedServer,
    seconds: float,
    outstanding: int = 256,
    pool: Iterator[Question] | None = None,
) -> None:
    """Asks through the limiter until `seconds` have passed, as the runner does: a canary goes first."""
    pool = pool or questions()
    await _ask(limiter, server, next(pool))
    end = now() + seconds

    async def worker() -> None:
        while now() < end:
            await _ask(limiter, server, next(pool))

    workers = [asyncio.ensure_future(worker()) for _ in range(outstanding)]
    await asyncio.sleep(seconds)
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


async def _ask(limiter: Limiter, server: LimitedServer, question: Question) -> None:
    first = False
    while True:
        ticket = await limiter.reserve(question.size, first)
        short, headers = await server.ask(question)
        if short is None:
            return limiter.settle(ticket, question.usage, headers)
        limiter.limited(ticket, short.seconds, short.kind, headers)
        first = True


@dataclass
class QueueingServer:
    """`knee` at a time, each `service` seconds; the others wait in line. No limits are told."""

    knee: int
    service: float = 0.5
    replies: list[float] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(11))

    def __post_init__(self) -> None:
        self.slots = provider_bucket.Slots(self.knee, now())

    def resize(self, knee: int) -> None:
        self.knee = knee
        self.slots.resize(knee, now())

    async def ask(self) -> float:
        """The latency of the reply."""
        started = now()
        service = self.service * self.random.lognormvariate(0, 0.25)
        await asyncio.sleep(self.slots.finish(service, started) - started)
        self.replies.append(now())
        return now() - started

    def throughput(self, start: float, stop: float) -> float:
        return sum(start <= at < stop for at in self.replies) / (stop - start)
