"""Creates a batch at the provider exactly once, whatever is lost on the way; retries with back-off.

validating -> in_progress -> finalizing -> completed     results
     |             `-> cancelling -> cancelled           what was finished, and the rest again
     |             `-> expired                           the same
     `-> failed                                          refused, or the queue is full: nothing billed

What follows from a state is decided first, without I/O. Each step is in the ledger before the next one is
taken: intended, uploaded, about to be created, created. After a crash or a lost reply we know what may exist.
Files are looked up by name and batches by metadata. A batch is created a second time only after the
provider's list, which may lag, has not shown it for a while. If two exist anyway, one is cancelled.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from engine.batch.client import BatchApi, Remote
from engine.batch.files import FOLDER, name_of
from engine.provider.errors import (
    AskError,
    BatchRefused,
    ConnectionLost,
    ProviderDown,
    QuotaExhausted,
    RateLimited,
    RowRefused,
    RunStopped,
    ServerFault,
)
from store import provider_batches as batches
from store.ledger import Ledger
from store.provider_batches import BatchRow

FULL_CODE = "token_limit_exceeded"
QUOTA_CODES = ("billing_hard_limit_reached", "insufficient_quota")
FIRST_POLL, LONGEST_POLL, GROWTH = 0.5, 120.0, 1.5
FINALIZING_POLL = 5.0
ENDED = ("completed", "expired", "cancelled", "failed")
_RANK = ("completed", "finalizing", "in_progress", "validating")  # of two, the one to keep

State = Literal["alive", "results", "full", "refused"]
Step = Literal["follow", "look", "create", "upload"]


def next_step(row: BatchRow) -> Step:
    """Where to continue with a batch that the ledger knows."""
    if row.remote:
        return "follow"
    if row.tried_at is not None:
        return "look"
    return "create" if row.input_file else "upload"


def is_alive(status: str) -> bool:
    """A status that we do not know is some way of being under way."""
    return status not in ENDED


def state_of(remote: Remote) -> State:
    if is_alive(remote.status):
        return "alive"
    if remote.status != "failed" or remote.output_file or remote.error_file:
        return "results"
    return "full" if any(code == FULL_CODE for code, _ in remote.problems) else "refused"


def poll_seconds(looks: int, status: str) -> float:
    """The wait before the next look: batches take minutes to a day."""
    longest = FINALIZING_POLL if status == "finalizing" else LONGEST_POLL
    return min(longest, FIRST_POLL * GROWTH ** min(looks, 30))


def best_of(found: Sequence[Remote]) -> Remote | None:
    """The one to keep of batches that were made for one intent; failed ones were never billed."""
    usable = [remote for remote in found if state_of(remote) in ("alive", "results")]

    def rank(remote: Remote) -> int:
        return _RANK.index(remote.status) if remote.status in _RANK else len(_RANK)

    return min(usable, key=rank, default=None)


def may_exist(error: AskError) -> bool:
    """Whether a batch may have been made although its creation failed in this way."""
    return not isinstance(error, ConnectionLost) or error.maybe_billed


def words_of(remote: Remote) -> str:
    """Why a batch failed, in the provider's words; the first of many lines alike."""
    first = [f"{code}: {words}" if code else words for code, words in remote.problems[:3]]
    more = f" (and {len(remote.problems) - 3} more)" if len(remote.problems) > 3 else ""
    return "; ".join(first) + more if first else "no reason given"


def refusal(remote: Remote) -> RunStopped:
    words = f"the provider refused batch {remote.id}, so nothing more is sent: {words_of(remote)}"
    if any(code in QUOTA_CODES for code, _ in remote.problems):
        return QuotaExhausted(words)
    return BatchRefused(words)


FIRST_WAIT, LONGEST_WAIT = 0.5, 120.0
REFUSALS = 3  # what was just made may not be known everywhere yet

T = TypeVar("T")


class Patience:
    """One stretch of failures; `give_up` in seconds since the first."""

    def __init__(self, give_up: float) -> None:
        self._give_up = give_up
        self._since: float | None = None
        self.failures = 0

    async def wait(self, error: AskError, for_ever: bool = False) -> None:
        """Raises ProviderDown when it has lasted too long."""
        now = asyncio.get_running_loop().time()
        self._since = now if self._since is None else self._since
        self.failures += 1
        if now - self._since > self._give_up and not for_ever:
            raise ProviderDown(f"the server has not answered for {self._give_up:g} s: {error}")
        asked = error.wait if isinstance(error, RateLimited | ServerFault) and error.wait else 0.0
        await asyncio.sleep(max(asked, pause(self.failures)))


def pause(failures: int) -> float:
    """Exponential with jitter, in seconds."""
    return random.uniform(0.5, 1.0) * min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures, 20))


async def patiently(call: Callable[[], Awaitable[T]], give_up: float) -> T:
    """The call's result. Raises RowRefused (after some attempts), RunStopped."""
    patience, refusals = Patience(give_up), 0
    while True:
        try:
            return await call()
        except RowRefused as error:
            refusals += 1
            if refusals >= REFUSALS:
                raise
            await patience.wait(error)
        except AskError as error:
            await patience.wait(error)


LOOK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Submitter:
    """`grace`: seconds for which the provider's list may lag; `give_up`: of outage."""

    api: BatchApi
    ledger: Ledger
    folder: str
    run: Path
    grace: float
    give_up: float
    say: Callable[[str], None]
    _doubtful: set[int] = field(default_factory=set)  # asked for more than once: there may be two

    def path(self, row: BatchRow) -> Path:
        return self.run / FOLDER / name_of(self.folder, row.id)

    async def upload(self, row: BatchRow, fresh: bool) -> BatchRow:
        """`fresh`: no upload can have been tried. Raises BatchRefused, RunStopped."""
        patience, name = Patience(self.give_up), name_of(self.folder, row.id)
        file = None if fresh else await self._find_file(row)
        while not file:
            try:
                file = await self.api.upload(self.path(row), name)
            except RowRefused as error:
                raise BatchRefused(f"the provider does not accept the file of a batch: {error}") from None
            except AskError as error:
                await patience.wait(error)
                file = await self._find_file(row)
        batches.uploaded(self.ledger, row.id, file)
        await self.ledger.committed()
        return replace(row, input_file=file)

    async def _find_file(self, row: BatchRow) -> str | None:
        """The file that a lost upload has left; further ones of the same name are removed."""
        name = name_of(self.folder, row.id)
        try:
            found = await patiently(lambda: self.api.find_files(name, row.bytes), self.give_up)
        except RowRefused:  # a provider without such a list; a second upload costs nothing
            return None
        for extra in found[1:]:
            await self.remove_file(extra)
        return found[0] if found else None

    async def remove_file(self, file: str) -> None:
        """A courtesy: nothing depends on it."""
        with suppress(AskError):
            await self.api.delete_file(file)

    async def create(self, row: BatchRow, alone: Callable[[], bool]) -> tuple[BatchRow, Remote]:
        """`alone`: whether no other batch of ours fills the queue, so that waiting has an end."""
        assert row.input_file
        file, patience, refusals = row.input_file, Patience(self.give_up), 0
        while True:
            row = replace(row, tried_at=time.time())
            batches.trying(self.ledger, row.id, row.tried_at or 0.0)
            await self.ledger.committed()
            try:
                return await self.adopt(row, await self.api.create(file, self.folder, row.id))
            except RowRefused as error:
                refusals += 1
                if refusals >= REFUSALS:
                    stop = ProviderDown if row.id in self._doubtful else BatchRefused
                    raise stop(f"the provider does not accept the batch: {error}") from None
                await patience.wait(error)
            except RateLimited as error:
                await patience.wait(error, for_ever=not alone())
            except AskError as error:
                await patience.wait(error)
                if may_exist(error):
                    if found := await self.look(row):
                        return await self.adopt(row, found)
                    self._doubtful.add(row.id)

    async def look(self, row: BatchRow) -> Remote | None:
        """A batch that was asked for and whose id never came, or None when the provider's list has
        shown none for `grace` seconds after it was asked for."""
        while True:
            asked = row.tried_at or 0.0
            late = time.time() >= asked + self.grace
            found = await self._listed(row)
            if best := best_of(found):
                await self._cancel_others(row, found, best)
                return best
            if late:
                self._doubtful.add(row.id)
                return None
            wait = min(self.grace, asked + self.grace - time.time())
            await asyncio.sleep(max(0.0, min(wait, LOOK_SECONDS)))

    async def _listed(self, row: BatchRow) -> list[Remote]:
        """Raises ProviderDown where there is no such list: then nobody can know, and nothing is asked."""
        try:
            return await patiently(
                lambda: self.api.find_batches(self.folder, row.id, row.input_file), self.give_up
            )
        except RowRefused as error:
            raise ProviderDown(f"the provider's list of batches cannot be read: {error}") from None

    async def end_twins(self, row: BatchRow, remote: Remote) -> None:
        """A batch that was asked for twice is looked for once more when the list has had its time."""
        if row.id in self._doubtful:
            self._doubtful.discard(row.id)
            await self._cancel_others(row, await self._listed(row), remote)

    async def _cancel_others(self, row: BatchRow, found: list[Remote], best: Remote) -> None:
        for other in found:
            if other.id != best.id and is_alive(other.status):
                self.say(f"batch {row.id} exists twice at the provider: {other.id} is cancelled")
                with suppress(AskError):
                    await self.api.cancel(other.id)

    async def adopt(self, row: BatchRow, remote: Remote) -> tuple[BatchRow, Remote]:
        batches.submitted(self.ledger, row.id, remote.id, remote.status)
        await self.ledger.committed()
        return replace(row, remote=remote.id, status=remote.status), remote
