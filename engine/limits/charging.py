"""What a provider charges against tokens a minute: learnt, since nobody tells.

Three ways are known: prompt + max_tokens when the request is admitted, the larger of the two,
or the real usage with the reply. For each way we keep the level that the provider's bucket
would have, full at its ceiling. A header shows the real level, as it was at the reply or as it
was at admission; the way whose level comes nearest is believed. So a bucket that stays full
although the dearest way would have drained it tells as much as one that falls. Where no header
speaks, real usage is assumed, and 429s for tokens move it to the dearer ways.
"""

import math
from enum import Enum
from typing import NamedTuple

MEMORY_SECONDS = 5.0  # after which a level that drifted away has come back to the header's
FORGET = 0.9  # weight of the past in the error of each way, a header
LESS = 0.5  # of the believed way's error is what another must have, to be believed
NOISE = 0.003  # of the ceiling: errors that mean nothing
MEAN_WEIGHT = 0.005  # of a reply in the mean completion, at least
LIMITED_BEFORE_DEARER = 2


class Charge(Enum):
    """A way of charging, with the words for the display."""

    UPFRONT = "prompt + max_tokens"
    LARGER = "the larger of prompt and max_tokens"
    ACTUAL = "real usage"


WAYS = tuple(Charge)
Levels = tuple[float, ...]  # tokens left in the provider's bucket, by way of charging


class RequestSize(NamedTuple):
    """A request's prompt tokens and the most that it may complete (0: no bound was sent)."""

    prompt: int
    max_tokens: int


class Charging:
    """Believes in one way of charging at a time. Fed by the limiter, asked by it."""

    def __init__(self) -> None:
        self.way = Charge.UPFRONT
        self.mean_completion: float | None = None
        self._weight = 0.0  # of what the mean was made of, in replies
        self._limited = 0
        self.levels: Levels | None = None  # None: no header has been heard
        self._ceiling = self._rate = self._at = self._heard_at = 0.0
        self._errors = [0.0] * len(WAYS)

    def expected(self, size: RequestSize, way: Charge | None = None) -> float:
        """What to reserve for a request, in tokens; `way`: another than the one that is believed."""
        way, (prompt, most) = way or self.way, size
        usual = (most or 512) if self.mean_completion is None else self.mean_completion
        if way is Charge.ACTUAL:
            return prompt + usual
        return prompt + (most or usual) if way is Charge.UPFRONT else max(prompt, most or usual)

    def final(self, size: RequestSize, used: int | None) -> float:
        """What the provider has charged in the end; `used`: real usage, None if it failed."""
        if self.way is Charge.ACTUAL:
            return used or 0.0
        return self.expected(size)

    def replied(self, size: RequestSize, used: int, completion: int) -> None:
        """A reply's real usage.

        The mean is that of all at first, then of the last few hundred. It begins with the request's bound,
        as one reply among them: the first few may be short, and a teacher that thinks now and then uses
        all of its bound.
        """
        if self.mean_completion is None:
            self.mean_completion, self._weight = float(max(size.max_tokens, completion)), 1.0
        self._weight = min(self._weight + 1, 1 / MEAN_WEIGHT)
        self.mean_completion += (completion - self.mean_completion) / self._weight
        if self.levels is not None:
            self._charge(0.0, 0.0, used)

    def sent(self, size: RequestSize, now: float) -> Levels | None:
        """A request has gone; the levels at its admission, to be given back with its header."""
        if self.levels is None:
            self._at = now
            return None
        self._advance(now)
        self._charge(*(self.expected(size, way) for way in (Charge.UPFRONT, Charge.LARGER)), 0.0)
        return self.levels

    def refused(self, size: RequestSize) -> None:
        """What was counted as sent was refused: it was never charged."""
        if self.levels is None:
            return
        self._charge(*(-self.expected(size, way) for way in (Charge.UPFRONT, Charge.LARGER)), 0.0)

    def _charge(self, *costs: float) -> None:
        assert self.levels is not None
        self.levels = tuple(level - cost for level, cost in zip(self.levels, costs, strict=True))

    def _advance(self, now: float) -> None:
        if self.levels is not None:
            refill = self._rate * (now - self._at)
            self.levels = tuple(min(self._ceiling, level + refill) for level in self.levels)
        self._at = now

    def silent(self) -> None:
        """Replies come without headers: assume real usage until 429s say otherwise."""
        if self.levels is None and self._limited < LIMITED_BEFORE_DEARER:
            self.way = Charge.ACTUAL

    def limited(self) -> None:
        """A 429 for tokens although there should have been room."""
        self._limited += 1
        if self.levels is None and self._limited % LIMITED_BEFORE_DEARER == 0:
            self.way = Charge.LARGER if self.way is Charge.ACTUAL else Charge.UPFRONT

    def heard(
        self, remaining: float, ceiling: float, rate: float, at_admission: Levels | None, now: float
    ) -> None:
        """A header: what remains of `ceiling` tokens that refill by `rate` a second. `at_admission`: what
        `sent` returned for its request."""
        self._ceiling, self._rate = ceiling, rate
        self._advance(now)
        if self.levels is None or at_admission is None:
            self.levels = self.levels or (remaining,) * len(WAYS)
            self._heard_at = now
            return
        pairs = zip(self.levels, at_admission, strict=True)
        for i, (late, early) in enumerate(pairs):
            error = min(abs(remaining - late), abs(remaining - early)) / ceiling
            self._errors[i] = FORGET * self._errors[i] + (1 - FORGET) * error
        least = min(range(len(WAYS)), key=lambda i: self._errors[i])
        if self._errors[least] < LESS * (self._errors[WAYS.index(self.way)] - NOISE):
            self.way = WAYS[least]
        pull = 1 - math.exp((self._heard_at - now) / MEMORY_SECONDS)
        self.levels = tuple(level + pull * (remaining - level) for level in self.levels)
        self._heard_at = now
