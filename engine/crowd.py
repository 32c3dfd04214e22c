"""Stages that run together may ask the very same: one asks, the others wait for its answer.

Knows nothing of what is asked; a member says whether it is at work.
"""

import asyncio
from collections import Counter
from typing import Protocol

from engine.errors import RunStopped


class Member(Protocol):
    """A stage that runs. `changed` is set when there may be something new for it."""

    changed: asyncio.Event

    @property
    def is_stopped(self) -> bool: ...

    @property
    def is_at_work(self) -> bool:
        """Something that it has taken is still to be asked or under way."""

    def settled(self, count: int, cause: str | None) -> None:
        """So many of its samples have been answered, or have failed with a cause."""


class Crowd:
    """The stages that run together, and the requests of one that others wait for: their rows would
    ask the very same. (Equal rows of one stage are the usual case.)"""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._waiting: dict[int, Counter[Member]] = {}

    def wait(self, request: int, member: Member, count: int) -> None:
        self._waiting.setdefault(request, Counter())[member] += count

    def take_over(self, request: int, member: Member) -> bool:
        """The member asks it after all, for one of its samples that wait; false if none does."""
        waiting = self._waiting.get(request, Counter())
        if not waiting[member]:
            return False
        waiting[member] -= 1
        return True

    def settle(self, request: int, cause: str | None) -> None:
        for member, count in self._waiting.pop(request, Counter()).items():
            member.settled(count, cause)

    def one_rests(self) -> None:
        """Nobody need wait for it any more."""
        for member in self.members:
            member.changed.set()

    async def wait_for_others(self, member: Member) -> None:
        """Returns when nothing waits, or when nobody is at work who could answer it. Raises RunStopped
        for what was left."""
        while not member.is_stopped and (left := self._left(member)):
            if not any(other.is_at_work for other in self.members if other is not member):
                rows = f"{left:,} rows ask" if left > 1 else "a row asks"
                raise RunStopped(f"{rows} the same as another stage, which has ended early")
            member.changed.clear()
            await member.changed.wait()

    def _left(self, member: Member) -> int:
        return sum(waiting[member] for waiting in self._waiting.values())
