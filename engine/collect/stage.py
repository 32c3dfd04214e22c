"""The rows of a stage on their way into the ledger: which are done, which failed.

Shared by both ways of asking (online and in batches). Equal rows share one request, also between stages
that run together: one stage asks and the others wait for its answer. They are done, or failed, together. A
stage that reads other stages waits for `news`. Stages that read this one are its `readers`; they see rows
up to `reach`, whose places are up to date.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from engine.collect.feed import Chunk, Feed, Placement
from engine.collect.plan import Plan
from engine.collect.rows import Reach
from engine.collect.stats import BAD_ROWS_KEPT, RunState
from engine.provider.errors import RunStopped
from store.key_index import ANSWERED, FAILED, KeyIndex
from store.ledger import Ledger
from store.records import Cause, Outcome


class Member(Protocol):
    """A stage that runs. `changed` is set when there may be something new for it."""

    changed: asyncio.Event

    @property
    def is_stopped(self) -> bool: ...

    @property
    def is_at_work(self) -> bool:
        """Something that it has taken is still to be asked or under way."""

    def settled(self, count: int, cause: str | None) -> None:
        """So many of its samples have been answered, or have failed with a cause."""


class Crowd:
    """The stages that run together, and the requests of one that others wait for: their rows would
    ask the very same. (Equal rows of one stage are the usual case.)"""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.waiting: dict[int, Counter[Member]] = {}

    def wait(self, request: int, member: Member, count: int) -> None:
        self.waiting.setdefault(request, Counter())[member] += count

    def take_over(self, request: int, member: Member) -> bool:
        """The member asks it after all, for one of its samples that wait; false if none does."""
        waiting = self.waiting.get(request, Counter())
        if not waiting[member]:
            return False
        waiting[member] -= 1
        return True

    def settle(self, request: int, cause: str | None) -> None:
        for member, count in self.waiting.pop(request, Counter[Member]()).items():
            member.settled(count, cause)

    def one_rests(self) -> None:
        """Nobody need wait for it any more."""
        for member in self.members:
            member.changed.set()

    async def wait_for_others(self, member: Member) -> None:
        """Returns when nothing waits, or when nobody is at work who could answer it. Raises RunStopped
        for what was left."""
        while not member.is_stopped and (left := sum(waiting[member] for waiting in self.waiting.values())):
            if not any(other.is_at_work for other in self.members if other is not member):
                rows = f"{left:,} rows wait" if left > 1 else "a row waits"
                raise RunStopped(f"{rows} for an answer of another stage, which has ended early")
            member.changed.clear()
            await member.changed.wait()


CHUNK = 64  # due requests asked for at once; and placements in one commit without waiting for the disk
PAID = ("malformed", "unparsed")  # causes of failures after replies that may have been billed
GATHER_SECONDS = 0.2  # news from the stages before are taken in at most this often


class Intake:
    """One stage's. Whoever asks sets `feed`, `asks` (whether it has something to ask or under way)
    and `stopped` before the first chunk."""

    feed: Feed
    asks: Callable[[], bool]
    stopped: Callable[[], bool]

    def __init__(
        self, ledger: Ledger, stage: int, state: RunState, plan: Plan, index: KeyIndex, crowd: Crowd
    ) -> None:
        self.ledger, self.stage, self.state, self.plan, self.index = ledger, stage, state, plan, index
        self.crowd = crowd
        crowd.members.append(self)
        self.ended = False
        self.readers: list[Intake] = []
        self.news, self.changed = asyncio.Event(), asyncio.Event()
        self.reach = Reach()
        self.is_over = False
        self._fetching = self._dry = False

    @property
    def is_stopped(self) -> bool:
        return self.stopped()

    @property
    def is_at_work(self) -> bool:
        """Something that it has taken is still to be asked or under way."""
        return self._fetching or self.asks()

    def place(self, placements: Sequence[Placement]) -> None:
        """Remembers rows' places; called for each stretch, even when the run is being stopped."""
        for p in placements:
            if p.item is None:
                self.ledger.clear(self.stage, p.position)
            else:
                self.ledger.place(self.stage, p.position, p.item, p.plan, p.requests, p.new)

    async def next(self) -> Chunk:
        """The next stretch, counted. It may hold nothing pending: then the stages before had news, or
        the rows have `ended`."""
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
        if chunk.dry and not chunk.due:
            self.crowd.one_rests()
            await self.news.wait()
            await asyncio.sleep(GATHER_SECONDS)
        return chunk

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
            known = self.index.state(request)
            if known == ANSWERED:
                state.done += count
            elif known == FAILED:
                self._count_earlier(count)
            else:
                self.crowd.wait(request, self, count)
        if chunk.ended:
            self.ended = True
            state.total = state.rows * self.plan.samples
        self._tell_readers()

    def answered(self, request: int, own: int = 1) -> None:
        """`own`: samples of this stage that wait for it and are not known to the crowd."""
        self.index.mark(request, ANSWERED)
        self.state.ended += 1
        self.state.done += own
        for reader in self.readers:
            reader.news.set()
        self.changed.set()
        if self.crowd.waiting:
            self.crowd.settle(request, None)

    def failed(self, request: int, cause: Cause, error: int, own: int = 1) -> None:
        self.ledger.fail(request, error)
        self.index.mark(request, FAILED)
        self.state.ended += cause in PAID
        self.settled(own, cause)
        self.crowd.settle(request, cause)

    def unusable(self, request: int, outcome: Outcome, response: int, own: int = 1) -> None:
        """A reply that holds no answer is kept as what the request came to, and not asked for again."""
        self.ledger.accept(request, response)
        self.index.mark(request, FAILED)
        self.state.ended += 1
        self.settled(own, outcome)
        self.crowd.settle(request, outcome)

    def settled(self, count: int, cause: str | None) -> None:
        """So many samples had waited for a request that has been answered, or failed with a cause."""
        if cause is None:
            self.state.done += count
        elif count:
            self.state.failed[cause] += count
        if self.readers:
            self._tell_readers()
        self.changed.set()

    async def wait_for_others(self) -> None:
        """For samples that another stage asks. Raises RunStopped where it will not, StorageError."""
        await self.crowd.wait_for_others(self)
        await self.ledger.committed()

    def over(self) -> None:
        """Nothing more will come from this stage."""
        self.is_over = True
        self._tell_readers()
        self.crowd.one_rests()

    def _tell_readers(self) -> None:
        for reader in self.readers:
            reader.news.set()

    def _count_earlier(self, failed: int) -> None:
        if failed:
            self.state.failed["earlier"] += failed
