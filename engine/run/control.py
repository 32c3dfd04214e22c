"""Runs a job in a thread of its own, for callers that have an event loop or a display: notebooks, programs.

The caller waits for the thread, is told how far it is, and stops it. Knows nothing of what the job is.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from engine.run.progress import LIVE_SECONDS, View

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is. total: None while the pool has not been read to its end. rate: answers a second;
    seconds_left: None while nobody can tell. waiting: why nothing is sent at the moment."""

    stage: str
    done: int
    total: int | None
    failed: int
    in_flight: int
    cost_usd: float
    rate: float
    seconds_left: float | None
    waiting: str = ""


def progress_of(view: View) -> Progress:
    state = view.state
    return Progress(
        view.stage, state.done, state.total, state.failed.total(), state.in_flight, state.cost_micro / 1e6,
        view.rate, view.seconds_left, "; ".join(view.waits()),
    )  # fmt: skip


class Control:
    """What the two threads share. on_progress is called in the job's thread, twice a second and at the end;
    what it raises stops the job and reaches the caller."""

    def __init__(self, on_progress: Callable[[Progress], object] | None = None) -> None:
        self.on_progress = on_progress
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._asked = 0
        self._call_soon: Callable[[Callable[[], None]], object] | None = None
        self._stop: Callable[[str, bool], None] = lambda by, is_urgent: None

    def stop(self) -> None:
        """From any thread, also before the job has begun: what is in flight may land within some seconds. A
        second call does not wait for it."""
        with self._lock:
            self._asked += 1
            if self._call_soon:
                self._call_soon(self._tell)

    def _tell(self) -> None:
        self._stop("its caller", self._asked > 1)

    @contextlib.contextmanager
    def attached(self, stop: Callable[[str, bool], None]) -> Iterator[None]:
        """The job runs on this thread's loop, and `stop` (by whom, whether at once) ends it."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._call_soon, self._stop = loop.call_soon_threadsafe, stop
            if self._asked:  # the next turn starts the job's tasks, the one after it ends them
                loop.call_soon(loop.call_soon, self._tell)
        try:
            yield
        finally:
            with self._lock:
                self._call_soon = None

    @contextlib.contextmanager
    def attached_process(self, stop: Callable[[str, bool], None]) -> Iterator[None]:
        """The same where this thread waits for a process; `stop` is called in the caller's thread."""
        with self._lock:
            self._call_soon, self._stop = (lambda tell: tell()), stop
            if self._asked:
                self._tell()
        try:
            yield
        finally:
            with self._lock:
                self._call_soon = None

    async def report(self, views: Sequence[View], on_tick: Callable[[], None]) -> None:
        """Until it is cancelled."""
        loop, ticks = asyncio.get_running_loop(), 0
        try:
            while True:
                self._call(views, loop.time())
                await asyncio.sleep(LIVE_SECONDS)
                ticks += 1
                if ticks % 10 == 0:
                    on_tick()
        finally:
            self._call(views, loop.time())

    def _call(self, views: Sequence[View], now: float) -> None:
        assert self.on_progress
        for view in views:
            view.tick(now)
            if self.error is None:
                try:
                    self.on_progress(progress_of(view))
                except Exception as error:
                    self.error = error
                    self.stop()


def _started(work: Callable[[], T], control: Control) -> "Future[T]":
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result = context.run(work)
            if control.error:
                raise control.error
        except BaseException as error:
            future.set_exception(control.error or error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="distill").start()
    return future


def in_thread(work: Callable[[], T], control: Control) -> T:
    """Waits. Ctrl-C (in a notebook: interrupt) stops the job, waits for what is in flight, and is then raised
    as KeyboardInterrupt; a second one does not wait."""
    future, is_interrupted = _started(work, control), False
    while True:
        try:
            future.exception()
            break
        except KeyboardInterrupt:
            is_interrupted = True
            control.stop()
    if is_interrupted:
        raise KeyboardInterrupt from future.exception()
    return future.result()


async def in_thread_async(work: Callable[[], T], control: Control) -> T:
    """Waits beside the caller's other tasks. When it is cancelled it stops the job and waits for what is in
    flight; when that is cancelled, too, it does not wait."""
    future = asyncio.wrap_future(_started(work, control))
    try:
        while not future.done():  # a notebook cancels in a signal handler, which does not wake its loop
            await asyncio.wait([future], timeout=LIVE_SECONDS)
        return future.result()
    except asyncio.CancelledError:
        while not future.done():
            control.stop()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        future.exception()  # was seen
        raise
