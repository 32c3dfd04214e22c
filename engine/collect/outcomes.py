"""How one attempt at a request ended, and what follows from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from engine.provider.errors import AddressWrong, AskError, AuthRefused, RowRefused, RunStopped
from engine.provider.responses import UNREAD_LENGTH, Reply, is_cut
from engine.tasks.task import Check
from engine.tasks.task import Verdict as Reading
from store.records import Cause, Outcome, Usage


@dataclass(frozen=True, slots=True)
class Answered:
    """The request has its answer on the disk."""


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
            f"the reply holds thinking and no answer{thought}: raise --thinking-tokens, or lower "
            "--reasoning-effort"
        )
    return f"the reply is empty (finish_reason '{reply.finish_reason}')"


def unread_words(reply: Reply) -> str:
    """What to say of a reply in which the task finds no record."""
    return f"the reply cannot be read: {reply.text[:UNREAD_LENGTH]!r}"
