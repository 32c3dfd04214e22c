"""What a run knows of itself: counted by the runner, read by the display and the summary."""

from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import accumulate

from store.records import BadRow, Response

BAD_ROWS_KEPT = 10
SHARE_WINDOW = 100  # replies by which a stage is judged that pays for nothing
LATENCY_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)  # seconds


@dataclass(slots=True)
class Spread:
    """Latencies of all answers by bucket: one more than LATENCY_BOUNDS, the last without an end."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self.sum += seconds

    def cumulative(self) -> list[int]:
        """How many took no longer than each bound, and in the end how many there were."""
        return list(accumulate(self.counts))


@dataclass
class RunState:
    """Counts pool rows x samples, but for `asked` and `limited`, which count requests sent."""

    total: int | None = None
    done: int = 0
    known: int = 0  # of done: stored before this run
    stored: int = 0  # what the survey found stored; `known` grows to it as the pool is read
    failed: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    bad_rows: int = 0
    bad_shown: list[BadRow] = field(default_factory=list)
    asked: int = 0
    answered: int = 0
    limited: int = 0
    in_flight: int = 0
    counted_prompt: int = 0  # of answered requests, by our count
    prompt_tokens: int = 0  # of answered requests, as billed
    completion_tokens: int = 0
    reasoning_tokens: int = 0  # of completion_tokens and unread_completion
    unread_prompt: int = 0  # of malformed replies that told their usage
    unread_completion: int = 0
    unread: Counter[str] = field(default_factory=Counter)  # replies that cannot be read, by outcome
    unread_micro: int = 0
    estimated: int = 0  # replies whose tokens we counted, because they do not tell them
    unusable: Counter[str] = field(default_factory=Counter)  # replies that hold no answer, by outcome
    unusable_micro: int = 0
    ended: int = 0  # requests that need no further reply
    at_risk_micro: int = 0  # the most that attempts of this run without a reply can have cost
    last_unusable: deque[bool] = field(default_factory=lambda: deque(maxlen=SHARE_WINDOW))
    unusable_of_last: int = 0
    cost_micro: int = 0  # of this run
    retry_causes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)  # requests that the server would not take
    batches: str = ""  # what the batches are doing, in words
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    spread: Spread = field(default_factory=Spread)

    def count(self, response: Response, counted_prompt: int, usable: bool) -> None:
        """A reply that could be read; `counted_prompt`: its request's tokens by our count; `usable`:
        it is the answer to its request."""
        usage = response.usage
        self.reasoning_tokens += usage.reasoning_tokens
        self.estimated += response.estimated
        self._note(not usable)
        self.answered += 1
        self.counted_prompt += counted_prompt
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cost_micro += response.cost_micro
        if usable:
            self.outcomes[response.outcome] += 1
        elif response.outcome == "unparsed":
            self._count_unread(response)
        else:
            self.unusable[response.outcome] += 1
            self.unusable_micro += response.cost_micro

    def unusable_share(self) -> float:
        """Of the last hundred replies, how many were no answer; 0 as long as there are fewer."""
        return self.unusable_of_last / SHARE_WINDOW if len(self.last_unusable) == SHARE_WINDOW else 0.0

    def _note(self, unusable: bool) -> None:
        last = self.last_unusable
        if len(last) == SHARE_WINDOW:
            self.unusable_of_last -= last[0]
        last.append(unusable)
        self.unusable_of_last += unusable

    def count_malformed(self, response: Response) -> None:
        self._note(True)
        self.cost_micro += response.cost_micro
        self.reasoning_tokens += response.usage.reasoning_tokens
        self.unread_prompt += response.usage.prompt_tokens
        self.unread_completion += response.usage.completion_tokens
        self._count_unread(response)

    def _count_unread(self, response: Response) -> None:
        self.unread[response.outcome] += 1
        self.unread_micro += response.cost_micro

    @property
    def billed_prompt(self) -> int:
        """Tokens of all replies, those that cannot be read too."""
        return self.prompt_tokens + self.unread_prompt

    @property
    def billed_completion(self) -> int:
        return self.completion_tokens + self.unread_completion

    @property
    def was_read(self) -> bool:
        """Whether this teacher was read in earlier runs: what cannot be read is then the row's fault."""
        return bool(self.known or self.stored)

    @property
    def finished(self) -> int:
        return self.done + self.failed.total()

    @property
    def billed_ratio(self) -> float | None:
        """Billed prompt tokens over counted ones; 1.0 for the models that tiktoken knows."""
        return self.prompt_tokens / self.counted_prompt if self.counted_prompt else None
