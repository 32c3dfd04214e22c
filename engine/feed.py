"""Turns the pool into requests that are still due, in a thread, a bounded handful at a time.

Reads the pool in order. A row that the ledger remembers at the same position, with the same
content and the same plan, has the same requests (the usual case of a resumed run). For any
other row the requests are built and sealed, and each key is looked up in the fingerprint
index and confirmed in SQLite. Equal rows share one request. Holds nothing per row but the
index. Knows nothing of limits, money or the network.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import orjson

from engine.keys import Message, Sealer
from engine.tokens import Tokenizer
from store.index import ANSWERED, DUE, FAILED, TAKEN, KeyIndex
from store.pool import Pool
from store.read import Page, connect_reader, placed_page
from store.records import BadRow, Instruction, Request

PAGE = 4096  # positions read from the ledger at once
NOWHERE: tuple[bytes, int, dict[int, int]] = (b"", 0, {})
CLOCK_ROWS = 64
SLICE_SECONDS = 0.2  # a chunk is handed over at the latest after this
FRESH_KEPT = 8192  # keys that may not be in the ledger yet


@dataclass(frozen=True, slots=True)
class Plan:
    """How a stage makes requests out of rows. `fingerprint` (63 bits) covers all that decides a
    request's key beside the row itself."""

    fingerprint: int
    build: Callable[[Instruction], Sequence[Message]]
    sealer: Sealer
    tokenizer: Tokenizer
    samples: int
    max_tokens: int
    limit: int | None
    only: frozenset[int] | None = None  # positions, for a pilot


@dataclass(slots=True)
class Placement:
    """A row whose place in the ledger is new or has changed."""

    position: int
    item: bytes
    requests: list[tuple[int, int]]
    new: list[Request]


@dataclass(slots=True)
class Chunk:
    """A stretch of the pool: what to remember, what to ask, and what needs nothing."""

    placements: list[Placement] = field(default_factory=list)
    due: list[Request] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    known: Counter[int] = field(default_factory=Counter)  # ANSWERED, FAILED -> samples
    shared: Counter[int] = field(default_factory=Counter)  # request -> more samples that wait for it
    rows: int = 0
    outputs: list[str] = field(default_factory=list)  # of the due rows, for `import`
    ended: bool = False


class Feed:
    """`await chunk(n)` for up to n due requests; `position` counts the rows read."""

    def __init__(
        self,
        pool: Pool,
        plan: Plan,
        run: Path,
        stage: int,
        index: KeyIndex,
        keep_output: bool = False,
    ) -> None:
        self._pool, self._plan, self._stage, self._run = pool, plan, stage, run
        self._keep_output = keep_output
        self._due = {DUE, FAILED} if keep_output else {DUE}  # an import mends what had failed
        self._wanted = {*self._due, TAKEN}
        self.position = 0
        self.index = index
        self._fresh: dict[int, bytes] = {}
        self._page: Page = {}
        self._page_start = -1
        self._commands: SimpleQueue[tuple[int, asyncio.Future[Chunk]] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._serve, name="feed", daemon=True).start()

    async def chunk(self, want: int) -> Chunk:
        """The next stretch. It may hold no due request and not be the end. Raises PoolError."""
        future: asyncio.Future[Chunk] = self._loop.create_future()
        self._commands.put((want, future))
        return await future

    @property
    def samples(self) -> int:
        return self._plan.samples

    @property
    def plan(self) -> int:
        return self._plan.fingerprint

    def close(self) -> None:
        self._commands.put(None)

    def _serve(self) -> None:
        self._reader = connect_reader(self._run)
        self._next_id = len(self.index) + 1
        rows = self._rows()
        while (command := self._commands.get()) is not None:
            want, future = command
            try:
                chunk = self._collect(rows, want)
            except Exception as error:  # handed to the loop, which knows what to do with it
                self._answer(future.set_exception, error, future)
            else:
                self._answer(future.set_result, chunk, future)
        self._reader.close()

    def _answer(self, deliver: Callable[..., None], value: object, future: asyncio.Future[Chunk]) -> None:
        def now() -> None:
            if not future.done():
                deliver(value)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(now)

    def _rows(self) -> Iterator[Instruction | BadRow]:
        rows = iter(self._pool)
        while self._plan.limit is None or self.position < self._plan.limit:
            if (row := next(rows, None)) is None:
                return
            yield row

    def _collect(self, rows: Iterator[Instruction | BadRow], want: int) -> Chunk:
        chunk = Chunk()
        deadline = time.monotonic() + SLICE_SECONDS
        want = 1 if self._pool.is_stream else want
        while len(chunk.due) < want:
            row = next(rows, None)
            if row is None:
                chunk.ended = True
                break
            if isinstance(row, BadRow):
                chunk.bad.append(row)
            else:
                if self._plan.only is None or self.position in self._plan.only:
                    self._add(row, chunk)
                self.position += 1
            if self.position % CLOCK_ROWS == 0 and time.monotonic() > deadline:
                break
        return chunk

    def _add(self, item: Instruction, chunk: Chunk) -> None:
        chunk.rows += 1
        text = orjson.dumps({"id": item.id, "instruction": item.instruction, "input": item.input})
        old_text, plan, placed = self._placed(self.position)
        if old_text == text and plan == self._plan.fingerprint:
            states = [self.index.state(request) for request in placed.values()]
            if len(states) >= self._plan.samples and not self._wanted.intersection(states):
                for state in states[: self._plan.samples]:
                    chunk.known[state] += 1
                return
        self._add_sealed(item, text, placed, plan == self._plan.fingerprint and old_text == text, chunk)

    def _add_sealed(
        self, item: Instruction, text: bytes, placed: dict[int, int], unmoved: bool, chunk: Chunk
    ) -> None:
        messages = self._plan.build(item)
        body, keys = self._plan.sealer.seal(messages, self._plan.samples)
        placement = Placement(self.position, text, [], [])
        for sample, key in enumerate(keys):
            number = self._find(key)
            if number is None:
                request = self._new(key, sample, body, messages)
                number = request.id
                placement.new.append(request)
                chunk.due.append(request)
            elif self.index.state(number) in self._due:  # known from an earlier run, not answered yet
                self.index.mark(number, TAKEN)
                chunk.due.append(self._request(number, key, sample, body, messages))
            else:
                self._count_known(number, chunk)
            unmoved = unmoved and placed.get(sample) == number
            placement.requests.append((sample, number))
            if self._keep_output and len(chunk.outputs) < len(chunk.due):
                chunk.outputs.append(item.output)
        if not unmoved:
            chunk.placements.append(placement)

    def _count_known(self, request: int, chunk: Chunk) -> None:
        state = self.index.state(request)
        if state in (ANSWERED, FAILED):
            chunk.known[state] += 1
        else:
            chunk.shared[request] += 1

    def _find(self, key: bytes) -> int | None:
        for candidate in self.index.candidates(key):
            if self._stored_key(candidate) == key:
                return candidate
        return None

    def _stored_key(self, request: int) -> bytes | None:
        row = self._reader.execute("SELECT key FROM requests WHERE id = ?", (request,)).fetchone()
        return row[0] if row else self._fresh.get(request)

    def _new(self, key: bytes, sample: int, body: bytes, messages: Sequence[Message]) -> Request:
        request = self._request(self._next_id, key, sample, body, messages)
        self.index.add(key, self._next_id, TAKEN)
        self._fresh[self._next_id] = key
        if len(self._fresh) > FRESH_KEPT:
            self._forget_committed()
        self._next_id += 1
        return request

    def _forget_committed(self) -> None:
        (last,) = self._reader.execute("SELECT ifnull(max(id), 0) FROM requests").fetchone()
        self._fresh = {number: key for number, key in self._fresh.items() if number > last}

    def _request(
        self, number: int, key: bytes, sample: int, body: bytes, messages: Sequence[Message]
    ) -> Request:
        tokens = self._plan.tokenizer.count_messages(messages)
        return Request(number, key, sample, body, tokens, self._plan.max_tokens)

    def _placed(self, position: int) -> tuple[bytes, int, dict[int, int]]:
        """What the ledger remembers at a position: the item's JSON, its plan, request by sample."""
        start = position - position % PAGE
        if start != self._page_start:
            self._page = placed_page(self._reader, self._stage, start, start + PAGE)
            self._page_start = start
        return self._page.get(position, NOWHERE)
