"""Turns a stage's rows into requests that are still pending, a bounded handful at a time.

All feeds of a run work in one thread, so that numbers and the index need no lock. A row that
the ledger remembers at the same position, with the same content and the same plan, has the
same requests (the usual case of a resumed run). For any other row the requests are built and
sealed, and each key is looked up. Equal rows share one request. Holds nothing per row but the
index. Knows nothing of limits, money or the network.
"""

import asyncio
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from engine.collect.plan import Plan
from engine.collect.rows import NOTHING, Gone, Placed, Reach, Rows
from store.errors import DamagedLedger, PoolError, is_damage
from store.files import LEDGER
from store.key_index import ANSWERED, DUE, FAILED, TAKEN, KeyIndex, Known
from store.queries import Page, has_row, placed_page
from store.records import BadRow, Item, Request

PAGE = 4096  # positions read from the ledger at once
CLOCK_ROWS = 64
WANTED = (DUE, TAKEN)  # states of requests whose rows are not passed over
SLICE_SECONDS = 0.2  # a chunk is handed over at the latest after this


@dataclass(slots=True)
class Placement:
    """A row whose place in the ledger is new or has changed; `item` None: the row is gone. `plan`: the
    fingerprint of the settings that it belongs to."""

    position: int
    item: bytes | None
    requests: list[tuple[int, int]]
    new: list[Request]
    plan: int


@dataclass(slots=True)
class Chunk:
    """A stretch of rows: what to remember, what to ask, and what needs nothing."""

    placements: list[Placement] = field(default_factory=list)
    due: list[Request] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    known: Counter[int] = field(default_factory=Counter)  # ANSWERED, FAILED -> samples
    shared: Counter[int] = field(default_factory=Counter)  # request -> more samples that wait for it
    rows: int = 0
    reach: Reach = field(default_factory=Reach)
    dry: bool = False  # no row is there at the moment
    ended: bool = False


class FeedThread:
    """The thread in which every feed of a run folder reads, builds and looks up."""

    def __init__(self, run: Path, index: KeyIndex) -> None:
        self.known, self._run = Known(run, index), run
        self._loop = asyncio.get_running_loop()
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.on_close: list[Callable[[], None]] = []  # called in the thread
        threading.Thread(target=self._serve, name="feed", daemon=True).start()

    async def run(self, work: Callable[[], Chunk], deliver: Callable[[Chunk], None]) -> Chunk:
        """The chunk that `work` makes in the thread. `deliver` gets it on the loop whatever becomes
        of the caller, in the order in which chunks were made: their numbers must leave no gap."""
        future: asyncio.Future[Chunk] = self._loop.create_future()

        def do() -> None:
            try:
                chunk = work()
            except Exception as error:  # handed to the loop, which knows what to do with it
                if isinstance(error, sqlite3.Error) and is_damage(error):
                    error = DamagedLedger(self._run / LEDGER, error)
                self._tell(_set_exception, future, error)
            else:
                self._tell(_set_result, future, chunk, deliver)

        self._commands.put(do)
        return await future

    def close(self) -> None:
        self._commands.put(None)

    def _serve(self) -> None:
        while (command := self._commands.get()) is not None:
            command()
        for close in self.on_close:
            close()
        self.known.close()

    def _tell(self, callback: Callable[..., None], *values: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *values)


def _set_exception(future: "asyncio.Future[Chunk]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _set_result(future: "asyncio.Future[Chunk]", chunk: Chunk, deliver: Callable[[Chunk], None]) -> None:
    deliver(chunk)
    if not future.done():
        future.set_result(chunk)


class Feed:
    """`await chunk(n)` for up to n pending requests; `rows_read` counts the usable rows so far and
    `end` is one more than the highest position."""

    def __init__(
        self,
        rows: Rows,
        plan: Plan,
        stage: int,
        thread: FeedThread,
        place: Callable[[Sequence[Placement]], None],
    ) -> None:
        """`place` is called on the loop with the rows of each stretch whose place has changed."""
        self._rows, self._plan, self._stage, self._thread = rows, plan, stage, thread
        self.plan = plan.fingerprint
        self._place = place
        self._known = thread.known
        self.rows_read = self.end = 0
        self.is_followed = False  # whether others take their rows from this stage
        self._page: Page = ({}, [])
        self._page_start = -PAGE
        self._iterator: Iterator[Placed | BadRow | Gone | None] | None = None
        self._broken: PoolError | None = None  # told when the rows before it have been handed over
        thread.on_close.append(self._close)

    async def chunk(self, want: int) -> Chunk:
        """The next stretch. It may hold no pending request and not be the end. Raises PoolError."""
        return await self._thread.run(
            lambda: self._collect(want), lambda chunk: self._place(chunk.placements)
        )

    @property
    def index(self) -> KeyIndex:
        return self._known.index

    @property
    def samples(self) -> int:
        return self._plan.samples

    @property
    def source(self) -> str:
        return self._rows.source

    def _close(self) -> None:
        """What is read of the pool is closed where a run has stopped early."""
        self._iterator = None

    def _collect(self, want: int) -> Chunk:
        if self._broken:
            raise self._broken
        if self._iterator is None:
            self._iterator = iter(self._rows.placed(self._known.reader))
        chunk, limit, only = Chunk(), self._plan.limit, self._plan.only
        deadline = time.monotonic() + SLICE_SECONDS
        want = 1 if self._rows.is_stream else want
        while len(chunk.due) < want:
            if limit is not None and self.rows_read >= limit:
                chunk.ended = True
                break
            try:
                row = next(self._iterator)
            except StopIteration:
                chunk.ended = True
                break
            except PoolError as error:
                self._broken = error
                break
            if row is None:
                chunk.dry = True
                break
            if isinstance(row, tuple):
                position, item = row
                if only is None or position in only:
                    self._add(position, item, chunk)
                self.rows_read += 1
                self.end = max(self.end, position + 1)
            elif isinstance(row, BadRow):
                chunk.bad.append(row)
            elif has_row(self._known.reader, self._stage, row.position):
                chunk.placements.append(Placement(row.position, None, [], [], self.plan))
            if self.rows_read % CLOCK_ROWS == 0 and time.monotonic() > deadline:
                break
        chunk.reach = Reach(self.end, self._rows.pending if self.is_followed else NOTHING)
        return chunk

    def _add(self, position: int, item: Item, chunk: Chunk) -> None:
        chunk.rows += 1
        text = self._plan.task.encode(item)
        if not self._page_start <= position < self._page_start + PAGE:
            start = position - position % PAGE
            self._page = placed_page(
                self._known.reader, self._stage, self._plan.accepted, self._plan.samples, start, start + PAGE
            )
            self._page_start = start
        items, requests = self._page
        there = items.get(position)
        if there is None or there[0] != text:
            self._add_sealed(Placement(position, text, [], [], self.plan), item, [], self.plan, chunk)
        elif not self._passes(position, requests, chunk, is_reused=there[1] != self.plan):
            placed = [numbers.get(position) for numbers in requests]
            self._add_sealed(Placement(position, text, [], [], self.plan), item, placed, there[1], chunk)

    def _passes(
        self, position: int, requests: Sequence[dict[int, int]], chunk: Chunk, is_reused: bool
    ) -> bool:
        """Whether every sample of a row that stands where it stood needs nothing: then it is counted. Of
        reused settings only answers are kept: what has failed under them is asked."""
        states = []
        for numbers in requests:
            number = numbers.get(position)
            if number is None or not 0 < number <= len(self.index):  # beyond it, the ledger is damaged
                return False
            if (state := self.index.state(number)) in WANTED:
                return False
            if is_reused and state != ANSWERED:
                return False
            states.append(state)
        for state in states:
            chunk.known[state] += 1
        return True

    def _add_sealed(
        self, placement: Placement, item: Item, placed: Sequence[int | None], plan: int, chunk: Chunk
    ) -> None:
        """`placed`: where the ledger has this very row, the requests that it has there, and `plan` the
        settings that it belongs to there."""
        messages, body, keys = self._plan.seal(item)
        if self._plan.reused:
            keys, placement.plan = self._plan.kept(item, keys, self._known.has_answer)
        tokens, most, tokenizer = 0, self._plan.max_tokens, self._plan.tokenizer
        beside = item if self._plan.task.check else None  # to read the reply
        for sample, key in enumerate(keys):
            number = self._known.find(key)
            if plan != self.plan and (kept := self._answer_kept(placed[sample], number)) is not None:
                number, placement.plan = kept, plan
            if number is None or self.index.state(number) == DUE:
                tokens = tokens or self._plan.counted.take(keys[0]) or tokenizer.count_messages(messages)
            if number is None:
                request = Request(self._known.new(key), key, sample, body, tokens, most, beside)
                number = request.id
                placement.new.append(request)
                chunk.due.append(request)
            elif self.index.state(number) == DUE:  # known from an earlier run, not answered yet
                self.index.mark(number, TAKEN)
                asked, refused = self._known.asked(number)
                request = Request(number, key, sample, body, tokens, most, beside, asked, refused)
                chunk.due.append(request)
            elif (state := self.index.state(number)) in (ANSWERED, FAILED):
                chunk.known[state] += 1
            else:
                chunk.shared[number] += 1
            placement.requests.append((sample, number))
        if placement.plan != plan or placed != [number for _, number in placement.requests]:
            chunk.placements.append(placement)

    def _answer_kept(self, placed: int | None, number: int | None) -> int | None:
        """A row's request under reused settings, if it is the one that has been answered."""
        if placed is None or self.index.state(placed) != ANSWERED:
            return None
        return placed if number is None or self.index.state(number) != ANSWERED else None
