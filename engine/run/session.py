"""Opens a run folder and everything around it, runs its stages together, closes it all in order.

The one place where the parts are put together; decides nothing itself. Stages share the ledger,
the budget, the feed's thread and, where they name the same teacher, its servers and limits.
"""

import asyncio
import contextlib
import gc
import json
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.collect.feed import FeedThread
from engine.collect.runner import Runner
from engine.collect.settings import MOST_CONCURRENT, Settings
from engine.collect.stage import Crowd
from engine.collect.stopping import DRAIN_SECONDS
from engine.limits.budget import Budget
from engine.limits.endpoints import Teacher
from engine.provider.errors import Interrupted, RunStopped
from engine.run import metrics, progress
from engine.run.build import (
    Job,
    Stage,
    StageJob,
    StageResult,
    begin,
    concurrency_of,
    micro,
    remember_day,
    teacher_of,
)
from engine.run.control import Control
from engine.subprocesses import stop_signals
from engine.terminal import counted
from store.errors import DamagedLedger, DiskFull, PoolError
from store.failures import note_stop
from store.ledger import Ledger
from store.queries import account, connect_reader
from store.run_folder import LEDGER, make_reserve
from store.schema import STAGE_SHIFT

if TYPE_CHECKING:
    from engine.batch.runner import Batches

# The reserve takes in what is in flight when the disk is full: a reply's text and the JSON around it,
# twice, for the pages of the write-ahead log.
BYTES_A_TOKEN, REPLY_BYTES, RESERVE_FACTOR = 6, 8192, 2
SPARE_FILES = 64
GC_ALLOCATIONS = 20_000  # new objects between two collections


def run_job(job: Job) -> list[StageResult]:
    """Runs a job on an event loop of its own (uvloop); a result for each stage."""
    import uvloop

    most = _most_in_flight(job)
    _raise_file_limit(most)
    with _rare_collections(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(job, most))


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Replies make many short-lived objects and no circles: the garbage collector looks at them less often,
    and not at what was there before (a tenth of the time for each reply)."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def _run(job: Job, most: int) -> list[StageResult]:
    """`most`: how many requests there can be in flight."""
    wanted = most * max(_reply_bytes(stage.settings) for stage in job.stages)
    share = min(1.0, make_reserve(job.run, wanted) / wanted)
    running: list[Stage] = []

    def on_full() -> None:
        for stage in running:
            stage.runner.stop(_disk_full(job.run))

    async with metrics.serving(job.metrics_port) as board:
        ledger = Ledger(job.run, on_full)
        try:
            return await _run_with(job, ledger, running, share, board)
        finally:
            await ledger.close()


def _reply_bytes(settings: Settings) -> int:
    return RESERVE_FACTOR * (settings.max_tokens * BYTES_A_TOKEN + REPLY_BYTES)


def _teacher_of(stage: StageJob) -> str:
    return stage.settings.teacher or stage.settings.stage


def _most_in_flight(job: Job) -> int:
    """At the servers of all teachers that the job needs."""
    teachers = {_teacher_of(stage): stage.settings.servers() for stage in job.stages}
    return sum(concurrency_of(server) for servers in teachers.values() for server in servers)


def _disk_full(run: Path) -> DiskFull:
    return DiskFull(
        f"the disk of {run} is full; what was paid is stored (the reserve file made room): "
        "free some space and run the same command again"
    )


async def _run_with(
    job: Job, ledger: Ledger, running: list[Stage], share: float, board: metrics.Board
) -> list[StageResult]:
    """`share` of the requests in flight that were wanted: what the reserve could take in."""
    reader = connect_reader(job.run)
    budget, crowd = Budget(micro(job.cap), *account(reader), knob=job.knob), Crowd()
    async with contextlib.AsyncExitStack() as stack:
        thread = FeedThread(job.run, job.index)
        stack.callback(thread.close)
        teachers: dict[str, Teacher] = {}
        for each in job.stages:
            name = _teacher_of(each)
            if name not in teachers:
                teachers[name] = await teacher_of(each.settings, ledger, stack, share)
                remember_day(teachers[name], reader)
            running.append(await begin(each, job, ledger, teachers[name], budget, thread, crowd, stack))
        reader.close()
        for stage in running:
            settings = stage.job.settings
            board.add(metrics.MeteredStage(settings.stage, settings.model, stage.view, job.run / LEDGER))
        _connect(running)
        await _watched(running, ledger, job)
    broken: set[str] = set()  # stages that have not seen all their rows
    for stage in running:
        assert stage.result
        if stage.result.stopped or stage.job.lacking or broken.intersection(stage.job.after):
            broken.add(stage.job.settings.stage)
        _close_books(stage, ledger, is_whole=stage.job.settings.stage not in broken)
    return [stage.result for stage in running if stage.result]


def _connect(running: Sequence[Stage]) -> None:
    """Tells the rows of later stages how far the earlier ones are."""
    by_name = {stage.job.settings.stage: stage.runner.intake for stage in running}
    for stage in running:
        for name in stage.job.after:
            if name in by_name:
                by_name[name].readers.append(stage.runner.intake)
                by_name[name].feed.is_followed = True
                stage.job.rows.follow(name, by_name[name])


async def _watched(running: Sequence[Stage], ledger: Ledger, job: Job) -> None:
    """Runs the stages under the display and what can stop them."""
    views = [stage.view for stage in running]

    def keep_utilisation() -> None:
        for stage in running:
            used = json.dumps(stage.view.teacher.utilisation())
            ledger.note("UPDATE runs SET utilisation = ? WHERE id = ?", used, stage.run)

    display = progress.watch_silently if job.quiet else progress.show
    if job.control and job.control.on_progress:
        display = job.control.report
    shown = asyncio.ensure_future(display(views, keep_utilisation))
    try:
        with _stoppable([stage.runner for stage in running], job.control):
            async with asyncio.TaskGroup() as group:
                for stage in running:
                    group.create_task(_run_stage(stage))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        shown.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await shown


async def _run_stage(stage: Stage) -> None:
    try:
        await stage.runner.run()
    except (RunStopped, DiskFull, PoolError, DamagedLedger) as reason:
        stage.stopped = reason
    state = stage.view.state
    if (
        stage.stopped is None
        and state.rows == 0
        and stage.runner.intake.feed.rows_read == 0
        and not stage.job.after
    ):
        why = "; ".join(f"line {bad.line}: {bad.reason}" for bad in state.bad_shown[:1])
        rows = f"{counted(state.bad_rows, 'bad row')}; {why}" if why else "it is empty"
        stage.stopped = PoolError(f"no usable row in pool {stage.job.rows.source} ({rows})")
    code = stage.stopped.exit_code if stage.stopped else (1 if state.failed.total() else 0)
    used, seconds = stage.view.teacher.utilisation(), time.monotonic() - stage.started
    told, batch = stage.job.estimate, stage.job.settings.batch
    stage.result = StageResult(state, code, stage.stopped, used, seconds, told, batch)


@contextlib.contextmanager
def _stoppable(runners: Sequence["Runner | Batches"], control: Control | None) -> Iterator[None]:
    """By signals, or by whoever has started this thread: only the main thread hears of signals."""

    def stop(by: str, is_urgent: bool) -> None:
        words = f"stopped by {by}; what was answered is stored: run the same command to continue"
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


def _close_books(stage: Stage, ledger: Ledger, is_whole: bool) -> None:
    """Totals and the end of the run. Places of rows that the pool no longer has are forgotten
    (their answers are kept) when the whole of it was seen."""
    result, settings, number = stage.result, stage.job.settings, stage.number
    assert result is not None
    if is_whole and stage.job.plan.only is None:
        total, end = stage.runner.intake.feed.rows_read * settings.samples, stage.runner.intake.feed.end
        if settings.limit:
            ledger.note("UPDATE stages SET total = max(ifnull(total, 0), ?) WHERE id = ?", total, number)
        else:
            first, last = (number << STAGE_SHIFT) + end, (number + 1) << STAGE_SHIFT
            ledger.note("UPDATE stages SET total = ? WHERE id = ?", total, number)
            ledger.note("DELETE FROM rows WHERE id >= ? AND id < ?", first, last)
            ledger.note("DELETE FROM samples WHERE stage = ? AND position >= ?", number, end)
            ledger.note("DELETE FROM samples WHERE stage = ? AND sample >= ?", number, settings.samples)
        ledger.note("UPDATE stages SET bad_rows = ? WHERE id = ?", result.state.bad_rows, number)
    ledger.note(
        "UPDATE runs SET ended = ?, exit_code = ?, utilisation = ? WHERE id = ?",
        time.time(), result.exit_code, json.dumps(result.utilisation), stage.run,
    )  # fmt: skip
    if result.stopped:
        ledger.note(*note_stop(number, stage.run, str(result.stopped)))


def _raise_file_limit(connections: int) -> None:
    """Each connection is a file; the soft limit of 1,024 is often lower than the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(2 * MOST_CONCURRENT, connections) + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
