"""How much goes into one batch, and how much may be under way: sums and limits, no I/O.

OpenAI's limits (developers.openai.com, guides/batch): 50,000 requests and 200 MB a file; the
tokens that an organisation may have enqueued depend on the model, and show in the refusal of
a batch (`token_limit_exceeded`), which costs nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from engine.collect.setting_fields import MOST_REQUESTS

MOST_BYTES = 200 * 10**6
MOST_ALIVE = 16  # batches under way; each keeps its file on our disk
_TOLD = re.compile(r"limit:?\s*(\d[\d,]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Of one batch; `tokens` are prompt tokens."""

    requests: int = MOST_REQUESTS
    bytes: int = MOST_BYTES
    tokens: float = inf


@dataclass(slots=True)
class Load:
    """What a batch holds so far; `worst` in micro-dollars."""

    requests: int = 0
    bytes: int = 0
    tokens: int = 0
    worst: int = 0

    def add(self, size: int, tokens: int, worst: int) -> None:
        self.requests += 1
        self.bytes += size
        self.tokens += tokens
        self.worst += worst

    def takes(self, size: int, tokens: int, limits: BatchLimits) -> bool:
        """Whether one more fits. An empty one takes anything: what is too large by itself is the
        provider's to refuse."""
        return not self.requests or (
            self.requests < limits.requests
            and self.bytes + size <= limits.bytes
            and self.tokens + tokens <= limits.tokens
        )


@dataclass(slots=True)
class Queue:
    """The provider's queue, as far as we fill it. `limit`: enqueued tokens, as given or learnt."""

    limit: float = inf
    alive: dict[int, int] = field(default_factory=dict)  # batch -> tokens

    def has_room(self, tokens: int) -> bool:
        """For a batch of so many tokens; alone it is always tried."""
        if not self.alive:
            return True
        return len(self.alive) < MOST_ALIVE and sum(self.alive.values()) + tokens <= self.limit

    def refused(self, tokens: int, requests: int, words: str) -> bool:
        """The provider would not enqueue a batch while `alive` were under way. Learns the limit;
        returns whether the batch has to be split (else it may fit once others have ended)."""
        told = told_limit(words)
        others = sum(self.alive.values())
        if told is not None:
            self.limit = min(self.limit, told)
            return tokens > told and requests > 1
        if others:
            self.limit = min(self.limit, max(tokens, others + tokens - 1))
            return False
        if requests > 1:
            self.limit = max(1, tokens // 2)
        return requests > 1


def told_limit(words: str) -> int | None:
    """The number in 'Limit: 2,000,000 enqueued tokens'; a hint, since texts may change."""
    found = _TOLD.search(words)
    return (int(found[1].replace(",", "")) or None) if found else None


def shown(counts: Mapping[str, int], done: int, total: int) -> str:
    """`1 validating, 2 in_progress; 31,200 of 100,000 requests done`."""
    states = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in sorted(counts.items()))
    return f"{states}; {done:,} of {total:,} requests done" if states else ""
