"""The limiter: requests and tokens a minute and a day, reserved before sending, settled after.

First come, first served: the head of the queue waits for its own room and nobody overtakes it,
so a long prompt is not starved by short ones; one larger than the bucket goes when the bucket
is full and leaves a debt. A retry stands at the head: it has waited its turn already. A 429
pauses everyone. How the limit is reached without being told how the provider charges is in
bucket.py (pace from headers) and charging.py (which of three ways). aiolimiter is not used for
this: it wakes its waiters by amount, smallest first (it paces the canaries, which are equal).
The clock is the event loop's; the computer's clock may jump.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.limits.bucket import Bucket, DayWindow, Sent
from engine.limits.charging import Charge, Charging, Levels, RequestSize
from engine.provider.retry_after import SILENT, read_limits
from store.records import Usage

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 60.0
RECOVERY = 0.01  # of the limit, a second, after 429s that no header explained
CUT = 0.97


@dataclass(slots=True)
class Ticket:
    """A reservation: what was taken from each bucket, to be settled once."""

    size: RequestSize
    at: float
    requests: Sent
    tokens: Sent
    levels: Levels | None  # at admission, by way of charging


@dataclass(slots=True)
class _Waiter:
    size: RequestSize
    future: asyncio.Future[Ticket]


class Limiter:
    """Shared by all requests of an endpoint. `reserve`, send, then `settle` or `limited`."""

    def __init__(
        self,
        rpm: float | None = None,
        tpm: float | None = None,
        rpd: float | None = None,
        tpd: float | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.requests, self.tokens = Bucket(rpm), Bucket(tpm)
        self.day_requests, self.day_tokens = DayWindow(rpd), DayWindow(tpd)
        self._has_day_limits = rpd is not None or tpd is not None
        self.charging = Charging()
        self.limited_count = 0
        self.started: float | None = None
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._queue: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._paused_at, self._paused_until = -1.0, -1.0
        self._pauses = 0  # since the last success
        self._recovered = 0.0

    def __repr__(self) -> str:
        return f"<Limiter {self.requests} {self.tokens} queue {len(self._queue)}>"

    async def reserve(self, size: RequestSize, first: bool = False) -> Ticket:
        """Waits until the request may be sent. `first`: ahead of the queue (a retry)."""
        if not self._queue:
            now, cost = self._clock(), self.charging.expected(size)
            if self._seconds(cost, now) <= 0:
                return self._take(size, cost, now)
        waiter = _Waiter(size, self._loop.create_future())
        if first:
            self._queue.appendleft(waiter)
        else:
            self._queue.append(waiter)
        self._wake()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                self.unsent(waiter.future.result())
            raise

    def unsent(self, ticket: Ticket) -> None:
        """Gives a reservation back whole: the request never went."""
        self.requests.settle(ticket.requests, 0.0)
        if self._has_day_limits:
            self.day_requests.add(-1, ticket.at)
        self._settle_tokens(ticket, 0.0)
        self._wake()

    def settle(self, ticket: Ticket, usage: Usage | None, headers: Mapping[str, str]) -> None:
        """A request has ended (`usage` None: without an answer); headers correct the picture."""
        used = usage.prompt_tokens + usage.completion_tokens if usage else None
        self._settle_tokens(ticket, self.charging.final(ticket.size, used))
        if usage and used is not None:
            self.charging.replied(ticket.size, used, usage.completion_tokens)
            if ticket.at >= self._paused_at:
                self._pauses = 0
        self._observe(ticket, headers)
        if self._queue or self._timer:
            self._wake()

    def refused(self, ticket: Ticket, headers: Mapping[str, str]) -> None:
        """The server would not take the row: it was charged no tokens, however many it has."""
        self.charging.refused(ticket.size)
        self._settle_tokens(ticket, 0.0)
        self._observe(ticket, headers)
        self._wake()

    def limited(self, ticket: Ticket, wait: float | None, kind: str, headers: Mapping[str, str]) -> None:
        """A 429: the request cost nothing, and all wait. Those sent before the pause began
        belong to the same incident and only prolong it if the server says so."""
        now = self._clock()
        self.limited_count += 1
        self.charging.refused(ticket.size)
        self._settle_tokens(ticket, 0.0)
        self._observe(ticket, headers)
        if ticket.at >= self._paused_at:
            self._paused_at = now
            self._pauses += 1
            backoff = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self._pauses - 1))
            self._pause_until(now + (wait if wait is not None else backoff * random.uniform(0.5, 1.0)))
            self._recovered = now
            self._blame(kind)
        elif wait is not None:
            self._pause_until(now + wait)
        self._wake()

    def _settle_tokens(self, ticket: Ticket, charged: float) -> None:
        if self._has_day_limits:
            self.day_tokens.add(charged - ticket.tokens.cost, ticket.at)
        self.tokens.settle(ticket.tokens, charged)

    @property
    def paused_seconds(self) -> float:
        """How long everyone waits still after a 429."""
        return max(0.0, self._paused_until - self._clock())

    @property
    def now(self) -> float:
        return self._clock()

    @property
    def pauses(self) -> int:
        """429 incidents since the last success."""
        return self._pauses

    @property
    def waiting(self) -> int:
        """Requests that stand in the queue."""
        return len(self._queue)

    @property
    def knows_limits(self) -> bool:
        return self.requests.limit is not None or self.tokens.limit is not None

    def utilisation(self) -> dict[str, float | None]:
        """Share of each limit that was used since the first request went; None: no limit.

        0-1: what a bucket had saved up before the start is a gift, not more than the limit.
        """
        passed = self._clock() - self.started if self.started is not None else 0.0
        return {
            name: min(1.0, bucket.total / (bucket.limit / 60 * passed))
            if bucket.limit and passed > 0
            else None
            for name, bucket in (("requests", self.requests), ("tokens", self.tokens))
        }

    def wait(self, size: RequestSize) -> float:
        """Seconds until a request could go, if nobody stood before it; 0 for now."""
        return max(0.0, self._seconds(self.charging.expected(size), self._clock()))

    def take(self, size: RequestSize) -> Ticket:
        """Reserves without waiting: what is short becomes a debt."""
        return self._take(size, self.charging.expected(size), self._clock())

    def _seconds(self, cost: float, now: float) -> float:
        """The same for a request of so many tokens; negative for now."""
        seconds = self._paused_until - now
        if self.requests.limit is not None:
            seconds = max(seconds, self.requests.wait(1, now))
        if self.tokens.limit is not None:
            seconds = max(seconds, self.tokens.wait(cost, now))
        if self._has_day_limits:
            seconds = max(seconds, self.day_requests.wait(1, now), self.day_tokens.wait(cost, now))
        return seconds

    def _take(self, size: RequestSize, cost: float, now: float) -> Ticket:
        if self.started is None:
            self.started = now
        if self._has_day_limits:
            self.day_requests.add(1, now)
            self.day_tokens.add(cost, now)
        requests, tokens = self.requests.take(1, now), self.tokens.take(cost, now)
        levels = self.charging.sent(size, now) if self.charging.levels else None
        return Ticket(size, now, requests, tokens, levels)

    def _wake(self) -> None:
        """Lets go whoever may go now, and sets the timer for the head of the queue."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            head = self._queue[0]
            if head.future.done():
                self._queue.popleft()
                continue
            seconds = self.wait(head.size)
            if seconds > 0:
                self._timer = self._loop.call_later(seconds, self._wake)
                return
            self._queue.popleft()
            head.future.set_result(self.take(head.size))

    def _observe(self, ticket: Ticket, headers: Mapping[str, str]) -> None:
        now = self._clock()
        requests, tokens = read_limits(headers)
        if requests is not SILENT:
            self.requests.observe(requests, ticket.requests, now)
        if tokens is not SILENT:
            self.tokens.observe(tokens, ticket.tokens, now)
        if tokens.remaining is None:
            if self.charging.way is not Charge.ACTUAL:
                self.charging.silent()
        elif self.tokens.limit is not None:
            self.charging.heard(tokens.remaining, self.tokens.ceiling, self.tokens.rate, ticket.levels, now)
        if self.requests.scale < 1.0 or self.tokens.scale < 1.0:
            for bucket in (self.requests, self.tokens):
                bucket.scale = min(1.0, bucket.scale + RECOVERY * max(0.0, now - self._recovered))
            self._recovered = now

    def _pause_until(self, time: float) -> None:
        self._paused_until = max(self._paused_until, time)

    def _blame(self, kind: str) -> None:
        """Learns from a 429 where headers do not tell that there was room."""
        if kind == "tokens":
            self.charging.limited()
        for bucket, name in ((self.requests, "requests"), (self.tokens, "tokens")):
            room = bucket.remaining is not None and bucket.remaining > 0.1 * bucket.ceiling
            if kind in ("", name) and bucket.limit is not None and not room:
                bucket.scale = max(0.1, bucket.scale * CUT)
