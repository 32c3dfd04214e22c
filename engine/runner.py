"""Asks what is due, at the limit, and stores what comes: the one loop that everything runs through.

A canary goes first. Then the pool is streamed; each request is a task that lives until its
answer is on the disk or its row has failed. At most four times the concurrency is outstanding,
sleeping or not. Decisions lie elsewhere (asking, limits, breaker, budget): here is the order.
"""

import asyncio
from collections import deque

from aiolimiter import AsyncLimiter

from engine.asking import Again, Answered, Asker, Failed, size_of
from engine.breaker import Effort
from engine.canary import CANARIES, against_the_run, is_doubtful
from engine.ending import asking, landed
from engine.endpoints import Endpoint, Teacher
from engine.errors import AllRefused, AuthRefused, ProviderDown, QuotaExhausted, RunStopped
from engine.intake import Intake
from store.errors import DistillError, PoolError
from store.records import Request

OUTSTANDING = 4  # times the concurrency
CANARIES_A_SECOND = 4
ELSEWHERE = ("too_large", "not_found")  # other endpoints may have larger limits, and the model


class Interrupted(RunStopped):
    """SIGINT, SIGTERM or SIGHUP."""

    exit_code = 130


class Runner:
    """One stage at its teacher. `run()` returns when the rows are done or raises RunStopped."""

    def __init__(self, intake: Intake, teacher: Teacher, most: int) -> None:
        self.intake, self.ledger, self.state = intake, intake.ledger, intake.state
        self.teacher, self.most = teacher, most
        self.askers: dict[Endpoint, Asker] = {}  # set before run(): they ask us whether we have stopped
        self._due: deque[Request] = deque()
        self._tasks: dict[asyncio.Task[None], bool] = {}  # task -> whether it is in flight
        self._sleeping = 0
        self._changed = intake.changed
        self._stopped: DistillError | None = None
        self._drain: float | None = None
        self._control = AsyncLimiter(CANARIES_A_SECOND, 1.0)
        self._proven = False  # the teacher has answered a row of this stage
        self._doubts: list[tuple[Request, Failed]] = []  # canaries that may have failed by our fault
        self._past_canaries = False
        self._producer: asyncio.Task[None] | None = None
        intake.asks, intake.stopped = self._asks, lambda: self.is_stopped

    def _asks(self) -> bool:
        return bool(self._tasks) or (bool(self._due) and not self._stopped)

    async def run(self) -> None:
        """Raises RunStopped if it ended early, StorageError if the ledger could not be written."""
        async with asking(self.intake, lambda: self._stopped) as group:
            self._group = group
            self._producer = group.create_task(self._produce())
            if self._stopped:
                self._producer.cancel()
            await asyncio.wait([self._producer])
            await landed(self._tasks, self._changed, lambda: self._drain)

    @property
    def is_stopped(self) -> bool:
        return self._stopped is not None

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
        self._changed.set()

    async def _produce(self) -> None:
        try:
            await self._canary()
            await self._bulk()
        except PoolError as error:  # what is in flight may land
            self.stop(error)

    async def _canary(self) -> None:
        """One row at a time until the server has answered one so that it can be read, refused ten in
        the same way, or answered ten in vain.

        Each attempt that fails for a passing reason brings in another row, so that one bad row at
        the head of the pool is not taken for an outage. Each of several endpoints gets one.
        """
        while not self._proven and not self._stopped and (request := await self._next_due()):
            await self._control.acquire()
            task, failures = self._spawn(request), self.state.retry_causes.total()
            while not (task.done() or self._proven):
                failing = failures < self.state.retry_causes.total()
                room = CANARIES - len(self._doubts) if failing else len(self.teacher.endpoints)
                if len(self._tasks) < room:
                    break
                self._changed.clear()
                await self._changed.wait()
            if self._doubts and not self._proven:
                self._judge_doubts()
        self._past_canaries = True  # no row is left, or one was answered
        if not self._stopped:
            for request, failed in self._doubts:
                self._fail(request, failed)
            self._doubts.clear()

    def _judge_doubts(self) -> None:
        if reason := against_the_run([failed for _, failed in self._doubts]):
            self.stop(reason)

    async def _bulk(self) -> None:
        while not self._stopped and (request := await self._next_due()):
            while not (self._stopped or self._has_room()):
                self._changed.clear()
                await self._changed.wait()
            if not self._stopped:
                self._spawn(request)

    def _has_room(self) -> bool:
        active = len(self._tasks) - self._sleeping
        slots = self.teacher.slots
        return active < slots and len(self._tasks) < OUTSTANDING * slots

    async def _next_due(self) -> Request | None:
        while not (self._due or self.intake.ended or self._stopped):
            self._due.extend((await self.intake.next()).due)
        return self._due.popleft() if self._due and not self._stopped else None

    def _spawn(self, request: Request) -> asyncio.Task[None]:
        task = self._group.create_task(self._ask(request))
        self._tasks[task] = False
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._changed.set()
        if not self._tasks:
            self.intake.crowd.one_rests()

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
        admitted = await self.teacher.admit(size_of(request), effort)
        endpoint = admitted.endpoint
        try:
            asker, teacher = self.askers[endpoint], self.teacher
            verdict = await asker.attempt(request, effort, admitted, self._mark_in_flight)
            if not teacher.is_one and isinstance(verdict, Failed) and verdict.refused:
                return self._elsewhere(effort, endpoint, verdict)
            return verdict
        except (AuthRefused, QuotaExhausted, ProviderDown) as reason:
            self.teacher.put_to_rest(endpoint, reason)
            return Again(0.0)
        finally:
            self.teacher.leave(admitted)
            self._mark_in_flight(False)
            self._changed.set()

    def _elsewhere(self, effort: Effort, endpoint: Endpoint, failed: Failed) -> Again | Failed:
        """What one of several endpoints refuses another may take: a row fails by the word of one that
        has answered others, or of all. An endpoint that answers nobody rests."""
        others = [e for e in self.teacher.endpoints if e is not endpoint]
        endpoint.refusals += 1
        doubtful = failed.status == 404 or endpoint.refusals >= CANARIES or any(e.proven for e in others)
        if doubtful and not endpoint.proven:
            self.teacher.put_to_rest(endpoint, AllRefused(failed.words))
            return Again(0.0)
        if endpoint.number in effort.refused_by or all(e.number in effort.refused_by for e in others):
            return failed
        if endpoint.proven and failed.cause not in ELSEWHERE:
            return failed
        if failed.status == 404:
            endpoint.proven = False  # its next one is a canary again
        effort.refused_by += (endpoint.number,)
        return Again(0.0)

    def _mark_in_flight(self, in_flight: bool = True) -> None:
        task = asyncio.current_task()
        if task in self._tasks:
            self._tasks[task] = in_flight

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        self._sleeping += 1
        self._changed.set()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._sleeping -= 1

    def _answered(self, request: Request) -> None:
        self._proven = True
        self.intake.answered(request.id)

    def _failed(self, request: Request, failed: Failed) -> None:
        """Before the first answer it may be the run's fault: such a row waits for the verdict."""
        if failed.cause == "unparsed" and self.state.was_read:
            self._proven = True
        if is_doubtful(failed) and not (self._proven or self._past_canaries):
            self._doubts.append((request, failed))
        else:
            self._fail(request, failed)

    def _fail(self, request: Request, failed: Failed) -> None:
        self.intake.failed(request.id, failed.cause, failed.error)
