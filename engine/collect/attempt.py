"""One attempt at one request: reserve, journal, send, store, settle. Returns what to do next.

A reply counts when its commit has returned. Causes decide (errors.py draws the tree): a rate
limit costs no attempt, an outage costs none either (the breaker gives them back), a row that
the server refuses fails at once, what must end the run is raised as RunStopped. A reply that the
task cannot read is stored, billed, and asked again as a further sample of the same request.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from engine.collect.outcomes import (
    ANSWERED,
    NO_HEADERS,
    Again,
    Booking,
    Failed,
    Measure,
    Verdict,
    judged,
    meant_for,
    unread_words,
    unusable,
)
from engine.collect.stats import RunState
from engine.limits.budget import Budget
from engine.limits.circuit_breaker import Effort
from engine.limits.endpoints import Admitted, Endpoint
from engine.limits.rate_limiter import Ticket
from engine.provider.client import HttpReply
from engine.provider.errors import (
    AddressWrong,
    AskError,
    BadReply,
    RateLimited,
    RowRefused,
    RunStopped,
    ServerFault,
    Transient,
)
from engine.provider.refusals import is_filtered, read_error
from engine.provider.responses import FILTERED_REPLY, Reply, claim_in, read_reply
from engine.provider.tokens import Tokenizer
from engine.tasks.task import Check
from store.ledger import Ledger
from store.records import UNUSABLE, Cause, Fault, Request, Response, Usage

FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 60.0


@dataclass(frozen=True, slots=True)
class AttemptConfig:
    """What a run may do, and under which numbers it stands in the ledger."""

    run: int
    stage: int
    attempts: int
    attempts_parse: int = 2
    attempts_empty: int = 2
    check: Check | None = None


@dataclass(slots=True)
class _Sent:
    """An attempt on its way: its number in the ledger and all that is reserved for it. `stored`: a body
    has been stored for it, which has ended it."""

    request: Request
    asked: Measure
    attempt: int
    ticket: Ticket
    worst: int
    stored: bool = False


Landed = tuple[Verdict, Response | None]  # what follows, and the reply that the ledger was given


class Asker:
    """Holds what all attempts of a stage at one endpoint share; has no loop of its own."""

    def __init__(
        self,
        terms: AttemptConfig,
        ledger: Ledger,
        endpoint: Endpoint,
        budget: Budget,
        tokenizer: Tokenizer,
        state: RunState,
        is_stopped: Callable[[], bool],
    ) -> None:
        self.terms, self.ledger, self.endpoint = terms, ledger, endpoint
        self.client, host = endpoint.client, urlsplit(endpoint.url).hostname or ""
        # Azure, 'Plan to manage costs': a 400 of the content filter is billed for its prompt.
        self.booking = Booking(endpoint.price, tokenizer, bills_refusals=host.endswith(".azure.com"))
        self.limiter, self.breaker = endpoint.limiter, endpoint.breaker
        self.budget, self.state = budget, state
        self._is_stopped = is_stopped

    async def attempt(self, request: Request, effort: Effort, admitted: Admitted) -> Landed:
        """Returns when the server has answered, or will not; the verdict holds once the ledger has committed.
        Raises RunStopped (nothing was lost, the row stays pending) or StorageError."""
        probe = admitted.probe
        effort.suspect |= request.asked >= self.terms.attempts
        sent = await self._reserve(request, effort, admitted)
        effort.in_flight = True
        try:
            await self.ledger.committed()
        except BaseException:
            self._withdraw(sent)
            raise
        if self._is_stopped():
            self._withdraw(sent)
            return Again(0.0), None
        effort.asks += 1
        self.state.asked += 1
        self.state.in_flight += 1
        try:
            number = request.asked + effort.asks
            answer = await self.client.send(request.body, f"{request.key.hex()}-{number}")
            return self._received(sent, effort, answer)
        except RateLimited as error:
            return self._limited(sent, error, answer, probe), None
        except BadReply as error:
            return self._unreadable(sent, effort, error, probe), None
        except Transient as error:
            return self._lost(sent, effort, error, probe), None
        except RowRefused as error:
            self.breaker.succeeded(sent.ticket.at)
            return self._refused(sent, error, answer), None
        except RunStopped as reason:  # the run ends here; this attempt cost nothing
            self._record(sent, reason.cause, answer.status, str(reason))
            self._settle(sent, None, 0)
            raise
        except asyncio.CancelledError:  # it may have been billed: its cost stays at risk
            self._settle(sent, None, 0, lost=sent.worst)
            raise
        finally:
            self.state.in_flight -= 1

    async def _reserve(self, request: Request, effort: Effort, admitted: Admitted) -> _Sent:
        asked, worst = self.booking.measure(request)
        await self.budget.reserve(worst)
        try:
            ticket, admitted.ticket = admitted.ticket, None
            if ticket is None:
                ticket = await self.limiter.reserve(admitted.size, first=effort.asks > 0)
        except BaseException:
            self.budget.settle(worst, 0)
            raise
        attempt = self.ledger.journal(
            self.terms.run, self.terms.stage, request.id, worst, self.endpoint.number
        )
        return _Sent(request, asked, attempt, ticket, worst)

    def _withdraw(self, sent: _Sent) -> None:
        self.ledger.withdraw(self.terms.stage, sent.attempt, sent.worst)
        self.limiter.unsent(sent.ticket)
        self.budget.settle(sent.worst, 0)

    def _received(self, sent: _Sent, effort: Effort, answer: HttpReply) -> Landed:
        reply, endpoint = self._read(sent, answer), self.endpoint
        check = self.terms.check
        outcome = judged(reply, check, lambda: sent.request.item) if check else reply.outcome
        response = self.booking.book(reply, outcome, answer.raw, answer.latency, sent.asked, answer.headers)
        usage, cost = response.usage, response.cost_micro
        final = outcome not in (*UNUSABLE, "unparsed")
        number = self.ledger.put(self.terms.stage, sent.attempt, sent.request.id, response, sent.worst, final)
        self.limiter.settle(sent.ticket, usage, answer.headers)
        self.budget.settle(sent.worst, cost)
        self.breaker.succeeded(sent.ticket.at)
        endpoint.answered()
        if endpoint.adaptive:
            endpoint.adaptive.replied(answer.latency)
        if final:
            return ANSWERED, response
        if outcome == "unparsed":
            return self._unparsed(sent, effort, reply), response
        # Stored and billed, and no answer in it. Another is bought, a few times; a call of a tool is not
        # asked for again.
        effort.unusable += 1
        if reply.outcome != "tool_calls" and effort.unusable < self.terms.attempts_empty:
            return Again(0.0), response
        return unusable(reply, usage, number), response

    def _read(self, sent: _Sent, answer: HttpReply) -> Reply:
        """The reply, or the error that stands in its place. A body of 2xx is stored whatever it holds."""
        if not 200 <= answer.status < 300:
            if is_filtered(answer.status, answer.raw):
                return FILTERED_REPLY
            error = read_error(answer.status, answer.headers, answer.raw)
            raise meant_for(error, answer.status, self.endpoint.has_answered, self.endpoint.url)
        try:
            return read_reply(answer.raw)
        except BadReply as error:
            error.status = answer.status
            raise
        except (AskError, RunStopped) as error:
            if isinstance(error, RowRefused) and error.about == "filter":
                return FILTERED_REPLY._replace(claim=error.claim)
            # The body of a 200 that holds an error is stored. Without usage it cost nothing.
            response = self.booking.book_unread(error.raw or b"", error.claim, sent.asked)
            self.ledger.put(
                self.terms.stage, sent.attempt, sent.request.id, response, sent.worst, final=False
            )
            self.state.count_malformed(response)
            self.budget.settle(sent.worst, response.cost_micro)
            sent.worst, sent.stored = 0, True
            error = meant_for(error, answer.status, self.endpoint.has_answered, self.endpoint.url)
            raise error from None

    def _unparsed(self, sent: _Sent, effort: Effort, reply: Reply) -> Verdict:
        """Stored and billed, and no record in it: a further sample is asked, a few times."""
        effort.unparsed += 1
        words = unread_words(reply)
        number = self.ledger.error(
            self.terms.stage, sent.attempt, sent.request.id, Fault("unparsed", 200, words), 0, ended=False
        )
        self.state.retry_causes["unparsed"] += 1
        if effort.unparsed <= self.terms.attempts_parse:
            return Again(0.0)
        return Failed("unparsed", 200, words, number, refused=False)

    def _limited(self, sent: _Sent, error: RateLimited, answer: HttpReply, probe: bool) -> Verdict:
        self.state.limited += 1
        self._record(sent, error.cause, error.status, str(error))
        self.limiter.limited(sent.ticket, error.wait, error.kind, answer.headers)
        self.budget.settle(sent.worst, 0)
        if self.endpoint.adaptive:
            self.endpoint.adaptive.overloaded()
        self.breaker.limited(self.limiter.pauses, error.wait, str(error), probe)
        return Again(0.0)  # the limiter makes it wait, ahead of the queue

    def _unreadable(self, sent: _Sent, effort: Effort, error: BadReply, probe: bool) -> Verdict:
        """Stored, counted as billed (at its worst where it shows no usage), and asked again. A page for
        browsers in the place of a first answer means that the address is wrong."""
        claim = claim_in(error.raw)
        response = self.booking.book_unread(error.raw, claim, sent.asked)
        lost = sent.worst if claim.is_empty and error.maybe_billed else 0
        self.ledger.put(
            self.terms.stage, sent.attempt, sent.request.id, response, sent.worst - lost, final=False
        )
        self.state.count_malformed(response)
        self._settle(sent, None if claim.is_empty else response.usage, response.cost_micro, lost=lost)
        sent.worst, sent.stored = 0, True
        if error.page and not self.endpoint.proven:
            words = f"{self.endpoint.url} is not the address of an API: {error}. Such an address ends in /v1"
            fault = Fault("malformed", 200, words)
            self.ledger.error(self.terms.stage, sent.attempt, sent.request.id, fault, 0, ended=False)
            raise AddressWrong(f"{words}; give it with --base-url")
        return self._again(sent, effort, error, probe, at_risk=lost)

    def _lost(self, sent: _Sent, effort: Effort, error: Transient, probe: bool) -> Verdict:
        lost = sent.worst if error.maybe_billed else 0
        self._settle(sent, None, 0, lost=lost)
        if self.endpoint.adaptive and error.cause in ("timeout", "server"):
            self.endpoint.adaptive.overloaded()
        return self._again(sent, effort, error, probe, released=sent.worst - lost, at_risk=lost)

    def _again(
        self, sent: _Sent, effort: Effort, error: Transient, probe: bool, released: int = 0, at_risk: int = 0
    ) -> Verdict:
        effort.attempts += 1
        number = self.ledger.error(
            self.terms.stage, sent.attempt, sent.request.id, Fault(error.cause, error.status, str(error)),
            released, not sent.stored, at_risk,
        )  # fmt: skip
        self.state.retry_causes[error.cause] += 1
        down = error.is_outage
        # A server that has answered nothing may fail for everybody, unless earlier runs know the row for it.
        is_known = effort.suspect and error.cause != "timeout"
        last = effort.spent >= self.terms.attempts > 1 and not is_known
        at_once = (down or last) and not self.endpoint.proven
        self.breaker.failed(effort, probe, str(error), down, at_once)
        if effort.spent >= self.terms.attempts:
            return Failed(error.cause, error.status, str(error), number, refused=False)
        wait = error.wait if isinstance(error, ServerFault) and error.wait else 0.0
        return Again(max(min(wait, LONGEST_BACKOFF), backoff(effort.attempts)))

    def _refused(self, sent: _Sent, error: RowRefused, answer: HttpReply) -> Verdict:
        number = self._record(sent, error.cause, error.status, str(error))
        self.limiter.refused(sent.ticket, answer.headers)
        self.state.refusals[error.cause] += 1
        self.budget.settle(sent.worst, 0)
        return Failed(error.cause, error.status, str(error), number, refused=True, about=error.about)

    def _record(self, sent: _Sent, cause: Cause, status: int | None, words: str) -> int:
        """Journals an attempt that was certainly not billed."""
        fault = Fault(cause, status, words)
        return self.ledger.error(
            self.terms.stage, sent.attempt, sent.request.id, fault, sent.worst, not sent.stored
        )

    def _settle(self, sent: _Sent, usage: Usage | None, cost: int, lost: int = 0) -> None:
        """What was sent has ended without a reply that could be read."""
        self.limiter.settle(sent.ticket, usage, NO_HEADERS)
        self.budget.settle(sent.worst, cost, lost)
        self.state.at_risk_micro += lost


def backoff(attempts: int) -> float:
    """Exponential with full jitter, in seconds (AWS Architecture Blog, 2015)."""
    return random.uniform(0.0, min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** max(0, attempts)))
