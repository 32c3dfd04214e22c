"""Runs a stage through the Batch API, at half the price, within a day.

Pending requests are packed into files, uploaded and submitted. Batches are watched and their results
stored. Requests that were not executed go into the next batch. Several batches run at once, as far as the
provider's queue, the budget and the limits allow. Same interface as engine/collect/runner.py: run(),
stop(), is_stopped, intake. This module loads the openai package, which takes a second, so it is imported
only when needed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from engine.batch.client import BatchApi
from engine.batch.download import Fetcher
from engine.batch.files import FOLDER, name_of
from engine.batch.job import BatchBooks, Lives
from engine.batch.packer import BatchLimits, Packer, Queue
from engine.batch.results import Attempts, Collector, price_json
from engine.batch.submit import Submitter, next_step, state_of
from engine.collect.settings import Settings
from engine.collect.stage import Intake
from engine.collect.stopping import DRAIN_SECONDS, asking, landed
from engine.limits.budget import Budget
from engine.provider.errors import RunStopped
from engine.provider.pricing import FREE, Price
from engine.terminal import plain, tell
from store import provider_batches as batches
from store.errors import DistillError, PoolError, UsageError
from store.key_index import DUE
from store.provider_batches import BatchRow, Items
from store.queries import connect_reader


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """What a run may do, and under which numbers it stands in the ledger. `grace`: seconds for
    which the provider's list may lag; `give_up`: of outage; `limits.tokens`: enqueued at once;
    `abandoned`: the batch whose missing results are given up."""

    folder: Path
    run: int
    stage: int
    price: Price
    attempts: Attempts
    give_up: float
    grace: float
    limits: BatchLimits
    abandoned: str | None = None
    give_up_share: float = 1.0


class Batches:
    """One stage on one endpoint. `run()` returns when the pool is done or raises RunStopped."""

    def __init__(
        self,
        intake: Intake,
        api: BatchApi,
        budget: Budget,
        terms: BatchConfig,
        say: Callable[[str], None],
    ) -> None:
        """Raises UsageError where a batch of the stage is at another provider."""
        ledger, state, tokenizer = intake.ledger, intake.state, intake.plan.tokenizer
        self.intake, self.terms, self._ledger, self._state = intake, terms, ledger, state
        self._reader = reader = connect_reader(terms.folder)
        self._name = batches.folder_id(reader)
        give_up = terms.give_up
        submitter = Submitter(api, ledger, self._name, terms.folder, terms.grace, give_up, say)
        self._books = BatchBooks(reader, ledger, submitter, budget, intake, state, say)
        self._open = self._books.open()
        self._packer = Packer(intake, budget, terms.price, tokenizer)
        collector = Collector(
            Fetcher(api, give_up, terms.abandoned, say), intake, budget, terms.attempts, terms.give_up_share,
            Items(reader),
        )  # fmt: skip
        self._lives = Lives(
            api, ledger, self._books, submitter, collector, self._packer, Queue(terms.limits.tokens), state,
            give_up, say, lambda: self.is_stopped,
        )  # fmt: skip
        self._url = api.base_url
        self._number = 0  # of the batch that is being packed
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped: DistillError | None = None
        self._drain: float | None = None
        intake.asks, intake.stopped = lambda: bool(self._tasks), lambda: self.is_stopped

    async def run(self) -> None:
        """Raises RunStopped if it ended early, StorageError if the ledger could not be written."""
        try:
            async with asking(self.intake, lambda: self._stopped) as group:
                self._group = group
                self._main = group.create_task(self._go())
                await asyncio.wait([self._main])
                await landed(self._tasks, self._lives.changed, lambda: self._drain)
        finally:
            self._reader.close()

    @property
    def is_stopped(self) -> bool:
        return self._stopped is not None

    def stop(self, reason: DistillError, drain: float | None = None) -> None:
        """Ends the watching. A batch that is being submitted gets `drain` seconds to become known;
        if that is not enough, the next run will find it."""
        self._drain = DRAIN_SECONDS if drain is None else drain
        if self._stopped is None:
            self._stopped = reason
            spared = {asyncio.current_task(), *self._lives.critical}
            for task in {self._main, *self._tasks} - spared:
                task.cancel()
        self._lives.changed.set()
        self.intake.changed.set()

    async def _go(self) -> None:
        try:
            # what an earlier process submitted is followed; what was never asked is used or withdrawn
            self._books.adopt(self._open)
            price = price_json(self.terms.price)
            for row in self._open:
                row = await self._books.found(row)
                if next_step(row) == "follow" or self._books.is_wanted(row, self.terms.stage, price):
                    self._spawn(row, own=False)
                else:
                    await self._books.withdraw(row)
            while not self._stopped:
                if self._lives.waiting:
                    await self._lives.change()
                elif packed := await self._pack():
                    self._spawn(packed, own=True)
                elif self._tasks:
                    await self._lives.change()
                else:
                    return
        except (RunStopped, PoolError) as reason:
            self.stop(reason)

    async def _pack(self) -> BatchRow | None:
        """A batch of what is pending, in the ledger before anything of it is sent."""
        terms = self.terms
        self._number = self._number or self._ledger.next_batch()
        path = terms.folder / FOLDER / name_of(self._name, self._number)
        parcel = await self._packer.pack(path, replace(terms.limits, tokens=self._lives.queue.limit))
        if parcel is None:
            return None
        load, number, self._number = parcel.load, self._number, 0
        row = BatchRow(
            number, terms.run, terms.stage, self.intake.plan.fingerprint, self._url, price_json(terms.price),
            load.requests, load.bytes, load.tokens, load.worst, time.time(),
        )  # fmt: skip
        batches.intend(self._ledger, row, parcel.requests)
        await self._ledger.committed()
        self._state.asked += load.requests
        self._state.in_flight += load.requests
        return row

    def _spawn(self, row: BatchRow, own: bool) -> None:
        task = self._group.create_task(self._live(row, own))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _live(self, row: BatchRow, own: bool) -> None:
        try:
            await self._lives.live(row, own, fresh=own)
        except RunStopped as reason:
            self.stop(reason)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._lives.changed.set()
        if not self._tasks:
            self.intake.crowd.one_rests()

    async def settle(self) -> None:
        """Before an online run: collects the batches that have ended. Raises UsageError while some
        are under way, since what is in them must not be asked a second time; and RunStopped."""
        self._books.adopt(self._open)
        alive = []
        try:
            for row in self._open:
                row = await self._books.found(row)
                if next_step(row) != "follow":
                    await self._books.withdraw(row)
                    continue
                remote = await self._lives.retrieve(row)
                if (state := state_of(remote)) == "alive":
                    alive.append(row)
                elif state == "results":
                    for again in (await self._lives.collect(row, remote, own=False)).values():
                        self.intake.index.mark(again.request, DUE)
                    self._books.submitter.path(row).unlink(missing_ok=True)
                else:
                    await self._books.withdraw(row, remote.status)
        finally:
            self._reader.close()
        if alive:
            count = sum(row.requests for row in alive)
            raise UsageError(
                f"batches under way at {self._url}: {len(alive)}, with {count:,} requests. Run the same "
                "command with --batch to wait for them, or cancel them there and run this one again"
            )


@asynccontextmanager
async def batches_of(
    settings: Settings, folder: Path, quiet: bool, intake: Intake, run: int, budget: Budget
) -> AsyncIterator[Batches]:
    """Either `run()` it, or `settle()` what is open before an online run."""
    key = settings.api_key.get_secret_value() if settings.api_key else None
    terms = BatchConfig(
        folder, run, intake.stage, settings.price(batch=True) or FREE,
        Attempts(settings.attempts, settings.attempts_parse, settings.attempts_empty),
        settings.give_up, settings.batch_grace,
        BatchLimits(settings.batch_requests, tokens=settings.batch_tokens or float("inf")),
        settings.batch_abandon, settings.give_up_share,
    )  # fmt: skip

    def say(words: str) -> None:
        if not quiet:
            tell(f"{settings.stage}: {plain(words, 400)}\n")

    async with BatchApi(settings.base_url, key, settings.reply_seconds, settings.proxy) as api:
        yield Batches(intake, api, budget, terms, say)
