"""Fetches the files of a batch that has ended, again and again until they show all its results.

A file may be cut off, damaged, or not there yet. Whatever could be read by then is kept. When some
fetches in a row have brought nothing new and the files still cannot be believed, the run stops; the
batch stays open in the ledger, and the next start fetches its files again. Knows how results are
read, not how they are stored.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from engine.batch.client import BatchApi
from engine.batch.files import Line
from engine.batch.result_checks import A_LINE, MOST_HELD, MOST_USELESS, Glance, Results, strangers_in
from engine.batch.states import state_of
from engine.batch.submit import patiently, pause
from engine.provider.errors import BrokenOff, ResultsUnreadable, RowRefused
from engine.provider.responses import Reply
from store.provider_batches import BatchRow

FETCHES = 5  # in a row that bring nothing new

Store = Callable[[Line], Awaitable[None]]


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
            glance = await self._read_files(results, store)
            doubt = results.doubt(glance)
            in_vain = 1 if glance.found else in_vain + 1
            if doubt is None or in_vain >= FETCHES:
                self._tell(row, glance, strangers_in(glance, own, results.requests - len(own)))
            if doubt is None:
                return glance
            if in_vain >= FETCHES:
                return self._given_up(row, results, glance, doubt)
            self.say(f"batch {row.id}: {doubt}; its results are fetched again")
            await asyncio.sleep(pause(in_vain))
            await self._look_again(row, results)

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

    async def _look_again(self, row: BatchRow, results: Results) -> None:
        """The files' names and the counts may have come late as well."""
        try:
            remote = await patiently(lambda: self.api.retrieve(row.remote or ""), self.give_up)
        except RowRefused:
            return
        if state_of(remote) == "results":
            results.remote = remote

    async def _read_files(self, results: Results, store: Store) -> Glance:
        glance, remote = Glance(), results.remote
        for kind, file in (("output", remote.output_file), ("error", remote.error_file)):
            if file:
                troubles, unreadable = len(glance.troubles), glance.unreadable
                await patiently(partial(self._read, file, results, glance, store), self.give_up)
                if glance.unreadable > unreadable and len(glance.troubles) == troubles:
                    glance.troubles.append(f"holds {glance.unreadable - unreadable:,} lines of garbage")
                for number in range(troubles, len(glance.troubles)):
                    glance.troubles[number] = f"its {kind} file {file} {glance.troubles[number]}"
        return glance

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
                        glance.troubles.append("holds too much that is not its results")
                        return
        except BrokenOff as error:
            glance.troubles.append(f"breaks off: {error}")
        except RowRefused as error:
            glance.troubles.append(f"cannot be fetched: {error}")
        except TimeoutError:
            glance.troubles.append(f"brings no further result in {self.api.timeout:g} s")

    async def _keep(self, line: Line, results: Results, store: Store) -> None:
        if isinstance(line.meaning, Reply) and line.is_paid and not line.meaning.is_unusable:
            results.held.pop(line.key, None)
            await store(line)
            return
        results.hold(line)
        while results.held_bytes > MOST_HELD:
            await store(results.let_go())

    def _tell(self, row: BatchRow, glance: Glance, strangers: int) -> None:
        if strangers:
            self.say(f"batch {row.id}: {strangers:,} lines of its results are not of its requests")
        if glance.repeated:
            self.say(f"batch {row.id}: {glance.repeated:,} of its results came twice; the first counts")
