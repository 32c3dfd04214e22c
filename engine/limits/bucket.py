"""One limit (requests or tokens a minute, or a day): when may the next one go, and at what pace.

A model of the server's bucket, fed back from its headers. A header is as old as the request
that brought it, so the level now is what it said, less everything sent since that request was,
plus the refill since: true whether the server charges at admission or with the reply, and
whether it takes the header's snapshot early or late. The pace is the refill plus a share of
what the level is over its cushion (a proportional controller): a bucket of a minute that is
found full is used up within seconds, one of a second is kept a third full, and where no header
speaks the pace is the declared limit, evenly. Time is passed in; nothing here waits.
"""

from collections import deque
from dataclasses import dataclass

from engine.provider.retry_after import RateHeaders

GAIN = 0.5  # share of the surplus given out each second
PACE_RANGE = (0.25, 4.0)  # times the refill
CUSHION_SECONDS = 1.0  # of refill, kept in the server's bucket
CUSHION_COSTS = 3.0  # of a usual request, at least, where requests are few
CUSHION_SHARE = 0.35  # of the bucket, at most
BURST_SECONDS = 0.7  # of refill, that a pause may save up
STALE_SECONDS = 70.0  # a header older than this is no feedback
HEADERS_KEPT = 8
DAY = 86400.0
SLOT = 60.0


@dataclass(slots=True)
class Sent:
    """What a bucket remembers of a request: when it went and how much had gone by then."""

    at: float
    cost: float
    flow: float


class Bucket:
    """A limit a minute. `limit` None: nobody has told one yet, everything passes."""

    def __init__(self, per_minute: float | None) -> None:
        self.declared = per_minute
        self.limit = per_minute
        self.total = 0.0  # charged since the start, settled
        self._flow = 0.0  # sent since the start, as reserved: never corrected
        self._mean_cost = 0.0
        self.scale = 1.0  # lowered when 429s come though there should be room
        self._level = 0.0
        self._advanced: float | None = None
        self._seen: Sent | None = None
        self._remaining = 0.0
        self.ceiling = 0.0  # the most that headers have ever shown
        self._limits: deque[float] = deque(maxlen=HEADERS_KEPT)
        self._resets: deque[float] = deque(maxlen=HEADERS_KEPT)

    def __repr__(self) -> str:
        return f"<Bucket {self.limit}/min level {self._level:.1f} remaining {self._remaining:.0f}>"

    @property
    def rate(self) -> float:
        """Refill in units a second."""
        assert self.limit is not None
        return self.limit / 60 * self.scale

    def wait(self, cost: float, now: float) -> float:
        """Seconds until a request of this cost may go; 0 for now."""
        if self.limit is None:
            return 0.0
        self._advance(now)
        if self._seen is None:
            return 0.0 if self._level >= 0 else -self._level / self.rate
        seconds = -self._level / (self.rate * self.pace(now)) if self._level < 0 else 0.0
        server = self._server_level(now)
        if server is not None:  # one larger than the bucket waits until it is full, then goes
            short = min(cost, 0.95 * self.ceiling) - server
            seconds = max(seconds, short / self.rate)
        return seconds

    def take(self, cost: float, now: float) -> Sent:
        """Charges a request that is about to be sent; the level may go into debt."""
        self._level -= cost
        self.total += cost
        self._flow += cost
        self._mean_cost = cost if not self._mean_cost else 0.95 * self._mean_cost + 0.05 * cost
        return Sent(now, cost, self._flow)

    def settle(self, sent: Sent, charged: float) -> None:
        """Corrects a reservation to what the provider charges."""
        self._level += sent.cost - charged
        self.total += charged - sent.cost
        sent.cost = charged

    def pace(self, now: float) -> float:
        """How fast to go, as a multiple of the refill."""
        if (server := self._server_level(now)) is None:
            return 1.0
        wanted = max(CUSHION_SECONDS * self.rate, CUSHION_COSTS * self._mean_cost)
        cushion = min(CUSHION_SHARE * self.ceiling, wanted)
        low, high = PACE_RANGE
        return min(high, max(low, 1.0 + GAIN * (server - cushion) / self.rate))

    def observe(self, said: RateHeaders, sent: Sent, now: float) -> None:
        """Takes in the headers of a reply to `sent`."""
        if said.limit:
            self._adopt(said)
        if said.remaining is None or (self._seen and sent.at < self._seen.at):
            return
        self._seen, self._remaining = sent, said.remaining
        self.ceiling = max(self.ceiling, said.remaining)

    @property
    def remaining(self) -> float | None:
        """What the newest header said was left."""
        return self._remaining if self._seen else None

    def _server_level(self, now: float) -> float | None:
        seen = self._seen
        if seen is None or now - seen.at > STALE_SECONDS:
            return None
        since = self._flow - seen.flow
        return min(self.ceiling, self._remaining - since + self.rate * (now - seen.at))

    def _advance(self, now: float) -> None:
        if self._advanced is not None:
            rate, level = self.rate, self._level
            self._level = min(
                max(rate * BURST_SECONDS, level), level + rate * self.pace(now) * (now - self._advanced)
            )
        self._advanced = now

    def _adopt(self, said: RateHeaders) -> None:
        """The lowest limit of the last headers, never more than was declared.

        A limit below the declared one is not believed while the time until full shows that the
        bucket refills as fast as declared (servers that report the size of a small bucket).
        """
        assert said.limit is not None
        self._limits.append(said.limit)
        if said.remaining is not None and said.reset and said.limit - said.remaining > 0.02 * said.limit:
            self._resets.append(60 * (said.limit - said.remaining) / said.reset)
        told = min(self._limits)
        if self.declared is not None:
            refill = sorted(self._resets)[len(self._resets) // 2] if self._resets else 0.0
            told = self.declared if refill > 0.8 * self.declared else min(told, self.declared)
        if told != self.limit:
            self.limit = told
            self.ceiling = min(self.ceiling, max(self._remaining, told))


class DayWindow:
    """At most `limit` in any 24 hours, counted in slots of a minute (1,440 numbers)."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._slots: deque[tuple[float, float]] = deque()  # (start, amount)
        self.used = 0.0

    def add(self, amount: float, at: float) -> None:
        """Counts what was sent at a time (loop clock; earlier runs lie in the past)."""
        start = at - at % SLOT
        if self._slots and self._slots[-1][0] >= start:
            self._slots[-1] = (self._slots[-1][0], self._slots[-1][1] + amount)
        else:
            self._slots.append((start, amount))
        self.used += amount

    def wait(self, cost: float, now: float) -> float:
        """Seconds until the cost fits; one larger than the limit waits for an empty window."""
        if self.limit is None:
            return 0.0
        while self._slots and self._slots[0][0] + SLOT + DAY <= now:
            self.used -= self._slots.popleft()[1]
        excess = self.used + min(cost, self.limit) - self.limit
        for start, amount in self._slots:
            if excess <= 0:
                break
            excess -= amount
            if excess <= 0:
                return start + SLOT + DAY - now
        return 0.0
