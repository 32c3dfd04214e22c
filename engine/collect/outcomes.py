"""What a reply comes to: how the attempt ended, what follows from it, and how the reply is booked.

What online and batch replies have in common. Pure but for the longest reply that a `Booking` has seen, and
for what `Prices` learns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from engine.provider.errors import AddressWrong, AskError, AuthRefused, RowRefused, RunStopped
from engine.provider.pricing import COST_HEADER, Prices, told_cost
from engine.provider.responses import FILTERED_REPLY, UNREAD_LENGTH, Reply, is_cut
from engine.provider.tokens import Tokenizer
from engine.provider.usage import Claim, believed
from engine.tasks.task import Check
from engine.tasks.task import Verdict as Reading
from store.records import Cause, Outcome, Request, Response, Usage


@dataclass(frozen=True, slots=True)
class Answered:
    """The request has its answer on the disk."""


ANSWERED = Answered()


@dataclass(frozen=True, slots=True)
class Again:
    """Ask again after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has failed; `error` is its row in the ledger. `refused`: by the server's word;
    `about`: whose fault that is, where the server says so (see errors.RowRefused)."""

    cause: Cause
    status: int | None
    words: str
    error: int
    refused: bool
    about: str = ""


@dataclass(frozen=True, slots=True)
class Unusable:
    """The request was answered with nothing that is an answer, as often as may be paid for. `response`: the
    last reply's row in the ledger. `thought`: the bound was used up, or filled with thinking."""

    outcome: Outcome
    words: str
    response: int
    thought: bool


def unusable(reply: Reply, usage: Usage, response: int) -> Unusable:
    """What a reply amounts to that holds no answer; `response`: its row in the ledger."""
    thought = bool(reply.reasoning or usage.reasoning_tokens) or is_cut(reply)
    return Unusable(reply.outcome, unusable_words(reply, usage), response, thought)


Verdict = Answered | Again | Failed | Unusable


def meant_for(
    error: AskError | RunStopped, status: int, has_answered: bool, url: str
) -> AskError | RunStopped:
    """The same refusal, of the run or of the row. A server that has answered nothing yet and forbids all
    refuses the run; one that `has_answered`, and sends a single request elsewhere, refuses that."""
    if has_answered:
        return RowRefused(str(error), status, "bad_request") if isinstance(error, AddressWrong) else error
    if not isinstance(error, RowRefused):
        return error
    if error.status == 403:
        return AuthRefused(str(error))
    if error.status in (404, 405) and not urlsplit(url).path.rstrip("/").endswith("/v1"):
        return AddressWrong(f"{error}; an API's address ends in /v1, {url} does not")
    return error


def judged(reply: Reply, check: Check | None, row: Callable[[], Any]) -> Reading:
    """What the task makes of a reply; one that did not end by itself says so itself."""
    return reply.outcome if check is None or reply.outcome != "stop" else check(row(), reply.text)


def unusable_words(reply: Reply, usage: Usage) -> str:
    """Why a reply is not an answer, and what the user can change."""
    if reply.outcome == "tool_calls":
        return "the model called a tool instead of answering"
    if reply.outcome == "other":
        return f"the reply ended with '{reply.finish_reason}', which may mean that it is incomplete"
    thought = f" after {usage.reasoning_tokens:,} tokens of thinking" if usage.reasoning_tokens else ""
    if is_cut(reply):
        return (
            f"the reply reached its bound of {usage.completion_tokens:,} tokens{thought} before an answer "
            "began: raise --thinking-tokens or --max-tokens, or lower --reasoning-effort"
        )
    if reply.reasoning or usage.reasoning_tokens:
        return (
            f"the reply holds thinking but no answer{thought}: raise --thinking-tokens, or lower "
            "--reasoning-effort"
        )
    return f"the reply is empty (finish_reason '{reply.finish_reason}')"


def unread_words(reply: Reply) -> str:
    """What to say of a reply in which the task finds no record."""
    return f"the reply cannot be read: {reply.text[:UNREAD_LENGTH]!r}"


OVERRUN = 4  # times what a reply took beyond its bound, which the next one may take
NO_HEADERS: Mapping[str, str] = {}


class Measure(NamedTuple):
    """What a reply is measured by: the request's prompt tokens by our count, the most that they can be, its
    size in bytes and the bound on its reply (0 for none)."""

    prompt_tokens: int
    most_prompt: int
    size: int
    max_tokens: int


class Booking:
    """How one server's replies are booked: the tokens and the cost that are believed, and what is stored. It
    remembers the longest reply, so that the most that the next one can cost follows a server which does not
    keep to the bound that was sent."""

    def __init__(self, prices: Prices, tokenizer: Tokenizer, bills_refusals: bool = False) -> None:
        """`bills_refusals`: the server bills prompts that its content filter refuses."""
        self._prices, self._tokenizer, self._bills_refusals = prices, tokenizer, bills_refusals
        self._most_output = 0

    def measure(self, request: Request) -> tuple[Measure, int]:
        """What a request's reply is measured by, and the most that it can cost, in micro-dollars. No
        byte-level tokenizer makes more tokens than bytes, which is the bound where the model's own tokenizer
        is not known, and where a schema is billed beside the text."""
        size, prompt, bound = len(request.body), request.prompt_tokens, request.max_tokens
        exact = self._tokenizer.exact and b'"response_format"' not in request.body
        asked = Measure(prompt, prompt if exact else size, size, bound)
        return asked, self._prices.worst(asked.most_prompt, max(bound, self._most_output))

    def book(
        self,
        reply: Reply,
        outcome: Reading,
        raw: bytes,
        latency: float,
        asked: Measure,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Response:
        """What is stored of a reply."""
        text, reasoning, bound = reply.text, reply.reasoning, asked.max_tokens
        if reply.outcome == "content_filter" and not text and reply.claim.is_empty:
            estimated = self._bills_refusals and reply == FILTERED_REPLY
            usage = Usage(asked.prompt_tokens if estimated else 0)
        else:
            usage, estimated = believed(
                reply.claim, asked.prompt_tokens, asked.size, bound,
                lambda: self._tokenizer.count(text) + self._tokenizer.count(reasoning),
                len(text) + len(reasoning),
            )  # fmt: skip
        cost, own = self._cost(reply.claim, usage, reply.tier, asked, headers)
        # A server that does not keep to the bound may go further beyond it next time, in every reply that is
        # on its way: several times as much is set aside from now on.
        beyond = max(0, usage.completion_tokens - bound) if bound else 0
        self._most_output = max(self._most_output, usage.completion_tokens + (OVERRUN - 1) * beyond)
        return Response(
            outcome, reply.finish_reason, usage, raw, cost, latency, reply.model,
            None if reply.plain else text, None if reply.plain else reasoning or None, reply.tier, own,
            estimated,
        )  # fmt: skip

    def book_unread(self, raw: bytes, claim: Claim, asked: Measure) -> Response:
        """What is stored of a 2xx that is not a reply: it costs what it says that it costs."""
        if claim.is_empty:
            return Response("malformed", "", Usage(), raw, 0, 0.0)
        usage, _ = believed(claim, asked.prompt_tokens, asked.size, asked.max_tokens, lambda: 0)
        cost, own = self._cost(claim, usage, None, asked, NO_HEADERS)
        return Response("malformed", "", usage, raw, cost, 0.0, listed_micro=own)

    def _cost(
        self, claim: Claim, usage: Usage, tier: str | None, asked: Measure, headers: Mapping[str, str]
    ) -> tuple[int, int | None]:
        """(cost, own) in micro-dollars; own: by our own price, where the provider told another."""
        told = claim.cost_micro
        if told is None and COST_HEADER in headers:
            told = told_cost({}, headers)
        most_output = max(asked.max_tokens, self._most_output)
        bill = self._prices.bill(usage, tier, told, asked.most_prompt, most_output)
        return bill.cost, None if bill.cost == bill.own else bill.own
