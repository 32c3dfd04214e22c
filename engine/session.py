"""Opens a run folder and everything around it, runs its stages together, closes it all in order.

The one place where the parts are put together; decides nothing itself. Stages share the ledger,
the budget, the feed's thread and, where they name the same teacher, its servers and limits.
"""

import asyncio
import contextlib
import json
import resource
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine import progress
from engine.asking import Asker, Terms
from engine.breaker import Breaker
from engine.budget import Budget
from engine.client import Client
from engine.concurrency import Adaptive, Gate
from engine.crowd import Crowd
from engine.endpoints import Endpoint, Teacher
from engine.errors import RunStopped
from engine.estimate import Estimate
from engine.feed import Feed, FeedThread, Placement, Plan
from engine.limits import Limiter
from engine.prices import FREE
from engine.rows import Rows
from engine.runner import DRAIN_SECONDS, OUTSTANDING, Interrupted, Runner
from engine.settings import MOST_CONCURRENT, Server, Settings
from engine.state import RunState
from store.errors import DiskFull, DistillError, PoolError
from store.folder import make_reserve
from store.index import KeyIndex
from store.ledger import Ledger
from store.read import account, connect_reader, day_usage, stage_account
from store.schema import STAGE_SHIFT

# The reserve takes in what is in flight when the disk is full: a reply's text and the JSON around it,
# twice, for the pages of the write-ahead log.
BYTES_A_TOKEN, REPLY_BYTES, RESERVE_FACTOR = 6, 8192, 2
SPARE_FILES = 64


@dataclass(frozen=True, slots=True)
class StageJob:
    """One stage: what is asked, of which rows. `after`: the stages whose answers they are made of,
    which may run at the same time; `cap`: dollars for this stage alone."""

    settings: Settings
    plan: Plan
    rows: Rows
    estimate: Estimate | None = None
    after: tuple[str, ...] = ()
    cap: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """Stages to run in a folder that this process holds; `cap`: dollars for the whole folder, and
    `knob`: what the user turns to raise it."""

    stages: Sequence[StageJob]
    run: Path
    index: KeyIndex
    cap: float | None
    quiet: bool
    knob: str = "--budget"


@dataclass(frozen=True, slots=True)
class Result:
    """How a stage ended: counts, exit code, and the reason if it ended early."""

    state: RunState
    exit_code: int
    stopped: DistillError | None
    utilisation: dict[str, float | None]
    seconds: float


@dataclass(eq=False)
class _Stage:
    """A stage that runs."""

    job: StageJob
    number: int
    run: int
    runner: Runner
    view: progress.View
    started: float = field(default_factory=time.monotonic)
    stopped: DistillError | None = None
    result: Result | None = None


def run_job(job: Job) -> list[Result]:
    """Runs a job on an event loop of its own (uvloop); a result for each stage."""
    import uvloop

    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(job))


async def _run(job: Job) -> list[Result]:
    each = max(_reply_bytes(stage.settings) for stage in job.stages)
    wanted = sum(_concurrency(server) for servers in _servers(job).values() for server in servers)
    share = min(1.0, make_reserve(job.run, wanted * each) / (wanted * each))
    running: list[_Stage] = []

    def on_full() -> None:
        for stage in running:
            stage.runner.stop(_disk_full(job.run))

    ledger = Ledger(job.run, on_full)
    try:
        return await _run_with(job, ledger, running, share)
    finally:
        await ledger.close()


def _reply_bytes(settings: Settings) -> int:
    return RESERVE_FACTOR * (settings.sent_max_tokens() * BYTES_A_TOKEN + REPLY_BYTES)


def _concurrency(server: Server) -> int:
    return server.concurrency or MOST_CONCURRENT


def _teacher_of(stage: StageJob) -> str:
    return stage.settings.teacher or stage.settings.stage


def _servers(job: Job) -> dict[str, list[Server]]:
    """The servers of each teacher that the job needs."""
    return {_teacher_of(stage): stage.settings.servers() for stage in job.stages}


def _disk_full(run: Path) -> DiskFull:
    return DiskFull(
        f"the disk of {run} is full; what was paid is stored (the reserve file made room): "
        "free some space and run the same command again"
    )


async def _run_with(job: Job, ledger: Ledger, running: list[_Stage], share: float) -> list[Result]:
    """`share` of the requests in flight that were wanted: what the reserve could take in."""
    reader = connect_reader(job.run)
    budget, crowd = Budget(_micro(job.cap), *account(reader), knob=job.knob), Crowd()
    async with contextlib.AsyncExitStack() as stack:
        thread = FeedThread(job.run, job.index)
        stack.callback(thread.close)
        teachers: dict[str, Teacher] = {}
        for each in job.stages:
            name = _teacher_of(each)
            if name not in teachers:
                teachers[name] = await _teacher(each.settings, ledger, stack, share)
                _remember_day(teachers[name], reader)
            running.append(_begin(each, ledger, teachers[name], budget, thread, crowd))
        reader.close()
        _connect(running)
        await _watched(running, ledger, job.quiet)
    broken: set[str] = set()  # stages that have not seen all their rows
    for stage in running:
        assert stage.result
        if stage.result.stopped or broken.intersection(stage.job.after):
            broken.add(stage.job.settings.stage)
        _close_books(stage, ledger, is_whole=stage.job.settings.stage not in broken)
    return [stage.result for stage in running if stage.result]


def _micro(dollars: float | None) -> int | None:
    return None if dollars is None else round(dollars * 1e6)


async def _teacher(
    settings: Settings, ledger: Ledger, stack: contextlib.AsyncExitStack, share: float
) -> Teacher:
    endpoints = []
    for server in settings.servers():
        most = max(1, int(share * _concurrency(server)))
        key = server.api_key.get_secret_value() if server.api_key else None
        client = Client(server.base_url, key, most, settings.timeout, server.proxy)
        limiter = Limiter(server.rpm, server.tpm, server.rpd, server.tpd)
        gate = Gate(most)
        endpoint = Endpoint(
            ledger.endpoint(server.base_url),
            server.base_url,
            settings.price_of(server) or FREE,  # an unknown price, once agreed to, is booked as zero
            await stack.enter_async_context(client),
            limiter,
            Breaker(settings.give_up, OUTSTANDING * most),
            gate,
            most,
        )
        if server.concurrency is None and not limiter.knows_limits:
            endpoint.adaptive = Adaptive(gate, most)
        endpoints.append(endpoint)
    return Teacher(endpoints)


def _begin(
    job: StageJob, ledger: Ledger, teacher: Teacher, budget: Budget, thread: FeedThread, crowd: Crowd
) -> _Stage:
    """Opens the stage and its run in the ledger, and puts its parts together."""
    settings, state = job.settings, RunState()
    shown = {**settings.public(), "pool": job.rows.source}
    number, run = ledger.begin(settings.stage, settings.task, settings.samples, shown)
    _note_estimate(job, ledger, state, number, run)
    if job.cap is not None:
        knob = f"budget of stage '{settings.stage}'"
        budget = Budget(_micro(job.cap), *stage_account(ledger.run, number), above=budget, knob=knob)
    most = sum(endpoint.most for endpoint in teacher.endpoints)

    def place(placement: Placement) -> None:
        runner.place(placement)

    feed = Feed(job.rows, job.plan, number, thread, place)
    runner = Runner(feed, ledger, teacher, number, state, most, crowd)
    terms = Terms(run, number, settings.attempts, settings.attempts_parse, job.plan.task.check)
    for endpoint in teacher.endpoints:
        runner.askers[endpoint] = Asker(
            terms, ledger, endpoint, budget, job.plan.tokenizer, state, lambda: runner.is_stopped
        )
    return _Stage(job, number, run, runner, progress.View(settings.stage, state, teacher, budget))


def _note_estimate(job: StageJob, ledger: Ledger, state: RunState, stage: int, run: int) -> None:
    told = job.estimate
    if told is None or job.plan.only is not None:
        return
    state.total = (told.requests + told.already_answered) or None
    state.stored = told.already_answered
    ledger.note("UPDATE runs SET estimate = ? WHERE id = ?", json.dumps(told.as_json()), run)
    if not job.settings.limit:
        state.total = told.rows * job.settings.samples
        ledger.note("UPDATE stages SET total = ? WHERE id = ?", state.total, stage)


def _remember_day(teacher: Teacher, reader: sqlite3.Connection) -> None:
    """What earlier runs used of the daily limits; wall-clock ages become loop times."""
    loop_now, now = asyncio.get_running_loop().time(), time.time()
    for endpoint in teacher.endpoints:
        limiter = endpoint.limiter
        if limiter.day_requests.limit is None and limiter.day_tokens.limit is None:
            continue
        for at, requests, tokens in day_usage(reader, now - 86400, endpoint.number):
            limiter.day_requests.add(requests, loop_now - max(0.0, now - at))
            limiter.day_tokens.add(tokens, loop_now - max(0.0, now - at))


def _connect(running: Sequence[_Stage]) -> None:
    """Tells the rows of later stages how far the earlier ones are."""
    by_name = {stage.job.settings.stage: stage.runner for stage in running}
    for stage in running:
        for name in stage.job.after:
            if name in by_name:
                by_name[name].readers.append(stage.runner)
                by_name[name].feed.is_followed = True
                stage.job.rows.follow(name, by_name[name])


async def _watched(running: Sequence[_Stage], ledger: Ledger, quiet: bool) -> None:
    """Runs the stages under the signals and the display."""
    views = [stage.view for stage in running]

    def keep_utilisation() -> None:
        for stage in running:
            used = json.dumps(stage.view.teacher.utilisation())
            ledger.note("UPDATE runs SET utilisation = ? WHERE id = ?", used, stage.run)

    display = progress.watch_silently if quiet else progress.show
    shown = asyncio.ensure_future(display(views, keep_utilisation))
    try:
        async with _signals([stage.runner for stage in running]), asyncio.TaskGroup() as group:
            for stage in running:
                group.create_task(_run_stage(stage))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        shown.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await shown


async def _run_stage(stage: _Stage) -> None:
    try:
        await stage.runner.run()
    except (RunStopped, DiskFull, PoolError) as reason:
        stage.stopped = reason
    state = stage.view.state
    if stage.stopped is None and state.rows == 0 and stage.runner.feed.rows_read == 0 and not stage.job.after:
        stage.stopped = PoolError(f"no usable row in pool ({state.bad_rows} bad rows)")
    code = stage.stopped.exit_code if stage.stopped else (1 if state.failed.total() else 0)
    used, seconds = stage.view.teacher.utilisation(), time.monotonic() - stage.started
    stage.result = Result(state, code, stage.stopped, used, seconds)


@contextlib.asynccontextmanager
async def _signals(runners: Sequence[Runner]) -> AsyncIterator[None]:
    """First SIGINT or SIGTERM: drain for some seconds; second: at once."""
    loop = asyncio.get_running_loop()
    seen = 0

    def stop(name: str) -> None:
        nonlocal seen
        seen += 1
        words = f"stopped by {name}; what was answered is stored: run the same command to go on"
        for runner in runners:
            runner.stop(Interrupted(words), drain=DRAIN_SECONDS if seen == 1 else 0.0)

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop, number.name)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _close_books(stage: _Stage, ledger: Ledger, is_whole: bool) -> None:
    """Totals and the end of the run. Places of rows that the pool no longer has are forgotten
    (their answers are kept) when the whole of it was seen."""
    result, settings, number = stage.result, stage.job.settings, stage.number
    assert result is not None
    if is_whole and stage.job.plan.only is None:
        total, end = stage.runner.feed.rows_read * settings.samples, stage.runner.feed.end
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


def _raise_file_limit() -> None:
    """Each connection is a file; the soft limit of 1,024 is often lower than the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST_CONCURRENT + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
