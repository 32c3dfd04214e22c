"""Which of three ways a provider charges is learnt; until then the dearest one is assumed."""

from __future__ import annotations

import pytest

from engine.limits.charging import Charge, Charging, RequestSize

SIZE = RequestSize(prompt=100, max_tokens=512)
USED, COMPLETION = 220, 120  # real usage


def believing(way: Charge) -> Charging:
    charging = Charging()
    charging.way = way
    return charging


def test_the_dearest_way_is_assumed_before_anything_is_known() -> None:
    assert Charging().expected(SIZE) == 612


@pytest.mark.parametrize(
    ("way", "reserved", "charged", "charged_if_failed"),
    [(Charge.UPFRONT, 612, 612, 612), (Charge.LARGER, 512, 512, 512), (Charge.ACTUAL, 416, 230, 0)],
)
def test_what_is_reserved_and_what_is_charged_in_the_end(
    way: Charge, reserved: float, charged: float, charged_if_failed: float
) -> None:
    charging = believing(way)
    charging.replied(SIZE, USED, COMPLETION)
    assert charging.expected(SIZE) == reserved
    assert charging.final(SIZE, 230) == charged
    assert charging.final(SIZE, None) == charged_if_failed


def test_a_long_prompt_is_the_larger() -> None:
    assert believing(Charge.LARGER).expected(RequestSize(2000, 512)) == 2000


def test_real_usage_is_expected_to_be_the_bound_until_replies_have_told() -> None:
    charging = believing(Charge.ACTUAL)
    assert charging.expected(SIZE) == 612
    charging.replied(SIZE, USED, COMPLETION)
    assert 220 < charging.expected(SIZE) < 612  # one short reply proves little
    for _ in range(2000):
        charging.replied(SIZE, USED, COMPLETION)
    assert charging.expected(SIZE) == pytest.approx(220, rel=0.01)


def test_the_mean_completion_follows_what_comes() -> None:
    charging = believing(Charge.ACTUAL)
    for completion in [100] * 500 + [300] * 1000:
        charging.replied(SIZE, 100 + completion, completion)
    assert charging.mean_completion == pytest.approx(300, rel=0.02)


def test_one_reply_that_used_all_of_its_bound_hardly_moves_the_mean() -> None:
    charging, size = believing(Charge.ACTUAL), RequestSize(100, 16_896)
    for completion in [1000] * 1000:
        charging.replied(size, 100 + completion, completion)
    charging.replied(size, 16_996, 16_896)
    assert charging.mean_completion == pytest.approx(1080, rel=0.01)


def test_a_request_without_a_bound_is_reserved_by_what_replies_were() -> None:
    free = RequestSize(100, 0)
    charging = Charging()
    assert charging.expected(free) == 612
    charging.replied(free, 150, 50)
    assert charging.expected(free) == 150


def test_a_server_without_headers_is_taken_to_charge_real_usage() -> None:
    charging = Charging()
    charging.silent()
    assert charging.way is Charge.ACTUAL


def test_429s_for_tokens_move_it_to_the_dearer_ways_where_no_header_speaks() -> None:
    charging = Charging()
    ways = []
    for _ in range(6):
        charging.silent()
        charging.limited()
        ways.append(charging.way)
    assert ways == [
        Charge.ACTUAL, Charge.LARGER, Charge.LARGER, Charge.UPFRONT, Charge.UPFRONT, Charge.UPFRONT,
    ]  # fmt: skip


def test_429s_do_not_move_it_where_headers_speak() -> None:
    charging = believing(Charge.LARGER)
    charging.heard(1000, 1000, 10, None, now=0.0)
    for _ in range(10):
        charging.limited()
    assert charging.way is Charge.LARGER


def test_one_silent_reply_among_headers_changes_nothing() -> None:
    charging = Charging()
    charging.heard(1000, 1000, 10, None, now=0.0)
    charging.silent()
    assert charging.way is Charge.UPFRONT


# Learning. A server with a bucket of a minute, at 10,000 tokens a second; requests of SIZE, evenly.

RATE, CEILING = 10_000.0, 600_000.0
COSTS = [(612.0, Charge.UPFRONT), (512.0, Charge.LARGER), (220.0, Charge.ACTUAL)]


def listen(
    charging: Charging,
    seconds: float,
    charge: float,
    level: float,
    start: float = 0.0,
    a_second: int = 10,
    early: bool = False,
) -> None:
    """Requests that cost `charge` each, answered a tenth of a second later, by a server whose headers tell
    the level at the reply, or at admission (`early`)."""
    now, ended, sent = start, start + seconds, []
    while now < ended:
        now += 1 / a_second
        level = min(CEILING, level + RATE / a_second - charge)
        sent.append((charging.sent(SIZE, now), level))
        if len(sent) > a_second // 10:
            levels, then = sent.pop(0)
            charging.replied(SIZE, USED, COMPLETION)
            charging.heard(then if early else level, CEILING, RATE, levels, now)


@pytest.mark.parametrize("early", [False, True], ids=["level at the reply", "level at admission"])
@pytest.mark.parametrize("start", list(Charge))
@pytest.mark.parametrize(("charge", "way"), COSTS)
def test_the_way_is_learnt_from_the_level_s_rise(
    charge: float, way: Charge, start: Charge, early: bool
) -> None:
    charging = believing(start)
    listen(charging, 10, charge, level=CEILING / 2, early=early)
    assert charging.way is way


@pytest.mark.parametrize(("charge", "way"), COSTS[::2])
def test_a_change_of_the_way_is_learnt_too(charge: float, way: Charge) -> None:
    charging = Charging()
    listen(charging, 20, 832.0 - charge, level=CEILING / 2)
    assert charging.way is not way
    listen(charging, 20, charge, level=CEILING / 2, start=20)
    assert charging.way is way


def test_a_bucket_that_stays_full_where_the_dearest_way_would_drain_it_tells_too() -> None:
    charging = Charging()
    listen(charging, 5, 220.0, level=CEILING, a_second=30)  # 18,360 tokens a second, or 6,600
    assert charging.way is Charge.ACTUAL


@pytest.mark.parametrize("early", [False, True])
def test_a_bucket_that_would_stay_full_either_way_tells_nothing(early: bool) -> None:
    charging = Charging()
    listen(charging, 20, 220.0, level=CEILING, early=early)
    assert charging.way is Charge.UPFRONT


def test_what_was_refused_counts_for_no_way() -> None:
    charging = Charging()
    charging.heard(CEILING, CEILING, RATE, None, 0.0)
    for tenth in range(100):
        now = tenth / 10
        levels = charging.sent(SIZE, now)
        if tenth % 2:
            charging.refused(SIZE)
        charging.heard(CEILING, CEILING, RATE, levels, now)
    assert charging.way is Charge.UPFRONT
