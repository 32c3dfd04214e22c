"""How long a server wants to be left alone, as anybody says it."""

from __future__ import annotations

import math
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.provider.retry_after import (
    RateHeaders,
    Wait,
    parse_duration,
    read_limits,
    seconds_until,
    wait_for,
)


def asked_wait(headers: dict[str, str]) -> float | None:
    return wait_for(headers, {}, "").seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("1s", 1),
        ("6m0s", 360),
        ("120ms", 0.12),
        ("1m30.951s", 90.951),
        ("1h2m3.5s", 3723.5),
        ("2d", 172800),
        ("1d4h", 100800),
        ("7m12s", 432),
        ("59.2", 59.2),
        ("60", 60),
        (" 20 ", 20),
        ("0", 0),
        ("-5", 0),
    ],
)
def test_durations_are_read_as_providers_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "1x", "1s later", "s", "--", "1.2.3", "5 minutes", "\0"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert parse_duration(text) is None


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e400", "9" * 400 + "s"])
def test_no_duration_is_endless_or_no_number(text: str) -> None:
    assert parse_duration(text) in (None, 0.0)


def test_retry_after_in_milliseconds_is_the_first_choice() -> None:
    assert asked_wait({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert asked_wait({"retry-after-ms": "soon", "retry-after": "1"}) == 1


def test_retry_after_may_be_seconds_a_duration_or_a_date() -> None:
    assert asked_wait({"retry-after": "20"}) == 20
    assert asked_wait({"retry-after": "1.5"}) == 1.5
    assert asked_wait({"retry-after": "1m2s"}) == 62
    wait = asked_wait({"retry-after": formatdate(time.time() + 100, usegmt=True)})
    assert wait == pytest.approx(100, abs=2)


def test_a_date_that_has_passed_means_now() -> None:
    assert asked_wait({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0


@pytest.mark.parametrize(
    "headers", [{}, {"retry-after": ""}, {"retry-after": "soon"}, {"retry-after": "Wed, 99 Foo"}]
)
def test_without_a_readable_retry_after_there_is_none(headers: dict[str, str]) -> None:
    assert asked_wait(headers) is None


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.sampled_from(
    ["nan", "inf", "-inf", "-1", "1e999", "0", "1_0", "٣", "1e-400", "99999999999999999999"]
)
dates = st.sampled_from(
    ["Mon, 01 Jan 0001 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -1200", "1 Jan 99999 0:0 GMT"]
)


@given(words | numbers | dates, words | numbers)
def test_no_header_makes_a_wait_endless_negative_or_a_crash(after: str, after_ms: str) -> None:
    wait = asked_wait({"retry-after": after, "retry-after-ms": after_ms})
    assert wait is None or (wait >= 0 and math.isfinite(wait))


def test_limits_are_read_for_each_resource() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert read_limits(headers)[0] == RateHeaders(60, 59, 1)
    assert read_limits(headers)[1] == RateHeaders(150000, 149984, 360)


def test_limits_that_are_not_told_are_none() -> None:
    assert read_limits({})[1] == RateHeaders(None, None, None)
    headers = {"x-ratelimit-limit-tokens": "unlimited", "x-ratelimit-remaining-tokens": ""}
    assert read_limits(headers)[1] == RateHeaders(None, None, None)


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e999", "-1", "-150000"])
def test_a_limit_is_a_number_that_can_be_counted_down_from(text: str) -> None:
    """-1 is how gateways write 'no limit'; taken as a number it would make the refill negative."""
    assert read_limits({"x-ratelimit-limit-tokens": text})[1].limit is None


@pytest.mark.parametrize(
    ("headers", "body", "message", "seconds"),
    [
        ({}, [{"error": {"details": [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "4s"}]}}], "", 4),
        ({}, {"error": {"retry_after": 2.5}}, "", 2.5),
        ({}, {"error": {"metadata": {"headers": {"Retry-After": "7"}}}}, "", 7),
        ({}, None, "Rate limit reached for gpt-4. Please try again in 1.2s. Visit us.", 1.2),
        ({}, None, "Please retry after 26 seconds.", 26),
        ({}, None, "Please try again in 6m0s.", 360),
        ({}, None, "Too many requests. Please wait 20 seconds and retry.", 20),
        ({}, None, "Please wait for 1 minute and 30 seconds before you retry", 90),
        ({"Retry-After": "3"}, {"error": {"retry_after": 9}}, "try again in 20s", 3),
        ({"x-ms-retry-after-ms": "250"}, None, "", 0.25),
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "0"}, None, "", 360),
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "12"}, None, "", None),
        ({}, None, "No.", None),
        ({}, None, "This model has 8192 tokens", None),
    ],
)
def test_a_wait_is_found_wherever_it_stands(
    headers: dict[str, str], body: object, message: str, seconds: float | None
) -> None:
    assert wait_for(headers, body, message).seconds == (None if seconds is None else pytest.approx(seconds))


def test_a_wait_may_be_a_moment_in_anybody_s_clock() -> None:
    in_a_minute = time.time() + 60
    iso = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(in_a_minute))
    body = {"error": {"metadata": {"headers": {"X-RateLimit-Reset": str(int(in_a_minute * 1000))}}}}
    for wait in (
        wait_for({}, body, ""),
        wait_for({"x-ratelimit-reset": str(int(in_a_minute))}, None, ""),
        wait_for({"anthropic-ratelimit-requests-reset": iso}, None, ""),
        Wait(seconds_until(iso)),
        Wait(seconds_until(formatdate(in_a_minute, usegmt=True))),
    ):
        assert wait.seconds == pytest.approx(60, abs=2)
        assert wait.is_short
