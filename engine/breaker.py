"""The circuit breaker: tells an outage from bad rows, stops admission, probes, gives up.

Rows that failed while others succeeded are suspects: what they do later says nothing of the
server. When rows that are no suspects fail one after another with nothing succeeding between,
the server is down: the attempts they spent are given back, nobody is sent but a probe at
growing intervals, and the first success closes the breaker.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.errors import ProviderDown

THRESHOLD = 10  # failures of different rows in a row
LIMITED_THRESHOLD = 8  # 429 incidents in a row
FIRST_PROBE, LONGEST_PROBE = 1.0, 60.0


@dataclass(eq=False, slots=True)
class Effort:
    """How a request has fared in this run. Attempts are what `--attempts` counts."""

    attempts: int = 0
    asks: int = 0
    suspect: bool = False
    first_causes: list[str] = field(default_factory=list)


class Breaker:
    """Closed: all pass. Open: `admit` lets one probe through when its time has come."""

    def __init__(self, give_up: float, clock: Callable[[], float] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock or self._loop.time
        self._give_up = give_up
        self._streak: dict[int, Effort] = {}
        self._closed = asyncio.Event()
        self._closed.set()
        self._probing = False
        self._interval = FIRST_PROBE
        self._next_probe = 0.0
        self.opened_at: float | None = None
        self.probes = 0
        self.last_words = ""

    @property
    def is_open(self) -> bool:
        return self.opened_at is not None

    async def admit(self) -> bool:
        """Waits until the request may go; true if it goes as a probe. Raises ProviderDown."""
        while self.is_open:
            if self._probing:
                await self._closed.wait()
                continue
            self._probing = True
            try:
                await asyncio.sleep(max(0.0, self._next_probe - self._clock()))
            except asyncio.CancelledError:
                self._probe_ended()
                raise
            if self.is_open:
                self.probes += 1
                return True
            self._probing = False
        return False

    def succeeded(self) -> None:
        """Any reply of the server that shows that it works."""
        if self._streak:
            for effort in self._streak.values():
                effort.suspect = True
            self._streak.clear()
        if self.is_open:
            self._close()

    def failed(self, effort: Effort, probe: bool, words: str, at_once: bool = False) -> None:
        """A failure that may be an outage. `at_once`: opens without waiting for more of them."""
        self.last_words = words
        if self.is_open:
            effort.attempts -= 1
            if probe:
                self._put_off()
        elif not effort.suspect:
            self._streak[id(effort)] = effort
            if at_once or len(self._streak) >= THRESHOLD:
                self._open()

    def limited(self, incidents: int, words: str, probe: bool) -> None:
        """A 429: sustained ones are an outage too."""
        self.last_words = words
        if probe and self.is_open:
            self._put_off()
        elif incidents >= LIMITED_THRESHOLD and not self.is_open:
            self._open()

    def abandoned(self, probe: bool) -> None:
        """A probe ended without a verdict (cancelled, or refused for reasons of its own)."""
        if probe:
            self._probe_ended()

    def _open(self) -> None:
        for effort in self._streak.values():
            effort.attempts -= 1
        self._streak.clear()
        self.opened_at = self._clock()
        self._closed.clear()
        self._interval = FIRST_PROBE
        self._next_probe = self.opened_at + self._interval

    def _close(self) -> None:
        self.opened_at = None
        self._probing = False
        self._closed.set()

    def _put_off(self) -> None:
        assert self.opened_at is not None
        now = self._clock()
        if now - self.opened_at >= self._give_up:
            raise ProviderDown(
                f"no success for {now - self.opened_at:.0f} s and {self.probes} probes; "
                f"the last words were: {self.last_words}"
            )
        self._interval = min(LONGEST_PROBE, 2 * self._interval)
        left = self._give_up - (now - self.opened_at)
        self._next_probe = now + min(self._interval, max(0.05, left))
        self._probe_ended()

    def _probe_ended(self) -> None:
        """Lets another waiter become the prober."""
        self._probing = False
        if self.is_open:
            self._closed.set()
            self._closed.clear()
