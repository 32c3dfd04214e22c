"""Several endpoints of one teacher in simulated time: who is asked, when, and who waits for nobody."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from engine.limits.charging import RequestSize
from engine.limits.circuit_breaker import Breaker, Effort
from engine.limits.concurrency import Gate
from engine.limits.endpoints import FIRST_REST, Admitted, Endpoint, Teacher
from engine.limits.rate_limiter import Limiter
from engine.provider.client import Client
from engine.provider.errors import AuthRefused, ProviderDown
from engine.provider.pricing import FREE, Prices
from store.records import Usage
from tests.support import virtual_time
from tests.support.virtual_time import now, settled

SIZE = RequestSize(100, 100)


def endpoint(number: int, slots: int = 64, proven: bool = True, **limits: float) -> Endpoint:
    breaker, gate = Breaker(give_up=100, outstanding=4 * slots), Gate(slots)
    url, client = f"http://{number}", cast(Client, None)
    return Endpoint(
        number, url, Prices.of_one(FREE), client, Limiter(**limits), breaker, gate, slots, proven=proven
    )


class Fleet:
    """Requests of the same size at endpoints that answer after `latency` seconds, without words."""

    def __init__(self, *endpoints: Endpoint, latency: float = 0.5) -> None:
        self.teacher, self.latency = Teacher(endpoints), latency
        self.asked: list[tuple[float, int]] = []  # (time, endpoint)
        self.in_flight: Counter[int] = Counter()

    async def ask(self, effort: Effort | None = None) -> int:
        """One request, answered; returns by whom."""
        admitted = await self.teacher.admit(SIZE, effort or Effort())
        number = admitted.endpoint.number
        ticket, admitted.ticket = admitted.ticket, None
        assert ticket
        self.asked.append((now(), number))
        self.in_flight[number] += 1
        try:
            await asyncio.sleep(self.latency)
            admitted.endpoint.limiter.settle(ticket, Usage(100, 100), {})
            admitted.endpoint.breaker.succeeded()
            admitted.endpoint.answered()
        finally:
            self.in_flight[number] -= 1
            self.teacher.leave(admitted)
        return number

    async def ask_all(self, count: int) -> Counter[int]:
        return Counter(await asyncio.gather(*(self.ask() for _ in range(count))))

    def assert_nothing_is_held(self) -> None:
        assert [e.gate.in_flight for e in self.teacher.endpoints] == [0] * len(self.teacher.endpoints)
        assert not self.teacher._waiters


def run(main: Coroutine[Any, Any, None]) -> None:
    virtual_time.run(main)


async def refuse(fleet: Fleet) -> Endpoint:
    """One request is refused, for good it seems."""
    admitted = await fleet.teacher.admit(SIZE, Effort())
    try:
        fleet.teacher.put_to_rest(admitted.endpoint, AuthRefused("no"))
    finally:
        fleet.teacher.leave(admitted)
    return admitted.endpoint


# Limits


@pytest.mark.parametrize("limits", [(1200, 600), (1200, 600, 300), (6000, 60)])
def test_the_limits_of_all_are_used_at_once(limits: tuple[float, ...]) -> None:
    async def main() -> None:
        fleet = Fleet(*(endpoint(n, rpm=rpm) for n, rpm in enumerate(limits)))
        seconds = 30
        answered = await fleet.ask_all(int(sum(limits) * seconds / 60))
        assert now() <= 1.05 * seconds
        for number, limit in enumerate(limits):
            assert answered[number] >= 0.95 * limit * now() / 60 - 1
        fleet.assert_nothing_is_held()

    run(main())


def test_tokens_are_shared_out_like_requests() -> None:
    async def main() -> None:
        limits = (120_000, 60_000, 12_000)
        fleet = Fleet(*(endpoint(n, tpm=tpm) for n, tpm in enumerate(limits)))
        answered = await fleet.ask_all(480)  # of 200 tokens: half a minute for all of them
        assert now() <= 32
        assert all(answered[n] * 200 >= 0.95 * tpm * now() / 60 - 200 for n, tpm in enumerate(limits))

    run(main())


def test_nobody_waits_at_a_slow_endpoint_while_a_fast_one_is_free() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, rpm=0.1), endpoint(1, rpm=6000))
        assert (await fleet.ask_all(300))[1] >= 298
        assert now() < 5

    run(main())


def test_a_day_that_is_used_up_at_one_endpoint_holds_nobody() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, rpd=10), endpoint(1))
        assert await fleet.ask_all(300) == {0: 10, 1: 290}
        assert now() < 5

    run(main())


def test_a_long_pause_at_one_endpoint_holds_nobody() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, rpm=600), endpoint(1, rpm=600))
        asks = asyncio.ensure_future(fleet.ask_all(200))
        await asyncio.sleep(2)
        limiter = fleet.teacher.endpoints[0].limiter
        limiter.limited(limiter.take(SIZE), 600.0, "requests", {})
        assert (await asks)[1] > 150
        assert now() < 25
        assert max(at for at, number in fleet.asked if number == 0) <= 2

    run(main())


def test_a_pause_of_all_ends_by_itself() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0), endpoint(1))
        for number, wait in ((0, 30.0), (1, 50.0)):
            limiter = fleet.teacher.endpoints[number].limiter
            limiter.limited(limiter.take(SIZE), wait, "requests", {})
        await fleet.ask()
        assert fleet.asked == [(pytest.approx(30, abs=0.1), 0)]

    run(main())


def test_the_utilisation_is_told_of_each_and_of_all() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, rpm=600), endpoint(1, rpm=300), endpoint(2))
        await fleet.ask_all(64 + 450)
        found = fleet.teacher.utilisation()
        each = found["endpoints"]
        assert each["http://2"] == {"requests": None, "tokens": None}
        both = (2 * each["http://0"]["requests"] + each["http://1"]["requests"]) / 3
        assert found["requests"] == pytest.approx(both)
        assert found["tokens"] is None

    run(main())


# Order


def test_who_came_first_goes_first_and_a_retry_before_all() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, slots=1), endpoint(1, slots=1))
        order: list[str] = []

        async def ask(name: str, effort: Effort) -> None:
            admitted = await fleet.teacher.admit(SIZE, effort)
            order.append(name)
            await asyncio.sleep(1)
            fleet.teacher.leave(admitted)

        tasks = [asyncio.ensure_future(ask(name, Effort())) for name in "abcde"]
        await settled()
        tasks.append(asyncio.ensure_future(ask("again", Effort(asks=1))))
        await asyncio.gather(*tasks)
        assert order == ["a", "b", "again", "c", "d", "e"]
        fleet.assert_nothing_is_held()

    run(main())


def test_work_goes_to_the_endpoint_that_is_least_full() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, slots=30), endpoint(1, slots=10))
        asks = [asyncio.ensure_future(fleet.ask()) for _ in range(20)]
        await settled()
        assert fleet.in_flight == {0: 15, 1: 5}
        await asyncio.gather(*asks)

    run(main())


def test_an_endpoint_that_fails_is_used_only_when_the_others_are_full() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, slots=4), endpoint(1, slots=4))
        fleet.teacher.endpoints[0].breaker.failed(Effort(attempts=1), False, "lost", is_outage=True)
        asks = [asyncio.ensure_future(fleet.ask()) for _ in range(5)]
        await settled()
        assert fleet.in_flight == {0: 1, 1: 4}
        await asyncio.gather(*asks)

    run(main())


# New, sick and resting endpoints


def test_at_most_one_request_goes_to_an_endpoint_that_has_not_answered() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, proven=False), endpoint(1, proven=False), endpoint(2))
        asks = asyncio.ensure_future(fleet.ask_all(100))
        await asyncio.sleep(0.4)
        assert fleet.in_flight == {0: 1, 1: 1, 2: 64}
        await asyncio.sleep(0.4)
        assert fleet.in_flight.total() == 34
        await asks

    run(main())


def test_what_an_endpoint_says_while_it_rests_is_no_sign_of_recovery() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0), endpoint(1))
        first = fleet.teacher.endpoints[0]
        asks = asyncio.ensure_future(fleet.ask_all(10))
        await settled()
        fleet.teacher.put_to_rest(first, AuthRefused("no"))
        await asks
        assert first.refusal == "no"
        with pytest.raises(AuthRefused):
            await refuse(fleet)

    run(main())


def test_an_endpoint_that_refused_rests_longer_each_time_and_is_tried_with_one() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, slots=8), endpoint(1, slots=8), latency=2)
        first = fleet.teacher.endpoints[0]
        rested = []
        for rest in (FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST):
            fleet.teacher.put_to_rest(first, AuthRefused("no"))
            rested.append(first.rested_until - now())
            fleet.asked.clear()
            asks = [asyncio.ensure_future(fleet.ask()) for _ in range(8 * int(rest) // 2 + 4)]
            await asyncio.sleep(rest + 1)
            assert {number for at, number in fleet.asked if at < first.rested_until} == {1}
            assert fleet.in_flight[0] == 1
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
        assert rested == [FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST]
        await asyncio.sleep(1000)
        await fleet.ask_all(10)
        assert (first.proven, first.refusal) == (True, "")
        fleet.teacher.put_to_rest(first, AuthRefused("no"))
        assert first.rested_until - now() == FIRST_REST
        fleet.assert_nothing_is_held()

    run(main())


def test_many_refusals_at_once_are_one_rest() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0), endpoint(1))
        first = fleet.teacher.endpoints[0]
        for _ in range(5):
            fleet.teacher.put_to_rest(first, AuthRefused("no"))
        assert first.rest == FIRST_REST

    run(main())


def test_when_all_refuse_everybody_hears_of_it_at_once() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, slots=1), endpoint(1, slots=1))
        held = [await fleet.teacher.admit(SIZE, Effort()) for _ in range(2)]
        asks = [asyncio.ensure_future(fleet.ask()) for _ in range(3)]
        await settled()
        asks[0].cancel()
        fleet.teacher.put_to_rest(held[0].endpoint, ProviderDown("down"))
        with pytest.raises(AuthRefused, match="no"):
            fleet.teacher.put_to_rest(held[1].endpoint, AuthRefused("no"))
        found = await asyncio.gather(*asks, return_exceptions=True)
        assert [type(error) for error in found] == [asyncio.CancelledError, AuthRefused, AuthRefused]
        with pytest.raises(AuthRefused):
            await fleet.ask()
        for admitted in held:
            fleet.teacher.leave(admitted)
        assert now() < 1
        fleet.assert_nothing_is_held()

    run(main())


def test_a_dead_endpoint_is_probed_one_at_a_time_while_the_others_work() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0), endpoint(1, rpm=600))
        first = fleet.teacher.endpoints[0]
        first.breaker.failed(Effort(attempts=1), False, "gone", is_outage=True, at_once=True)
        probes: list[float] = []

        async def ask() -> None:
            while True:
                effort = Effort()
                admitted = await fleet.teacher.admit(SIZE, effort)
                admitted.ticket = None
                if admitted.endpoint is not first:
                    fleet.teacher.leave(admitted)
                    return
                assert admitted.probe
                probes.append(now())
                await asyncio.sleep(0.1)
                effort.attempts += 1
                first.breaker.failed(effort, True, "gone", is_outage=True)
                fleet.teacher.leave(admitted)

        await asyncio.gather(*(ask() for _ in range(400)))
        assert 39 < now() < 42
        assert len(probes) == 5  # after 1, 2, 4, 8 and 16 seconds
        fleet.assert_nothing_is_held()

    run(main())


def test_when_all_are_down_the_probes_go_on_alone() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0), endpoint(1))
        for each in fleet.teacher.endpoints:
            each.breaker.failed(Effort(attempts=1), False, "gone", is_outage=True, at_once=True)
        asks = asyncio.ensure_future(fleet.ask_all(20))
        await asyncio.sleep(0.9)
        assert fleet.asked == []
        await asyncio.sleep(0.2)
        assert fleet.in_flight == {0: 1, 1: 1}
        await asks
        assert now() < 2.5

    run(main())


# What one refuses


def test_what_one_refuses_goes_to_another_and_holds_up_nobody() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0), endpoint(1, slots=1), latency=10)
        busy = await fleet.teacher.admit(SIZE, Effort(refused_by=(0,)))
        assert busy.endpoint.number == 1
        refused = asyncio.ensure_future(fleet.ask(Effort(asks=1, refused_by=(0,))))
        await settled()
        assert await fleet.ask() == 0
        assert not refused.done()
        fleet.teacher.leave(busy)
        assert await refused == 1

    run(main())


def test_what_one_refuses_does_not_wait_for_another_that_is_down() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0), endpoint(1))
        fleet.teacher.put_to_rest(fleet.teacher.endpoints[1], AuthRefused("no"))
        assert await fleet.ask(Effort(asks=1, refused_by=(0,))) == 0
        assert now() < 1

    run(main())


# Cancellation


def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, slots=1, rpm=60), endpoint(1, slots=1, rpm=60))
        asks = [asyncio.ensure_future(fleet.ask()) for _ in range(10)]
        await settled()
        for ask in asks[2:6]:
            ask.cancel()
        await asyncio.sleep(0.6)
        for ask in asks:
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
        fleet.assert_nothing_is_held()

    run(main())


def test_a_slot_that_comes_together_with_the_cancellation_is_passed_on() -> None:
    async def main() -> None:
        fleet = Fleet(endpoint(0, slots=1, rpd=100), endpoint(1, slots=1, rpd=100))
        held: list[Admitted] = [await fleet.teacher.admit(SIZE, Effort()) for _ in range(2)]
        late, next_one = (asyncio.ensure_future(fleet.teacher.admit(SIZE, Effort())) for _ in range(2))
        await settled()
        fleet.teacher.leave(held[0])
        late.cancel()
        await settled()
        assert late.cancelled()
        assert next_one.done()
        used = sum(e.limiter.day_requests.used for e in fleet.teacher.endpoints)
        assert used == 2  # what was taken for those that were never sent is given back
        fleet.teacher.leave(next_one.result())
        fleet.teacher.leave(held[1])
        fleet.assert_nothing_is_held()
        assert sum(e.limiter.day_requests.used for e in fleet.teacher.endpoints) == 0

    run(main())
