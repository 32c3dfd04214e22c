"""How a reply is booked: the tokens and the cost that are believed, and what is stored of it.

What online and batch replies have in common. Pure but for the dearest price that it has seen.
"""

import math

from engine.bodies import storable
from engine.prices import Price
from engine.replies import Reply
from engine.tasks.task import Verdict
from engine.tokens import Tokenizer
from engine.usage import NO_CLAIM, Claim, believed
from store.records import Response, Usage

DEAREST = 20  # times our own price that a provider's is believed
MOST_UNLISTED = 100_000_000  # micro-dollars that a reply may cost whose model has no price here


class Booking:
    """One server's. It remembers the longest reply and the dearest, so that the most that the next one can
    cost follows a server which does not keep to the bound, or to the list."""

    def __init__(self, price: Price, tokenizer: Tokenizer, max_tokens: int) -> None:
        """`max_tokens`: the most that a reply should be billed for, 0 for no bound."""
        self.price, self._tokenizer, self._max_tokens = price, tokenizer, max_tokens
        self._most_output = 0
        self._dearer = 1.0

    def worst(self, prompt_tokens: int, max_tokens: int) -> int:
        """The most that a request can cost, in micro-dollars."""
        most = max(max_tokens, self._most_output)
        return math.ceil(self._dearer * self.price.worst(prompt_tokens, most))

    def book(
        self,
        reply: Reply,
        outcome: Verdict,
        raw: bytes,
        latency: float,
        prompt_tokens: int,
        size: int,
        worst: int,
    ) -> Response:
        """What is stored of a reply. `prompt_tokens`: our count; `size`: bytes of the request; `worst`: what
        was reserved for it."""
        usage, estimated = self._usage(reply, prompt_tokens, size)
        self._most_output = max(self._most_output, usage.completion_tokens)
        cost, listed = self._cost(reply.claim, usage, worst)
        text, reasoning = (None, None) if reply.plain else (storable(reply.text), storable(reply.reasoning))
        return Response(
            outcome, reply.finish_reason, usage, raw, cost, latency, reply.model, text, reasoning or None,
            reply.tier, listed, estimated,
        )  # fmt: skip

    def book_unread(self, raw: bytes, claim: Claim, prompt_tokens: int, size: int, worst: int) -> Response:
        """What is stored of a 2xx that is not a reply: it costs what it says that it costs."""
        if claim.is_empty:
            return Response("malformed", "", Usage(), raw, 0, 0.0)
        usage, _ = believed(claim, prompt_tokens, size, self._max_tokens, lambda: 0)
        cost, listed = self._cost(claim, usage, worst)
        return Response("malformed", "", usage, raw, cost, 0.0, listed_micro=listed)

    def _usage(self, reply: Reply, prompt_tokens: int, size: int) -> tuple[Usage, bool]:
        """What the reply is booked with, and whether a part of that is our own count."""
        if reply.claim == NO_CLAIM and reply.outcome == "content_filter" and not reply.text:
            return Usage(), False  # refused before anything was written
        return believed(
            reply.claim, prompt_tokens, size, self._max_tokens,
            lambda: self._tokenizer.count(reply.text) + self._tokenizer.count(reply.reasoning),
        )  # fmt: skip

    def _cost(self, claim: Claim, usage: Usage, worst: int) -> tuple[int, int | None]:
        """(cost, listed) in micro-dollars. What the provider says that it charged is believed, unless it
        is far from any price; then `listed` is the cost by our own price."""
        listed = self.price.cost(usage)
        told = claim.cost_micro
        if told is None or told > (DEAREST * worst or MOST_UNLISTED):
            return listed, None
        if listed:
            self._dearer = min(DEAREST, max(self._dearer, told / listed))
        return told, listed
