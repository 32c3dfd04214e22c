"""The circuit breaker: tells an outage from bad rows, stops admission, probes, gives up.

A failure that cannot be the row's fault (no connection, 502, 503, 504) counts as an attempt only
when something has succeeded since; one that may be (500, a time-out) counts at once. Rows that
failed while others succeeded are suspects: what they do later says nothing of the server.
When failures that are nobody's fault, or those of different rows that are no suspects, follow
one another with no success between, the server is down: the attempts they spent are given
back, nobody is sent but a probe at growing intervals, and the first success closes the breaker.
Probes are rows that have not been tried yet, as long as there are any: where the failures may be
the rows' own, another row shows whether the server works.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.provider.errors import ProviderDown
from engine.provider.retry_after import back_at

THRESHOLD = 10  # failures in a row
LIMITED_THRESHOLD = 8  # 429 incidents in a row
FIRST_PROBE, LONGEST_PROBE = 1.0, 60.0


@dataclass(eq=False, slots=True)
class Effort:
    """How a request has fared in this run. Attempts are what `--attempts` counts."""

    attempts: int = 0
    asks: int = 0
    unconfirmed: int = 0  # of the attempts: nothing has succeeded since, so it may be an outage
    suspect: bool = False  # it failed while others succeeded, in this run or an earlier one
    unparsed: int = 0  # replies that the task could not read
    unusable: int = 0  # replies that hold no answer
    in_flight: bool = False
    has_reply: bool = False  # which is on its way to the disk
    refused_by: tuple[int, ...] = ()  # endpoints that would not take it, while others may

    @property
    def spent(self) -> int:
        """Attempts that count for certain."""
        return self.attempts - self.unconfirmed

    def confirm(self, is_outage: bool) -> None:
        """One attempt, at one server, was no outage: something has succeeded there since."""
        self.suspect = True
        self.unconfirmed -= is_outage


class Breaker:
    """Closed: all pass. Open: `admit` lets one probe through when its time has come."""

    def __init__(
        self, give_up: float, outstanding: int = THRESHOLD, clock: Callable[[], float] | None = None
    ) -> None:
        """`give_up`: seconds of outage; `outstanding`: how many requests there can be at once."""
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._give_up = give_up
        self._threshold = min(THRESHOLD, outstanding)
        self._streak: list[tuple[Effort, bool, float]] = []  # failures since the last success, with time
        self._doubtful: list[tuple[Effort, float]] = []  # succeeded since has only what was sent before
        self._waiters: deque[tuple[Effort, asyncio.Future[bool]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._probing = False
        self._is_outage = False  # what the last failure was
        self._accused: list[Effort] = []  # failures of theirs opened it, or kept it open
        self._interval = FIRST_PROBE
        self._next_probe = 0.0
        self._limited_since: float | None = None  # the first 429 since the last success
        self.opened_at: float | None = None
        self.probes = 0
        self.last_words = ""

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None

    @property
    def failures(self) -> int:
        """Since the last success; 0 while it is open."""
        return len(self._streak)

    @property
    def opens_at(self) -> float:
        """When the next probe may go; 0 while it is closed."""
        return self._next_probe if self.is_open else 0.0

    @property
    def may_pass(self) -> bool:
        """Whether `try_probe` would let a request pass, once `opens_at` has come."""
        return not (self.is_open and self._probing)

    def try_probe(self) -> bool:
        """Without waiting, when `may_pass`: true if the request goes as a probe."""
        if not self.is_open:
            return False
        self._probing = True
        self.probes += 1
        return True

    @property
    def wants_another(self) -> bool:
        """Whether the rows that wait may be the fault of what failed: then a row that has not been tried
        yet should be sent as the next probe."""
        return self.is_open and not self._is_outage and all(effort.asks for effort, _ in self._waiters)

    async def admit(self, effort: Effort) -> bool:
        """Waits until the request may go; true if it goes as a probe."""
        while self.is_open:
            waiter: asyncio.Future[bool] = self._loop.create_future()
            self._waiters.append((effort, waiter))
            self._schedule_probe()
            try:
                if await waiter:
                    return True
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled() and waiter.result():
                    self._probe_ended()
                raise
        return False

    def _schedule_probe(self) -> None:
        if self.is_open and not self._probing and self._timer is None and self._waiters:
            seconds = max(0.0, self._next_probe - self._clock())
            self._timer = self._loop.call_later(seconds, self._send_probe)

    def _send_probe(self) -> None:
        """One of those that have not been tried yet goes, from anywhere in the pool, else the one that has
        waited longest."""
        self._timer = None
        self._waiters = deque(each for each in self._waiters if not each[1].done())
        if not self._waiters:
            return
        fresh = [each for each in self._waiters if not each[0].asks]
        chosen = random.choice(fresh) if fresh else self._waiters[0]
        self._waiters.remove(chosen)
        self._probing = True
        self.probes += 1
        chosen[1].set_result(True)

    def succeeded(self, sent_at: float = math.inf) -> None:
        """Any reply of the server that shows that it works, or worked at `sent_at` (on our clock): what
        it took in before a failure says nothing of the server after it."""
        self._limited_since = None
        if not self._streak and not self._doubtful and self.opened_at is None:
            return
        for effort, is_outage, at in self._streak:
            if is_outage and at > sent_at:
                self._doubtful.append((effort, at))
            else:
                effort.confirm(is_outage)
        self._streak.clear()
        still: list[tuple[Effort, float]] = []
        for effort, at in self._doubtful:
            if at > sent_at:
                still.append((effort, at))
            else:
                effort.confirm(True)
        self._doubtful = still
        if self.opened_at is not None and sent_at >= self.opened_at:
            self._close()

    def failed(self, effort: Effort, probe: bool, words: str, is_outage: bool, at_once: bool = False) -> None:
        """An attempt (counted already) has failed. `is_outage`: it cannot be the row's fault;
        `at_once`: opens without waiting for more. Raises ProviderDown when it is time to give up."""
        self.last_words = words
        self._is_outage = is_outage
        if self.is_open:
            effort.attempts -= 1
            if not is_outage:
                self._accused.append(effort)
            if probe:
                self._put_off()
        elif is_outage or at_once or not effort.suspect:
            effort.unconfirmed += is_outage
            self._streak.append((effort, is_outage, self._clock()))
            faultless = sum(is_outage for _, is_outage, _ in self._streak)
            rows = len({id(effort) for effort, _, _ in self._streak})
            if at_once or max(faultless, rows) >= self._threshold:
                self._open()

    def limited(self, incidents: int, wait: float | None, words: str, probe: bool) -> None:
        """A 429: sustained ones are an outage too. Raises ProviderDown when the server wants a
        longer wait than anybody would sit through (a daily limit)."""
        self.last_words, self._is_outage = words, True
        now = self._clock()
        self._limited_since = now if self._limited_since is None else self._limited_since
        if wait is not None and wait > self._give_up:
            raise ProviderDown(
                f"the server asks to wait {wait:.0f} s (until {back_at(wait)}), which is longer than "
                f"--give-up: {words}"
            )
        if now - self._limited_since >= self._give_up > 0:
            raise ProviderDown(
                f"nothing but rate limits for {now - self._limited_since:.0f} s (--give-up); the server "
                f"said: {words}"
            )
        if probe and self.is_open:
            self._put_off()
        elif incidents >= LIMITED_THRESHOLD and not self.is_open:
            self._open()

    def abandoned(self) -> None:
        """A probe ended without a verdict (cancelled, or refused for reasons of its own)."""
        self._probe_ended()

    def _open(self) -> None:
        entries = [(effort, is_outage) for effort, is_outage, _ in self._streak]
        for effort, is_outage in [*entries, *((effort, True) for effort, _ in self._doubtful)]:
            effort.attempts -= 1
            effort.unconfirmed -= is_outage
        self._accused = [effort for effort, is_outage, _ in self._streak if not is_outage]
        self._streak.clear()
        self._doubtful.clear()
        self.opened_at = self._clock()
        self._interval = FIRST_PROBE
        self._next_probe = self.opened_at + self._interval

    def _close(self) -> None:
        self.opened_at = None
        self._probing = False
        for effort in self._accused:
            effort.suspect = True
        self._accused.clear()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(False)
        self._waiters.clear()

    def _put_off(self) -> None:
        assert self.opened_at is not None
        now = self._clock()
        if now - self.opened_at >= self._give_up:
            raise ProviderDown(
                f"no success for {now - self.opened_at:.0f} s and {self.probes} probes; "
                f"the last message was: {self.last_words}"
            )
        self._interval = min(LONGEST_PROBE, 2 * self._interval)
        left = self._give_up - (now - self.opened_at)
        self._next_probe = now + min(self._interval, max(0.05, left))
        self._probe_ended()

    def _probe_ended(self) -> None:
        """Lets another waiter become the prober."""
        self._probing = False
        self._schedule_probe()
