"""Asks again with back-off while a call fails for passing reasons, up to a time of outage."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from engine.errors import AskError, ProviderDown, RateLimited, RowRefused, ServerFault

FIRST_WAIT, LONGEST_WAIT = 0.5, 120.0
REFUSALS = 3  # what was just made may not be known everywhere yet

T = TypeVar("T")


class Patience:
    """One stretch of failures; `give_up` in seconds since the first."""

    def __init__(self, give_up: float) -> None:
        self._give_up = give_up
        self._since: float | None = None
        self.failures = 0

    async def wait(self, error: AskError, for_ever: bool = False) -> None:
        """Raises ProviderDown when it has lasted too long."""
        now = asyncio.get_running_loop().time()
        self._since = now if self._since is None else self._since
        self.failures += 1
        if now - self._since > self._give_up and not for_ever:
            raise ProviderDown(f"the server has not answered for {self._give_up:g} s: {error}")
        asked = error.wait if isinstance(error, RateLimited | ServerFault) and error.wait else 0.0
        await asyncio.sleep(max(asked, pause(self.failures)))


def pause(failures: int) -> float:
    """Exponential with jitter, in seconds."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures, 20))


async def patiently(call: Callable[[], Awaitable[T]], give_up: float) -> T:
    """The call's result. Raises RowRefused (after some asks), RunStopped."""
    patience, refusals = Patience(give_up), 0
    while True:
        try:
            return await call()
        except RowRefused as error:
            refusals += 1
            if refusals >= REFUSALS:
                raise
            await patience.wait(error)
        except AskError as error:
            await patience.wait(error)
