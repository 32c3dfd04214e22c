"""Asks what is pending, at the limit, and stores what comes: the one loop that everything runs through.

A canary goes first. Then the pool is streamed; each request is a task that lives until its
answer is on the disk or its row has failed. At most four times the concurrency is outstanding,
sleeping or not. Decisions lie elsewhere (asking, limits, breaker, budget): here is the order.
"""

import asyncio
from collections import deque

from aiolimiter import AsyncLimiter

from engine.collect.attempt import Asker
from engine.collect.outcomes import Again, Answered, Failed, Unusable, Verdict
from engine.collect.stage import Intake
from engine.collect.stopping import (
    CANARIES,
    CANARY_PLACES,
    against_the_run,
    are_in_a_row,
    are_the_last,
    asking,
    elsewhere,
    is_doubtful,
    is_of_the_run,
    landed,
    mostly_unusable,
)
from engine.limits.charging import RequestSize
from engine.limits.circuit_breaker import Effort
from engine.limits.endpoints import Endpoint, Teacher
from engine.provider.errors import (
    AddressWrong,
    AllRefused,
    AuthRefused,
    ModelGone,
    ProviderDown,
    QuotaExhausted,
    RunStopped,
)
from store.errors import DamagedLedger, DistillError, PoolError
from store.records import Request, Response

OUTSTANDING = 4  # times the concurrency
CANARIES_A_SECOND = 4
FAR = 4  # canaries that are left out where the rows at hand have failed: they are near


class Runner:
    """One stage at its teacher. `run()` returns when the rows are done or raises RunStopped."""

    def __init__(
        self,
        intake: Intake,
        teacher: Teacher,
        most: int,
        give_up_share: float = 1.0,
        proven: bool = False,
    ) -> None:
        """`proven`: the stage has answers under these settings, so that it needs no canary."""
        self.intake, self.ledger, self.state = intake, intake.ledger, intake.state
        self.teacher, self.most, self.give_up_share = teacher, most, give_up_share
        self.askers: dict[Endpoint, Asker] = {}  # set before run(): they ask us whether we have stopped
        self._due: deque[Request] = deque()
        self._tasks: dict[asyncio.Task[None], Effort] = {}
        self._sleeping = self._landing = 0
        self._changed = intake.changed
        self._stopped: DistillError | None = None
        self.is_stopped = False
        self._drain: float | None = None
        self._control = AsyncLimiter(CANARIES_A_SECOND, 1.0)
        self._proven = proven  # the teacher has answered a row of this stage
        # Rows that may have failed by the run's fault: canaries, and those refused in a row later on.
        self._doubts: list[tuple[Request, Failed | Unusable]] = []
        self._refused: list[tuple[Request, Failed]] = []
        self._past_canaries = False
        self._canaries = 0  # drawn since the last answer
        self._drawn: set[int] = set()  # their requests
        self._producer: asyncio.Task[None] | None = None
        intake.asks = lambda: bool(self._tasks) or (bool(self._due) and not self._stopped)
        intake.stopped = lambda: self.is_stopped

    async def run(self) -> None:
        """Raises RunStopped if it ended early, StorageError if the ledger could not be written."""
        async with asking(self.intake, lambda: self._stopped) as group:
            self._group = group
            self._producer = group.create_task(self._produce())
            if self._stopped:
                self._producer.cancel()
            await asyncio.wait([self._producer])
            await landed(
                self._tasks, self._changed, lambda: self._drain, lambda task: self._tasks[task].has_reply
            )
            # Refusals with which a run ends may be meant for everybody, unless an earlier run has seen these
            # rows refused already and others answered.
            last = [failed for _, failed in self._refused]
            if are_the_last(last) and not all(request.refused for request, _ in self._refused):
                self.stop(AllRefused(f"the last {len(last)} rows were all refused: {last[-1].words}"))
            self._settle_doubts()

    def stop(self, reason: DistillError, drain: float | None = None) -> None:
        """Admits nobody any more; what is in flight may land (within `drain` seconds, if given)."""
        if drain is not None:
            self._drain = drain
        if self._stopped is None:
            self._stopped, self.is_stopped = reason, True
            if self._producer:
                self._producer.cancel()  # it may be waiting for a pipe that says nothing
            for task, effort in list(self._tasks.items()):
                if not effort.in_flight:
                    task.cancel()
        self._changed.set()

    async def _produce(self) -> None:
        try:
            if not self._proven:
                await self._canary()
            self._past_canaries = True
            await self._bulk()
        except (PoolError, DamagedLedger) as error:  # what is in flight may land
            self.stop(error)

    async def _canary(self) -> None:
        """One row at a time until the server has answered one so that it can be read, refused ten in
        the same way, or answered ten in vain. A stage that has answers under these settings needs none.

        Each attempt that fails for a passing reason brings in another row, so that one bad row at
        the head of the pool is not taken for an outage. Each of several endpoints gets one.
        """
        while not self._proven and not self._stopped and (request := await self._next_canary()):
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
                # After others were answered, rows that were refused in earlier runs too do not speak.
                first = not self._refused
                doubts = [failed for request, failed in self._doubts if first or not request.refused]
                if reason := against_the_run(doubts, first):
                    self.stop(reason)
        self._past_canaries = True  # no row is left, or one was answered
        if self._proven or not self._refused:
            self._settle_doubts()

    async def _next_canary(self) -> Request | None:
        """The first pending row, then rows further and further away: a bad stretch of the pool must not
        speak for all of it. The rows before it stay first in line."""
        place = CANARY_PLACES[min(self._canaries, len(CANARY_PLACES) - 1)] - self._canaries
        while len(self._due) <= place and not (self.intake.ended or self._stopped):
            due = (await self.intake.next()).due
            self._due.extend(due)
            if not due and self._due:  # nothing more is there at the moment
                break
        if self._stopped or not self._due:
            return None
        self._canaries += 1
        place = min(place, len(self._due) - 1)
        request = self._due[place]
        del self._due[place]
        self._drawn.add(request.id)
        return request

    def _settle_doubts(self) -> None:
        """The teacher works: what was doubtful has failed. Once the run has been stopped for it, it stays
        pending."""
        doubts = [*self._refused, *self._doubts]
        self._refused.clear()
        self._doubts.clear()
        self._drawn.clear()
        self._canaries = 0
        if not self._stopped:
            for request, failed in doubts:
                self._fail(request, failed)

    async def _bulk(self) -> None:
        while not self._stopped:
            if not self._proven and len(self._refused) >= CANARIES:  # it has begun to refuse everybody
                await self._canary()
            request = self._due.popleft() if self._due else await self._next_due()
            if request is None:
                break
            while not self._stopped:
                slots = 0
                for endpoint in self.teacher.endpoints:  # for every row: a loop is faster than sum()
                    slots += endpoint.gate.limit
                outstanding = len(self._tasks)
                active = outstanding - self._sleeping - self._landing
                if active < slots and outstanding < OUTSTANDING * slots:
                    break
                if self.teacher.wants_another:
                    self._due.appendleft(request)
                    self._canaries = max(self._canaries, FAR)
                    request = await self._next_canary()
                    break
                self._changed.clear()
                await self._changed.wait()
            if request and not self._stopped:
                self._spawn(request)

    async def _next_due(self) -> Request | None:
        while not (self._due or self.intake.ended or self._stopped):
            self._due.extend((await self.intake.next()).due)
        return self._due.popleft() if self._due and not self._stopped else None

    def _spawn(self, request: Request) -> asyncio.Task[None]:
        effort = Effort()
        task = self._group.create_task(self._ask(request, effort))
        self._tasks[task] = effort
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._changed.set()
        if not self._tasks:
            self.intake.crowd.one_rests()

    async def _ask(self, request: Request, effort: Effort) -> None:
        """One request until it is answered or has failed. A retry stands at the head of the queue."""
        size = RequestSize(request.prompt_tokens, request.max_tokens)
        verdict: Verdict
        reply: Response | None
        try:
            while True:
                admitted = await self.teacher.admit(size, effort)
                endpoint = admitted.endpoint
                try:
                    verdict, reply = await self.askers[endpoint].attempt(request, effort, admitted)
                    if not self.teacher.is_one and isinstance(verdict, Failed) and verdict.refused:
                        verdict = elsewhere(self.teacher, endpoint, effort, verdict)
                except (AuthRefused, QuotaExhausted, ProviderDown, ModelGone, AddressWrong) as reason:
                    self.teacher.put_to_rest(endpoint, reason)
                    verdict, reply = Again(0.0), None
                finally:
                    self.teacher.leave(admitted)
                    self._changed.set()
                # An answer takes no slot any more; what may stop the run keeps its own until it is judged.
                landing = isinstance(verdict, Answered)
                self._landing += landing
                effort.has_reply = reply is not None
                try:
                    if reply or not isinstance(verdict, Again):
                        await self.ledger.committed()
                finally:
                    self._landing -= landing
                if reply:  # it counts when it is on the disk
                    self.state.count(reply, request.prompt_tokens, isinstance(verdict, Answered))
                    self.state.latencies.append(reply.latency)
                    self.state.spread.add(reply.latency)
                effort.in_flight = effort.has_reply = False
                if not isinstance(verdict, Again):
                    break
                if self._stopped:
                    return
                await self._sleep(verdict.seconds)
            if isinstance(verdict, Answered):
                self._proven = self._past_canaries = True
                if self._drawn or self._refused:
                    self._settle_doubts()
                self.intake.answered(request.id)
            else:
                self._failed(request, verdict)
            # A stage that pays for replies which hold no answer ends, however far it is.
            if self.state.unusable_of_last and (why := mostly_unusable(self.state, self.give_up_share)):
                self.stop(why)
        except RunStopped as reason:
            self.stop(reason)

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        self._sleeping += 1
        self._changed.set()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._sleeping -= 1

    def _failed(self, request: Request, failed: Failed | Unusable) -> None:
        """Before the first answer it may be the run's fault, and so may refusals that follow one another:
        such a row waits for the verdict."""
        if isinstance(failed, Failed) and failed.cause == "unparsed" and self.state.was_read:
            self._proven = True
        if request.id in self._drawn and not (self._proven or self._past_canaries):
            if is_doubtful(failed) and not (isinstance(failed, Unusable) and self.give_up_share >= 1.0):
                self._doubts.append((request, failed))
                return
        elif isinstance(failed, Failed) and is_of_the_run(failed):
            self._refused.append((request, failed))
            if self._past_canaries and are_in_a_row([one for _, one in self._refused]):
                self._proven = self._past_canaries = False  # rows from elsewhere are asked before the others
                self._canaries = 0
            return
        self._fail(request, failed)

    def _fail(self, request: Request, failed: Failed | Unusable) -> None:
        if isinstance(failed, Unusable):
            self.intake.unusable(request.id, failed.outcome, failed.response)
        else:
            self.intake.failed(request.id, failed.cause, failed.error)
