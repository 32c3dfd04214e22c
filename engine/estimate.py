"""What a run will cost and how long it will take, before anything is paid.

Prompt tokens are counted exactly, row by row. Completion tokens are the teacher's to choose:
predicted from the answers that the run has already (a pilot's, or those of a run begun) by
their mean and its 95 % interval, or else from the task's prior. Time is the largest of what
each limit needs; what binds is named.
"""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Protocol

from engine.feed import Plan
from engine.prices import Price
from engine.rows import Source
from engine.tasks.task import Prior
from store.errors import PoolError
from store.index import ANSWERED, FAILED, TAKEN, KeyIndex
from store.records import BadRow

DAY, MINUTE = 86400.0, 60.0
SECONDS_A_TOKEN, FIRST_TOKEN_SECONDS = 0.02, 1.0  # of a stream, where no run has told
Z95 = 1.96
LEAST_OBSERVED = 8


@dataclass(frozen=True, slots=True)
class Range:
    """Expected value with a 95 % interval."""

    expected: float
    low: float
    high: float

    def times(self, factor: float) -> "Range":
        return Range(self.expected * factor, self.low * factor, self.high * factor)

    def plus(self, amount: float) -> "Range":
        return Range(self.expected + amount, self.low + amount, self.high + amount)


@dataclass(slots=True)
class Survey:
    """What a pass over the pool has counted. `fraction` below 1: it was cut short."""

    rows: int = 0
    bad_rows: int = 0
    requests: int = 0  # that are still to be asked; equal rows count once
    prompt_tokens: int = 0
    known: int = 0  # answered or failed in the run already
    imagined_tokens: int = 0  # of typical replies to the requests, where the task can tell
    fraction: float = 1.0
    longer: dict[int, tuple[int, int]] = field(default_factory=dict)  # than so many tokens: requests, tokens

    @property
    def whole(self) -> bool:
        return self.fraction >= 1.0

    def part(self, share: float) -> "Survey":
        """So much of all of it."""
        rows, bad, requests, prompt, known, imagined = (
            round(n * share)
            for n in (
                self.rows,
                self.bad_rows,
                self.requests,
                self.prompt_tokens,
                self.known,
                self.imagined_tokens,
            )
        )
        longer = {start: (round(n * share), round(t * share)) for start, (n, t) in self.longer.items()}
        return Survey(rows, bad, requests, prompt, known, imagined, longer=longer)

    def lengths(self, starts: Sequence[int]) -> list[tuple[int, int]]:
        """(requests, prompt tokens) up to the first of these lengths, then from each to the next."""
        beyond = [(self.requests, self.prompt_tokens), *(self.longer.get(s, (0, 0)) for s in starts), (0, 0)]
        return [(n - m, t - u) for (n, t), (m, u) in itertools.pairwise(beyond)]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user declared; None for no limit."""

    rpm: float | None
    tpm: float | None
    rpd: float | None
    tpd: float | None
    concurrency: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """As `estimate --json` prints it; cost is None where the price is unknown."""

    requests: int
    prompt_tokens: int
    completion_tokens: Range
    cost_usd: Range | None
    batch_cost_usd: Range | None
    seconds: Range
    bound_by: str
    rows: int
    bad_rows: int
    already_answered: int
    exact_tokens: bool
    completion_from: str
    price_source: str = ""  # `given`, `listed`, `listed: MODEL`, `free: local server`, `unknown`

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class Surveyed(Source, Protocol):
    """Rows that can be read more than once; `fraction` says how far the current pass is, 0-1."""

    @property
    def fraction(self) -> float: ...


def survey(
    pool: Surveyed, plan: Plan, index: KeyIndex, seconds: float | None = None, starts: Sequence[int] = ()
) -> Survey:
    """Counts what is still to be asked; stops after `seconds` and says how far it came. Prompts that are
    longer than one of `starts` are counted apart too.

    Raises PoolError when no row of the pool can be used.
    """
    found = Survey()
    deadline = time.monotonic() + seconds if seconds is not None else math.inf
    number = len(index)
    first_bad: BadRow | None = None
    imagines = plan.task.prior.of_imagined
    for row in pool:
        if plan.limit is not None and found.rows >= plan.limit:
            break
        if isinstance(row, BadRow):
            found.bad_rows += 1
            first_bad = first_bad or row
            continue
        found.rows += 1
        messages, _, keys = plan.seal(row)
        tokens = 0
        for key in keys:
            state = next((index.state(i) for i in index.candidates(key)), None)
            if state in (ANSWERED, FAILED):
                found.known += 1
            if state is not None and state != 0:
                continue
            if state is None:
                number += 1
                index.add(key, number, TAKEN)
            else:
                index.mark(next(index.candidates(key)), TAKEN)
            tokens = tokens or plan.tokenizer.count_messages(messages)
            found.requests += 1
            found.prompt_tokens += tokens
            for start in starts:
                if tokens > start:
                    requests, prompts = found.longer.get(start, (0, 0))
                    found.longer[start] = requests + 1, prompts + tokens
            if imagines and plan.task.imagine:
                found.imagined_tokens += plan.tokenizer.count(plan.task.imagine(row))
        if time.monotonic() > deadline:
            found.fraction = max(pool.fraction, 1e-6)
            break
    if not found.rows:
        why = f"; line {first_bad.line}: {first_bad.reason}" if first_bad else ""
        raise PoolError(f"no usable row in pool {pool.source} ({found.bad_rows} bad rows{why})")
    return found


def extrapolated(found: Survey) -> Survey:
    """The whole pool, judged by the part that was read."""
    return found if found.whole else found.part(1 / found.fraction)


def prior_completion(prior: Prior, max_tokens: int, imagined: float = 0.0) -> Range:
    """Mean completion of a reply by the task's prior, capped at max_tokens. imagined: mean tokens of
    the imagined replies, which the prior may be relative to."""
    cap = max_tokens or math.inf
    median = prior.median * imagined if prior.of_imagined else prior.median
    normal = NormalDist(math.log(max(median, 1.0)), prior.sigma or 1e-9)
    mean = statistics.fmean(min(cap, math.exp(normal.inv_cdf((i + 0.5) / 200))) for i in range(200))
    return Range(mean, mean * prior.low, min(mean * prior.high, cap))


def observed_completion(completions: Sequence[int], remaining: int) -> Range:
    """Mean completion of the replies to come, after `completions` of replies that came.

    The interval holds both the error of the mean and the scatter of what remains.
    """
    mean, spread = statistics.fmean(completions), statistics.stdev(completions)
    error = Z95 * spread * math.sqrt(1 / len(completions) + 1 / max(1, remaining))
    return Range(mean, max(0.0, mean - error), mean + error)


def estimate(
    found: Survey,
    prior: Prior,
    price: Price | None,
    batch: Price | None,
    limits: Limits,
    max_tokens: int,
    exact_tokens: bool,
    completions: Sequence[int] = (),
    price_source: str = "",
) -> Estimate:
    """Puts a survey, prices and limits together; `completions` were observed in the run."""
    found = extrapolated(found)
    n = found.requests
    seen = len(completions) >= LEAST_OBSERVED
    imagined = found.imagined_tokens / n if n else 0.0
    mean = observed_completion(completions, n) if seen else prior_completion(prior, max_tokens, imagined)
    tokens = mean.times(n)
    seconds, bound_by = _seconds(found, mean, limits, max_tokens)
    return Estimate(
        requests=n,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=Range(round(tokens.expected), round(tokens.low), round(tokens.high)),
        cost_usd=_cost(price, found, mean),
        batch_cost_usd=_cost(batch, found, mean),
        seconds=seconds,
        bound_by=bound_by,
        rows=found.rows,
        bad_rows=found.bad_rows,
        already_answered=found.known,
        exact_tokens=exact_tokens,
        completion_from=f"{len(completions)} answers of this run" if seen else "the task's prior",
        price_source=price_source,
    )


def _cost(price: Price | None, found: Survey, mean: Range) -> Range | None:
    """In USD; mean: completion tokens of one reply. Each length of prompt has its own price."""
    if price is None:
        return None
    each = [price, *(step for _, step in price.steps)]
    lengths = found.lengths([start for start, _ in price.steps])
    a_token = sum(n * float(p.completion) for p, (n, _) in zip(each, lengths, strict=True))
    fixed = sum(t * float(p.prompt) + n * float(p.request) for p, (n, t) in zip(each, lengths, strict=True))
    return mean.times(a_token / 1e6).plus(fixed / 1e6)


def _seconds(found: Survey, mean: Range, limits: Limits, max_tokens: int) -> tuple[Range, str]:
    """Low: real usage is charged; high: prompt + max_tokens; expected: the larger of the two."""
    n = found.requests
    prompt = found.prompt_tokens / n if n else 0.0
    most = max_tokens or mean.high
    charges = (max(prompt, most), prompt + mean.low, prompt + most)
    spans = [_span(n, charge, mean.expected, limits) for charge in charges]
    expected = spans[0]
    return Range(expected[0], min(s for s, _ in spans), max(s for s, _ in spans)), expected[1]


def _span(n: int, charge: float, completion: float, limits: Limits) -> tuple[float, str]:
    if not n:
        return 0.0, "latency"
    latency = FIRST_TOKEN_SECONDS + SECONDS_A_TOKEN * completion
    spans = [(n / limits.concurrency * latency, "latency")]
    if limits.rpm:
        spans.append((n / limits.rpm * MINUTE, "requests"))
    if limits.tpm:
        spans.append((n * charge / limits.tpm * MINUTE, "tokens"))
    inside = max(spans)
    for amount, a_day, name in ((n, limits.rpd, "requests"), (n * charge, limits.tpd, "tokens")):
        if a_day and amount > a_day:
            full_days = math.ceil(amount / a_day) - 1
            spans.append((full_days * DAY + inside[0] * (amount - full_days * a_day) / amount, name))
    seconds, name = max(spans)
    return seconds + latency, name
