"""What the fake provider (provider.py) decides by the clock: rate limits and service slots.

`Bucket` refills continuously, `Limits` pairs one for requests with one for tokens, `Slots` is a
server with a fixed number of parallel workers behind a first-come queue. The time comes in with
every call (seconds of one monotonic clock), so nothing here waits, and nothing knows of HTTP.
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass
from email.utils import formatdate

ROUNDING = 1e-6  # a bucket that is short by less than this is not short: floats
ABOVE_ZERO = 1e-3  # the least level that counts as 'something left'


class Bucket:
    """Holds `per_minute / 60 * seconds`, starts full; the level may go below zero."""

    def __init__(self, per_minute: float, seconds: float, now: float) -> None:
        self.per_minute = per_minute
        self.rate = per_minute / 60
        self.capacity = self.level = self.rate * seconds
        self.at = now

    def __repr__(self) -> str:
        return f"Bucket({self.level:.1f} of {self.capacity:.1f}, {self.per_minute:g} a minute)"

    def refill(self, now: float) -> float:
        self.level = min(self.capacity, self.level + (now - self.at) * self.rate)
        self.at = now
        return self.level

    def take(self, amount: float, now: float) -> None:
        self.level = self.refill(now) - amount

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there, 0 if it is; a full bucket is enough for any amount."""
        short = min(amount, self.capacity) - self.refill(now)
        return short / self.rate if short > ROUNDING else 0.0


@dataclass(frozen=True)
class Shortage:
    """Why a request is not let in: which limit, how long until it would be, and the numbers."""

    kind: str  # requests | tokens
    seconds: float
    bucket: Bucket


class Limits:
    """Requests and tokens a minute; None is no limit."""

    def __init__(self, rpm: float | None, tpm: float | None, seconds: float, now: float) -> None:
        self.requests = None if rpm is None else Bucket(rpm, seconds, now)
        self.tokens = None if tpm is None else Bucket(tpm, seconds, now)

    def _buckets(self) -> list[tuple[str, Bucket]]:
        pairs = (("requests", self.requests), ("tokens", self.tokens))
        return [(kind, bucket) for kind, bucket in pairs if bucket is not None]

    def shortage(self, tokens: float, now: float) -> Shortage | None:
        """The limit that is out of reach for longest, None if the request fits. Takes nothing."""
        need = {"requests": 1.0, "tokens": tokens or ABOVE_ZERO}
        short = [Shortage(kind, b.wait(need[kind], now), b) for kind, b in self._buckets()]
        worst = max(short, key=lambda s: s.seconds, default=None)
        return worst if worst and worst.seconds else None

    def take(self, requests: float, tokens: float, now: float) -> None:
        if self.requests is not None:
            self.requests.take(requests, now)
        if self.tokens is not None:
            self.tokens.take(tokens, now)

    def count_rejected(self, now: float) -> None:
        """A refused request uses up a request that is left, and makes no debt."""
        if self.requests is not None:
            self.requests.take(min(1.0, max(0.0, self.requests.refill(now))), now)

    def carry(self, old: Limits, now: float) -> None:
        """Go on from the levels of the limits before a change."""
        for mine, theirs in ((self.requests, old.requests), (self.tokens, old.tokens)):
            if mine is not None and theirs is not None:
                mine.level = min(mine.capacity, theirs.refill(now))

    def headers(self, now: float) -> dict[str, str]:
        found: dict[str, str] = {}
        for kind, bucket in self._buckets():
            level = bucket.refill(now)
            found[f"x-ratelimit-limit-{kind}"] = f"{bucket.per_minute:.0f}"
            found[f"x-ratelimit-remaining-{kind}"] = f"{max(0, math.floor(level + ROUNDING))}"
            found[f"x-ratelimit-reset-{kind}"] = duration((bucket.capacity - level) / bucket.rate)
        return found


def duration(seconds: float) -> str:
    """`0s`, `120ms`, `1s`, `6m0s`, `1h0m0s`: as the rate headers write it, rounded up."""
    ms = math.ceil(seconds * 1000 - ROUNDING)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{ms / 1000:g}s"
    return f"{hours}h{minutes}m{rest}" if hours else f"{minutes}m{rest}" if minutes else rest


def retry_after(style: str, seconds: float) -> dict[str, str]:
    if style == "ms":
        return {"retry-after-ms": f"{math.ceil(seconds * 1000)}"}
    if style == "date":
        return {"retry-after": formatdate(math.ceil(time.time() + seconds), usegmt=True)}
    return {"retry-after": f"{math.ceil(seconds)}"} if style == "seconds" else {}


class Slots:
    """`width` workers (None: one for everybody) and a queue, worked out ahead of time.

    Each free slot is known by the time it becomes free, so the throughput saturates at
    width / service time whatever the event loop's timers do.
    """

    def __init__(self, width: int | None, now: float) -> None:
        self.free: list[float] = [now] * (width or 0)

    def finish(self, service: float, now: float) -> float:
        """When work of `service` seconds that arrives now is done."""
        if not self.free:
            return now + service
        done = max(now, self.free[0]) + service
        heapq.heapreplace(self.free, done)
        return done

    def resize(self, width: int | None, now: float) -> None:
        """The slots busy for longest stay, new ones are free at once; who queues keeps his time."""
        kept = heapq.nlargest(width or 0, self.free)
        self.free = kept + [now] * ((width or 0) - len(kept))
        heapq.heapify(self.free)
