"""What a run answers for in batches: those that an earlier process left, and those taken back.

Keeps ledger, budget, index and counts in step. A batch that was certainly never asked for is
used as it is where its file is what would be asked now; else it is withdrawn, and its requests
are due again.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.batch.parcels import name_of, sweep
from engine.batch.steps import next_step
from engine.batch.submit import Submitter
from engine.budget import Budget
from engine.intake import Intake
from engine.state import RunState
from store import batches
from store.batches import BatchRow, Enqueued
from store.errors import UsageError
from store.index import DUE, TAKEN
from store.ledger import Ledger


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
                    "give that as --base-url until it has ended"
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
        self.say(f"batch {row.id}: looking whether the provider has it")
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
        """Nothing of it was asked: its requests are due again. `split`: in smaller batches, at once."""
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
