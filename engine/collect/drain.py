"""How asking ends, online or in batches: what is outstanding lands or is cut off, and of several
errors one speaks for all. Knows nothing of what is asked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection

from engine.collect.stage import Intake
from store.errors import DistillError

DRAIN_SECONDS = 5.0


@contextlib.asynccontextmanager
async def asking(
    intake: Intake, stopped: Callable[[], DistillError | None]
) -> AsyncIterator[asyncio.TaskGroup]:
    """The group in which all tasks of a stage live. In the end raises what `stopped` says, or the
    first error of a task."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
            await intake.wait_for_others()
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None
    finally:
        intake.over()
    if reason := stopped():
        raise reason


async def landed(
    tasks: Collection[asyncio.Task[None]], changed: asyncio.Event, drain: Callable[[], float | None]
) -> None:
    """Waits until no task is left; once `drain` says so many seconds, for no longer than that."""
    deadline: float | None = None
    loop = asyncio.get_running_loop()
    while tasks:
        if (seconds := drain()) is not None:
            deadline = min(deadline or loop.time() + seconds, loop.time() + seconds)
        changed.clear()
        try:
            async with asyncio.timeout_at(deadline):
                await changed.wait()
        except TimeoutError:
            for task in list(tasks):
                task.cancel()
            await asyncio.wait(list(tasks))


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of our own errors, else the first of all: one sentence for one cause."""
    ours, _ = errors.split(DistillError)
    first = (ours or errors).exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
