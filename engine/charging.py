"""What a provider charges against tokens a minute: learnt, since nobody tells.

Three ways are known: prompt + max_tokens when the request is admitted, the larger of the two,
or the real usage with the reply. Headers show the remaining tokens; over a window of half a
second what the provider charged is the refill less the rise of `remaining`, and the way whose
own sum over the same window comes nearest is believed. A bucket that stays full shows only
that less was charged than refilled: then the assumed charge is lowered step by step until the
level moves, which is safe, since it starts from a full bucket. Where no header speaks, real
usage is assumed, and 429s for tokens move it to the dearer ways.
"""

import math
from dataclasses import dataclass
from enum import Enum

WINDOW_SECONDS = 0.5
WINDOW_REPLIES = 5
FULL = 0.9  # share of the ceiling from which a bucket counts as full
STEP = 0.85
FORGET = 0.85  # weight of the past in the errors of each way, a window
MARGIN = 0.02
MEAN_WEIGHT = 0.04  # of a reply in the mean completion, at least
LIMITED_BEFORE_DEARER = 2


class Charge(Enum):
    """A way of charging, with the words for the display."""

    UPFRONT = "prompt + max_tokens"
    LARGER = "the larger of prompt and max_tokens"
    ACTUAL = "real usage"


@dataclass(frozen=True, slots=True)
class Size:
    """A request's prompt tokens and the most that it may complete (0: no bound was sent)."""

    prompt: int
    max_tokens: int


@dataclass(slots=True)
class _Window:
    """Headers and charges of a stretch of time; its slope is the least-squares line's."""

    start: float
    sums: dict[Charge, float]
    replies: int = 0
    levels: float = 0.0
    times: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def add(self, level: float, now: float) -> None:
        at = now - self.start
        self.replies += 1
        self.levels += level
        self.times += at
        self.squares += at * at
        self.products += at * level

    def slope(self) -> float | None:
        """Tokens a second by which the level rose."""
        spread = self.replies * self.squares - self.times**2
        if spread <= 1e-12:
            return None
        return (self.replies * self.products - self.times * self.levels) / spread


class Charging:
    """Believes in one way of charging at a time. Fed by the limiter, asked by it."""

    def __init__(self) -> None:
        self.way = Charge.UPFRONT
        self.mean_completion: float | None = None
        self._replies = 0
        self._stretch = 1.0  # times the assumed charge, while a full bucket is being tried
        self._heard = False
        self._limited = 0
        self._errors = dict.fromkeys(Charge, 0.0)
        self._window: _Window | None = None

    def expected(self, size: Size) -> float:
        """What to reserve for a request, in tokens."""
        return self._stretch * self._cost(self.way, size, None)

    def final(self, size: Size, used: int | None) -> float:
        """What the provider has charged in the end; `used`: real usage, None if it failed."""
        if self.way is Charge.ACTUAL and used is None:
            return 0.0
        return self._stretch * self._cost(self.way, size, used)

    def _cost(self, way: Charge, size: Size, used: int | None) -> float:
        completion = size.max_tokens or self._completion(size)
        if way is Charge.UPFRONT:
            return size.prompt + completion
        if way is Charge.LARGER:
            return max(size.prompt, completion)
        return used if used is not None else size.prompt + self._completion(size)

    def _completion(self, size: Size) -> float:
        if self.mean_completion is None:
            return size.max_tokens or 512
        return self.mean_completion

    def replied(self, size: Size, used: int, completion: int) -> None:
        """A reply's real usage."""
        self._replies += 1
        mean = completion if self.mean_completion is None else self.mean_completion
        # The mean of all at first, then of the last few dozen: the first that thinks to its bound must not
        # move it much.
        self.mean_completion = mean + max(1 / self._replies, MEAN_WEIGHT) * (completion - mean)
        if self._window:
            self._window.sums[Charge.ACTUAL] += used

    def sent(self, size: Size) -> None:
        """A request has gone."""
        self._count(size, 1)

    def refused(self, size: Size) -> None:
        """What was counted as sent was refused: it was never charged."""
        self._count(size, -1)

    def _count(self, size: Size, times: int) -> None:
        if self._window:
            for way in (Charge.UPFRONT, Charge.LARGER):
                self._window.sums[way] += times * self._cost(way, size, None)

    def silent(self) -> None:
        """Replies come without headers: assume real usage until 429s say otherwise."""
        if not self._heard and self._limited < LIMITED_BEFORE_DEARER:
            self.way = Charge.ACTUAL

    def limited(self) -> None:
        """A 429 for tokens although there should have been room."""
        self._limited += 1
        self._stretch = 1.0
        if not self._heard and self._limited % LIMITED_BEFORE_DEARER == 0:
            self.way = Charge.LARGER if self.way is Charge.ACTUAL else Charge.UPFRONT

    def heard(self, remaining: float, ceiling: float, rate: float, waiting: bool, now: float) -> None:
        """A header. `waiting`: requests are held back by tokens, so a full bucket means something."""
        self._heard = True
        window = self._window
        if window is None:
            self._restart(remaining, now)
            return
        window.add(remaining, now)
        if now - window.start < WINDOW_SECONDS or window.replies < WINDOW_REPLIES:
            return
        self._learn(window, ceiling, rate, waiting, now)
        self._restart(remaining, now)

    def _restart(self, remaining: float, now: float) -> None:
        self._window = _Window(now, dict.fromkeys(Charge, 0.0))
        self._window.add(remaining, now)

    def _learn(self, window: _Window, ceiling: float, rate: float, waiting: bool, now: float) -> None:
        level = window.levels / window.replies
        if level >= FULL * ceiling:
            if waiting and self.way is not Charge.ACTUAL:
                self._stretch = max(0.05, self._stretch * STEP)
            return
        self._judge(window, rate, now)
        self._stretch = 1.0

    def _judge(self, window: _Window, rate: float, now: float) -> None:
        """Compares what was charged with the three sums."""
        slope = window.slope()
        charged = 0.0 if slope is None else (rate - slope) * (now - window.start)
        if charged <= 0 or min(window.sums.values()) <= 0:
            return
        for way, total in window.sums.items():
            error = abs(math.log(charged / total))
            self._errors[way] = FORGET * self._errors[way] + (1 - FORGET) * min(error, 2.0)
        best = min(self._errors, key=lambda w: self._errors[w])
        if self._errors[best] < self._errors[self.way] - MARGIN:
            self.way = best
