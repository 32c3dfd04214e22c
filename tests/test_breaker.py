"""The breaker tells an outage from bad rows, spends no attempts on one, probes, and gives up."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from engine.limits.circuit_breaker import LIMITED_THRESHOLD, LONGEST_PROBE, THRESHOLD, Breaker, Effort
from engine.provider.errors import ProviderDown
from tests.support import virtual_time
from tests.support.virtual_time import now, settled

GIVE_UP = 1800.0


def fail(breaker: Breaker, effort: Effort | None = None, probe: bool = False, outage: bool = True) -> Effort:
    """As the asker does it: the attempt is counted, then the breaker is told. `outage`: a 503, which
    cannot be the row's fault; else a 500, which may be."""
    effort = effort or Effort()
    effort.attempts += 1
    breaker.failed(effort, probe, "HTTP 503: overloaded" if outage else "HTTP 500: broken", outage)
    return effort


def opened(give_up: float = GIVE_UP) -> Breaker:
    breaker = Breaker(give_up)
    for _ in range(THRESHOLD):
        fail(breaker)
    assert breaker.is_open
    return breaker


# When it opens.


@pytest.mark.parametrize("outage", [True, False])
async def test_failures_of_different_rows_in_a_row_open_it(outage: bool) -> None:
    breaker = Breaker(GIVE_UP)
    for n in range(THRESHOLD):
        assert not breaker.is_open, n
        fail(breaker, outage=outage)
    assert breaker.is_open


async def test_the_attempts_spent_on_an_outage_are_given_back() -> None:
    breaker = Breaker(GIVE_UP)
    efforts = [fail(breaker) for _ in range(THRESHOLD)]
    late = fail(breaker)  # it was in flight when the breaker opened
    assert [(e.attempts, e.spent) for e in (*efforts, late)] == [(0, 0)] * (THRESHOLD + 1)


async def test_a_row_gets_back_all_that_it_spent_on_the_outage() -> None:
    breaker = Breaker(GIVE_UP, outstanding=40)
    efforts = [fail(breaker, outage=False) for _ in range(THRESHOLD - 1)]
    for effort in efforts:
        fail(breaker, effort, outage=False)
    fail(breaker, outage=False)
    assert breaker.is_open
    assert [effort.attempts for effort in efforts] == [0] * (THRESHOLD - 1)


async def test_an_outage_of_two_servers_costs_a_row_that_tried_both_no_attempt() -> None:
    """What it spent at the first is still in doubt when the second's breaker opens."""
    first, second = Breaker(GIVE_UP), Breaker(GIVE_UP, outstanding=2)
    effort = fail(second, fail(first))
    fail(second)
    assert second.is_open
    assert not first.is_open
    assert (effort.attempts, effort.spent) == (1, 0)
    second.succeeded()
    assert effort.spent == 0
    first.succeeded()
    assert effort.spent == 1


async def test_where_few_rows_can_fail_at_once_fewer_open_it() -> None:
    breaker = Breaker(GIVE_UP, outstanding=4)
    for _ in range(4):
        assert not breaker.is_open
        fail(breaker, outage=False)
    assert breaker.is_open


async def test_one_row_that_the_server_chokes_on_again_and_again_is_no_outage() -> None:
    breaker, poison = Breaker(GIVE_UP), Effort()
    for _ in range(10 * THRESHOLD):
        fail(breaker, poison, outage=False)
    assert not breaker.is_open
    assert poison.spent == 10 * THRESHOLD


async def test_one_row_that_finds_nobody_at_home_again_and_again_is_an_outage() -> None:
    """With a concurrency of 1 there is no other row to tell by."""
    breaker, row = Breaker(GIVE_UP), Effort()
    for n in range(THRESHOLD):
        assert not breaker.is_open
        assert row.spent == 0, n
        fail(breaker, row)
    assert breaker.is_open
    assert (row.attempts, row.spent) == (0, 0)


async def test_a_failure_that_may_be_an_outage_counts_when_something_has_succeeded_since() -> None:
    breaker, row = Breaker(GIVE_UP), Effort()
    for n in range(1, 4):
        fail(breaker, row)
        assert row.spent == n - 1
        breaker.succeeded()
        assert row.spent == n


async def test_successes_between_failures_keep_it_closed() -> None:
    breaker = Breaker(GIVE_UP)
    for _ in range(100):
        fail(breaker)
        breaker.succeeded()
    assert not breaker.is_open


async def test_rows_that_failed_while_others_succeeded_are_suspects_and_say_nothing_more() -> None:
    """Many bad rows that are asked again and again do not add up to an outage."""
    breaker = Breaker(GIVE_UP)
    poisons = [fail(breaker, outage=False) for _ in range(THRESHOLD - 1)]
    breaker.succeeded()
    for _ in range(3):
        for poison in poisons:
            fail(breaker, poison, outage=False)
    for _ in range(THRESHOLD - 1):
        fail(breaker, outage=False)
    assert not breaker.is_open
    assert all(poison.spent == 4 for poison in poisons)
    fail(breaker, outage=False)
    assert breaker.is_open


async def test_the_first_failure_may_open_it_at_once() -> None:
    breaker, effort = Breaker(GIVE_UP), Effort(attempts=1)
    breaker.failed(effort, False, "connection refused", is_outage=True, at_once=True)
    assert breaker.is_open
    assert (effort.attempts, effort.spent) == (0, 0)


async def test_sustained_429s_open_it_too() -> None:
    breaker = Breaker(GIVE_UP)
    for incidents in range(1, LIMITED_THRESHOLD + 1):
        assert not breaker.is_open
        breaker.limited(incidents, None, "HTTP 429: slow down", False)
    assert breaker.is_open


# While it is open.


def test_nobody_goes_but_a_probe_at_growing_intervals() -> None:
    async def main() -> tuple[list[float], int]:
        breaker, probes, others = opened(), [], 0

        async def row() -> None:
            nonlocal others
            while now() < 600:
                if await breaker.admit(Effort()):
                    probes.append(now())
                    await asyncio.sleep(0.5)
                    fail(breaker, probe=True)
                else:
                    others += 1

        rows = [asyncio.ensure_future(row()) for _ in range(20)]
        await asyncio.sleep(600)
        for task in rows:
            task.cancel()
        await asyncio.gather(*rows, return_exceptions=True)
        return probes, others

    probes, others = virtual_time.run(main())
    assert others == 0
    gaps = [later - earlier for earlier, later in pairwise(probes)]
    assert probes[0] == pytest.approx(1, abs=0.1)
    assert gaps[:4] == pytest.approx([2.5, 4.5, 8.5, 16.5], abs=0.1)
    assert max(gaps) == pytest.approx(LONGEST_PROBE + 0.5, abs=0.1)


def test_the_first_success_lets_everybody_in() -> None:
    async def main() -> None:
        breaker = opened()
        rows = [asyncio.ensure_future(breaker.admit(Effort())) for _ in range(5)]
        await asyncio.sleep(1.1)
        (probe,) = [row for row in rows if row.done()]
        assert probe.result() is True
        breaker.succeeded()
        assert sorted(await asyncio.gather(*rows)) == [False] * 4 + [True]
        assert not breaker.is_open

    virtual_time.run(main())


def test_an_answer_that_was_still_in_flight_closes_it_before_any_probe() -> None:
    async def main() -> None:
        breaker = opened()
        rows = [asyncio.ensure_future(breaker.admit(Effort())) for _ in range(3)]
        await settled()
        breaker.succeeded()
        assert await asyncio.gather(*rows) == [False] * 3
        assert breaker.probes == 0

    virtual_time.run(main())


@pytest.mark.parametrize("ending", ["cancelled while it waits", "abandoned when it had gone"])
def test_a_probe_that_ends_without_a_verdict_hands_over_to_another(ending: str) -> None:
    async def main() -> None:
        breaker = opened()
        rows = [asyncio.ensure_future(breaker.admit(Effort())) for _ in range(2)]
        await settled()
        if ending.startswith("cancelled"):
            rows.pop().cancel()
            await settled()
        else:
            done, waiting = await asyncio.wait(rows, return_when=asyncio.FIRST_COMPLETED)
            assert [await row for row in done] == [True]
            breaker.abandoned()
            rows = list(waiting)
        assert await rows[0]
        assert now() < 10

    virtual_time.run(main())


def test_a_429_for_a_probe_puts_it_off_and_does_not_close() -> None:
    async def main() -> None:
        breaker = opened()
        assert await breaker.admit(Effort())
        breaker.limited(1, None, "HTTP 429: slow down", True)
        assert breaker.is_open
        assert await breaker.admit(Effort())
        assert now() == pytest.approx(3, abs=0.1)

    virtual_time.run(main())


def test_failures_after_it_has_closed_open_it_again_with_short_intervals() -> None:
    async def main() -> None:
        breaker = opened()
        for _ in range(4):
            assert await breaker.admit(Effort())
            fail(breaker, probe=True)
        assert await breaker.admit(Effort())
        breaker.succeeded()
        breaker.abandoned()
        for _ in range(THRESHOLD):
            fail(breaker)
        start = now()
        assert await breaker.admit(Effort())
        assert now() - start == pytest.approx(1, abs=0.1)

    virtual_time.run(main())


# When it gives up.


@pytest.mark.parametrize("give_up", [0, 5, 60, 1800])
def test_it_gives_up_when_told_and_neither_sooner_nor_much_later(give_up: float) -> None:
    async def main() -> tuple[float, str]:
        breaker = opened(give_up)
        while True:
            assert await breaker.admit(Effort())
            try:
                fail(breaker, probe=True)
            except ProviderDown as reason:
                return now(), str(reason)

    at, words = virtual_time.run(main())
    assert give_up <= at <= give_up + 1.1
    assert "HTTP 503: overloaded" in words


async def test_time_is_the_clock_s_that_was_given() -> None:
    time = 1000.0
    breaker = Breaker(60.0, clock=lambda: time)
    for _ in range(THRESHOLD):
        fail(breaker)
    assert breaker.opened_at == 1000
    time += 61
    assert await breaker.admit(Effort())  # its time has come, by that clock
    with pytest.raises(ProviderDown, match="no success for 61 s and 1 probes"):
        fail(breaker, probe=True)


async def test_a_reply_to_what_was_sent_before_a_failure_confirms_nothing() -> None:
    """The last replies of a server that has just gone down."""
    time = 10.0
    breaker, row = Breaker(GIVE_UP, clock=lambda: time), Effort(attempts=1)
    breaker.failed(row, False, "503", is_outage=True)
    breaker.succeeded(sent_at=9.0)
    assert row.spent == 0
    breaker.succeeded(sent_at=11.0)
    assert row.spent == 1


async def test_an_outage_gives_back_attempts_that_only_older_replies_followed() -> None:
    time = 10.0
    breaker, row = Breaker(GIVE_UP, clock=lambda: time), Effort(attempts=1)
    breaker.failed(row, False, "503", is_outage=True)
    breaker.succeeded(sent_at=9.0)
    for _ in range(THRESHOLD):
        breaker.failed(Effort(attempts=1), False, "503", is_outage=True)
    assert breaker.is_open
    assert row.attempts == 0
    breaker.succeeded(sent_at=9.5)  # and such a reply does not end the outage
    assert breaker.is_open
