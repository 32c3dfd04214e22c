"""How a reply is booked: the tokens and the cost that are believed, and what is stored of it.

What online and batch replies have in common. Pure but for the longest reply that it has seen, and for what
`Prices` learns.
"""

from collections.abc import Mapping
from typing import NamedTuple

from engine.limits.charging import RequestSize
from engine.provider.json_body import storable
from engine.provider.pricing import COST_HEADER, Prices, told_cost
from engine.provider.responses import FILTERED_REPLY, Reply
from engine.provider.tokens import Tokenizer
from engine.provider.usage import Claim, believed
from engine.tasks.task import Verdict
from store.records import Request, Response, Usage

OVERRUN = 4  # times what a reply took beyond its bound, which the next one may take
NO_HEADERS: Mapping[str, str] = {}


class Measure(NamedTuple):
    """What a reply is measured by: the request's prompt tokens by our count, the most that they can be, its
    size in bytes and the bound on its reply (0 for none)."""

    prompt_tokens: int
    most_prompt: int
    size: int
    max_tokens: int


def measure(request: Request, tokenizer: Tokenizer) -> Measure:
    """What a request's reply is measured by. No byte-level tokenizer makes more tokens than bytes, which is
    the bound where the model's own tokenizer is not known, and where a schema is billed beside the text."""
    size, prompt = len(request.body), request.prompt_tokens
    exact = tokenizer.exact and b'"response_format"' not in request.body
    return Measure(prompt, prompt if exact else size, size, request.max_tokens)


def size_of(request: Request) -> RequestSize:
    """What a request takes of the limits."""
    return RequestSize(request.prompt_tokens, request.max_tokens)


class Booking:
    """One server's. It remembers the longest reply, so that the most that the next one can cost follows a
    server which does not keep to the bound that was sent."""

    def __init__(self, prices: Prices, tokenizer: Tokenizer, bills_refusals: bool = False) -> None:
        """`bills_refusals`: the server bills prompts that its content filter refuses."""
        self._prices, self._tokenizer, self._bills_refusals = prices, tokenizer, bills_refusals
        self._most_output = 0

    def worst(self, asked: Measure) -> int:
        """The most that a request can cost, in micro-dollars."""
        return self._prices.worst(asked.most_prompt, self._most_tokens(asked))

    def _learn(self, completion: int, bound: int) -> None:
        """A server that does not keep to the bound may go further beyond it next time, in every reply that is
        on its way: several times as much is set aside from now on."""
        beyond = max(0, completion - bound) if bound else 0
        self._most_output = max(self._most_output, completion + (OVERRUN - 1) * beyond)

    def _most_tokens(self, asked: Measure) -> int:
        return max(asked.max_tokens, self._most_output)

    def book(
        self,
        reply: Reply,
        outcome: Verdict,
        raw: bytes,
        latency: float,
        asked: Measure,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Response:
        """What is stored of a reply."""
        usage, estimated = self._usage(reply, asked)
        cost, own = self._cost(reply.claim, usage, reply.tier, asked, headers)
        self._learn(usage.completion_tokens, asked.max_tokens)
        text, reasoning = (None, None) if reply.plain else (storable(reply.text), storable(reply.reasoning))
        return Response(
            outcome, reply.finish_reason, usage, raw, cost, latency, reply.model, text, reasoning or None,
            reply.tier, own, estimated,
        )  # fmt: skip

    def book_unread(self, raw: bytes, claim: Claim, asked: Measure) -> Response:
        """What is stored of a 2xx that is not a reply: it costs what it says that it costs."""
        if claim.is_empty:
            return Response("malformed", "", Usage(), raw, 0, 0.0)
        usage, _ = believed(claim, asked.prompt_tokens, asked.size, asked.max_tokens, lambda: 0)
        cost, own = self._cost(claim, usage, None, asked, NO_HEADERS)
        return Response("malformed", "", usage, raw, cost, 0.0, listed_micro=own)

    def _usage(self, reply: Reply, asked: Measure) -> tuple[Usage, bool]:
        """What the reply is booked with, and whether a part of that is our own count."""
        if reply.claim.is_empty and reply.outcome == "content_filter" and not reply.text:
            billed = self._bills_refusals and reply == FILTERED_REPLY
            return Usage(asked.prompt_tokens if billed else 0), billed
        return believed(
            reply.claim, asked.prompt_tokens, asked.size, asked.max_tokens,
            lambda: self._tokenizer.count(reply.text) + self._tokenizer.count(reply.reasoning),
            len(reply.text) + len(reply.reasoning),
        )  # fmt: skip

    def _cost(
        self, claim: Claim, usage: Usage, tier: str | None, asked: Measure, headers: Mapping[str, str]
    ) -> tuple[int, int | None]:
        """(cost, own) in micro-dollars; own: by our own price, where the provider told another."""
        told = claim.cost_micro
        if told is None and COST_HEADER in headers:
            told = told_cost({}, headers)
        bill = self._prices.bill(usage, tier, told, asked.most_prompt, self._most_tokens(asked))
        return bill.cost, None if bill.cost == bill.own else bill.own
