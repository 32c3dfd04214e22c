"""A bucket paces what is sent to what its server allows, and a day's window lets no more through."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.limits.bucket import BURST_SECONDS, DAY, PACE_RANGE, Bucket, DayWindow
from engine.provider.retry_after import RateHeaders

TELLS_NOTHING = RateHeaders(None, None, None)


def told(remaining: float, limit: float | None = None, reset: float | None = None) -> RateHeaders:
    return RateHeaders(limit, remaining, reset)


def sent_within(bucket: Bucket, cost: float, seconds: float, start: float = 0.0) -> int:
    """How many requests go when each goes as soon as it may."""
    now, count = start, 0
    while (now := now + max(bucket.wait(cost, now), 1e-9)) < start + seconds:
        if bucket.wait(cost, now) <= 0:
            bucket.take(cost, now)
            count += 1
    return count


# Without a limit, and by the declared one.


def test_without_a_limit_everything_passes() -> None:
    bucket = Bucket(None)
    for _ in range(100):
        assert bucket.wait(1e9, 0.0) == 0
        bucket.take(1e9, 0.0)


@pytest.mark.parametrize("per_minute", [1, 3, 60, 600, 5000])
def test_without_headers_the_pace_is_the_declared_limit(per_minute: float) -> None:
    """In any minute at most the limit and what a pause may save up."""
    bucket = Bucket(per_minute)
    assert sent_within(bucket, 1, 600) == pytest.approx(per_minute * 10, abs=1 + per_minute * 0.02)


def test_requests_go_evenly_and_not_in_a_burst_at_each_minute() -> None:
    bucket = Bucket(60)
    seconds = [sent_within(bucket, 1, 1, start=float(second)) for second in range(30)]
    assert max(seconds) <= 2
    assert sum(seconds) == pytest.approx(30, abs=1)


def test_a_pause_saves_up_a_moment_s_worth_only() -> None:
    bucket = Bucket(600)
    bucket.wait(1, 0.0)
    bucket.take(1, 0.0)
    burst = sent_within(bucket, 1, 0.001, start=3600.0)
    assert 1 <= burst <= 1 + 10 * BURST_SECONDS


def test_a_request_larger_than_a_minute_goes_into_debt() -> None:
    """It would never fit: it goes, and those behind it wait until the debt is paid."""
    bucket = Bucket(600)
    assert bucket.wait(5000, 0.0) == 0
    bucket.take(5000, 0.0)
    assert bucket.wait(1, 0.0) == pytest.approx(500, rel=0.01)
    assert bucket.wait(1, 501.0) == 0


def test_settling_gives_back_what_was_reserved_too_much() -> None:
    bucket = Bucket(600)
    bucket.wait(600, 0.0)
    sent = bucket.take(600, 0.0)
    assert bucket.wait(1, 0.0) == pytest.approx(60, rel=0.01)
    bucket.settle(sent, 100)
    assert bucket.wait(1, 0.0) == pytest.approx(10, rel=0.01)
    assert bucket.total == 100


def test_settling_twice_charges_once() -> None:
    bucket = Bucket(600)
    sent = bucket.take(600, 0.0)
    bucket.settle(sent, 100)
    bucket.settle(sent, 100)
    assert bucket.total == 100


# By the server's headers.


def test_the_limit_is_taken_from_headers() -> None:
    bucket = Bucket(None)
    sent = bucket.take(1, 0.0)
    bucket.observe(told(59, limit=60), sent, 1.0)
    assert bucket.limit == 60
    assert bucket.remaining == 59


def test_headers_may_lower_a_declared_limit_but_never_raise_it() -> None:
    for limit, wanted in ((30, 30), (90, 60)):
        bucket = Bucket(60)
        bucket.observe(told(limit - 1, limit), bucket.take(1, 0.0), 1.0)
        assert bucket.limit == wanted


def test_a_small_bucket_s_size_is_not_taken_for_its_limit() -> None:
    """A server with a bucket of one second may report 10 as 'limit' of 600 a minute."""
    bucket = Bucket(600)
    for n in range(5):
        bucket.observe(told(5, limit=10, reset=0.5), bucket.take(1, n), n + 0.1)
    assert bucket.limit == 600


def test_a_full_bucket_is_used_up_faster_than_it_refills_and_an_empty_one_is_spared() -> None:
    paces = []
    for remaining in (60, 30, 3, 0):
        bucket = Bucket(60)
        bucket.observe(told(60, limit=60), bucket.take(1, 0.0), 0.1)
        bucket.observe(told(remaining, limit=60), bucket.take(1, 1.0), 1.1)
        paces.append(bucket.pace(1.1))
    assert paces == sorted(paces, reverse=True)
    assert paces[0] == PACE_RANGE[1]
    assert paces[-1] < 1


def test_when_headers_say_that_nothing_is_left_a_request_waits_for_its_share() -> None:
    bucket = Bucket(60)
    bucket.observe(told(60, limit=60), bucket.take(1, 0.0), 0.1)
    bucket.observe(told(0, limit=60), bucket.take(1, 1.0), 1.1)
    assert bucket.wait(1, 1.1) > 0
    assert bucket.wait(10, 1.1) > bucket.wait(1, 1.1)


def test_what_was_sent_since_a_header_counts_against_it() -> None:
    bucket = Bucket(600)
    bucket.observe(told(600, limit=600), bucket.take(1, 0.0), 0.0)
    first = bucket.take(1, 1.0)
    for _ in range(100):
        bucket.take(1, 1.0)
    bucket.observe(told(100, limit=600), first, 1.5)  # as old as the request that brought it
    assert bucket.wait(1, 1.5) > 0


def test_replies_that_overtake_each_other_do_not_turn_the_picture_back() -> None:
    bucket = Bucket(60)
    old, new = bucket.take(1, 0.0), bucket.take(1, 5.0)
    bucket.observe(told(10), new, 6.0)
    bucket.observe(told(50), old, 7.0)
    assert bucket.remaining == 10


def test_headers_grow_stale() -> None:
    bucket = Bucket(60)
    bucket.observe(told(60, limit=60), bucket.take(1, 0.0), 0.0)
    assert bucket.pace(1.0) > 1
    assert bucket.pace(1000.0) == 1


def test_headers_that_tell_nothing_change_nothing() -> None:
    bucket = Bucket(60)
    bucket.observe(TELLS_NOTHING, bucket.take(1, 0.0), 1.0)
    assert (bucket.limit, bucket.remaining, bucket.pace(1.0)) == (60, None, 1.0)


# A day.


def test_a_day_s_limit_lets_that_many_through_and_then_waits_for_the_first_to_fall_out() -> None:
    window = DayWindow(100)
    for n in range(100):
        assert window.wait(1, n * 10.0) == 0
        window.add(1, n * 10.0)
    wait = window.wait(1, 1000.0)
    assert DAY - 1000 <= wait <= DAY - 1000 + 60
    assert window.wait(1, 1000.0 + wait) == 0


def test_without_a_day_s_limit_nothing_waits() -> None:
    window = DayWindow(None)
    window.add(1e12, 0.0)
    assert window.wait(1e12, 0.0) == 0


def test_more_than_a_day_s_limit_at_once_waits_for_an_empty_window_and_no_longer() -> None:
    window = DayWindow(100)
    assert window.wait(1000, 0.0) == 0
    window.add(1, 0.0)
    wait = window.wait(1000, 10.0)
    assert 0 < wait <= DAY + 60
    assert window.wait(1000, 10.0 + wait) == 0


def test_what_earlier_runs_sent_today_counts() -> None:
    """They lie before the loop's clock began."""
    window = DayWindow(10)
    window.add(10, -3600.0)
    assert window.wait(1, 0.0) == pytest.approx(DAY - 3600, abs=60)


def test_a_correction_gives_room_back() -> None:
    window = DayWindow(1000)
    window.add(1000, 0.0)
    assert window.wait(10, 1.0) > 0
    window.add(-600, 0.0)
    assert window.wait(10, 1.0) == 0


amounts = st.lists(st.tuples(st.floats(0, 7200), st.integers(1, 60)), min_size=1, max_size=60)


@given(amounts)
def test_no_24_hours_see_more_than_the_limit(steps: list[tuple[float, int]]) -> None:
    window, now, sent = DayWindow(100), 0.0, []
    for pause, amount in steps:
        now += pause
        now += window.wait(amount, now)
        assert window.wait(amount, now) <= 0
        window.add(amount, now)
        sent.append((now, amount))
    for start, _ in sent:
        assert sum(amount for at, amount in sent if start <= at < start + DAY) <= 100


@given(amounts)
def test_a_day_s_window_never_waits_longer_than_a_day(steps: list[tuple[float, int]]) -> None:
    window, now = DayWindow(100), 0.0
    for pause, amount in steps:
        now += pause
        assert 0 <= window.wait(amount, now) <= DAY + 60
        window.add(amount, now)


def test_a_window_keeps_a_number_a_minute_and_not_one_a_request() -> None:
    window, source = DayWindow(None), random.Random(3)
    for n in range(20_000):
        window.add(source.random(), n * 0.01)  # 200 seconds
    assert len(window._slots) <= 4
    assert window.used == pytest.approx(10_000, rel=0.05)
