"""A job: the stages to run in a folder, how far they are, what stops them, and how they ended.

Signals stop it, or `Control` where it runs in a thread of its own, for callers that have an event loop or a
display (notebooks, programs): the caller waits for the thread, is told how far it is, and stops it.
"""

import asyncio
import contextlib
import contextvars
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engine.collect.plan import Plan
from engine.collect.rows import Rows
from engine.collect.settings import Settings
from engine.collect.stats import RunState
from engine.run.estimate import Estimate
from engine.run.progress import LIVE_SECONDS, View
from engine.subprocesses import stop_signals
from store.errors import DistillError
from store.key_index import KeyIndex

if TYPE_CHECKING:
    from engine.batch.runner import Batches
    from engine.collect.runner import Runner

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StageJob:
    """One stage: what is asked, of which rows. `after`: the stages whose answers they are made of,
    which may run at the same time; `cap`: dollars for this stage alone; `lacking`: of `after` those that
    do not run now and are incomplete."""

    settings: Settings
    plan: Plan
    rows: Rows
    estimate: Estimate | None = None
    after: tuple[str, ...] = ()
    cap: float | None = None
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """Stages to run in a folder that this process holds; `cap`: dollars for the whole folder, and
    `knob`: what the user turns to raise it. control: of whoever runs the job in a thread of its own."""

    stages: Sequence[StageJob]
    run: Path
    index: KeyIndex
    cap: float | None
    quiet: bool
    metrics_port: int | None = None
    knob: str = "--budget"
    control: "Control | None" = None


@dataclass(frozen=True, slots=True)
class StageResult:
    """How a stage ended: counts, exit code, the reason if it ended early; and its estimate."""

    state: RunState
    exit_code: int
    stopped: DistillError | None
    utilisation: dict[str, Any]
    seconds: float
    estimate: Estimate | None = None
    is_batch: bool = False


@dataclass(eq=False)
class Stage:
    """A stage that runs."""

    job: StageJob
    number: int
    run: int
    runner: "Runner | Batches"
    view: View
    started: float = field(default_factory=time.monotonic)
    stopped: DistillError | None = None
    result: StageResult | None = None


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


@contextlib.contextmanager
def stoppable(runners: Sequence["Runner | Batches"], control: Control | None) -> Iterator[None]:
    """By signals, or by whoever has started this thread: only the main thread hears of signals."""
    from engine.collect.stopping import DRAIN_SECONDS  # `import distill` is faster without the loop
    from engine.provider.errors import Interrupted

    def stop(by: str, is_urgent: bool) -> None:
        words = f"stopped by {by}; every answer is saved: run the same command to continue"
        for runner in runners:
            runner.stop(Interrupted(words), drain=0.0 if is_urgent else DRAIN_SECONDS)

    with control.attached(stop) if control else _signals(stop):
        yield


@contextlib.contextmanager
def _signals(stop_runners: Callable[[str, bool], None]) -> Iterator[None]:
    """First SIGINT, SIGTERM or SIGHUP: drain for some seconds; a second SIGINT or SIGTERM: at once."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in stop_signals()}
    seen: Counter[signal.Signals] = Counter()

    def stop(number: signal.Signals) -> None:
        seen[number] += 1
        # A lost terminal is told by the shell and by the kernel: it is no sign of impatience.
        is_urgent = number != signal.SIGHUP and seen[signal.SIGINT] + seen[signal.SIGTERM] > 1
        stop_runners(number.name, is_urgent)

    for number in before:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP and seen[number] else handler)
