"""Takes stretches of the pool into the ledger and the counts, and says when their rows are done.

What every way of asking (online or in batches) has in common, beside the asking. Equal rows
share one request: they are done, or have failed, when it is.
"""

from collections import Counter

from engine.feed import Chunk, Feed
from engine.state import BAD_ROWS_KEPT, RunState
from store.index import ANSWERED, FAILED
from store.ledger import Ledger
from store.records import Cause

PLACEMENTS_AT_ONCE = 64  # in one commit; beyond that the pool waits for the disk


class Intake:
    """Rows that share a request which is being asked are counted in `shared` until it ends."""

    def __init__(self, feed: Feed, ledger: Ledger, stage: int, state: RunState) -> None:
        self.feed, self.ledger, self.stage, self.state = feed, ledger, stage, state
        self.shared: Counter[int] = Counter()
        self.ended = False

    async def take(self, chunk: Chunk) -> None:
        state = self.state
        for p in chunk.placements:
            self.ledger.place(self.stage, p.position, p.item, self.feed.plan, p.requests, p.new)
        if len(chunk.placements) > PLACEMENTS_AT_ONCE:
            await self.ledger.committed()
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
            state.total = state.rows * self.feed.samples

    def _count_earlier(self, failed: int) -> None:
        if failed:
            self.state.failed["earlier"] += failed

    def _count_shared(self, request: int, count: int) -> None:
        known = self.feed.index.state(request)
        if known == ANSWERED:
            self.state.done += count
        elif known == FAILED:
            self._count_earlier(count)
        else:
            self.shared[request] += count

    def answered(self, request: int, own: int = 1) -> None:
        """`own`: rows that wait for it and are not counted in `shared`."""
        self.feed.index.mark(request, ANSWERED)
        self.state.done += own + self.shared.pop(request, 0)

    def failed(self, request: int, cause: Cause, error: int, own: int = 1) -> None:
        self.ledger.fail(request, error)
        self.feed.index.mark(request, FAILED)
        if rows := own + self.shared.pop(request, 0):
            self.state.failed[cause] += rows
