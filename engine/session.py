"""Opens a run folder and everything around it, runs one stage, closes it all in order.

The one place where the parts are put together; decides nothing itself.
"""

import asyncio
import contextlib
import json
import resource
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import progress
from engine.asking import Asker, Terms
from engine.breaker import Breaker
from engine.budget import Budget
from engine.client import Client
from engine.concurrency import Adaptive, Gate
from engine.errors import RunStopped
from engine.estimate import Estimate
from engine.feed import Feed, Plan
from engine.limits import Limiter
from engine.prices import Price
from engine.runner import DRAIN_SECONDS, OUTSTANDING, Interrupted, Runner
from engine.settings import MOST_CONCURRENT, Settings
from engine.state import RunState
from store.batches import has_batches
from store.errors import DiskFull, DistillError, PoolError
from store.folder import make_reserve
from store.index import KeyIndex
from store.ledger import Ledger
from store.pool import Pool
from store.read import account, connect_reader, day_usage
from store.schema import STAGE_SHIFT

if TYPE_CHECKING:
    from engine.batches import Batches

# The reserve takes in what is in flight when the disk is full: a reply's text and the JSON around it,
# twice, for the pages of the write-ahead log.
BYTES_A_TOKEN, REPLY_BYTES, RESERVE_FACTOR = 6, 8192, 2
SPARE_FILES = 64


@dataclass(frozen=True, slots=True)
class Job:
    """One stage to run: what, on which pool, into which folder that this process holds."""

    settings: Settings
    price: Price
    plan: Plan
    pool: Pool
    run: Path
    index: KeyIndex
    estimate: Estimate | None
    quiet: bool


@dataclass(frozen=True, slots=True)
class Result:
    """How it ended: counts, exit code, and the reason if it ended early."""

    state: RunState
    exit_code: int
    stopped: DistillError | None
    utilisation: dict[str, float | None]
    seconds: float


def run_job(job: Job) -> Result:
    """Runs a job on an event loop of its own (uvloop)."""
    import uvloop

    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(job))


async def _run(job: Job) -> Result:
    most = job.settings.concurrency or MOST_CONCURRENT
    each = RESERVE_FACTOR * (job.settings.sent_max_tokens() * BYTES_A_TOKEN + REPLY_BYTES)
    most = max(1, min(most, make_reserve(job.run, most * each) // each))
    stop_for_disk: list[Runner | Batches] = []

    def on_full() -> None:
        for runner in stop_for_disk:
            runner.stop(_disk_full(job.run))

    ledger = Ledger(job.run, on_full)
    try:
        return await _run_with(job, ledger, stop_for_disk, most)
    finally:
        await ledger.close()


def _disk_full(run: Path) -> DiskFull:
    return DiskFull(
        f"the disk of {run} is full; what was paid is stored (the reserve file made room): "
        "free some space and run the same command again"
    )


async def _run_with(job: Job, ledger: Ledger, runners: list["Runner | Batches"], most: int) -> Result:
    """`most`: requests in flight, no more than the reserve could take in on a full disk."""
    settings, state = job.settings, RunState()
    stage, run = ledger.begin(settings.stage, settings.task, settings.samples, _settings_json(job))
    if job.estimate and job.plan.only is None:
        state.total = (job.estimate.requests + job.estimate.already_answered) or None
        state.stored = job.estimate.already_answered
        ledger.note("UPDATE runs SET estimate = ? WHERE id = ?", json.dumps(job.estimate.as_json()), run)
        if not settings.limit:
            total = job.estimate.rows * settings.samples
            state.total = total
            ledger.note("UPDATE stages SET total = ? WHERE id = ?", total, stage)
    reader = connect_reader(job.run)
    spent, at_risk = account(reader)
    limiter = Limiter(settings.rpm, settings.tpm, settings.rpd, settings.tpd)
    if settings.rpd or settings.tpd:
        _remember_day(limiter, day_usage(reader, time.time() - 86400))
    reader.close()
    cap = None if settings.budget is None else round(settings.budget * 1e6)
    budget = Budget(cap, spent, at_risk)
    breaker = Breaker(settings.give_up, OUTSTANDING * most)
    gate = Gate(most)
    feed = Feed(job.pool, job.plan, job.run, stage, job.index)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    if settings.batch or has_batches(job.run):
        from engine.batch_session import batches_of  # the openai package takes a second to load

        async with batches_of(
            settings, job.plan.tokenizer, job.run, job.quiet, ledger, feed, stage, run, budget, state
        ) as asked_in_batches:
            if settings.batch:
                runners.append(asked_in_batches)
                view = progress.View(settings.stage, state, limiter, budget, breaker)
                started = time.monotonic()
                stopped = await _watched(asked_in_batches, view, ledger, run, job.quiet)
                feed.close()
                result = _result(state, stopped, limiter, time.monotonic() - started)
                _close_books(job, ledger, stage, run, result, feed.position)
                return result
            await asked_in_batches.settle()
    runner = Runner(feed, ledger, breaker, gate, stage, state, most)
    runners.append(runner)
    async with Client(settings.base_url, key, most, settings.timeout, settings.proxy) as client:
        terms = Terms(run, stage, job.price, settings.attempts)
        asker = Asker(
            terms, ledger, client, limiter, budget, breaker, job.plan.tokenizer, state,
            lambda: runner.is_stopped,
        )  # fmt: skip
        if settings.concurrency is None and not limiter.knows_limits:
            asker.adaptive = Adaptive(gate, most)
        runner.asker = asker
        view = progress.View(settings.stage, state, limiter, budget, breaker)
        started = time.monotonic()
        stopped = await _watched(runner, view, ledger, run, job.quiet)
    feed.close()
    result = _result(state, stopped, limiter, time.monotonic() - started)
    _close_books(job, ledger, stage, run, result, feed.position)
    return result


def _settings_json(job: Job) -> dict[str, object]:
    return {**job.settings.public(), "pool": job.pool.source}


def _remember_day(limiter: Limiter, usage: list[tuple[float, int, int]]) -> None:
    """What earlier runs used of the daily limits; wall-clock ages become loop times."""
    loop_now, now = asyncio.get_running_loop().time(), time.time()
    for at, requests, tokens in usage:
        limiter.day_requests.add(requests, loop_now - max(0.0, now - at))
        limiter.day_tokens.add(tokens, loop_now - max(0.0, now - at))


async def _watched(
    runner: "Runner | Batches", view: progress.View, ledger: Ledger, run: int, quiet: bool
) -> DistillError | None:
    """Runs it under the signals and the display; returns the reason if it ended early."""

    def keep_utilisation() -> None:
        ledger.note(
            "UPDATE runs SET utilisation = ? WHERE id = ?",
            json.dumps(view.limiter.utilisation()),
            run,
        )

    display = progress.watch_silently if quiet else progress.show
    shown = asyncio.ensure_future(display(view, keep_utilisation))
    try:
        async with _signals(runner):
            await runner.run()
    except (RunStopped, DiskFull) as reason:
        return reason
    finally:
        shown.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await shown
    if view.state.rows == 0 and runner.feed.position == 0:
        return PoolError(f"no usable row in pool ({view.state.bad_rows} bad rows)")
    return None


@contextlib.asynccontextmanager
async def _signals(runner: "Runner | Batches") -> AsyncIterator[None]:
    """First SIGINT or SIGTERM: drain for some seconds; second: at once."""
    loop = asyncio.get_running_loop()
    seen = 0

    def stop(name: str) -> None:
        nonlocal seen
        seen += 1
        words = f"stopped by {name}; what was answered is stored: run the same command to go on"
        runner.stop(Interrupted(words), drain=DRAIN_SECONDS if seen == 1 else 0.0)

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop, number.name)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _result(state: RunState, stopped: DistillError | None, limiter: Limiter, seconds: float) -> Result:
    code = stopped.exit_code if stopped else (1 if state.failed.total() else 0)
    return Result(state, code, stopped, limiter.utilisation(), seconds)


def _close_books(job: Job, ledger: Ledger, stage: int, run: int, result: Result, rows: int) -> None:
    """Totals and the end of the run. Places of rows that the pool no longer has are forgotten
    (their answers are kept)."""
    if result.stopped is None and job.plan.only is None:
        total = rows * job.settings.samples
        if job.settings.limit:
            ledger.note("UPDATE stages SET total = max(ifnull(total, 0), ?) WHERE id = ?", total, stage)
        else:
            first, last = (stage << STAGE_SHIFT) + rows, (stage + 1) << STAGE_SHIFT
            ledger.note("UPDATE stages SET total = ? WHERE id = ?", total, stage)
            ledger.note("DELETE FROM rows WHERE id >= ? AND id < ?", first, last)
            ledger.note("DELETE FROM samples WHERE stage = ? AND position >= ?", stage, rows)
            ledger.note("DELETE FROM samples WHERE stage = ? AND sample >= ?", stage, job.settings.samples)
        ledger.note("UPDATE stages SET bad_rows = ? WHERE id = ?", result.state.bad_rows, stage)
    ledger.note(
        "UPDATE runs SET ended = ?, exit_code = ?, utilisation = ? WHERE id = ?",
        time.time(), result.exit_code, json.dumps(result.utilisation), run,
    )  # fmt: skip


def _raise_file_limit() -> None:
    """Each connection is a file; the soft limit of 1,024 is often lower than the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST_CONCURRENT + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
