"""How many tokens a request will be billed for beside its prompt: the answer, and the thinking before it.

Before anything was seen, the task's prior tells how long answers are and the model's effort how much is
thought. Once requests of the run were answered, their real tokens tell: those of every paid reply, so that
replies without an answer and those that were bought after them are counted in.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from engine.collect.settings import Settings
from engine.provider.models import thinking_at, thinking_source
from engine.tasks.task import Prior

Z95, Z90 = 1.96, 1.645
LEAST_OBSERVED = 8  # requests
LEAST_FITTED = 4
STEPS = 200  # of a distribution, for its mean


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

    def rounded(self) -> "Range":
        return Range(round(self.expected), round(self.low), round(self.high))


class Paid(NamedTuple):
    """What one request has cost so far: tokens of all its replies, how many replies were paid for, whether
    one of them reached its bound, prompt tokens as billed for all, and those of the request as we count."""

    completion: int
    reasoning: int
    replies: int
    was_cut: bool
    prompt: int = 0
    counted: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest requests of a run; `pilot`: how many of them were asked just now, as a pilot."""

    requests: Sequence[Paid] = ()
    pilot: int = 0

    @property
    def source(self) -> str:
        """Where an estimate comes from that is made of these."""
        replies = f"{sum(paid.replies for paid in self.requests):,} paid replies"
        count = len(self.requests)
        if self.pilot >= count:
            return f"a pilot: {replies} to {count:,} requests"
        among = f", {self.pilot:,} of them a pilot" if self.pilot else ""
        return f"{replies} to {count:,} requests of this run{among}"


UNSEEN = Seen()


@dataclass(frozen=True, slots=True)
class Completion:
    """What one request will bring, on average: tokens of all its replies, how many of these are thinking
    (None where the model does not think, or its server does not tell), and how many replies are paid for.
    prompts: how many times the prompt tokens that we count are billed, by the server's own tokenizer and
    with every reply. source: where that comes from, for people."""

    tokens: Range
    thinking: Range | None
    replies: float
    source: str
    prompts: float = 1.0


def expected_completion(
    settings: Settings, prior: Prior, imagined: float, remaining: int, seen: Seen = UNSEEN
) -> Completion:
    """imagined: mean tokens of imagined replies, which the prior may be relative to; remaining: requests
    that are still to be asked."""
    if len(seen.requests) < LEAST_OBSERVED:
        cap = settings.answer_bound() or math.inf
        median = prior.median * imagined if prior.of_imagined else prior.median
        mean = _mean_of_lognormal(max(median, 1.0), prior.sigma, cap)
        answer = Range(mean, mean * prior.low, min(mean * prior.high, cap))
        thinking = _thinking(settings)
        if thinking is None:
            return Completion(answer, None, 1.0, "the task's prior")
        cap = settings.most_output() or math.inf
        tokens = Range(
            min(answer.expected + thinking.expected, cap),
            min(answer.low + thinking.low, cap),
            min(answer.high + thinking.high, cap),
        )
        by = settings.traits.source or "as set by --model-kind, --reasoning-effort or --thinking-tokens"
        source = (
            "the task's prior for the answer, and for the thinking what is usual at effort "
            f"{effort_of(settings)} ({thinking_source()}; the model: {by})"
        )
        return Completion(tokens, thinking, 1.0, source)
    bound = settings.most_output()
    tokens = observed([paid.completion for paid in seen.requests], _cuts(seen), bound, remaining)
    reasoning = [paid.reasoning for paid in seen.requests]
    thinking = observed(reasoning, _cuts(seen), bound, remaining) if any(reasoning) else None
    replies = statistics.fmean(paid.replies for paid in seen.requests)
    counted = sum(paid.counted for paid in seen.requests)
    prompts = sum(paid.prompt for paid in seen.requests) / counted if counted else replies
    return Completion(tokens, thinking, replies, seen.source, prompts)


def _cuts(seen: Seen) -> list[bool]:
    return [paid.was_cut for paid in seen.requests]


def _thinking(settings: Settings) -> Range | None:
    """Mean thinking of a reply at the model's effort, cut at the room for it; None where it does not
    think. Room that was asked for is taken as a sign that it does."""
    usual = thinking_at(effort_of(settings))
    if not (settings.thinking.room or settings.thinking_tokens) or not usual.room:
        return None
    room = settings.thinking_room or settings.sent_max_tokens()
    cap = room or math.inf
    mean = _mean_of_lognormal(usual.median, usual.sigma, cap)
    return Range(mean, mean / usual.wide, min(mean * usual.wide, cap))


def effort_of(settings: Settings) -> str:
    """The effort by which thinking is foreseen: `medium` where only room was asked for."""
    return settings.effort if settings.thinking.room else "medium"


def _mean_of_lognormal(median: float, sigma: float, cap: float) -> float:
    normal = NormalDist(math.log(median), sigma or 1e-9)
    values = (math.exp(normal.inv_cdf((step + 0.5) / STEPS)) for step in range(STEPS))
    return statistics.fmean(min(cap, value) for value in values)


def observed(values: Sequence[int], cuts: Sequence[bool], bound: int, remaining: int) -> Range:
    """Mean of the requests to come, after `values` of requests that came.

    The interval holds the error of the mean and the scatter of what remains. Lengths of replies are
    skewed, so that few of them tell too little of the long ones. Two things make up for that: the
    interval of a log-normal mean, where the values look like one; and those that reached the `bound` are
    counted apart, as a share of which little is known even if none was seen. The errors of both parts add
    up as independent ones (MOVER: Zou and Donner 2008).
    """
    mean = statistics.fmean(values)
    others = [value for value, was_cut in zip(values, cuts, strict=True) if not was_cut]
    if len(others) < LEAST_FITTED or not bound:
        low, high = _interval(values, remaining)
        return Range(mean, low, high)
    cut = [value for value, was_cut in zip(values, cuts, strict=True) if was_cut]
    longest = statistics.fmean(cut) if cut else bound
    share = len(cut) / len(values)
    # Wilson's of the share; at 90 %, since it stands beside other errors that seldom lean the same way
    count, z = len(values), Z90
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    least, most = max(0.0, middle - half), min(1.0, middle + half)
    low, high = _interval(others, remaining)
    usual, rest = statistics.fmean(others), 1 - share
    scatter = Z95 * longest * math.sqrt(share * rest / max(1, remaining))
    below = math.hypot(rest * (usual - low), longest * (share - least), scatter)
    above = math.hypot(rest * (high - usual), longest * (most - share), scatter)
    return Range(mean, max(0.0, mean - below), mean + above)


def _interval(values: Sequence[int], remaining: int) -> tuple[float, float]:
    """The wider of the usual interval of a mean and that of a log-normal's."""
    count, mean, spread = len(values), statistics.fmean(values), statistics.stdev(values)
    error = student95(count - 1) * spread * math.sqrt(1 / count + 1 / max(1, remaining))
    low, high = mean - error, mean + error
    if fitted := _lognormal_interval(values, remaining):
        low, high = min(low, fitted[0]), max(high, fitted[1])
    return max(0.0, low), high


def _lognormal_interval(values: Sequence[int], remaining: int) -> tuple[float, float] | None:
    """Cox's interval with Student's quantile (Olsson 2005), for the share of values that are not zero;
    None where their logarithms lean to the left, as those of no log-normal do."""
    logs = [math.log(value) for value in values if value > 0]
    count = len(logs)
    if count < LEAST_FITTED:
        return None
    middle, scatter = statistics.fmean(logs), statistics.pvariance(logs)
    cubes = statistics.fmean((value - middle) ** 3 for value in logs)
    if scatter > 1e-12 and cubes / math.pow(scatter, 1.5) < -2.0 * math.sqrt(6 / count):
        return None
    variance = statistics.variance(logs)
    error = student95(count - 1) * math.sqrt(
        variance / count + variance**2 / (2 * (count - 1)) + math.expm1(min(variance, 50)) / max(1, remaining)
    )
    share = count / len(values)
    middle += variance / 2
    return share * math.exp(middle - error), share * math.exp(middle + error)


def student95(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5); within 1 % from 4 on."""
    z = Z95
    return (
        z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )  # fmt: skip
