"""The servers that answer for one teacher: work goes where there is room.

One endpoint is the usual case: its breaker, its gate and its limiter are all there is. With several,
requests wait in one queue, first come, first served, and are bound to an endpoint only when they may
go there at once: a free slot, a closed breaker, and room in its limits, whose tickets are taken with
the slot. So nobody waits at one endpoint while another is free. An endpoint that has not answered yet
gets one request at a time (its canary). A sick one is probed by its own breaker while the others
work; one that refuses (key, quota, model) or is given up rests and is tried again; when all of them
rest, the run stops with the last one's words. Knows nothing of the ledger or of money.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from engine.limits.charging import RequestSize
from engine.limits.circuit_breaker import Breaker, Effort
from engine.limits.concurrency import Adaptive, Gate
from engine.limits.rate_limiter import Limiter, Ticket
from engine.provider.client import Client
from engine.provider.errors import RunStopped
from engine.provider.pricing import Prices

FIRST_REST, LONGEST_REST = 60.0, 900.0


@dataclass(eq=False)
class Endpoint:
    """One server with its own key, limits and price. `number`: its id in the ledger."""

    number: int
    url: str
    price: Prices
    client: Client
    limiter: Limiter
    breaker: Breaker
    gate: Gate
    most: int
    adaptive: Adaptive | None = None
    proven: bool = False  # it has answered in this run
    answered_before: bool = False  # it has answered in an earlier run, under the settings of a stage of this
    refusals: int = 0  # of rows, since it has answered
    rest: float = 0.0  # seconds of the last rest
    rested_until: float = 0.0
    refusal: str = ""

    def answered(self) -> None:
        """A server that tells its limits in its headers is paced by them, not by latency. What it
        says while it rests was asked before: that is no sign of recovery."""
        if not self.rested_until or self.limiter.now >= self.rested_until:
            self.proven, self.refusals, self.rest, self.refusal = True, 0, 0.0, ""
        if self.adaptive and (self.limiter.requests.limit or self.limiter.tokens.limit):
            self.adaptive = None
            self.gate.resize(self.most)

    @property
    def has_answered(self) -> bool:
        return self.proven or self.answered_before

    @property
    def slots(self) -> int:
        return self.gate.limit if self.proven else 1


@dataclass(eq=False, slots=True)
class Admitted:
    """A slot at an endpoint, for a request of a `size`. `probe`: it goes as a probe of the endpoint's
    breaker; `ticket`: what is reserved of its limits, until somebody takes it."""

    endpoint: Endpoint
    size: RequestSize
    probe: bool
    ticket: Ticket | None = None


@dataclass(eq=False, slots=True)
class _Admission:
    size: RequestSize
    effort: Effort
    future: asyncio.Future[Admitted]


class Teacher:
    """One or several endpoints with the same model, shared by all stages that ask it."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints, self.is_one = list(endpoints), len(endpoints) == 1
        self._loop = asyncio.get_running_loop()
        self._waiters: deque[_Admission] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._over: RunStopped | None = None  # all of them refused

    @property
    def wants_another(self) -> bool:
        """Whether every server seems down for reasons that may be the rows' own, and only rows wait that
        have failed."""
        rows = [waiter.effort for waiter in self._waiters]
        return all(e.breaker.wants_another for e in self.endpoints) and all(effort.asks for effort in rows)

    def utilisation(self) -> dict[str, Any]:
        """Share of each limit that was used, 0-1; None: no limit. Of several servers: their limits
        taken together, and each under `endpoints`."""
        each = {e.url: e.limiter.utilisation() for e in self.endpoints}
        if self.is_one:
            return dict(*each.values())
        return {**{name: self._together(name) for name in ("requests", "tokens")}, "endpoints": each}

    def _together(self, name: str) -> float | None:
        used = [(e.limiter.utilisation()[name], getattr(e.limiter, name).limit) for e in self.endpoints]
        limited = [(share, limit) for share, limit in used if share is not None]
        total = sum(limit for _, limit in limited)
        return sum(share * limit for share, limit in limited) / total if total else None

    async def admit(self, size: RequestSize, effort: Effort) -> Admitted:
        """Waits for a slot; leave() gives it back. A retry goes ahead of the queue."""
        if not self.is_one:
            return await self._wait(_Admission(size, effort, self._loop.create_future()))
        (endpoint,) = self.endpoints
        probe = endpoint.breaker.opened_at is not None and await endpoint.breaker.admit(effort)
        if not endpoint.gate.try_enter():
            try:
                await endpoint.gate.enter(first=effort.asks > 0)
            except BaseException:
                if probe:
                    endpoint.breaker.abandoned()
                raise
        return Admitted(endpoint, size, probe)

    def leave(self, admitted: Admitted) -> None:
        endpoint = admitted.endpoint
        if admitted.ticket:
            endpoint.limiter.unsent(admitted.ticket)
        endpoint.gate.leave()
        if admitted.probe:
            endpoint.breaker.abandoned()
        if not self.is_one:
            self.wake()

    def put_to_rest(self, endpoint: Endpoint, reason: RunStopped) -> None:
        """An endpoint refused or was given up. Raises the reason when no other is left."""
        if not (endpoint.refusal and self._loop.time() < endpoint.rested_until):
            endpoint.rest = min(LONGEST_REST, 2 * endpoint.rest or FIRST_REST)
            endpoint.rested_until = self._loop.time() + endpoint.rest
            endpoint.refusal, endpoint.proven = str(reason), False
        if all(e.refusal for e in self.endpoints):
            self._end(reason)
            raise reason
        self.wake()

    def _end(self, reason: RunStopped) -> None:
        """Whoever waits here, of any stage, hears of it."""
        self._over = reason
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_exception(reason)
        self._waiters.clear()

    def wake(self) -> None:
        """Something may have become free: lets go whoever may go now. The head of the queue is not
        overtaken, unless it waits for less than all endpoints."""
        if self.is_one:
            return
        passed: list[_Admission] = []
        soonest = inf
        while self._waiters:
            waiter = self._waiters[0]
            if not waiter.future.done():
                admitted, opens = self._take(waiter)
                if admitted is not None:
                    waiter.future.set_result(admitted)
                else:
                    soonest = min(soonest, opens)
                    if not (waiter.effort.refused_by or self._is_passed(waiter)):
                        break
                    passed.append(waiter)
            self._waiters.popleft()
        self._waiters.extendleft(reversed(passed))
        self._set_timer(soonest)

    def _is_passed(self, waiter: _Admission) -> bool:
        """Whether a row that has not been tried yet goes before one that has: as the probe of a server
        whose failures may be the rows' own."""
        if not waiter.effort.asks or not all(e.breaker.wants_another for e in self.endpoints):
            return False
        return any(not (w.effort.asks or w.future.done()) for w in self._waiters)

    async def _wait(self, waiter: _Admission) -> Admitted:
        if self._over:
            raise self._over
        if waiter.effort.asks > 0:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self.wake()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.cancelled():
                self.wake()
            elif waiter.future.exception() is None:
                self.leave(waiter.future.result())
            raise

    def _take(self, waiter: _Admission) -> tuple[Admitted | None, float]:
        """A slot of the endpoint with the most room, if there is one; else when to look again, as
        far as that is known. One that has failed since its last success is for when the others are full.
        """
        now, ready, soonest = self._loop.time(), [], inf
        for endpoint in () if self._is_passed(waiter) else self._candidates(waiter.effort):
            if endpoint.gate.in_flight < endpoint.slots and endpoint.breaker.may_pass:
                opens = _opens_at(endpoint, waiter.size, now)
                soonest = min(soonest, opens)
                if opens <= now:
                    ready.append(endpoint)
        if not ready:
            return None, soonest
        best = min(ready, key=lambda e: (e.breaker.failures, e.gate.in_flight / e.slots))
        best.gate.in_flight += 1
        return Admitted(best, waiter.size, best.breaker.try_probe(), best.limiter.take(waiter.size)), now

    def _candidates(self, effort: Effort) -> list[Endpoint]:
        """A request that some refused goes to the others, as long as one of these is well."""
        others = [e for e in self.endpoints if e.number not in effort.refused_by]
        well = any(not (e.refusal or e.breaker.is_open) for e in others)
        return others if well else self.endpoints

    def _set_timer(self, at: float) -> None:
        """Limits, rests, pauses and probes end by themselves."""
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self.wake) if at < inf else None


def _opens_at(endpoint: Endpoint, size: RequestSize, now: float) -> float:
    """The loop's time before which a request may not go there, as far as that is known."""
    closed = max(endpoint.rested_until, endpoint.breaker.opens_at)
    return closed if closed > now else now + endpoint.limiter.wait(size)
