"""The servers that answer for one teacher: work goes where there is room.

One endpoint is the usual case: its breaker and its gate are all there is. With several, requests
wait in one queue, first come, first served; whichever endpoint has a free slot, a closed breaker
and the shortest wait for its limit takes the head. An endpoint that has not answered yet gets one
request at a time (its canary). A sick one is probed by its own breaker while the others work; one
that refuses (key, quota, model) or is given up rests and is tried again; when all of them rest,
the run stops with the last one's words. Knows nothing of the ledger or of money.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.breaker import Breaker
from engine.client import Client
from engine.concurrency import Adaptive, Gate
from engine.errors import RunStopped
from engine.limits import Limiter
from engine.prices import Price

QUEUE = 16  # requests that may wait at the limit of one of several endpoints
FIRST_REST, LONGEST_REST = 60.0, 900.0


@dataclass(eq=False)
class Endpoint:
    """One server with its own key, limits and price. `number`: its id in the ledger."""

    number: int
    url: str
    price: Price
    client: Client
    limiter: Limiter
    breaker: Breaker
    gate: Gate
    most: int
    adaptive: Adaptive | None = None
    proven: bool = False  # it has answered in this run
    queued: int = 0  # admitted, and waiting for its limit
    rest: float = 0.0  # seconds of the last rest
    rested_until: float = 0.0
    refusal: str = ""

    def answered(self) -> None:
        """A server that tells its limits in its headers is paced by them, not by latency."""
        self.proven, self.rest, self.refusal = True, 0.0, ""
        if self.adaptive and self.limiter.knows_limits:
            self.adaptive = None
            self.gate.resize(self.most)

    @property
    def slots(self) -> int:
        return self.gate.limit if self.proven else 1


@dataclass(eq=False, slots=True)
class Admitted:
    """A slot at an endpoint. `probe`: it goes as a probe of the endpoint's breaker."""

    endpoint: Endpoint
    probe: bool
    is_queued: bool = True


class Teacher:
    """One or several endpoints with the same model, shared by all stages that ask it."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = list(endpoints)
        self._loop = asyncio.get_running_loop()
        self._waiters: deque[asyncio.Future[Admitted]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_one(self) -> bool:
        return len(self.endpoints) == 1

    @property
    def slots(self) -> int:
        """Requests that may be in flight together at the moment."""
        return sum(e.gate.limit for e in self.endpoints)

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

    async def admit(self, first: bool) -> Admitted:
        """Waits for a slot; leave() gives it back. `first`: ahead of the queue (a retry)."""
        if not self.is_one:
            return await self._wait(first)
        (endpoint,) = self.endpoints
        probe = await endpoint.breaker.admit()
        try:
            await endpoint.gate.enter(first)
        except BaseException:
            endpoint.breaker.abandoned(probe)
            raise
        endpoint.queued += 1
        return Admitted(endpoint, probe)

    def sent(self, admitted: Admitted) -> None:
        """It waits for the endpoint's limit no longer."""
        if admitted.is_queued:
            admitted.is_queued = False
            admitted.endpoint.queued -= 1
            self.wake()

    def leave(self, admitted: Admitted) -> None:
        self.sent(admitted)
        admitted.endpoint.gate.leave()
        admitted.endpoint.breaker.abandoned(admitted.probe)
        self.wake()

    def put_to_rest(self, endpoint: Endpoint, reason: RunStopped) -> None:
        """An endpoint refused or was given up. Raises the reason when no other is left."""
        if not (endpoint.refusal and self._loop.time() < endpoint.rested_until):
            endpoint.rest = min(LONGEST_REST, 2 * endpoint.rest or FIRST_REST)
            endpoint.rested_until = self._loop.time() + endpoint.rest
            endpoint.refusal, endpoint.proven = str(reason), False
        if all(e.refusal for e in self.endpoints):
            raise reason
        self.wake()

    def wake(self) -> None:
        """Something may have become free: lets go whoever may go now."""
        if self.is_one:
            return
        while self._waiters:
            if self._waiters[0].done():
                self._waiters.popleft()
            elif (admitted := self._take()) is not None:
                self._waiters.popleft().set_result(admitted)
            else:
                self._set_timer()
                return

    async def _wait(self, first: bool) -> Admitted:
        if not self._waiters and (admitted := self._take()) is not None:
            return admitted
        waiter: asyncio.Future[Admitted] = self._loop.create_future()
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self.wake()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.leave(waiter.result())
            raise

    def _take(self) -> Admitted | None:
        """A slot of the endpoint with the most room, if there is one."""
        now = self._loop.time()
        ready = [e for e in self.endpoints if _has_room(e, now)]
        if not ready:
            return None
        best = min(ready, key=lambda e: (e.queued, e.gate.in_flight / e.slots))
        best.gate.in_flight += 1
        best.queued += 1
        return Admitted(best, best.breaker.try_probe())

    def _set_timer(self) -> None:
        """Rests, pauses and probes end by themselves."""
        if self._timer:
            self._timer.cancel()
        now = self._loop.time()
        times = [t for e in self.endpoints if (t := _opens_at(e)) > now]
        self._timer = self._loop.call_at(min(times), self.wake) if times else None


def _opens_at(endpoint: Endpoint) -> float:
    """The loop's time before which nothing may go there, as far as that is known."""
    limiter = endpoint.limiter
    pause = limiter.now + limiter.paused_seconds if limiter.paused_seconds else 0.0
    return max(endpoint.rested_until, endpoint.breaker.opens_at, pause)


def _has_room(endpoint: Endpoint, now: float) -> bool:
    free = endpoint.gate.in_flight < endpoint.slots and endpoint.queued < QUEUE
    return free and endpoint.breaker.may_pass and _opens_at(endpoint) <= now
