"""Fetches the files of a batch that has ended, again and again until they show all its results.

A file may be cut off, damaged, or not there yet. Whatever could be read by then is kept. When some
fetches in a row have brought nothing new and the files still cannot be believed, the run stops; the
batch stays open in the ledger, and the next start fetches its files again. Knows how results are
read, not how they are stored.

A request without a readable line may have been answered and paid for. It is asked again only when the files
are complete: each of their lines can be read, they come to an end, and they hold as many results as the
provider counts.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from engine.batch.client import BatchApi, Remote, Text
from engine.batch.files import Damaged, Line, NotRun, Stranger, Unclear, damaged, read_line
from engine.batch.submit import patiently, pause, state_of
from engine.provider.client import KEPT_BYTES
from engine.provider.errors import BadReply, BrokenOff, ResultsUnreadable, RowRefused
from engine.provider.responses import Reply
from store.provider_batches import BatchRow, Enqueued

FETCHES = 5  # in a row that bring nothing new
MOST_USELESS = 64 * 2**20  # bytes of one file that belong to no request of the batch
A_LINE = 256  # what reading one costs beside its bytes, in bytes
MOST_HELD = 64 * 2**20
DAMAGED_SHARE = 0.1  # more damaged lines than these are a damaged file
CUT_SHORT = ("expired", "cancelled")

Store = Callable[[Line], Awaitable[None]]


@dataclass(slots=True)
class Glance:
    """One reading of all files of a batch. `troubles`: why it is not complete."""

    troubles: list[str] = field(default_factory=list)
    damaged: dict[bytes, bytes] = field(default_factory=dict)  # raw lines of requests that have no other
    damaged_bytes: int = 0
    unreadable: int = 0  # lines that do not show whose they are
    strangers: int = 0
    repeated: int = 0
    found: int = 0  # results that were not known before
    seen: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Results:
    """What is known of a batch's results. `waiting`: requests whose result is not stored yet; `held`:
    lines that bring no answer, which count when all files have been read, because a file may hold a
    better line for the same request."""

    requests: int  # of the batch, with those whose results are stored
    remote: Remote
    waiting: dict[bytes, Enqueued]
    held: dict[bytes, Line] = field(default_factory=dict)
    held_bytes: int = 0

    @property
    def missing(self) -> int:
        return sum(key not in self.held for key in self.waiting)

    @property
    def unclear(self) -> int:
        """Lines that do not say what became of their request."""
        return sum(isinstance(line.meaning, Unclear) for line in self.held.values())

    def hold(self, line: Line) -> None:
        if not isinstance(line.meaning, Reply | BadReply):
            line = replace(line, raw=b"")  # what it says is in its meaning
        self.held[line.key] = line
        self.held_bytes += len(line.raw)

    def let_go(self) -> Line:
        line = self.held.pop(next(iter(self.held)))
        self.held_bytes -= len(line.raw)
        return line

    def take(self, text: Text, glance: Glance) -> Line | None:
        """The line, if it brings something new to a request that waits. `glance` counts all others."""
        line = damaged(text.raw) if text.is_long else read_line(text.raw)
        if isinstance(line, Damaged):
            if text.is_cut:
                glance.troubles.append("ends in a line that cannot be read")
            elif line.key is None:
                glance.unreadable += 1
            elif line.key in self.waiting:
                kept = line.raw[:KEPT_BYTES] if glance.damaged_bytes < MOST_HELD else b""
                glance.damaged[line.key] = kept
                glance.damaged_bytes += len(kept)
        elif isinstance(line, Stranger):
            glance.strangers += 1
        elif isinstance(line, Line):
            if line.key in glance.seen:
                glance.repeated += 1
            elif len(glance.seen) < 2 * self.requests:
                glance.seen.add(line.key)
            else:
                glance.strangers += 1
            held = self.held.get(line.key)
            if line.key in self.waiting and (held is None or _worth(line) > _worth(held)):
                glance.found += 1
                return line
        return None

    def doubt(self, glance: Glance) -> str | None:
        """Why the files cannot be believed to show all results; None where they can."""
        if not (self.missing or self.unclear):
            return None
        if glance.troubles:
            return "; ".join(glance.troubles[:2])
        if count := self._damaged(glance):
            lines = "1 line of its results" if count == 1 else f"{count:,} lines of its results"
            return f"{lines} cannot be read"
        return self._doubtful_count()

    def without_damaged(self, glance: Glance) -> bool:
        """Whether all is complete but for a few lines that are damaged where they lie, so that it is
        known whose they are, and that no other reading will mend them."""
        count = self._damaged(glance)
        return count <= DAMAGED_SHARE * self.requests and not (glance.troubles or self._doubtful_count(count))

    def _damaged(self, glance: Glance) -> int:
        return sum(key in self.waiting and key not in self.held for key in glance.damaged)

    def _doubtful_count(self, damaged: int = 0) -> str | None:
        """By the provider's own counts. Those that it counts as completed are paid for; not all
        providers count a request as failed that was executed and refused."""
        remote = self.remote
        stored = self.requests - len(self.waiting)
        paid = stored + damaged + sum(line.is_paid for line in self.held.values())
        not_run = sum(isinstance(line.meaning, NotRun) for line in self.held.values())
        executed = stored + damaged + len(self.held) - not_run - self.unclear
        if remote.completed is None:
            cut_short = remote.status in CUT_SHORT  # then it is no wonder that some have no line
            return None if cut_short else "the provider does not say how many of its requests are completed"
        if paid >= remote.completed or executed >= remote.completed + (remote.failed or 0):
            nothing = not (executed or self.unclear or remote.status in CUT_SHORT)
            return "its files show no result at all" if nothing else None
        if not remote.output_file:
            return f"{remote.completed:,} of its requests are completed, and it names no results file"
        return f"{remote.completed:,} of its requests are completed, and its files show {paid:,}"


def _worth(line: Line) -> int:
    """Of two lines for one request the better one counts, whichever comes first."""
    if isinstance(line.meaning, Reply):
        return 1 if line.meaning.is_unusable else 2
    return 0 if isinstance(line.meaning, Unclear | BadReply) else 1


def strangers_in(glance: Glance, own: Collection[bytes], stored: int) -> int:
    """Lines of requests that are not in the batch. `own`: those that waited when reading began, beside
    so many whose result was stored."""
    others = sum(key not in own for key in glance.seen)
    return glance.strangers + max(0, others - stored)


@dataclass(frozen=True, slots=True)
class Fetcher:
    """`abandoned`: the provider's id of a batch whose missing results the user has given up."""

    api: BatchApi
    give_up: float
    abandoned: str | None
    say: Callable[[str], None]

    async def fetch(self, row: BatchRow, results: Results, store: Store) -> Glance:
        """Until nothing is missing, or what is missing is not there: the last reading. Answers are
        stored as they come. Raises ResultsUnreadable, ProviderDown, AuthRefused, StorageError."""
        own, in_vain = set(results.waiting), 0
        while True:
            glance, remote = Glance(), results.remote
            for kind, file in (("output", remote.output_file), ("error", remote.error_file)):
                if file:
                    troubles, unreadable = len(glance.troubles), glance.unreadable
                    await patiently(partial(self._read, file, results, glance, store), self.give_up)
                    if glance.unreadable > unreadable and len(glance.troubles) == troubles:
                        glance.troubles.append(f"holds {glance.unreadable - unreadable:,} lines of garbage")
                    for number in range(troubles, len(glance.troubles)):
                        glance.troubles[number] = f"its {kind} file {file} {glance.troubles[number]}"
            doubt = results.doubt(glance)
            in_vain = 1 if glance.found else in_vain + 1
            if doubt is None or in_vain >= FETCHES:
                if strangers := strangers_in(glance, own, results.requests - len(own)):
                    self.say(
                        f"batch {row.id}: {strangers:,} lines of its results belong to none of its requests"
                    )
                if glance.repeated:
                    self.say(
                        f"batch {row.id}: {glance.repeated:,} of its results came twice; the first one counts"
                    )
                return glance if doubt is None else self._given_up(row, results, glance, doubt)
            self.say(f"batch {row.id}: {doubt}; its results are fetched again")
            await asyncio.sleep(pause(in_vain))
            with suppress(RowRefused):  # the files' names and the counts may have come late as well
                remote = await patiently(lambda: self.api.retrieve(row.remote or ""), self.give_up)
                if state_of(remote) == "results":
                    results.remote = remote

    def _given_up(self, row: BatchRow, results: Results, glance: Glance, doubt: str) -> Glance:
        if results.without_damaged(glance):
            return glance
        count = results.missing
        if self.abandoned == row.remote:
            self.say(f"batch {row.id}: {doubt}; {count:,} results are given up and requested again")
            return glance
        read = results.requests - count
        raise ResultsUnreadable(
            f"the results of batch {row.remote} are incomplete after {FETCHES} fetches: {doubt.rstrip('.')}. "
            f"{read:,} of {results.requests:,} could be read. The others may be paid for, so nothing is "
            "requested again. Run the same command again to fetch them again, or ask the provider about the "
            f"batch. To request the {count:,} again, and perhaps pay for them twice, add "
            f'--batch-abandon {row.remote} (in a recipe: batch_abandon = "{row.remote}")'
        )

    async def _read(self, file: str, results: Results, glance: Glance, store: Store) -> None:
        """Raises AskError where the server does not answer at all."""
        loop, useless = asyncio.get_running_loop(), 0
        try:
            async with (
                aclosing(self.api.lines(file)) as lines,
                asyncio.timeout(2 * self.api.timeout) as clock,  # a silent server is the client's to tell
            ):
                async for text in lines:
                    known = len(glance.seen)
                    line = results.take(text, glance)
                    if line:
                        await self._keep(line, results, store)
                    if line or len(glance.seen) > known:
                        clock.reschedule(loop.time() + self.api.timeout)
                    else:
                        useless += len(text.raw) + A_LINE
                    if useless > MOST_USELESS:
                        glance.troubles.append("holds too much besides its results")
                        return
        except BrokenOff as error:
            glance.troubles.append(f"breaks off: {error}")
        except RowRefused as error:
            glance.troubles.append(f"cannot be fetched: {error}")
        except TimeoutError:
            glance.troubles.append(f"gives no further result within {self.api.timeout:g} s")

    async def _keep(self, line: Line, results: Results, store: Store) -> None:
        if isinstance(line.meaning, Reply) and line.is_paid and not line.meaning.is_unusable:
            results.held.pop(line.key, None)
            await store(line)
            return
        results.hold(line)
        while results.held_bytes > MOST_HELD:
            await store(results.let_go())
