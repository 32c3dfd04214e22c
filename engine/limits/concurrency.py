"""How many requests may be in flight, where no limit is declared: latency and errors tell.

A gradient scheme after Netflix's concurrency-limits (Gradient2) and TCP Vegas: after each
window of replies the level becomes `level x (unloaded latency / latency now) + headroom`,
so a server's queue shows as a fall of the gradient before anything fails; errors that mean
overload cut it multiplicatively (AIMD). Latency is taken per window as a median, in seconds
an answer of the usual length. Every so often a window runs with less, to measure the unloaded
latency anew, so that a server that became slower is not taken for a full one.
"""

import asyncio
import math
import statistics
from collections import deque

START = 8
FLOOR = 1
GROWTH = 2.0  # a window, until the first sign of queueing
TOLERANCE = 1.15  # latency may rise by this before it counts as queueing
SMOOTHING = 0.5
CUT = 0.7
PROBE_EVERY = 20  # windows
PROBE_SHARE = 0.6
MIN_WINDOW = 8  # replies
# In seconds. The loop's clock counts milliseconds: a quicker server's latency reads as 0, and what is
# measured below is our own noise, not its queue.
SHORTEST = 0.001


class Gate:
    """FIFO slots, `limit` of them. Retries enter ahead of the queue."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    def try_enter(self) -> bool:
        """Takes a slot that is free, unless others wait for it."""
        if self.in_flight >= self.limit or self._waiters:
            return False
        self.in_flight += 1
        return True

    async def enter(self, first: bool = False) -> None:
        if self.try_enter():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        self.in_flight -= 1
        if self._waiters:
            self._admit()

    def resize(self, limit: int) -> None:
        self.limit = limit
        self._admit()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def _admit(self) -> None:
        while self._waiters and self.in_flight < self.limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(None)


class Adaptive:
    """Resizes a gate from the latencies and errors of what went through it."""

    def __init__(self, gate: Gate, most: int) -> None:
        self._gate, self._most = gate, most
        self._level = float(min(START, most))
        self._unloaded: float | None = None
        self._latencies: list[float] = []
        self._busiest = 0
        self._overloaded = False
        self._growing = True
        self._windows = 0
        self._probe = False
        self._skip = 0  # replies to requests that were sent before the last change
        gate.resize(int(self._level))

    def replied(self, latency: float) -> None:
        """An answer came, `latency` seconds after it was asked."""
        self._busiest = max(self._busiest, self._gate.in_flight)
        if self._skip > 0:
            self._skip -= 1
            return
        self._latencies.append(latency)
        if len(self._latencies) >= max(MIN_WINDOW, self._gate.limit // (2 if self._probe else 1)):
            self._close_window()

    def overloaded(self) -> None:
        """A 429, a 503 or a time-out: once a window this cuts the level."""
        if not self._overloaded:
            self._overloaded, self._growing = True, False
            self._set(self._level * CUT)

    def _close_window(self) -> None:
        latency = max(SHORTEST, statistics.median(self._latencies))
        used = self._busiest >= 0.9 * self._gate.limit
        self._windows += 1
        if self._probe:
            self._unloaded, self._probe = latency, False
            self._restart(self._level)
        elif self._windows % PROBE_EVERY == 0 and not self._growing:
            self._probe = True
            self._restart(self._level * PROBE_SHARE, keep=True)
        else:
            self._unloaded = latency if self._unloaded is None else min(self._unloaded, latency)
            gradient = min(1.0, TOLERANCE * self._unloaded / latency)
            if gradient < 0.9:
                self._growing = False
            self._restart(self._next_level(gradient, used))

    def _next_level(self, gradient: float, used: bool) -> float:
        if not used and gradient >= 1.0:  # the level was not what held us back
            return self._level
        if self._growing:
            return self._level * GROWTH
        target = self._level * gradient + max(1.0, 0.5 * math.sqrt(self._level))
        return self._level + SMOOTHING * (target - self._level)

    def _restart(self, level: float, keep: bool = False) -> None:
        self._set(level, keep)
        self._latencies.clear()
        self._busiest, self._overloaded = 0, False
        self._skip = self._gate.in_flight

    def _set(self, level: float, keep: bool = False) -> None:
        level = min(float(self._most), max(float(FLOOR), level))
        if not keep:
            self._level = level
        self._gate.resize(max(FLOOR, round(level)))
