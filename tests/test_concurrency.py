"""Where nobody declares a limit, the number in flight finds the level that the server can serve."""

from __future__ import annotations

import asyncio

import pytest

from engine.limits.concurrency import CUT, FLOOR, START, Adaptive, Gate
from tests.support import virtual_time
from tests.support.simulated import QueueingServer
from tests.support.virtual_time import now, settled

# The gate.


class Slots:
    """Tasks that want a slot, and in which order they got one."""

    def __init__(self, limit: int) -> None:
        self.gate = Gate(limit)
        self.entered: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def enter(self, name: str, first: bool = False) -> None:
        self.tasks[name] = asyncio.ensure_future(self._enter(name, first))
        await settled()

    async def _enter(self, name: str, first: bool) -> None:
        await self.gate.enter(first)
        self.entered.append(name)

    async def leave(self) -> None:
        self.gate.leave()
        await settled()

    async def cancel_all(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def test_no_more_than_the_limit_are_inside() -> None:
    slots = Slots(2)
    for name in "abcd":
        await slots.enter(name)
    assert (slots.entered, slots.gate.in_flight, slots.gate.waiting) == (["a", "b"], 2, 2)
    await slots.leave()
    assert slots.entered == ["a", "b", "c"]
    await slots.cancel_all()


async def test_retries_enter_ahead_of_the_queue() -> None:
    slots = Slots(1)
    for name in "abc":
        await slots.enter(name)
    await slots.enter("again", first=True)
    for _ in range(3):
        await slots.leave()
    assert slots.entered == ["a", "again", "b", "c"]


async def test_a_larger_gate_lets_the_waiting_in_at_once_and_a_smaller_one_waits_for_room() -> None:
    slots = Slots(1)
    for name in "abcde":
        await slots.enter(name)
    slots.gate.resize(4)
    await settled()
    assert slots.entered == list("abcd")
    slots.gate.resize(2)
    await slots.leave()
    await slots.leave()
    assert slots.entered == list("abcd")
    await slots.leave()
    assert slots.entered == list("abcde")


async def test_who_gives_up_waiting_takes_no_slot() -> None:
    slots = Slots(1)
    for name in "abc":
        await slots.enter(name)
    slots.tasks["b"].cancel()
    await settled()
    await slots.leave()
    assert slots.entered == ["a", "c"]
    await slots.leave()
    assert slots.gate.in_flight == 0


async def test_a_slot_that_comes_together_with_the_cancellation_is_passed_on() -> None:
    slots = Slots(1)
    for name in "abc":
        await slots.enter(name)
    slots.gate.leave()  # b has it now, and has not run yet
    slots.tasks["b"].cancel()
    await settled()
    assert slots.entered == ["a", "c"]
    assert slots.gate.in_flight == 1


# The level, at a queueing server in simulated time.


async def load(gate: Gate, adaptive: Adaptive, server: QueueingServer, until: float) -> None:
    """Always more work than slots."""

    async def worker() -> None:
        while now() < until:
            await gate.enter()
            try:
                adaptive.replied(await server.ask())
            finally:
                gate.leave()

    workers = [asyncio.ensure_future(worker()) for _ in range(128)]
    await asyncio.sleep(until - now())
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


SETTLE, HOLD = 20.0, 40.0  # seconds to find the level, and of measuring


def test_throughput_is_within_a_tenth_of_the_best_before_and_after_the_server_shrinks() -> None:
    """The best is knee / service time; a queue much longer than the knee helps nobody."""

    async def main() -> None:
        server = QueueingServer(knee=32)
        gate = Gate(1)
        adaptive = Adaptive(gate, most=1024)
        mean = 0.5 * 1.032  # of the lognormal
        await load(gate, adaptive, server, SETTLE + HOLD)
        assert server.throughput(SETTLE, SETTLE + HOLD) >= 0.9 * 32 / mean
        assert 24 <= gate.limit <= 2.5 * 32
        server.resize(8)
        start = now() + SETTLE
        await load(gate, adaptive, server, start + HOLD)
        assert server.throughput(start, start + HOLD) >= 0.9 * 8 / mean
        assert gate.limit <= 4 * 8

    virtual_time.run(main())


def test_it_never_asks_for_more_than_it_may() -> None:
    async def main() -> list[int]:
        server, gate = QueueingServer(knee=1000), Gate(1)
        adaptive = Adaptive(gate, most=50)
        limits = []
        loading = asyncio.ensure_future(load(gate, adaptive, server, 30))
        while not loading.done():
            limits.append(gate.limit)
            await asyncio.sleep(0.1)
        return limits

    limits = virtual_time.run(main())
    assert max(limits) == 50
    assert limits[-1] >= 40


# The level, step by step.


def window(gate: Gate, adaptive: Adaptive, latency: float) -> None:
    """As many replies as close a window, with all slots in use."""
    gate.in_flight = gate.limit
    for _ in range(2 * gate.limit + 2):
        adaptive.replied(latency)


def test_it_starts_low_and_doubles_while_latency_stays() -> None:
    gate = Gate(1)
    adaptive = Adaptive(gate, most=1024)
    levels = [gate.limit]
    for _ in range(4):
        before = gate.limit
        while gate.limit == before:
            gate.in_flight = gate.limit
            adaptive.replied(0.5)
        levels.append(gate.limit)
    assert levels == [START, 2 * START, 4 * START, 8 * START, 16 * START]


def test_a_ceiling_below_the_start_holds() -> None:
    gate = Gate(1)
    Adaptive(gate, most=3)
    assert gate.limit == 3


@pytest.mark.parametrize("latency", [0.0, 1e-9, 0.0005])
def test_a_server_of_under_a_millisecond_is_no_queue_and_no_error(latency: float) -> None:
    """The loop's clock counts milliseconds, so that such latencies are 0 or noise."""
    gate = Gate(1)
    adaptive = Adaptive(gate, most=256)
    for number in range(40):
        window(gate, adaptive, latency if number % 3 else 0.0)
    assert gate.limit == 256


def test_growth_ends_at_the_first_sign_of_a_queue() -> None:
    gate = Gate(1)
    adaptive = Adaptive(gate, most=1024)
    window(gate, adaptive, 0.5)
    before = gate.limit
    for _ in range(20):
        window(gate, adaptive, 2.0)
    assert gate.limit < before


def test_slots_that_nobody_uses_are_no_reason_for_more() -> None:
    gate = Gate(1)
    adaptive = Adaptive(gate, most=1024)
    gate.in_flight = 1
    for _ in range(500):
        adaptive.replied(0.5)
    assert gate.limit == START


def test_an_overload_cuts_once_a_window_and_never_below_one() -> None:
    gate = Gate(1)
    adaptive = Adaptive(gate, most=1024)
    for _ in range(50):
        adaptive.overloaded()
    assert gate.limit == pytest.approx(START * CUT, abs=1)
    for _ in range(50):
        adaptive.overloaded()
        gate.in_flight = 0
        for _ in range(30):
            adaptive.replied(5.0)
    assert gate.limit >= FLOOR
