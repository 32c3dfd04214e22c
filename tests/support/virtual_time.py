"""An event loop whose clock jumps to the next timer: hours of waiting pass in milliseconds.

`run(coroutine)` runs it from time 0. Nothing in it may wait for anything but timers.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
ROUND = 1e-6  # seconds that a round of the loop takes: no work is done in no time


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Instead of waiting it moves the time on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if timeout is None and not ready:
            raise RuntimeError("everything waits, and for no timer: this would hang for ever")
        self.now += max(ROUND, timeout or 0.0)
        return ready


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jumping.now


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)


def now() -> float:
    return asyncio.get_running_loop().time()


async def settled() -> None:
    """Returns when every task that needs no time has gone as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)
