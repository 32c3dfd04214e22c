"""An estimate's interval holds what comes, whatever the lengths of replies look like."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest

from engine.collect.settings import Settings
from engine.provider.models import thinking_at
from engine.run.completion_tokens import LEAST_OBSERVED, Paid, Seen, expected_completion, observed, student95
from engine.tasks.generate import task

PRIOR = task(None, None).prior
RUNS, ROWS, PILOT, HELD = 300, 3000, 50, 0.93


def lognormal(dice: random.Random, median: float, sigma: float) -> int:
    return max(1, round(dice.lognormvariate(math.log(median), sigma)))


def cut(tokens: int, bound: int, dice: random.Random, share: float = 0.0) -> int:
    """What is billed of a reply that wanted so many tokens; a share of replies fill their bound anyway."""
    return bound if dice.random() < share else min(tokens, bound)


LENGTHS: dict[str, tuple[int, Callable[[random.Random], int]]] = {  # bound, or 0; tokens of one request
    "log-normal": (0, lambda d: lognormal(d, 700, 1.0)),
    "log-normal with a heavier tail": (0, lambda d: lognormal(d, 700, 1.5)),
    "thinking, seldom cut": (16896, lambda d: cut(lognormal(d, 700, 1.0) + 150, 16896, d)),
    "thinking, 3 % empty at the bound": (16896, lambda d: cut(lognormal(d, 700, 1.0) + 150, 16896, d, 0.03)),
    "thinking, 1 % empty at a far bound": (33280, lambda d: cut(lognormal(d, 900, 1.0), 33280, d, 0.01)),
    "answers, often cut": (512, lambda d: cut(lognormal(d, 180, 0.9), 512, d)),
    "all lengths alike": (512, lambda d: d.randint(1, 500)),
    "short and long ones": (512, lambda d: d.randint(300, 500) if d.random() < 0.15 else d.randint(1, 10)),
    "a tail to the left": (0, lambda d: 1 + round(d.gammavariate(0.5, 800))),
    "a fifth that cost nothing": (16896, lambda d: 0 if d.random() < 0.2 else lognormal(d, 700, 1.0)),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_the_interval_of_a_pilot_holds_the_bill_of_the_rest(kind: str) -> None:
    bound, draw = LENGTHS[kind]
    dice, held = random.Random(kind), 0
    for _ in range(RUNS):
        pilot = [draw(dice) for _ in range(PILOT)]
        remaining = ROWS - PILOT
        told = observed(pilot, [bool(bound) and n >= bound for n in pilot], bound, remaining)
        held += told.low <= fmean(draw(dice) for _ in range(remaining)) <= told.high
    assert held >= HELD * RUNS


def test_the_interval_narrows_as_more_is_seen() -> None:
    dice = random.Random(1)
    widths = []
    for count in (50, 500, 5000):
        told = observed([lognormal(dice, 700, 1.0) for _ in range(count)], [False] * count, 16896, 100_000)
        assert told.low < told.expected < told.high
        widths.append((told.high - told.low) / told.expected)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]
    assert widths[2] < 0.1


def test_a_bound_that_nobody_reached_may_still_be_reached() -> None:
    """A few replies say little about those that use up a bound far beyond them."""
    dice = random.Random(3)
    values = [lognormal(dice, 500, 0.5) for _ in range(20)]
    near, far = (observed(values, [False] * 20, bound, 1000) for bound in (2000, 50_000))
    assert near.expected == far.expected == fmean(values)
    assert far.high > far.expected + 0.05 * 50_000
    assert near.high < near.expected + 0.15 * 2000 + 300


def test_student_s_quantile_is_the_tables() -> None:
    for freedom, wanted in ((3, 3.182), (7, 2.365), (10, 2.228), (49, 2.010), (9999, 1.960)):
        assert student95(freedom) == pytest.approx(wanted, rel=0.01)


# Before anything is seen.


def foreseen(**settings: Any) -> Any:
    return expected_completion(Settings(**{"model": "gpt-5-mini", **settings}), PRIOR, 0.0, 1000)


def test_a_model_that_does_not_think_is_foreseen_by_its_task_alone() -> None:
    told = foreseen(model="gpt-4o")
    assert (told.thinking, told.replies, told.source) == (None, 1.0, "the task's prior")
    assert told.tokens.low < told.tokens.expected < told.tokens.high <= 512
    assert foreseen(model="gpt-5-mini", model_kind="plain").tokens == told.tokens


def test_thinking_is_added_to_the_answer_by_effort() -> None:
    answer = foreseen(model="gpt-4o").tokens
    before = 0.0
    for effort in ("minimal", "low", "medium", "high"):
        told = foreseen(reasoning_effort=effort)
        table = thinking_at(effort)
        assert told.thinking.expected == pytest.approx(table.median * math.exp(table.sigma**2 / 2), rel=0.05)
        assert told.thinking.high == pytest.approx(told.thinking.expected * table.wide)
        assert told.thinking.low == pytest.approx(told.thinking.expected / table.wide)
        assert told.tokens.expected == pytest.approx(answer.expected + told.thinking.expected)
        assert told.thinking.expected > before
        before = told.thinking.expected
        assert f"at effort {effort}" in told.source
        assert "reasoning guide" in told.source


def test_a_model_that_thinks_only_when_told_to_is_foreseen_so() -> None:
    assert foreseen(model="gpt-5.1").thinking is None
    assert foreseen(model="gpt-5.1", reasoning_effort="none").thinking is None
    assert foreseen(model="gpt-5.1", reasoning_effort="low").thinking is not None
    assert foreseen(model="my-deployment").thinking is None
    assert foreseen(model="my-deployment", model_kind="reasoning").thinking is not None
    assert foreseen(model="claude-sonnet-4-5").thinking is None
    told = foreseen(model="claude-sonnet-4-5", thinking_tokens=2000)  # switched on by --param
    assert told.thinking.expected < 2000
    assert told.thinking.high <= 2000


def test_the_answer_is_cut_at_its_own_bound_and_not_at_what_is_sent() -> None:
    long = foreseen(max_tokens=4096).tokens.expected - foreseen(max_tokens=64).tokens.expected
    assert foreseen(max_tokens=64).tokens.expected - foreseen().thinking.expected <= 64
    assert long > 64


def test_thinking_is_cut_at_the_room_for_it() -> None:
    told = foreseen(reasoning_effort="high", thinking_tokens=300)
    assert told.thinking.high <= 300
    assert told.tokens.high <= 812
    within = foreseen(thinking_tokens=0)  # no room beside the answer: both share one bound
    assert within.tokens.high <= 512
    assert within.thinking is not None


def test_a_bound_given_as_a_parameter_is_the_answer_s_too() -> None:
    settings = Settings(model="gpt-5-mini", param={"max_completion_tokens": 9000})
    assert (settings.answer_bound(), settings.sent_max_tokens()) == (9000, 9000)
    assert Settings(model="gpt-5-mini").answer_bound() == 512
    assert Settings(model="grok-4").answer_bound() == 512
    assert Settings(model="gpt-4o").answer_bound() == 512
    assert Settings(model="gpt-4o", omit=("max_tokens",)).answer_bound() == 0


# Once something was seen.


def test_all_paid_replies_of_a_request_count() -> None:
    """Every tenth row needed a second reply, since its first used up the bound."""
    once, twice = Paid(400, 300, 1, False), Paid(16896 + 400, 16896 + 300, 2, True)
    told = expected_completion(
        Settings(model="gpt-5-mini"), PRIOR, 0.0, 1000, Seen([*[once] * 90, *[twice] * 10])
    )
    assert told.replies == pytest.approx(1.1)
    assert told.tokens.expected == pytest.approx(400 + 0.1 * 16896)
    assert told.thinking is not None
    assert told.thinking.expected == pytest.approx(300 + 0.1 * 16896)
    assert told.source == "110 paid replies to 100 requests of this run"
    told = expected_completion(Settings(model="gpt-5-mini"), PRIOR, 0.0, 9, Seen([once] * 20, pilot=20))
    assert told.source == "a pilot: 20 paid replies to 20 requests"
    told = expected_completion(Settings(model="gpt-5-mini"), PRIOR, 0.0, 9, Seen([once] * 50, pilot=20))
    assert told.source == "50 paid replies to 50 requests of this run, 20 of them a pilot"


def test_a_few_replies_are_not_believed() -> None:
    few = Seen([Paid(5, 1, 1, False)] * (LEAST_OBSERVED - 1))
    assert expected_completion(Settings(model="gpt-5-mini"), PRIOR, 0.0, 9, few) == foreseen()


def test_thinking_that_the_server_does_not_tell_is_not_made_up() -> None:
    seen = Seen([Paid(900, 0, 1, False)] * 20)
    told = expected_completion(Settings(model="qwen3-32b"), PRIOR, 0.0, 100, seen)
    assert (told.thinking, told.tokens.expected) == (None, 900)
