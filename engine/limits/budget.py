"""The hard cap: known spending plus the most that every request without an answer can cost.

Reserved before sending, released when the reply's real cost is known. What was sent and never
answered, in this run or an earlier one, stays reserved: it may have been billed.
"""

import asyncio
from collections import deque
from math import inf

from engine.provider.errors import BudgetReached
from engine.terminal import exact_dollars


class Budget:
    """Micro-dollars; `cap` None for no cap. What a stage's budget lets pass must pass `above` too."""

    def __init__(
        self,
        cap: int | None,
        spent: int,
        at_risk: int,
        above: "Budget | None" = None,
        knob: str = "--budget",
    ) -> None:
        """`knob`: what the user turns to raise the cap."""
        self.cap, self.above, self._knob = cap, above, knob
        self.spent = spent
        self.lost = at_risk  # in requests that will never be answered
        self.in_flight = 0
        self._waiters: deque[tuple[asyncio.Event, int]] = deque()

    def has_room(self, worst: int) -> bool:
        return self.cap is None or self.spent + self.lost + self.in_flight + worst <= self.cap

    def adopt(self, worst: int) -> None:
        """What an earlier run sent may be answered after all: it was counted as lost."""
        self.lost -= worst
        self.in_flight += worst
        if self.above:
            self.above.adopt(worst)

    async def reserve(self, worst: int) -> None:
        """Sets the request's worst cost aside. Raises BudgetReached when it can never fit."""
        while self.cap is not None and not self.has_room(worst):
            if not self.in_flight:
                raise BudgetReached(self._words(worst))
            waiter = (asyncio.Event(), worst)
            self._waiters.append(waiter)
            try:
                await waiter[0].wait()
            except asyncio.CancelledError:  # what it waited for is another's
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                self._wake()
                raise
        self.in_flight += worst
        if self.above:
            try:
                await self.above.reserve(worst)
            except BaseException:
                self.in_flight -= worst
                self._wake()
                raise

    def settle(self, worst: int, cost: int, lost: int = 0) -> None:
        """A request has ended: `cost` is known, `lost` may have been billed without an answer."""
        self.in_flight -= worst
        self.spent += cost
        self.lost += lost
        if self._waiters:
            self._wake()
        if self.above:
            self.above.settle(worst, cost, lost)

    def _wake(self) -> None:
        room = inf if self.cap is None else self.cap - self.spent - self.lost - self.in_flight
        while self._waiters and (self._waiters[0][1] <= room or not self.in_flight):
            event, wanted = self._waiters.popleft()
            room -= wanted
            event.set()

    def _words(self, worst: int) -> str:
        assert self.cap is not None
        risk = f" and {exact_dollars(self.lost)} at risk in unanswered requests" if self.lost else ""
        return (
            f"the budget of {exact_dollars(self.cap)} is reached: {exact_dollars(self.spent)} spent{risk}, "
            f"and the next request could cost {exact_dollars(worst)}; continue with a larger {self._knob}"
        )
