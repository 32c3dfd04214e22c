"""Stores what a batch brought, line by line, as online replies are stored.

Results come in any order and may be read again from the start: a request leaves the batch in
the commit that stores its result, so nothing is stored twice. Refusals that come before the
first answer may be the run's fault (a parameter, the model): they wait for the verdict (collect/stopping.py).
"""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import orjson

from engine.batch.client import Remote
from engine.batch.download import Fetcher, Results
from engine.batch.files import Line, NotRun, Unclear
from engine.batch.packer import RetryLine
from engine.collect.outcomes import Booking, Failed, Measure, Unusable, judged, unread_words, unusable
from engine.collect.stage import Intake
from engine.collect.stopping import against_the_run, mostly_unusable
from engine.limits.budget import Budget
from engine.provider.errors import AskError, BadReply, RowRefused, RunStopped, ServerFault
from engine.provider.pricing import Price, Prices
from engine.provider.responses import Reply, claim_in
from store import provider_batches as batches
from store.provider_batches import BatchRow, Enqueued, Items
from store.records import UNUSABLE, Cause, Fault

LINES_A_COMMIT = 256
DAMAGED = "the line of the batch's results cannot be read"
MOST_BYTES_A_TOKEN = 16  # a request's size where only its tokens are known
LOST = "the batch has ended and its files have no line for this request"


def price_json(price: Price) -> str:
    return orjson.dumps(_parts(price)).decode()


def price_from(text: str) -> Price:
    return _price(orjson.loads(text))


def _parts(price: Price) -> list[Any]:
    """Three amounts, as ledgers have always held them; more only where the price has more to it."""
    amounts = [str(price.prompt), str(price.completion), str(price.cached)]
    if price.cache_write is None and not price.request and not price.steps:
        return amounts
    write = None if price.cache_write is None else str(price.cache_write)
    return [*amounts, write, str(price.request), [[above, _parts(step)] for above, step in price.steps]]


def _price(parts: list[Any]) -> Price:
    prompt, completion, cached = (Decimal(part) for part in parts[:3])
    if len(parts) == 3:
        return Price(prompt, completion, cached)
    write, request, steps = parts[3:]
    longer = tuple((above, _price(step)) for above, step in steps)
    return Price(prompt, completion, cached, write and Decimal(write), Decimal(request), longer)


@dataclass(slots=True)
class Collected:
    """What has to be asked again, by key, and whether the run has to end."""

    again: dict[bytes, RetryLine] = field(default_factory=dict)
    reason: RunStopped | None = None


@dataclass(slots=True)
class _Reading:
    """A batch that is being read: who still waits, and what comes of it."""

    row: BatchRow
    booking: Booking
    own: bool
    idle: bool  # the provider did nothing of it: that counts as an attempt
    results: Results
    found: Collected = field(default_factory=Collected)
    stored: int = 0

    @property
    def waiting(self) -> dict[bytes, Enqueued]:
        return self.results.waiting


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a request is asked at most: in all, after replies that cannot be parsed (beside the
    first), and after replies without an answer."""

    most: int
    parse: int
    empty: int


class Collector:
    """Stores the results of batches; shared by all of a run."""

    def __init__(
        self,
        fetcher: Fetcher,
        intake: Intake,
        budget: Budget,
        attempts: Attempts,
        give_up_share: float,
        items: Items,
    ) -> None:
        self.fetcher, self.intake, self.budget, self.items = fetcher, intake, budget, items
        self.ledger, self.state, self.tokenizer = intake.ledger, intake.state, intake.plan.tokenizer
        self.attempts, self.give_up_share = attempts, give_up_share
        self._proven = False
        self._refusals: list[tuple[int, Failed, bool]] = []  # until a row has been answered
        self._unread: dict[int, Failed] = {}  # likewise, by request
        self._in_vain: dict[int, Unusable] = {}  # likewise: answered without an answer

    async def collect(self, row: BatchRow, remote: Remote, waiting: list[Enqueued], own: bool) -> Collected:
        """Raises ResultsUnreadable, ProviderDown, StorageError; what was read by then is stored."""
        results = Results(row.requests, remote, {e.key: e for e in waiting})
        booking = Booking(Prices.of_one(price_from(row.price)), self.tokenizer)
        reading = _Reading(row, booking, own, not remote.done, results)
        if self.intake.plan.task.check:
            self.items.load(row)
        try:
            glance = await self.fetcher.fetch(row, results, lambda line: self._take(reading, line))
        finally:
            await self.ledger.committed()
        while results.held:
            await self._take(reading, results.let_go())
        for key, raw in glance.damaged.items():
            if key in reading.waiting:
                await self._take(reading, Line(key, 200, raw, BadReply(DAMAGED, raw)))
        for entry in list(reading.waiting.values()):
            # of a batch that was cut short it was not executed; else it may have been billed
            if results.remote.status in ("expired", "cancelled"):
                self._not_run(reading, entry, f"batch_{results.remote.status}")
            else:
                self._asked_again(reading, entry, AskError(LOST), lost=entry.worst)
        # where the batch speaks against the run, its rows stay due and the run ends
        refused = [failed for _, failed, _ in self._refusals]
        doubts: list[Failed | Unusable] = [*refused, *self._unread.values(), *self._in_vain.values()]
        if reason := against_the_run(doubts) or mostly_unusable(self.state, self.give_up_share):
            reading.found.reason = reading.found.reason or reason
        else:
            self._fail_refusals()
        await self.ledger.committed()
        return reading.found

    async def _take(self, reading: _Reading, line: Line) -> None:
        entry, meaning = reading.waiting[line.key], line.meaning
        if isinstance(meaning, Reply):
            self._answered(reading, entry, line, meaning)
        elif isinstance(meaning, NotRun):
            self._not_run(reading, entry, meaning.words)
        elif isinstance(meaning, BadReply):
            # stored, counted as billed (at its worst where it shows no usage), and asked again
            row = reading.row
            claim = claim_in(meaning.raw)
            response = reading.booking.book_unread(meaning.raw, claim, self._asked(entry))
            released = 0 if claim.is_empty and meaning.maybe_billed else entry.worst
            self.ledger.put(row.stage, entry.attempt, entry.request, response, released, final=False)
            fault = Fault(meaning.cause, meaning.status, str(meaning))
            number = self.ledger.error(
                row.stage, entry.attempt, entry.request, fault, 0,
                ended=False, at_risk_micro=entry.worst - released,
            )  # fmt: skip
            self.state.count_malformed(response)
            self._settle(reading, entry, response.cost_micro, entry.worst - released)
            self._again(reading, entry, meaning.cause, number)
        elif isinstance(meaning, RowRefused):
            number = self._record(reading, entry, meaning)
            self._settle(reading, entry)
            if self._proven:
                self.intake.failed(entry.request, meaning.cause, number, own=reading.own)
            else:
                failed = Failed(meaning.cause, meaning.status, str(meaning), number, refused=True)
                self._refusals.append((entry.request, failed, reading.own))
        elif isinstance(meaning, Unclear):
            most = self.attempts.parse + 1 if meaning.is_refusal else None
            self._asked_again(reading, entry, ServerFault(meaning.words, meaning.status or 0), most=most)
        elif isinstance(meaning, RunStopped):
            # the row stays due; the run ends when all of the batch has been read
            fault = Fault(meaning.cause, line.status, str(meaning))
            self.ledger.error(reading.row.stage, entry.attempt, entry.request, fault, entry.worst)
            self._settle(reading, entry)
            reading.found.reason = reading.found.reason or meaning
        else:
            self._asked_again(reading, entry, meaning)
        reading.stored += 1
        if reading.stored % LINES_A_COMMIT == 0:
            await self.ledger.committed()

    def _settle(self, reading: _Reading, entry: Enqueued, cost: int = 0, lost: int = 0) -> None:
        """The request has left the batch."""
        del reading.waiting[entry.key]
        batches.settled(self.ledger, entry.attempt)
        self.budget.settle(entry.worst, cost, lost)
        self.state.at_risk_micro += lost
        self.state.in_flight -= 1

    def _answered(self, reading: _Reading, entry: Enqueued, line: Line, reply: Reply) -> None:
        task = self.intake.plan.task
        outcome = judged(reply, task.check, lambda: task.decode(self.items.find(reading.row, entry.request)))
        response = reading.booking.book(reply, outcome, line.raw, 0.0, self._asked(entry))
        stage, final = reading.row.stage, outcome not in (*UNUSABLE, "unparsed")
        number = self.ledger.put(stage, entry.attempt, entry.request, response, entry.worst, final)
        self._settle(reading, entry, response.cost_micro)
        self.state.count(response, entry.prompt_tokens, final)
        if final:
            if not self._proven:
                self._proven = True
                self._unread.clear()
                self._in_vain.clear()
                self._fail_refusals()
            self.intake.answered(entry.request, own=reading.own)
        elif outcome == "unparsed":  # no record in it: a further sample goes into a next batch
            words = unread_words(reply)
            fault = Fault("unparsed", 200, words)
            error = self.ledger.error(stage, entry.attempt, entry.request, fault, 0, ended=False)
            if not (self._proven or self.state.was_read):
                self._unread[entry.request] = Failed("unparsed", 200, words, error, refused=False)
            self._again(reading, entry, "unparsed", error, most=self.attempts.parse + 1)
        else:  # no answer in it: another is bought in a next batch, a few times
            if not self._proven and self.give_up_share < 1:
                self._in_vain[entry.request] = unusable(reply, response.usage, number)
            if reply.outcome == "tool_calls" or entry.tries + 1 >= self.attempts.empty:
                self.intake.unusable(entry.request, reply.outcome, number, own=reading.own)
            else:
                reading.found.again[entry.key] = RetryLine(
                    entry.request, entry.prompt_tokens, entry.worst, entry.tries + 1, reading.own
                )

    def _asked(self, entry: Enqueued) -> Measure:
        """What its reply is measured by; its body is at the provider, not here."""
        size = MOST_BYTES_A_TOKEN * entry.prompt_tokens
        most = entry.prompt_tokens if self.tokenizer.exact else size
        return Measure(entry.prompt_tokens, most, size, self.intake.plan.max_tokens)

    def _record(self, reading: _Reading, entry: Enqueued, error: AskError, lost: int = 0) -> int:
        return self.ledger.error(
            reading.row.stage, entry.attempt, entry.request, Fault(error.cause, error.status, str(error)),
            entry.worst - lost, at_risk_micro=lost,
        )  # fmt: skip

    def _not_run(self, reading: _Reading, entry: Enqueued, words: str) -> None:
        fault = Fault("timeout", None, words)
        number = self.ledger.error(reading.row.stage, entry.attempt, entry.request, fault, entry.worst)
        self._settle(reading, entry)
        self._again(reading, entry, "timeout", number, tried=reading.idle)

    def _asked_again(
        self, reading: _Reading, entry: Enqueued, error: AskError, lost: int = 0, most: int | None = None
    ) -> None:
        number = self._record(reading, entry, error, lost)
        self._settle(reading, entry, lost=lost)
        self._again(reading, entry, error.cause, number, most=most)

    def _again(
        self,
        reading: _Reading,
        entry: Enqueued,
        cause: Cause,
        error: int,
        tried: bool = True,
        most: int | None = None,
    ) -> None:
        """Into a next batch, or the row fails for want of attempts."""
        self.state.retry_causes[cause] += 1
        tries = entry.tries + tried
        if tries >= (most or self.attempts.most):
            self.intake.failed(entry.request, cause, error, own=reading.own)
            return
        reading.found.again[entry.key] = RetryLine(
            entry.request, entry.prompt_tokens, entry.worst, tries, reading.own
        )

    def _fail_refusals(self) -> None:
        for request, failed, own in self._refusals:
            self.intake.failed(request, failed.cause, failed.error, own=own)
        self._refusals.clear()
