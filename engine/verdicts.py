"""How one attempt at a request ended, and what follows from it."""

from dataclasses import dataclass

from engine.replies import Reply, is_cut, unusable_words
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
