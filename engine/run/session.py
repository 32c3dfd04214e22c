"""Opens a run folder and everything around it, runs its stages together, closes it all in order.

The one place where the parts are put together: servers, limits, rows, runners; decides nothing
itself. Stages share the ledger, the budget, the feed's thread and, where they name the same teacher, its
servers and limits.
"""

import asyncio
import contextlib
import gc
import json
import resource
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine.collect.attempt import Asker, AttemptConfig
from engine.collect.feed import Feed, FeedThread
from engine.collect.runner import OUTSTANDING, Runner
from engine.collect.settings import MOST_CONCURRENT, Server, Settings
from engine.collect.stage import Crowd, Intake
from engine.collect.stats import RunState
from engine.limits.budget import Budget
from engine.limits.circuit_breaker import Breaker
from engine.limits.concurrency import Adaptive, Gate
from engine.limits.endpoints import Endpoint, Teacher
from engine.limits.rate_limiter import Limiter
from engine.provider.client import Client
from engine.provider.errors import RunStopped
from engine.provider.pricing import FREE, UNKNOWN, Prices
from engine.run import metrics, progress
from engine.run.job import Job, Stage, StageJob, StageResult, stoppable
from engine.terminal import counted
from store.errors import DamagedLedger, DiskFull, PoolError
from store.files import LEDGER
from store.ledger import Ledger
from store.provider_batches import has_batches
from store.queries import account, connect_reader, day_usage, has_answer, stage_account
from store.run_folder import make_reserve
from store.schema import STAGE_SHIFT
from store.stage_rows import note_stop

# The reserve takes in what is in flight when the disk is full: a reply's text and the JSON around it,
# twice, for the pages of the write-ahead log.
BYTES_A_TOKEN, REPLY_BYTES, RESERVE_FACTOR = 6, 8192, 2
SPARE_FILES = 64
GC_ALLOCATIONS = 20_000  # new objects between two collections


def run_job(job: Job) -> list[StageResult]:
    """Runs a job on an event loop of its own (uvloop); a result for each stage."""
    import uvloop

    teachers = {_teacher_of(stage): stage.settings.servers() for stage in job.stages}
    most = sum(concurrency_of(server) for servers in teachers.values() for server in servers)
    # Each connection is a file; the soft limit of 1,024 is often lower than the hard one
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(2 * MOST_CONCURRENT, most) + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    # Replies make many short-lived objects and no circles: the garbage collector looks at them less often,
    # and not at what was there before (a tenth of the time for each reply)
    before = gc.get_threshold()
    is_first = before[0] < GC_ALLOCATIONS  # no other run in this process has seen to it
    if is_first:
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS, 20, 50)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(job, most))
    finally:
        if is_first:
            gc.set_threshold(*before)
            gc.unfreeze()


async def _run(job: Job, most: int) -> list[StageResult]:
    """`most`: how many requests there can be in flight."""
    a_reply = max(stage.settings.max_tokens for stage in job.stages) * BYTES_A_TOKEN + REPLY_BYTES
    wanted = most * RESERVE_FACTOR * a_reply
    share = min(1.0, make_reserve(job.run, wanted) / wanted)
    running: list[Stage] = []

    def on_full() -> None:
        for stage in running:
            stage.runner.stop(
                DiskFull(
                    f"the disk of {job.run} is full; everything paid for is saved (the reserve file made "
                    "room): free some space and run the same command again"
                )
            )

    async with metrics.serving(job.metrics_port) as board:
        ledger = Ledger(job.run, on_full)
        try:
            return await _run_with(job, ledger, running, share, board)
        finally:
            await ledger.close()


def _teacher_of(stage: StageJob) -> str:
    return stage.settings.teacher or stage.settings.stage


async def _run_with(
    job: Job, ledger: Ledger, running: list[Stage], share: float, board: metrics.Board
) -> list[StageResult]:
    """`share` of the requests in flight that were wanted: what the reserve could take in."""
    reader = connect_reader(job.run)
    budget = Budget(micro(job.cap), *account(reader), knob=job.knob)
    async with contextlib.AsyncExitStack() as stack:
        thread = FeedThread(job.run, job.index)
        stack.callback(thread.close)
        shared = Shared(job, ledger, budget, thread, Crowd(), stack)
        teachers: dict[str, Teacher] = {}
        for each in job.stages:
            name = _teacher_of(each)
            if name not in teachers:
                teachers[name] = await teacher_of(each.settings, ledger, stack, share)
                remember_day(teachers[name], reader)
            running.append(await begin(each, teachers[name], shared))
        reader.close()
        intakes = {stage.job.settings.stage: stage.runner.intake for stage in running}
        for stage in running:
            settings = stage.job.settings
            board.add(metrics.MeteredStage(settings.stage, settings.model, stage.view, job.run / LEDGER))
            for name in stage.job.after:  # the rows of later stages learn how far the earlier ones are
                if name in intakes:
                    intakes[name].readers.append(stage.runner.intake)
                    intakes[name].feed.is_followed = True
                    stage.job.rows.follow(name, intakes[name])
        await _watched(running, ledger, job)
    broken: set[str] = set()  # stages that have not seen all their rows
    for stage in running:
        assert stage.result
        if stage.result.stopped or stage.job.lacking or broken.intersection(stage.job.after):
            broken.add(stage.job.settings.stage)
        _close_books(stage, ledger, is_whole=stage.job.settings.stage not in broken)
    return [stage.result for stage in running if stage.result]


def micro(dollars: float | None) -> int | None:
    return None if dollars is None else round(dollars * 1e6)


def concurrency_of(server: Server) -> int:
    return server.concurrency or MOST_CONCURRENT


async def teacher_of(
    settings: Settings, ledger: Ledger, stack: contextlib.AsyncExitStack, share: float
) -> Teacher:
    endpoints = []
    for server in settings.servers():
        most = max(1, int(share * concurrency_of(server)))
        key = server.api_key.get_secret_value() if server.api_key else None
        new = Client(server.base_url, key, most, settings.reply_seconds, server.proxy)
        client, gate = await stack.enter_async_context(new), Gate(most)
        limiter = Limiter(server.rpm, server.tpm, server.rpd, server.tpd)
        # an unknown price, once agreed to, is booked as zero
        prices = settings.prices_of(server) or Prices.of_one(FREE, UNKNOWN)
        endpoint = Endpoint(
            ledger.endpoint(server.base_url), server.base_url, prices, client, limiter,
            Breaker(settings.give_up, OUTSTANDING * most), gate, most,
        )  # fmt: skip
        if server.concurrency is None and not limiter.knows_limits:
            endpoint.adaptive = Adaptive(gate, most)
        endpoints.append(endpoint)
    return Teacher(endpoints)


def remember_day(teacher: Teacher, reader: sqlite3.Connection) -> None:
    """What earlier runs used of the daily limits; wall-clock ages become loop times."""
    loop_now, now = asyncio.get_running_loop().time(), time.time()
    for endpoint in teacher.endpoints:
        limiter = endpoint.limiter
        if limiter.day_requests.limit is None and limiter.day_tokens.limit is None:
            continue
        for at, requests, tokens in day_usage(reader, now - 86400, endpoint.number):
            limiter.day_requests.add(requests, loop_now - max(0.0, now - at))
            limiter.day_tokens.add(tokens, loop_now - max(0.0, now - at))


@dataclass(frozen=True, slots=True)
class Shared:
    """What the stages of a job share, beside the teachers of those with the same one."""

    job: Job
    ledger: Ledger
    budget: Budget
    thread: FeedThread
    crowd: Crowd
    stack: contextlib.AsyncExitStack


async def begin(job: StageJob, teacher: Teacher, shared: Shared) -> Stage:
    """Opens the stage and its run in the ledger, and puts its parts together."""
    settings, state, told, ledger = job.settings, RunState(), job.estimate, shared.ledger
    shown = {**settings.public(), **job.plan.recorded, "pool": job.rows.source}
    number, run = ledger.begin(settings.stage, settings.task, settings.samples, shown)
    if told is not None and job.plan.only is None:
        ledger.note("UPDATE runs SET estimate = ? WHERE id = ?", json.dumps(told.as_json()), run)
        if not job.after:  # else its rows are not there yet: how many there will be is a guess
            state.total = (told.requests + told.already_answered) or None
            state.stored = told.already_answered
            if not settings.limit:
                state.total = told.rows * settings.samples
                ledger.note("UPDATE stages SET total = ? WHERE id = ?", state.total, number)
    budget = shared.budget
    if job.cap is not None:
        knob = f"budget of stage '{settings.stage}'"
        budget = Budget(micro(job.cap), *stage_account(ledger.run, number), above=budget, knob=knob)
    intake = Intake(ledger, number, state, job.plan, shared.thread.known.index, shared.crowd)
    intake.feed = Feed(job.rows, job.plan, number, shared.thread, intake.place)
    view = progress.View(settings.stage, state, teacher, budget)
    whole = shared.job
    if settings.batch or has_batches(whole.run, number):
        from engine.batch.runner import batches_of

        opened = batches_of(settings, whole.run, whole.quiet, intake, run, budget)
        batches = await shared.stack.enter_async_context(opened)
        if settings.batch:
            return Stage(job, number, run, batches, view)
        await batches.settle()
    return Stage(job, number, run, _online(job, run, intake, teacher, budget), view)


def _online(job: StageJob, run: int, intake: Intake, teacher: Teacher, budget: Budget) -> Runner:
    settings = job.settings
    most = sum(endpoint.most for endpoint in teacher.endpoints)
    proven = has_answer(intake.ledger.run, intake.stage, job.plan.fingerprint)
    runner = Runner(intake, teacher, most, settings.give_up_share, proven)
    terms = AttemptConfig(
        run, intake.stage, settings.attempts, settings.attempts_parse, settings.attempts_empty,
        job.plan.task.check,
    )  # fmt: skip
    for endpoint in teacher.endpoints:
        endpoint.answered_before |= proven
        runner.askers[endpoint] = Asker(
            terms, intake.ledger, endpoint, budget, job.plan.tokenizer, intake.state,
            lambda: runner.is_stopped,
        )  # fmt: skip
    return runner


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
        with stoppable([stage.runner for stage in running], job.control):
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
