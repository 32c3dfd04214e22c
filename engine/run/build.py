"""Wires one stage together: endpoints, limits, rows, runner. Decides nothing itself.

Also the values that describe a run (`Course`, `How`, `StageJob`) and how its stages ended.
"""

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.collect.attempt import Asker, AttemptConfig
from engine.collect.feed import Feed, FeedThread
from engine.collect.plan import Plan
from engine.collect.rows import Rows
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
from engine.provider.pricing import FREE, UNKNOWN, Prices
from engine.run import progress
from engine.run.control import Control
from engine.run.estimate import Estimate
from store.errors import DistillError
from store.key_index import KeyIndex
from store.ledger import Ledger
from store.provider_batches import has_batches
from store.queries import day_usage, has_answer, stage_account


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
    control: Control | None = None


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


if TYPE_CHECKING:
    from engine.batch.runner import Batches


@dataclass(eq=False)
class Stage:
    """A stage that runs."""

    job: StageJob
    number: int
    run: int
    runner: "Runner | Batches"
    view: progress.View
    started: float = field(default_factory=time.monotonic)
    stopped: DistillError | None = None
    result: StageResult | None = None


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
        client = Client(server.base_url, key, most, settings.reply_seconds, server.proxy)
        limiter = Limiter(server.rpm, server.tpm, server.rpd, server.tpd)
        gate = Gate(most)
        endpoint = Endpoint(
            ledger.endpoint(server.base_url),
            server.base_url,
            # an unknown price, once agreed to, is booked as zero
            settings.prices_of(server) or Prices.of_one(FREE, UNKNOWN),
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


async def begin(
    job: StageJob,
    whole: Job,
    ledger: Ledger,
    teacher: Teacher,
    budget: Budget,
    thread: FeedThread,
    crowd: Crowd,
    stack: contextlib.AsyncExitStack,
) -> Stage:
    """Opens the stage and its run in the ledger, and puts its parts together."""
    settings, state = job.settings, RunState()
    shown = {**settings.public(), **job.plan.recorded, "pool": job.rows.source}
    number, run = ledger.begin(settings.stage, settings.task, settings.samples, shown)
    _note_estimate(job, ledger, state, number, run)
    if job.cap is not None:
        knob = f"budget of stage '{settings.stage}'"
        budget = Budget(micro(job.cap), *stage_account(ledger.run, number), above=budget, knob=knob)
    intake = Intake(ledger, number, state, job.plan, thread.known.index, crowd)
    intake.feed = Feed(job.rows, job.plan, number, thread, intake.place)
    view = progress.View(settings.stage, state, teacher, budget)
    if settings.batch or has_batches(whole.run, number):
        from engine.batch.runner import batches_of

        batches = await stack.enter_async_context(
            batches_of(settings, whole.run, whole.quiet, intake, run, budget)
        )
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
            terms,
            intake.ledger,
            endpoint,
            budget,
            job.plan.tokenizer,
            intake.state,
            lambda: runner.is_stopped,
        )
    return runner


def _note_estimate(job: StageJob, ledger: Ledger, state: RunState, stage: int, run: int) -> None:
    told = job.estimate
    if told is None or job.plan.only is not None:
        return
    ledger.note("UPDATE runs SET estimate = ? WHERE id = ?", json.dumps(told.as_json()), run)
    if job.after:  # its rows are not there yet: how many there will be is a guess
        return
    state.total = (told.requests + told.already_answered) or None
    state.stored = told.already_answered
    if not job.settings.limit:
        state.total = told.rows * job.settings.samples
        ledger.note("UPDATE stages SET total = ? WHERE id = ?", state.total, stage)


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
