"""One batch, from upload to results, and recovery after a crash.

`Lives` follows each batch through its states. `Books` takes over the batches that an earlier process left
and keeps ledger, budget, key index and counts in step. A batch that was certainly never created is used
again if its file is still what would be asked now. Otherwise it is withdrawn, and its requests are pending
again.
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from engine.batch.client import BatchApi, Remote
from engine.batch.files import name_of, sweep
from engine.batch.packer import Leftover, Packer, Queue, RetryLine, shown
from engine.batch.results import Collector
from engine.batch.submit import (
    Submitter,
    next_step,
    patiently,
    pause,
    poll_seconds,
    refusal,
    state_of,
    words_of,
)
from engine.collect.stage import Intake
from engine.collect.stats import RunState
from engine.limits.budget import Budget
from engine.provider.errors import BatchRefused, ProviderDown, RowRefused
from store import provider_batches as batches
from store.errors import UsageError
from store.key_index import DUE, TAKEN
from store.ledger import Ledger
from store.provider_batches import BatchRow, Enqueued


@dataclass(frozen=True, slots=True)
class BatchBooks:
    """Reads with a connection of its own, which `reader` is."""

    reader: sqlite3.Connection
    ledger: Ledger
    submitter: Submitter
    budget: Budget
    intake: Intake
    state: RunState
    say: Callable[[str], None]

    def open(self) -> list[BatchRow]:
        """Those of this stage. Raises UsageError where one is at another provider."""
        every, here = batches.open_batches(self.reader), self.submitter.api.base_url
        rows = [row for row in every if row.stage == self.intake.stage]
        for row in rows:
            if row.base_url != here and next_step(row) in ("follow", "look"):
                raise UsageError(
                    f"batch {row.id} of this run is at {row.base_url}: "
                    "pass it with --base-url until the batch has ended"
                )
        return rows

    def enqueued(self, row: BatchRow) -> list[Enqueued]:
        return batches.enqueued_in(self.reader, row.id)

    def adopt(self, rows: list[BatchRow]) -> None:
        """Their requests are being asked: nobody asks them a second time, and their cost is awaited."""
        every = batches.open_batches(self.reader)
        sweep(self.submitter.run, {name_of(self.submitter.folder, row.id) for row in every})
        for row in rows:
            entries = self.enqueued(row)
            self.budget.adopt(sum(entry.worst for entry in entries))
            self.state.in_flight += len(entries)
            for entry in entries:
                self.intake.index.mark(entry.request, TAKEN)

    async def found(self, row: BatchRow) -> BatchRow:
        """The row with its batch at the provider, where one was asked for and is there."""
        if next_step(row) != "look":
            return row
        self.say(f"batch {row.id}: checking whether the provider has it")
        if found := await self.submitter.look(row):
            row, _ = await self.submitter.adopt(row, found)
            return row
        return replace(row, tried_at=None)

    def is_wanted(self, row: BatchRow, stage: int, price: str) -> bool:
        """Whether what was to be asked is what would be asked now, and can be."""
        path = self.submitter.path(row)
        then = (row.plan, row.stage, row.base_url, row.price)
        now = (self.intake.plan.fingerprint, stage, self.submitter.api.base_url, price)
        return then == now and path.exists() and path.stat().st_size == row.bytes and self.budget.has_room(0)

    async def withdraw(self, row: BatchRow, status: str = batches.WITHDRAWN, split: bool = False) -> None:
        """Nothing of it was asked: its requests are pending again. `split`: in smaller batches, at once."""
        entries = self.enqueued(row)
        batches.withdraw(self.ledger, row, status)
        self.budget.settle(sum(entry.worst for entry in entries), 0)
        self.state.in_flight -= len(entries)
        if not split:
            for entry in entries:
                self.intake.index.mark(entry.request, DUE)
            self.submitter.path(row).unlink(missing_ok=True)
        await self.ledger.committed()
        if row.input_file:
            await self.submitter.remove_file(row.input_file)


@dataclass(slots=True)
class Lives:
    """What the batches of a run share: the queue at the provider, and who waits for room in it."""

    api: BatchApi
    ledger: Ledger
    books: BatchBooks
    submitter: Submitter
    collector: Collector
    packer: Packer
    queue: Queue
    state: RunState
    give_up: float
    say: Callable[[str], None]
    is_stopped: Callable[[], bool]
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0  # batches for which there is no room
    critical: set[asyncio.Task[None]] = field(default_factory=set)  # an upload or creation is on its way
    _seen: dict[int, tuple[str, int, int]] = field(default_factory=dict)  # status, done, total

    async def change(self) -> None:
        self.changed.clear()
        await self.changed.wait()

    async def live(self, row: BatchRow, own: bool, fresh: bool) -> None:
        """Until all results are stored, or nothing of it will be asked. `own`: packed by this
        process; `fresh`: not uploaded yet. Raises RunStopped."""
        refusals = 0
        while True:
            row, remote = await self._submitted(row, fresh)
            if self.is_stopped():
                return None
            remote = await self._followed(row, remote)
            state = state_of(remote)
            if state == "results":
                self.queue.alive.pop(row.id, None)
                self.changed.set()
                if again := await self.collect(row, remote, own):
                    self.packer.leave(Leftover(self.submitter.path(row), again))
                else:
                    self.submitter.path(row).unlink(missing_ok=True)
                return self._forget(row)
            if state == "refused":
                await self.withdraw(row, remote.status)
                raise refusal(remote)
            refusals += 1
            if await self._full(row, remote, own, refusals):
                return None
            row, fresh = replace(row, remote=None, tried_at=None), False

    async def _submitted(self, row: BatchRow, fresh: bool) -> tuple[BatchRow, Remote]:
        if next_step(row) == "follow":
            self.queue.alive[row.id] = row.tokens
            return row, await self.retrieve(row)
        self.waiting += 1
        try:
            while not self.queue.has_room(row.tokens):
                self._show(row, "waiting", 0, row.requests)
                await self.change()
            self.queue.alive[row.id] = row.tokens
        finally:
            self.waiting -= 1
            self.changed.set()
        task = asyncio.current_task()
        assert task
        self.critical.add(task)
        try:
            if next_step(row) == "upload":
                self._show(row, "uploading", 0, row.requests)
                row = await self.submitter.upload(row, fresh)
            return await self.submitter.create(row, lambda: set(self.queue.alive) == {row.id})
        except BatchRefused:
            await self.withdraw(row, "refused")
            raise
        finally:
            self.critical.discard(task)

    async def retrieve(self, row: BatchRow) -> Remote:
        assert row.remote
        name = row.remote
        try:
            return await patiently(lambda: self.api.retrieve(name), self.give_up)
        except RowRefused as error:
            raise BatchRefused(
                f"batch {name} cannot be read with this key at {self.api.base_url}: {error}"
            ) from None

    async def _followed(self, row: BatchRow, remote: Remote) -> Remote:
        looks, status = 0, row.status
        while True:
            self._show(row, remote.status, remote.done, remote.total)
            if remote.status != status:
                batches.moved(self.ledger, row.id, remote.status)
                status = remote.status
                await self.submitter.end_twins(row, remote)
            if state_of(remote) != "alive":
                return remote
            await asyncio.sleep(poll_seconds(looks, remote.status))
            looks += 1
            remote = await self.retrieve(row)

    async def collect(self, row: BatchRow, remote: Remote, own: bool) -> dict[bytes, RetryLine]:
        """Stores the results and closes the batch; returns what has to be asked again."""
        found = await self.collector.collect(row, remote, self.books.enqueued(row), own)
        batches.closed(self.ledger, row.id, remote.status)
        await self.ledger.committed()
        if found.reason:
            raise found.reason
        return found.again

    async def withdraw(self, row: BatchRow, status: str, split: bool = False) -> None:
        await self.books.withdraw(row, status, split)
        self._forget(row)

    async def _full(self, row: BatchRow, remote: Remote, own: bool, refusals: int) -> bool:
        """The provider's queue is full. True when the batch has been taken apart for smaller ones. Else it
        is held back for a while, and until others of ours have made room. Raises ProviderDown."""
        words = words_of(remote)
        self.queue.alive.pop(row.id, None)
        if self.queue.refused(row.tokens, row.requests, words):
            self.say(f"batch {row.id} is split: {words}")
            entries = self.books.enqueued(row)
            again = {e.key: RetryLine(e.request, e.prompt_tokens, e.worst, e.tries, own) for e in entries}
            await self.withdraw(row, "split", split=True)
            self.packer.leave(Leftover(self.submitter.path(row), again))
            self.changed.set()
            return True
        self.say(f"batch {row.id} is held back: {words}")
        batches.held_back(self.ledger, row.id)
        await self.ledger.committed()
        self._show(row, "held back", 0, row.requests)
        waited = sum(pause(n) for n in range(1, refusals))
        if not self.queue.alive and waited > self.give_up:
            raise ProviderDown(f"the provider's queue has been full for {waited:.0f} s: {words}")
        self.waiting += 1
        self.changed.set()
        try:
            await asyncio.sleep(pause(refusals))
        finally:
            self.waiting -= 1
        return False

    def _show(self, row: BatchRow, status: str, done: int, total: int) -> None:
        self._seen[row.id] = (status, done, total or row.requests)
        self._tell()

    def _forget(self, row: BatchRow) -> None:
        self.queue.alive.pop(row.id, None)
        self._seen.pop(row.id, None)
        self._tell()
        self.changed.set()

    def _tell(self) -> None:
        every = self._seen.values()
        counts = Counter(status for status, _, _ in every)
        self.state.batches = shown(counts, sum(d for _, d, _ in every), sum(t for _, _, t in every))
