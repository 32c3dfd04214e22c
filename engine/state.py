"""What a run knows of itself: counted by the runner, read by the display and the summary."""

from collections import Counter, deque
from dataclasses import dataclass, field

from store.records import BadRow

BAD_ROWS_KEPT = 10


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
    retried: int = 0
    in_flight: int = 0
    counted_prompt: int = 0  # of answered requests, by our count
    prompt_tokens: int = 0  # of answered requests, as billed
    completion_tokens: int = 0
    cost_micro: int = 0  # of this run
    retry_causes: Counter[str] = field(default_factory=Counter)
    expected_completion: float = 0.0
    expected_cost_micro: float = 0.0  # what the estimate said of the requests that were answered
    batches: str = ""  # what the batches are doing, in words
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=256))

    @property
    def finished(self) -> int:
        return self.done + self.failed.total()

    @property
    def billed_ratio(self) -> float | None:
        """Billed prompt tokens over counted ones; 1.0 for the models that tiktoken knows."""
        return self.prompt_tokens / self.counted_prompt if self.counted_prompt else None
