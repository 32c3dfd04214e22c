"""The cap holds: what is spent, what may have been, and what is under way never come to more."""

from __future__ import annotations

import asyncio
import random

import pytest

from engine.limits.budget import Budget
from engine.provider.errors import BudgetReached
from tests.support.virtual_time import run, settled


async def test_what_fits_is_let_through_and_the_rest_waits_for_what_is_under_way() -> None:
    budget = Budget(cap=100, spent=0, at_risk=0)
    await budget.reserve(60)
    second = asyncio.ensure_future(budget.reserve(60))
    await settled()
    assert not second.done()
    budget.settle(60, cost=10)
    await second
    assert (budget.spent, budget.in_flight) == (10, 60)


async def test_a_request_that_fits_exactly_is_let_through() -> None:
    budget = Budget(cap=100, spent=40, at_risk=10)
    await budget.reserve(50)
    assert budget.in_flight == 50


async def test_when_nothing_under_way_can_make_room_the_run_ends() -> None:
    budget = Budget(cap=100, spent=50, at_risk=0)
    with pytest.raises(BudgetReached, match=r"\$0\.0001 is reached: \$0\.00005 spent.*larger --budget"):
        await budget.reserve(51)
    assert budget.in_flight == 0


async def test_a_waiter_is_told_when_what_it_waited_for_cost_all() -> None:
    budget = Budget(cap=100, spent=0, at_risk=0)
    await budget.reserve(100)
    waiter = asyncio.ensure_future(budget.reserve(10))
    await settled()
    budget.settle(100, cost=95)
    with pytest.raises(BudgetReached):
        await waiter


async def test_what_was_never_answered_stays_reserved() -> None:
    """It may have been billed: in this run or in one before."""
    budget = Budget(cap=100, spent=0, at_risk=30)
    await budget.reserve(40)
    budget.settle(40, cost=0, lost=40)
    assert budget.lost == 70
    await budget.reserve(30)
    budget.settle(30, cost=5)
    with pytest.raises(BudgetReached, match="at risk in unanswered requests"):
        await budget.reserve(26)


async def test_without_a_cap_nothing_waits_and_all_is_counted() -> None:
    budget = Budget(cap=None, spent=7, at_risk=0)
    for _ in range(100):
        await budget.reserve(10**9)
    budget.settle(10**9, cost=5)
    assert budget.spent == 12


async def test_a_cap_of_nothing_lets_what_is_free_through() -> None:
    budget = Budget(cap=0, spent=0, at_risk=0)
    await budget.reserve(0)
    with pytest.raises(BudgetReached):
        await budget.reserve(1)


async def test_who_gives_up_waiting_holds_nothing() -> None:
    budget = Budget(cap=100, spent=0, at_risk=0)
    await budget.reserve(100)
    waiting = [asyncio.ensure_future(budget.reserve(50)) for _ in range(3)]
    await settled()
    waiting[0].cancel()
    await settled()
    budget.settle(100, cost=0)
    await settled()
    assert budget.in_flight == 100
    assert [task.done() for task in waiting] == [True, True, True]


async def test_who_gives_up_waiting_leaves_its_room_to_the_next() -> None:
    budget = Budget(cap=100, spent=0, at_risk=0)
    await budget.reserve(60)
    await budget.reserve(40)
    first, second = (asyncio.ensure_future(budget.reserve(worst)) for worst in (60, 30))
    await settled()
    budget.settle(60, cost=0)  # wakes the first
    first.cancel()
    await settled()
    assert second.done()
    assert budget.in_flight == 70


async def test_what_a_stage_adopts_is_under_way_for_the_whole_too() -> None:
    """Else a request that fits nowhere would wait for ever for something that is not under way."""
    whole = Budget(cap=100, spent=0, at_risk=90)
    stage = Budget(cap=100, spent=0, at_risk=90, above=whole)
    stage.adopt(90)
    assert (whole.lost, whole.in_flight) == (0, 90)
    stage.settle(90, cost=80)
    assert (whole.spent, whole.lost, whole.in_flight) == (80, 0, 0)
    with pytest.raises(BudgetReached):
        await stage.reserve(30)


@pytest.mark.parametrize("seed", range(3))
def test_the_cap_is_never_passed_whatever_the_requests_come_to(seed: int) -> None:
    """Hundreds of requests at once; each costs at most what it reserved, some are lost."""
    cap, source = 15_000, random.Random(seed)
    budget = Budget(cap, spent=1000, at_risk=500)
    highest = 0

    async def request() -> None:
        nonlocal highest
        worst = source.randint(1, 400)
        await budget.reserve(worst)
        highest = max(highest, budget.spent + budget.lost + budget.in_flight)
        await asyncio.sleep(source.random())
        if source.random() < 0.1:
            budget.settle(worst, 0, lost=worst)
        else:
            budget.settle(worst, source.randint(0, worst))

    async def main() -> list[object]:
        return await asyncio.gather(*(request() for _ in range(300)), return_exceptions=True)

    ended = run(main())
    refused = [error for error in ended if error is not None]
    assert refused
    assert all(isinstance(error, BudgetReached) for error in refused)
    assert cap - 400 <= highest <= cap
    assert budget.in_flight == 0
