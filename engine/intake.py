"""Takes stretches of a stage's rows into the ledger and the counts, and says when rows are done.

What every way of asking (online or in batches) has in common, beside the asking. Equal rows
share one request: they are done, or have failed, when it is. A stage that takes its rows from
others waits for `news`; those that take from this one are `readers`, and see its rows below
`frontier` only: the places of these are up to date.
"""

import asyncio
from collections import Counter

from engine.feed import Chunk, Feed, Placement, Plan
from engine.state import BAD_ROWS_KEPT, RunState
from store.index import ANSWERED, FAILED, KeyIndex
from store.ledger import Ledger
from store.records import Cause

CHUNK = 64  # due requests asked for at once; and placements in one commit without waiting for the disk
GATHER_SECONDS = 0.2  # news from the stages before are taken in at most this often


class Intake:
    """One stage's. Rows that share a request which is being asked are in `shared` until it ends."""

    def __init__(self, ledger: Ledger, stage: int, state: RunState, plan: Plan, index: KeyIndex) -> None:
        self.ledger, self.stage, self.state, self.plan, self.index = ledger, stage, state, plan, index
        self.feed: Feed  # set before the first chunk: it calls our place()
        self.shared: Counter[int] = Counter()
        self.ended = False
        self.readers: list[Intake] = []
        self.news = asyncio.Event()
        self.frontier = 0
        self.is_over = False

    def place(self, placement: Placement) -> None:
        """Remembers a row's place; called for each, even when the run is being stopped."""
        p = placement
        self.ledger.place(self.stage, p.position, p.item, self.plan.fingerprint, p.requests, p.new)

    async def next(self) -> Chunk:
        """The next stretch, counted. It may hold nothing due: then the stages before had news, or
        the rows have `ended`."""
        self.news.clear()
        chunk = await self.feed.chunk(CHUNK)
        await self._take(chunk)
        if chunk.dry and not chunk.due:
            await self.news.wait()
            await asyncio.sleep(GATHER_SECONDS)
        return chunk

    async def _take(self, chunk: Chunk) -> None:
        state = self.state
        if len(chunk.placements) > CHUNK or (self.readers and chunk.placements):
            await self.ledger.committed()
        self.frontier = chunk.end
        state.rows += chunk.rows
        state.bad_rows += len(chunk.bad)
        state.bad_shown.extend(chunk.bad[: BAD_ROWS_KEPT - len(state.bad_shown)])
        state.known += chunk.known[ANSWERED]
        state.done += chunk.known[ANSWERED]
        self._count_earlier(chunk.known[FAILED])
        for request, count in chunk.shared.items():
            self._count_shared(request, count)
        if chunk.ended:
            self.ended = True
            state.total = state.rows * self.plan.samples
        self._tell_readers()

    def answered(self, request: int, own: int = 1) -> None:
        """`own`: rows that wait for it and are not counted in `shared`."""
        self.index.mark(request, ANSWERED)
        self.state.done += own + self.shared.pop(request, 0)
        self._tell_readers()

    def failed(self, request: int, cause: Cause, error: int, own: int = 1) -> None:
        self.ledger.fail(request, error)
        self.index.mark(request, FAILED)
        if rows := own + self.shared.pop(request, 0):
            self.state.failed[cause] += rows
        self._tell_readers()

    def over(self) -> None:
        """Nothing more will come from this stage."""
        self.is_over = True
        self._tell_readers()

    def _tell_readers(self) -> None:
        for reader in self.readers:
            reader.news.set()

    def _count_earlier(self, failed: int) -> None:
        if failed:
            self.state.failed["earlier"] += failed

    def _count_shared(self, request: int, count: int) -> None:
        known = self.index.state(request)
        if known == ANSWERED:
            self.state.done += count
        elif known == FAILED:
            self._count_earlier(count)
        else:
            self.shared[request] += count
