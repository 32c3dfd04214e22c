"""Asks what is due, at the limit, and stores what comes: the one loop that everything runs through.

A canary goes first. Then the pool is streamed; each request is a task that lives until its
answer is on the disk or its row has failed. At most four times the concurrency is outstanding,
sleeping or not. Decisions lie elsewhere (asking, limits, breaker, budget): here is the order.
"""

import asyncio
from collections import deque
from typing import TypeGuard

from aiolimiter import AsyncLimiter

from engine.asking import Again, Answered, Asker, Failed
from engine.breaker import Effort
from engine.crowd import Crowd
from engine.endpoints import Endpoint, Teacher
from engine.errors import AllRefused, AuthRefused, ProviderDown, QuotaExhausted, RunStopped
from engine.feed import Chunk, Feed, Placement
from engine.rows import Reach
from engine.state import BAD_ROWS_KEPT, RunState
from store.errors import DistillError, PoolError
from store.index import ANSWERED, FAILED
from store.ledger import Ledger
from store.records import Request

OUTSTANDING = 4  # times the concurrency
CANARIES = 10
CANARIES_A_SECOND = 4
CHUNK = 64
DRAIN_SECONDS = 5.0
GATHER_SECONDS = 0.2  # news from the stages before are taken in at most this often


class Interrupted(RunStopped):
    """SIGINT or SIGTERM."""

    exit_code = 130


class Runner:
    """One stage at its teacher. `run()` returns when the rows are done or raises RunStopped.

    A stage that takes its rows from others waits for `news`; those that take from this one are in
    `readers`, and see no further than `reach`: the places of rows there are up to date.
    """

    def __init__(
        self,
        feed: Feed,
        ledger: Ledger,
        teacher: Teacher,
        stage: int,
        state: RunState,
        most: int,
        crowd: Crowd | None = None,
    ) -> None:
        self.feed, self.ledger, self.teacher = feed, ledger, teacher
        self._crowd = crowd or Crowd()
        self._crowd.members.append(self)
        self.stage, self.state, self.most = stage, state, most
        self.askers: dict[Endpoint, Asker] = {}  # set before run(): they ask us whether we have stopped
        self.readers: list[Runner] = []
        self.news = asyncio.Event()
        self.reach = Reach()
        self.is_over = False
        self._due: deque[Request] = deque()
        self._ended = False
        self._fetching = self._dry = False
        self._tasks: dict[asyncio.Task[None], bool] = {}  # task -> whether it is in flight
        self._sleeping = 0
        self.changed = asyncio.Event()
        self._stopped: DistillError | None = None
        self._drain: float | None = None
        self._control = AsyncLimiter(CANARIES_A_SECOND, 1.0)
        self._proven = False  # the teacher has answered a row of this stage
        self._refusals: list[tuple[Request, Failed]] = []
        self._producer: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Raises RunStopped if it ended early, StorageError if the ledger could not be written."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._producer = group.create_task(self._produce())
                if self._stopped:
                    self._producer.cancel()
                await asyncio.wait([self._producer])
                await self._wind_down()
                await self._crowd.wait_for_others(self)
                await self.ledger.committed()
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            self.is_over = True
            self._tell_readers()
            self._crowd.one_rests()
        if self._stopped:
            raise self._stopped

    @property
    def is_stopped(self) -> bool:
        return self._stopped is not None

    @property
    def is_at_work(self) -> bool:
        """Something that it has taken is still to be asked or under way."""
        return bool(self._tasks) or self._fetching or (bool(self._due) and not self._stopped)

    def stop(self, reason: DistillError, drain: float | None = None) -> None:
        """Admits nobody any more; what is in flight may land (within `drain` seconds, if given)."""
        if drain is not None:
            self._drain = drain
        if self._stopped is None:
            self._stopped = reason
            if self._producer:
                self._producer.cancel()  # it may be waiting for a pipe that says nothing
            for task, in_flight in list(self._tasks.items()):
                if not in_flight:
                    task.cancel()
        self.changed.set()

    async def _produce(self) -> None:
        try:
            await self._canary()
            await self._bulk()
        except PoolError as error:  # what is in flight may land
            self.stop(error)

    async def _canary(self) -> None:
        """One row at a time until the server has answered one, or refused ten in the same way.

        Each attempt that fails for a passing reason brings in another row, so that one bad row at
        the head of the pool is not taken for an outage.
        """
        while not self._proven and not self._stopped and (request := await self._next_due()):
            await self._control.acquire()
            task, failures = self._spawn(request), self.state.retry_causes.total()
            while not (task.done() or self._proven):
                if failures < self.state.retry_causes.total() and len(self._tasks) < CANARIES:
                    break
                self.changed.clear()
                await self.changed.wait()
            if self._refusals and not self._proven:
                self._judge_refusals()
        if not self._stopped:
            for request, failed in self._refusals:
                self._fail(request, failed)
            self._refusals.clear()

    def _judge_refusals(self) -> None:
        count, last = len(self._refusals), self._refusals[-1][1]
        alike = all(failed.status == last.status for _, failed in self._refusals)
        if last.status == 404 or (alike and count >= CANARIES):
            rows = "the first row was" if count == 1 else f"the first {count} rows were all"
            self.stop(AllRefused(f"{rows} refused, so nothing more is asked: {last.words}"))

    async def _bulk(self) -> None:
        while not self._stopped and (request := await self._next_due()):
            while not (self._stopped or self._has_room()):
                self.changed.clear()
                await self.changed.wait()
            if not self._stopped:
                self._spawn(request)

    def _has_room(self) -> bool:
        active = len(self._tasks) - self._sleeping
        slots = self.teacher.slots
        return active < slots and len(self._tasks) < OUTSTANDING * slots

    async def _wind_down(self) -> None:
        """Waits for what is outstanding: all of it, or after a stop what is in flight."""
        deadline: float | None = None
        loop = asyncio.get_running_loop()
        while self._tasks:
            if self._drain is not None:
                deadline = min(deadline or loop.time() + self._drain, loop.time() + self._drain)
            self.changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self.changed.wait()
            except TimeoutError:
                for task in list(self._tasks):
                    task.cancel()
                await asyncio.wait(list(self._tasks))

    async def _next_due(self) -> Request | None:
        while not (self._due or self._ended or self._stopped):
            if self._dry:  # the rows are looked through anew, and see all that was news until now
                self._dry = False
                self.news.clear()
            self._fetching = True
            try:
                chunk = await self.feed.chunk(CHUNK)
                await self._take(chunk)
            finally:
                self._fetching = False
            self._dry = chunk.dry
            if chunk.dry and not self._due:
                self._crowd.one_rests()
                await self.news.wait()
                await asyncio.sleep(GATHER_SECONDS)
        return self._due.popleft() if self._due and not self._stopped else None

    def place(self, placement: Placement) -> None:
        """Remembers a row's place; called for each, even when the run is being stopped."""
        p = placement
        if p.item is None:
            self.ledger.clear(self.stage, p.position)
        else:
            self.ledger.place(self.stage, p.position, p.item, self.feed.plan, p.requests, p.new)

    async def _take(self, chunk: Chunk) -> None:
        state = self.state
        if len(chunk.placements) > CHUNK or (self.readers and chunk.placements):
            await self.ledger.committed()
        self.reach = chunk.reach
        state.rows += chunk.rows
        state.bad_rows += len(chunk.bad)
        state.bad_shown.extend(chunk.bad[: BAD_ROWS_KEPT - len(state.bad_shown)])
        state.known += chunk.known[ANSWERED]
        state.done += chunk.known[ANSWERED]
        self._count_earlier(chunk.known[FAILED])
        for request, count in chunk.shared.items():
            self._count_shared(request, count)
        self._due.extend(chunk.due)
        if chunk.ended:
            self._ended = True
            state.total = state.rows * self.feed.samples
        self._tell_readers()

    def _tell_readers(self) -> None:
        for reader in self.readers:
            reader.news.set()

    def _count_earlier(self, failed: int) -> None:
        if failed:
            self.state.failed["earlier"] += failed

    def _count_shared(self, request: int, count: int) -> None:
        """Equal rows: they are done when the one request that they share is."""
        known = self.feed.index.state(request)
        if known == ANSWERED:
            self.state.done += count
        elif known == FAILED:
            self._count_earlier(count)
        else:
            self._crowd.wait(request, self, count)

    def settled(self, count: int, cause: str | None) -> None:
        """So many samples had waited for a request that has been answered, or failed with a cause."""
        if cause is None:
            self.state.done += count
        else:
            self.state.failed[cause] += count
        self._tell_readers()
        self.changed.set()

    def _spawn(self, request: Request) -> asyncio.Task[None]:
        task = self._group.create_task(self._ask(request))
        self._tasks[task] = False
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self.changed.set()
        if not self._tasks:
            self._crowd.one_rests()

    async def _ask(self, request: Request) -> None:
        """One request until it is answered or has failed."""
        effort = Effort()
        try:
            while isinstance(verdict := await self._attempt(request, effort), Again):
                if self._stopped:
                    return
                await self._sleep(verdict.seconds)
            if isinstance(verdict, Answered):
                self._answered(request)
            else:
                self._failed(request, verdict)
        except RunStopped as reason:
            self.stop(reason)

    async def _attempt(self, request: Request, effort: Effort) -> Answered | Again | Failed:
        """At an endpoint that has room; a retry stands at the head of its queue."""
        admitted = await self.teacher.admit(first=effort.asks > 0)
        endpoint = admitted.endpoint

        def in_flight() -> None:
            self.teacher.sent(admitted)
            self._mark_in_flight()

        try:
            verdict = await self.askers[endpoint].attempt(request, effort, admitted.probe, in_flight)
            if self.teacher.is_one or not _is_refusal(verdict, endpoint):
                return verdict
            self.teacher.put_to_rest(endpoint, AllRefused(verdict.words))
            return Again(0.0)
        except (AuthRefused, QuotaExhausted, ProviderDown) as reason:
            self.teacher.put_to_rest(endpoint, reason)
            return Again(0.0)
        finally:
            self.teacher.leave(admitted)
            self._mark_in_flight(False)
            self.changed.set()

    def _mark_in_flight(self, in_flight: bool = True) -> None:
        task = asyncio.current_task()
        if task in self._tasks:
            self._tasks[task] = in_flight

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        self._sleeping += 1
        self.changed.set()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._sleeping -= 1

    def _answered(self, request: Request) -> None:
        self._proven = True
        self.feed.index.mark(request.id, ANSWERED)
        self.settled(1, None)
        self._crowd.settle(request.id, None)

    def _failed(self, request: Request, failed: Failed) -> None:
        """Refusals before the first answer may be the run's fault: they wait for the verdict."""
        self._proven |= failed.cause == "unparsed"  # it answers, if not in the form asked for
        if failed.refused and not self._proven:
            self._refusals.append((request, failed))
        else:
            self._fail(request, failed)

    def _fail(self, request: Request, failed: Failed) -> None:
        self.ledger.fail(request.id, failed.error)
        self.feed.index.mark(request.id, FAILED)
        self.settled(1, failed.cause)
        self._crowd.settle(request.id, failed.cause)


def _is_refusal(verdict: Answered | Again | Failed, endpoint: Endpoint) -> TypeGuard[Failed]:
    """An endpoint that has not answered yet does not know the model, or the address is wrong."""
    return isinstance(verdict, Failed) and verdict.status == 404 and not endpoint.proven


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of our own errors, else the first of all: one sentence for one cause."""
    ours, _ = errors.split(DistillError)
    group = ours or errors
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
