"""The limiter uses a limit up without overrunning it, first come first served, by one clock."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping

import pytest

from engine.limits.charging import Charge, RequestSize
from engine.limits.rate_limiter import LONGEST_PAUSE, Limiter, Ticket
from store.records import Usage
from tests.support import virtual_time
from tests.support.simulated import LimitedServer, Way, drive, thoughts
from tests.support.virtual_time import now, settled

SMALL = RequestSize(1, 0)
SIZE = RequestSize(100, 512)
USAGE = Usage(100, 120)
NO_HEADERS: Mapping[str, str] = {}

# A provider in simulated time: what share of the limit is used, and how much of it is refused.

START, STOP = 30.0, 60.0  # by then a bucket of a minute has been used up


async def _simulated(
    way: Way, bucket_seconds: float, rpm: float | None, tpm: float | None, declared: bool
) -> tuple[LimitedServer, Limiter]:
    server = LimitedServer(way, rpm, tpm, bucket_seconds)
    limiter = Limiter(rpm, tpm) if declared else Limiter()
    await drive(limiter, server, STOP)
    return server, limiter


def check_use(server: LimitedServer, resource: str) -> None:
    used = server.used(START, STOP)[0 if resource == "requests" else 1]
    assert 0.95 <= used <= 1.05
    assert len(server.refused) <= 0.005 * len(server.served)


WAYS: list[tuple[Way, Charge]] = [
    ("upfront", Charge.UPFRONT),
    ("larger", Charge.LARGER),
    ("actual", Charge.ACTUAL),
]


@pytest.mark.parametrize(
    ("bucket_seconds", "declared"),
    [(60, True), (60, False), (1, True)],
    ids=["minute's bucket", "minute's bucket, limit told in headers", "second's bucket"],
)
@pytest.mark.parametrize(("way", "learnt"), WAYS)
def test_the_token_limit_is_used_and_not_overrun_and_the_way_of_charging_is_learnt(
    way: Way, learnt: Charge, bucket_seconds: float, declared: bool
) -> None:
    server, limiter = virtual_time.run(_simulated(way, bucket_seconds, None, 600_000, declared))
    assert limiter.charging.way is learnt
    check_use(server, "tokens")


@pytest.mark.parametrize(("way", "learnt"), WAYS[:2])
def test_a_low_token_limit_is_not_overrun_either(way: Way, learnt: Charge) -> None:
    server, limiter = virtual_time.run(_simulated(way, 60, None, 40_000, declared=True))
    assert limiter.charging.way is learnt
    check_use(server, "tokens")


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("way", "each"), [("upfront", 16_956), ("actual", 1_870)])
def test_a_teacher_that_thinks_uses_the_limit_however_it_is_charged(way: Way, each: int, seed: int) -> None:
    """Its bound is nine times what it uses: what is charged must be learnt within seconds."""
    seconds, bucket_seconds = 120, 10

    async def simulated() -> LimitedServer:
        server = LimitedServer(way, 10_000, each * 2000, bucket_seconds, token_seconds=0.0005)
        await drive(Limiter(10_000, each * 2000), server, seconds, pool=thoughts(seed))
        return server

    server = virtual_time.run(simulated())
    used = server.used(0, seconds)[1] * seconds / (seconds + bucket_seconds)
    assert 0.94 <= used <= 1.02
    assert len(server.refused) <= 0.08 * len(server.served)


@pytest.mark.parametrize("bucket_seconds", [60, 1])
def test_the_request_limit_is_used_and_not_overrun(bucket_seconds: float) -> None:
    server, _ = virtual_time.run(_simulated("upfront", bucket_seconds, 600, 10_000_000, declared=True))
    check_use(server, "requests")


def test_a_server_that_tells_nothing_is_asked_at_the_declared_pace() -> None:
    async def silent() -> LimitedServer:
        server = LimitedServer("actual", 600, 10_000_000, silent=True)
        await drive(Limiter(600, 10_000_000), server, STOP)
        return server

    check_use(virtual_time.run(silent()), "requests")


def test_the_wall_clock_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may jump back and forth by years."""

    async def short() -> list[tuple[float, float]]:
        server = LimitedServer("upfront", 600, 600_000, 1)
        await drive(Limiter(600, 600_000, rpd=10_000, tpd=10_000_000), server, 10.0)
        return server.served

    steady = virtual_time.run(short())
    source = random.Random(5)
    monkeypatch.setattr(time, "time", lambda: source.uniform(0, 4e9))
    assert virtual_time.run(short()) == steady


# Who goes when.


class Order:
    """Reserves in tasks of their own and writes down when each may go."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.went: list[tuple[str, float]] = []
        self.tickets: list[Ticket] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, size: RequestSize = SMALL, first: bool = False) -> None:
        self._tasks[name] = asyncio.ensure_future(self._reserve(name, size, first))
        await settled()

    async def _reserve(self, name: str, size: RequestSize, first: bool) -> None:
        self.tickets.append(await self.limiter.reserve(size, first))
        self.went.append((name, now()))

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await settled()

    async def all(self) -> list[str]:
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        return [name for name, _ in self.went]

    def when(self, name: str) -> float:
        return dict(self.went)[name]


def in_turn() -> Limiter:
    """One token a second, real usage known to be the prompt."""
    limiter = Limiter(tpm=60)
    limiter.charging.way = Charge.ACTUAL
    limiter.charging.mean_completion = 0.0
    return limiter


def test_a_long_prompt_is_not_overtaken_by_short_ones() -> None:
    async def main() -> list[str]:
        order = Order(in_turn())
        await order.ask("opens", RequestSize(10, 0))
        await order.ask("long", RequestSize(50, 0))
        for n in range(5):
            await order.ask(f"short {n}")
        return await order.all()

    assert virtual_time.run(main()) == ["opens", "long", *(f"short {n}" for n in range(5))]


def test_requests_go_in_the_order_in_which_they_came() -> None:
    async def main() -> list[str]:
        order, source = Order(in_turn()), random.Random(1)
        for n in range(40):
            await order.ask(str(n), RequestSize(source.randint(1, 30), 0))
        return await order.all()

    assert virtual_time.run(main()) == [str(n) for n in range(40)]


def test_one_larger_than_the_limit_goes_and_leaves_a_debt() -> None:
    async def main() -> Order:
        order = Order(in_turn())
        await order.ask("huge", RequestSize(600, 0))
        await order.ask("next")
        await order.all()
        return order

    order = virtual_time.run(main())
    assert order.when("huge") == pytest.approx(0, abs=0.1)
    assert order.when("next") == pytest.approx(600, rel=0.01)


def test_a_retry_goes_ahead_of_the_queue() -> None:
    async def main() -> list[str]:
        order = Order(in_turn())
        for name in ("a", "b", "c"):
            await order.ask(name)
        await order.ask("again", first=True)
        return await order.all()

    assert virtual_time.run(main()) == ["a", "again", "b", "c"]


def test_who_is_cancelled_in_the_queue_holds_nobody_up() -> None:
    async def main() -> Order:
        order = Order(in_turn())
        await order.ask("a")
        await order.ask("long", RequestSize(600, 0))
        await order.ask("b")
        await order.ask("c")
        await order.cancel("long")
        await order.all()
        return order

    order = virtual_time.run(main())
    assert [name for name, _ in order.went] == ["a", "b", "c"]
    assert order.when("c") < 5


def test_a_reservation_that_comes_together_with_the_cancellation_is_given_back() -> None:
    async def main() -> None:
        limiter = in_turn()
        opens = await limiter.reserve(RequestSize(600, 0))
        waiting = asyncio.ensure_future(limiter.reserve(RequestSize(50, 0)))
        await settled()
        limiter.unsent(opens)  # now its turn has come, but its task has not run yet
        assert limiter.tokens.total == 50
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert limiter.tokens.total == 0

    virtual_time.run(main())


def test_what_was_never_sent_costs_nothing() -> None:
    async def main() -> None:
        limiter = Limiter(rpm=60, tpm=6000, rpd=1, tpd=1000)
        limiter.unsent(await limiter.reserve(SIZE))
        assert limiter.requests.total == limiter.tokens.total == 0
        assert limiter.day_tokens.used == 0
        assert limiter.day_requests.used == 0
        await limiter.reserve(SIZE)
        assert now() < 1

    virtual_time.run(main())


# 429.


def test_a_429_pauses_everybody_as_long_as_the_server_says() -> None:
    async def main() -> Order:
        limiter = Limiter(rpm=6000)
        order = Order(limiter)
        await order.ask("refused")
        limiter.limited(order.tickets[0], 7.0, "requests", NO_HEADERS)
        for name in ("a", "b"):
            await order.ask(name)
        await order.ask("again", first=True)
        await order.all()
        return order

    order = virtual_time.run(main())
    assert [name for name, _ in order.went] == ["refused", "again", "a", "b"]
    assert order.when("again") == pytest.approx(7, abs=0.1)
    assert order.when("b") == pytest.approx(7, abs=0.5)


def test_429s_of_requests_in_flight_are_one_incident() -> None:
    async def main() -> None:
        limiter = Limiter()
        tickets = [await limiter.reserve(SIZE) for _ in range(50)]
        await asyncio.sleep(1)
        for ticket in tickets:
            limiter.limited(ticket, 2.0, "tokens", NO_HEADERS)
        assert (limiter.pauses, limiter.limited_count) == (1, 50)
        await limiter.reserve(SIZE)
        assert now() == pytest.approx(3, abs=0.1)

    virtual_time.run(main())


def test_unexplained_429s_back_off_further_each_time_until_an_answer_comes() -> None:
    async def main() -> list[float]:
        limiter = Limiter()
        waits = []
        for _ in range(12):
            ticket = await limiter.reserve(SIZE)
            limiter.limited(ticket, None, "", NO_HEADERS)
            start = now()
            await asyncio.sleep(1e-3)
            limiter.unsent(await limiter.reserve(SIZE))
            waits.append(now() - start)
        assert limiter.pauses == 12
        limiter.settle(await limiter.reserve(SIZE), USAGE, NO_HEADERS)
        assert limiter.pauses == 0
        return waits

    waits = virtual_time.run(main())
    assert waits[0] <= 0.3
    assert sorted(waits[:8]) == waits[:8]
    assert LONGEST_PAUSE / 2 <= waits[-1] <= LONGEST_PAUSE + 1


def test_a_429_gives_its_tokens_back() -> None:
    async def main() -> None:
        limiter = Limiter(tpm=6000, tpd=10_000)
        limiter.limited(await limiter.reserve(SIZE), 0.1, "tokens", NO_HEADERS)
        assert limiter.tokens.total == 0
        assert limiter.day_tokens.used == 0

    virtual_time.run(main())


def test_429s_that_nothing_explains_slow_the_pace_and_it_recovers() -> None:
    async def main() -> tuple[float, float]:
        limiter = Limiter(rpm=600)
        for _ in range(5):
            limiter.limited(await limiter.reserve(SIZE), 0.1, "requests", NO_HEADERS)
        slowed = limiter.requests.scale
        await asyncio.sleep(60)
        limiter.settle(await limiter.reserve(SIZE), USAGE, NO_HEADERS)
        return slowed, limiter.requests.scale

    slowed, recovered = virtual_time.run(main())
    assert slowed < 0.95
    assert recovered == 1


# Settling.


def test_real_usage_replaces_the_reservation_where_that_is_what_is_charged() -> None:
    async def main() -> None:
        limiter = Limiter(tpm=60_000, tpd=100_000)
        limiter.charging.way = Charge.ACTUAL
        ticket = await limiter.reserve(SIZE)
        assert limiter.tokens.total == limiter.day_tokens.used == 612
        limiter.settle(ticket, USAGE, NO_HEADERS)
        assert limiter.tokens.total == 220
        assert limiter.day_tokens.used == 220

    virtual_time.run(main())


def test_a_request_without_an_answer_is_settled_too() -> None:
    async def main() -> None:
        limiter = Limiter(tpm=60_000)
        limiter.charging.way = Charge.ACTUAL
        limiter.settle(await limiter.reserve(SIZE), None, NO_HEADERS)
        assert limiter.tokens.total == 0

    virtual_time.run(main())


def test_the_limits_are_learnt_from_the_first_reply() -> None:
    async def main() -> None:
        limiter = Limiter()
        assert not limiter.knows_limits
        headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59"}
        limiter.settle(await limiter.reserve(SIZE), USAGE, headers)
        assert limiter.knows_limits
        assert (limiter.requests.limit, limiter.tokens.limit) == (60, None)

    virtual_time.run(main())


def test_utilisation_is_what_went_over_what_could_have_gone() -> None:
    async def main() -> None:
        limiter = Limiter(rpm=60)
        assert limiter.utilisation() == {"requests": None, "tokens": None}
        for _ in range(10):
            limiter.settle(await limiter.reserve(SMALL), Usage(1, 0), NO_HEADERS)
        await asyncio.sleep(20 - now())
        assert limiter.utilisation() == {"requests": pytest.approx(0.5, rel=0.01), "tokens": None}

    virtual_time.run(main())


# Days.


def test_a_day_s_requests_are_not_passed_and_go_on_the_next_day() -> None:
    async def main() -> list[float]:
        limiter, went = Limiter(rpd=100), []
        for _ in range(250):
            limiter.settle(await limiter.reserve(SMALL), Usage(1, 0), NO_HEADERS)
            went.append(now())
        return went

    went = virtual_time.run(main())
    for start in went:
        assert sum(start <= at < start + 86400 for at in went) <= 100
    assert went[-1] < 2 * 86400 + 300


def test_a_day_s_tokens_are_not_passed() -> None:
    async def main() -> list[float]:
        limiter, went = Limiter(tpd=1000), []
        limiter.charging.way = Charge.ACTUAL
        limiter.charging.mean_completion = 0.0
        for _ in range(25):
            limiter.settle(await limiter.reserve(RequestSize(100, 0)), Usage(100, 0), NO_HEADERS)
            went.append(now())
        return went

    went = virtual_time.run(main())
    for start in went:
        assert sum(start <= at < start + 86400 for at in went) <= 10
    assert went[-1] < 2 * 86400 + 300
