"""One attempt at one request: reserve, journal, send, store, settle. Returns what to do next.

A reply counts when its commit has returned. Causes decide (errors.py draws the tree): a rate
limit costs no attempt, an outage costs none either (the breaker gives them back), a row that
the server refuses fails at once, what must end the run is raised as RunStopped. A reply that the
task cannot read is stored, billed, and asked again as a further sample of the same request.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from engine.breaker import Effort
from engine.budget import Budget
from engine.charging import Size
from engine.client import Answer
from engine.endpoints import Admitted, Endpoint
from engine.errors import AskError, BadReply, RateLimited, RowRefused, ServerFault, Transient
from engine.limits import Ticket
from engine.replies import Reply, is_filtered, judged, malformed, read_error, read_reply, unread_words
from engine.state import RunState
from engine.tasks.task import Check
from engine.tokens import Tokenizer
from store.ledger import Ledger
from store.records import Cause, Request, Response, Usage

FIRST_BACKOFF, LONGEST_BACKOFF = 0.25, 60.0
NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a run may do, and under which numbers it stands in the ledger."""

    run: int
    stage: int
    attempts: int
    attempts_parse: int = 2
    check: Check | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The request has its answer on the disk."""


@dataclass(frozen=True, slots=True)
class Again:
    """Ask again after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has failed; `error` is its row in the ledger. `refused`: by the server's word."""

    cause: Cause
    status: int | None
    words: str
    error: int
    refused: bool


Verdict = Answered | Again | Failed


@dataclass(slots=True)
class _Sent:
    """An attempt on its way: its number in the ledger and all that is reserved for it."""

    request: Request
    attempt: int
    ticket: Ticket
    worst: int


class Asker:
    """Holds what all attempts of a stage at one endpoint share; has no loop of its own."""

    def __init__(
        self,
        terms: Terms,
        ledger: Ledger,
        endpoint: Endpoint,
        budget: Budget,
        tokenizer: Tokenizer,
        state: RunState,
        is_stopped: Callable[[], bool],
    ) -> None:
        self.terms, self.ledger, self.endpoint = terms, ledger, endpoint
        self.price, self.client = endpoint.price, endpoint.client
        self.limiter, self.breaker = endpoint.limiter, endpoint.breaker
        self.budget, self.tokenizer, self.state = budget, tokenizer, state
        self._is_stopped = is_stopped

    async def attempt(
        self, request: Request, effort: Effort, admitted: Admitted, in_flight: Callable[[], None]
    ) -> Verdict:
        """Raises RunStopped (nothing was lost, the row stays due) or StorageError."""
        probe = admitted.probe
        sent = await self._reserve(request, effort, admitted)
        in_flight()
        await self.ledger.committed()
        if self._is_stopped():
            self._withdraw(sent)
            return Again(0.0)
        effort.asks += 1
        self.state.asked += 1
        self.state.in_flight += 1
        try:
            number = request.asked + effort.asks
            answer = await self.client.send(request.body, f"{request.key.hex()}-{number}")
            return await self._received(sent, effort, answer)
        except RateLimited as error:
            return self._limited(sent, error, answer, probe)
        except BadReply as error:
            return await self._unreadable(sent, effort, error, probe)
        except Transient as error:
            return await self._lost(sent, effort, error, probe)
        except RowRefused as error:
            self.breaker.succeeded(sent.ticket.at)
            return await self._refused(sent, error, answer)
        except asyncio.CancelledError:  # it may have been billed: its cost stays at risk
            self._settle(sent, None, 0, lost=sent.worst)
            raise
        finally:
            self.state.in_flight -= 1

    async def _reserve(self, request: Request, effort: Effort, admitted: Admitted) -> _Sent:
        prompt = request.prompt_tokens
        if not self.tokenizer.exact:  # no byte-level tokenizer makes more tokens than bytes
            prompt = len(request.body)
        worst = self.price.worst(prompt, request.max_tokens)
        await self.budget.reserve(worst)
        try:
            ticket = admitted.take_ticket()
            if ticket is None:
                ticket = await self.limiter.reserve(size_of(request), first=effort.asks > 0)
        except asyncio.CancelledError:
            self.budget.settle(worst, 0)
            raise
        attempt = self.ledger.journal(
            self.terms.run, self.terms.stage, request.id, worst, self.endpoint.number
        )
        return _Sent(request, attempt, ticket, worst)

    def _withdraw(self, sent: _Sent) -> None:
        self.ledger.withdraw(self.terms.stage, sent.attempt, sent.worst)
        self.limiter.unsent(sent.ticket)
        self.budget.settle(sent.worst, 0)

    async def _received(self, sent: _Sent, effort: Effort, answer: Answer) -> Verdict:
        if answer.status == 200:
            reply = read_reply(answer.raw)
            usage = reply.usage or self._counted(sent.request, reply)
        elif is_filtered(answer.status, answer.raw):
            reply, usage = Reply("content_filter", "", "content_filter", None, ""), Usage()
        else:
            error = read_error(answer.status, answer.headers, answer.raw)
            if not isinstance(error, AskError):  # the run ends here; this attempt cost nothing
                self._record(
                    sent,
                    "auth" if answer.status != 429 else "rate_limit",
                    answer.status,
                    str(error),
                )
                self._settle(sent, None, 0)
            raise error
        outcome = judged(reply, self.terms.check, lambda: sent.request.item)
        cost = self.price.cost(usage)
        response = Response(
            outcome, reply.finish_reason, usage, answer.raw, cost, answer.latency, reply.model
        )
        final = outcome != "unparsed"
        self.ledger.put(self.terms.stage, sent.attempt, sent.request.id, response, sent.worst, final)
        self._settle(sent, usage, cost, headers=answer.headers)
        self.breaker.succeeded(sent.ticket.at)
        self.endpoint.answered()
        if self.endpoint.adaptive:
            self.endpoint.adaptive.replied(answer.latency)
        await self.ledger.committed()
        self.state.count(response, sent.request.prompt_tokens)
        self.state.latencies.append(answer.latency)
        self.state.spread.add(answer.latency)
        return Answered() if final else await self._unparsed(sent, effort, reply)

    async def _unparsed(self, sent: _Sent, effort: Effort, reply: Reply) -> Verdict:
        """Stored and billed, and no record in it: a further sample is asked, a few times."""
        effort.unparsed += 1
        words = unread_words(reply)
        number = self.ledger.error(
            self.terms.stage, sent.attempt, sent.request.id, "unparsed", 200, words, 0, ended=False
        )
        self.state.retry_causes["unparsed"] += 1
        if effort.unparsed <= self.terms.attempts_parse:
            return Again(0.0)
        await self.ledger.committed()
        return Failed("unparsed", 200, words, number, refused=False)

    def _counted(self, request: Request, reply: Reply) -> Usage:
        """Our own count, for servers that send no usage."""
        return Usage(request.prompt_tokens, self.tokenizer.count(reply.text))

    def _limited(self, sent: _Sent, error: RateLimited, answer: Answer, probe: bool) -> Verdict:
        self.state.limited += 1
        self._record(sent, error.cause, error.status, str(error))
        self.limiter.limited(sent.ticket, error.wait, error.kind, answer.headers)
        self.budget.settle(sent.worst, 0)
        if self.endpoint.adaptive:
            self.endpoint.adaptive.overloaded()
        self.breaker.limited(self.limiter.pauses, error.wait, str(error), probe)
        return Again(0.0)  # the limiter makes it wait, ahead of the queue

    async def _unreadable(self, sent: _Sent, effort: Effort, error: BadReply, probe: bool) -> Verdict:
        """Stored, counted as billed (at its worst where it shows no usage), and asked again."""
        response, told = malformed(error.raw, self.price)
        released = sent.worst if told else 0
        self.ledger.put(self.terms.stage, sent.attempt, sent.request.id, response, released, final=False)
        self.state.count_malformed(response)
        usage = response.usage if told else None
        self._settle(sent, usage, response.cost_micro, lost=sent.worst - released)
        await self.ledger.committed()
        return await self._again(sent, effort, error, probe, ended=False)

    async def _lost(self, sent: _Sent, effort: Effort, error: Transient, probe: bool) -> Verdict:
        lost = sent.worst if error.maybe_billed else 0
        self._settle(sent, None, 0, lost=lost)
        if self.endpoint.adaptive and error.cause in ("timeout", "server"):
            self.endpoint.adaptive.overloaded()
        return await self._again(sent, effort, error, probe, ended=True, released=sent.worst - lost)

    async def _again(
        self,
        sent: _Sent,
        effort: Effort,
        error: Transient,
        probe: bool,
        ended: bool,
        released: int = 0,
    ) -> Verdict:
        effort.attempts += 1
        number = self.ledger.error(
            self.terms.stage, sent.attempt, sent.request.id, error.cause, error.status,
            str(error), released, ended,
        )  # fmt: skip
        self.state.retry_causes[error.cause] += 1
        down = error.is_outage
        at_once = down and not self.endpoint.proven
        self.breaker.failed(effort, probe, str(error), down, at_once)
        if effort.spent >= self.terms.attempts:
            await self.ledger.committed()
            return Failed(error.cause, error.status, str(error), number, refused=False)
        wait = error.wait if isinstance(error, ServerFault) and error.wait else 0.0
        return Again(max(min(wait, LONGEST_BACKOFF), backoff(effort.attempts)))

    async def _refused(self, sent: _Sent, error: RowRefused, answer: Answer) -> Verdict:
        number = self._record(sent, error.cause, error.status, str(error))
        self.limiter.refused(sent.ticket, answer.headers)
        self.state.refusals[error.cause] += 1
        self.budget.settle(sent.worst, 0)
        await self.ledger.committed()
        return Failed(error.cause, error.status, str(error), number, refused=True)

    def _record(self, sent: _Sent, cause: Cause, status: int | None, words: str) -> int:
        """Journals an attempt that was certainly not billed."""
        return self.ledger.error(
            self.terms.stage, sent.attempt, sent.request.id, cause, status, words, sent.worst
        )

    def _settle(
        self,
        sent: _Sent,
        usage: Usage | None,
        cost: int,
        lost: int = 0,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        self.limiter.settle(sent.ticket, usage, headers)
        self.budget.settle(sent.worst, cost, lost)


def size_of(request: Request) -> Size:
    """What it takes of the limits."""
    return Size(request.prompt_tokens, request.max_tokens)


def backoff(attempts: int) -> float:
    """Exponential with full jitter, in seconds (AWS Architecture Blog, 2015)."""
    return random.uniform(0.0, min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** max(0, attempts)))
