"""Fills the files of batches: with what the pool has pending, then with what other batches have left.

OpenAI's limits (developers.openai.com, guides/batch): 50,000 requests and 200 MB a file; the
tokens that an organisation may have enqueued depend on the model, and show in the refusal of
a batch (`token_limit_exceeded`), which costs nothing.
"""

import asyncio
import contextlib
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path

from engine.batch.files import body_of, input_line
from engine.collect.setting_fields import MOST_REQUESTS
from engine.collect.stage import Intake
from engine.limits.budget import Budget
from engine.provider.pricing import Price
from engine.provider.tokens import Tokenizer
from store.errors import DiskFull, StorageError
from store.key_index import DUE

MOST_BYTES = 200 * 10**6
MOST_ALIVE = 16  # batches under way; each keeps its file on our disk
_TOLD = re.compile(r"limit:?\s*(\d[\d,]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Of one batch; `tokens` are prompt tokens."""

    requests: int = MOST_REQUESTS
    bytes: int = MOST_BYTES
    tokens: float = inf


@dataclass(slots=True)
class Load:
    """What a batch holds so far; `worst` in micro-dollars."""

    requests: int = 0
    bytes: int = 0
    tokens: int = 0
    worst: int = 0

    def add(self, size: int, tokens: int, worst: int) -> None:
        self.requests += 1
        self.bytes += size
        self.tokens += tokens
        self.worst += worst

    def takes(self, size: int, tokens: int, limits: BatchLimits) -> bool:
        """Whether one more fits. An empty one takes anything: what is too large by itself is the
        provider's to refuse."""
        return not self.requests or (
            self.requests < limits.requests
            and self.bytes + size <= limits.bytes
            and self.tokens + tokens <= limits.tokens
        )


@dataclass(frozen=True, slots=True)
class Due:
    """A request that is to be asked. `own`: rows wait for it that are counted nowhere else."""

    request: int
    key: bytes
    body: bytes
    prompt_tokens: int
    worst: int
    tries: int
    own: bool = True

    def taken_over(self) -> "Due":
        return replace(self, own=True)


@dataclass(frozen=True, slots=True)
class RetryLine:
    """What has to be asked again, without its body."""

    request: int
    prompt_tokens: int
    worst: int
    tries: int
    own: bool


class Parcel:
    """A file that is being filled. Raises DiskFull."""

    def __init__(self, path: Path) -> None:
        self.path, self.load = path, Load()
        self.requests: list[tuple[int, int, int]] = []  # id, worst, tries
        with _disk(path):
            path.parent.mkdir(exist_ok=True)
            self._file = path.open("wb")

    def takes(self, due: Due, limits: BatchLimits) -> bool:
        return self.load.takes(len(input_line(due.key, due.body)), due.prompt_tokens, limits)

    def add(self, due: Due) -> None:
        line = input_line(due.key, due.body)
        with _disk(self.path):
            self._file.write(line)
        self.load.add(len(line), due.prompt_tokens, due.worst)
        self.requests.append((due.request, due.worst, due.tries))

    def seal(self) -> None:
        """On the disk, whole, before anything is said of it."""
        with _disk(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


@dataclass(slots=True)
class Leftover:
    """The requests of a batch that have to be asked again, by key; their bodies are in its file."""

    path: Path
    again: dict[bytes, RetryLine]
    _lines: Iterator[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._lines = self._read()

    def _read(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                yield from file
        except OSError as error:
            words = f"{self.path} is gone ({error.strerror}): run the same command again"
            raise StorageError(words) from None

    def next(self) -> Due | None:
        """None when all have been given; the file is gone then."""
        while self.again and (line := next(self._lines, None)) is not None:
            key, body = body_of(line)
            if a := self.again.pop(key, None):
                return Due(a.request, key, body, a.prompt_tokens, a.worst, a.tries, a.own)
        self.path.unlink(missing_ok=True)
        return None


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskFull(f"cannot write {path}: {error.strerror}; everything paid for is saved") from error


class Packer:
    """`await pack(path, limits)` for a sealed parcel, or None when nothing is pending now."""

    def __init__(self, intake: Intake, budget: Budget, price: Price, tokenizer: Tokenizer) -> None:
        self._intake, self._budget, self._price, self._tokenizer = intake, budget, price, tokenizer
        self._due: deque[Due] = deque()
        self._leftovers: deque[Leftover] = deque()

    def leave(self, leftover: Leftover) -> None:
        """To be asked again, once the pool has been read to its end."""
        self._leftovers.append(leftover)

    async def pack(self, path: Path, limits: BatchLimits) -> Parcel | None:
        """As far as limits and budget go; what it holds is reserved. Raises BudgetReached."""
        parcel: Parcel | None = None
        try:
            while (due := await self._next_due()) is not None:
                if parcel and not (parcel.takes(due, limits) and self._budget.has_room(due.worst)):
                    self._due.appendleft(due)
                    break
                await self._budget.reserve(due.worst)
                parcel = parcel or Parcel(path)
                parcel.add(due)
            if parcel:
                await asyncio.to_thread(parcel.seal)
        except BaseException:
            if parcel:
                parcel.discard()
            raise
        return parcel

    async def _next_due(self) -> Due | None:
        while not (self._due or self._intake.ended):
            chunk = await self._intake.next()
            for request in chunk.due:
                # no byte-level tokenizer makes more tokens than bytes
                most = request.prompt_tokens if self._tokenizer.exact else len(request.body)
                worst = self._price.worst(most, request.max_tokens)
                self._due.append(Due(request.id, request.key, request.body, request.prompt_tokens, worst, 0))
        if self._due:
            return self._due.popleft()
        while self._leftovers:
            if (due := self._leftovers[0].next()) is None:
                self._leftovers.popleft()
            elif due.own:
                return due
            # of a batch that an earlier process made, only what this pool asks for is asked again
            elif self._intake.crowd.take_over(due.request, self._intake):
                return due.taken_over()
            else:
                self._intake.index.mark(due.request, DUE)
        return None


@dataclass(slots=True)
class Queue:
    """The provider's queue, as far as we fill it. `limit`: enqueued tokens, as given or learnt."""

    limit: float = inf
    alive: dict[int, int] = field(default_factory=dict)  # batch -> tokens

    def has_room(self, tokens: int) -> bool:
        """For a batch of so many tokens; alone it is always tried."""
        if not self.alive:
            return True
        return len(self.alive) < MOST_ALIVE and sum(self.alive.values()) + tokens <= self.limit

    def refused(self, tokens: int, requests: int, words: str) -> bool:
        """The provider would not enqueue a batch while `alive` were under way. Learns the limit;
        returns whether the batch has to be split (else it may fit once others have ended)."""
        told = told_limit(words)
        others = sum(self.alive.values())
        if told is not None:
            self.limit = min(self.limit, told)
            return tokens > told and requests > 1
        if others:
            self.limit = min(self.limit, max(tokens, others + tokens - 1))
            return False
        if requests > 1:
            self.limit = max(1, tokens // 2)
        return requests > 1


def told_limit(words: str) -> int | None:
    """The number in 'Limit: 2,000,000 enqueued tokens'; a hint, since texts may change."""
    found = _TOLD.search(words)
    return (int(found[1].replace(",", "")) or None) if found else None


def shown(counts: Mapping[str, int], done: int, total: int) -> str:
    """`1 validating, 2 in_progress; 31,200 of 100,000 requests done`."""
    states = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in sorted(counts.items()))
    return f"{states}; {done:,} of {total:,} requests done" if states else ""
