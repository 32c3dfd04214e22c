"""What a server says is read for its structure, and nothing that it says makes the reader crash."""

from __future__ import annotations

import math
import time
from email.utils import formatdate
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import (
    AskError,
    AuthRefused,
    BadReply,
    QuotaExhausted,
    RateLimited,
    RowRefused,
    RunStopped,
    ServerFault,
)
from engine.replies import (
    Limits,
    Reply,
    is_filtered,
    parse_duration,
    read_error,
    read_limits,
    read_reply,
    retry_after,
    usage_in,
)
from store.records import Usage


def chat(content: object = "Hello", finish: object = "stop", **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    return orjson.dumps({"model": "gpt-4-0613", "choices": [choice], "usage": usage, **more})


def error_body(message: object = "No.", code: object = None, kind: object = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "code": code, "type": kind}})


# Durations and headers.


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
    assert retry_after({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    assert retry_after({"retry-after-ms": "soon", "retry-after": "1"}) == 1


def test_retry_after_may_be_seconds_a_duration_or_a_date() -> None:
    assert retry_after({"retry-after": "20"}) == 20
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": "1m2s"}) == 62
    wait = retry_after({"retry-after": formatdate(time.time() + 100, usegmt=True)})
    assert wait == pytest.approx(100, abs=2)


def test_a_date_that_has_passed_means_now() -> None:
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0


@pytest.mark.parametrize(
    "headers", [{}, {"retry-after": ""}, {"retry-after": "soon"}, {"retry-after": "Wed, 99 Foo"}]
)
def test_without_a_readable_retry_after_there_is_none(headers: dict[str, str]) -> None:
    assert retry_after(headers) is None


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.sampled_from(
    ["nan", "inf", "-inf", "-1", "1e999", "0", "1_0", "٣", "1e-400", "99999999999999999999"]
)
dates = st.sampled_from(
    ["Mon, 01 Jan 0001 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 -1200", "1 Jan 99999 0:0 GMT"]
)


@given(words | numbers | dates, words | numbers)
def test_no_header_makes_a_wait_endless_negative_or_a_crash(after: str, after_ms: str) -> None:
    wait = retry_after({"retry-after": after, "retry-after-ms": after_ms})
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
    assert read_limits(headers, "requests") == Limits(60, 59, 1)
    assert read_limits(headers, "tokens") == Limits(150000, 149984, 360)


def test_limits_that_are_not_told_are_none() -> None:
    assert read_limits({}, "tokens") == Limits(None, None, None)
    headers = {"x-ratelimit-limit-tokens": "unlimited", "x-ratelimit-remaining-tokens": ""}
    assert read_limits(headers, "tokens") == Limits(None, None, None)


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e999", "-1", "-150000"])
def test_a_limit_is_a_number_that_can_be_counted_down_from(text: str) -> None:
    """-1 is how gateways write 'no limit'; taken as a number it would make the refill negative."""
    assert read_limits({"x-ratelimit-limit-tokens": text}, "tokens").limit is None


# Replies.


def test_a_reply_is_read() -> None:
    assert read_reply(chat()) == Reply("stop", "Hello", "stop", Usage(9, 2), "gpt-4-0613")


def test_only_the_first_choice_counts() -> None:
    body = orjson.loads(chat("first"))
    body["choices"].append(orjson.loads(chat("second"))["choices"][0])
    assert read_reply(orjson.dumps(body)).text == "first"


@pytest.mark.parametrize("text", [" x ", "\n\nanswer\n", "a\0b", "مرحبا", "👩‍👩‍👧‍👦", "x" * 1_000_000])
def test_the_text_is_kept_as_it_came(text: str) -> None:
    assert read_reply(chat(text)).text == text


def test_lone_surrogates_in_a_text_are_no_bad_reply() -> None:
    raw = chat("PLACE").replace(b"PLACE", rb"a\ud83d")
    assert read_reply(raw).text == "a\ud83d"


@pytest.mark.parametrize(
    ("content", "finish", "refusal", "outcome", "text"),
    [
        ("Hi", "stop", None, "stop", "Hi"),
        ("Hi", None, None, "stop", "Hi"),
        ("Hi", "eos", None, "stop", "Hi"),
        ("Hi", "length", None, "length", "Hi"),
        ("", "length", None, "length", ""),  # a reasoning model that spent all on thinking
        (None, "length", None, "length", ""),
        ("Hi", "content_filter", None, "content_filter", "Hi"),
        (None, "content_filter", None, "content_filter", ""),
        (None, "stop", "I can't help with that.", "refusal", "I can't help with that."),
        (None, "length", "I can't", "refusal", "I can't"),
        ("Hi", "stop", "", "stop", "Hi"),
    ],
)
def test_outcomes(content: object, finish: object, refusal: object, outcome: str, text: str) -> None:
    reply = read_reply(chat(content, finish, message={"refusal": refusal}))
    assert (reply.outcome, reply.text) == (outcome, text)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"<html>Bad gateway</html>", "not JSON"),
        (chat()[:-5], "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "cannot be read"),
        (b"{}", "no choice"),
        (b"[]", "no choice"),
        (b"null", "no choice"),
        (b'"text"', "no choice"),
        (b'{"choices":[]}', "no choice"),
        (b'{"choices":{}}', "no choice"),
        (b'{"choices":null}', "no choice"),
        (b'{"choices":[{}]}', "no choice"),
        (b'{"choices":[{"message":null}]}', "no choice"),
        (b'{"choices":["Hello"]}', "no choice"),
        (chat(None), "no text"),
        (chat(""), "no text"),
        (chat(" \n "), "no text"),
        (chat(["part"]), "no text"),
        (chat({"text": "x"}, "length"), "no text"),
        (error_body("Overloaded"), "status 200 with an error: Overloaded"),
        (b'{"error":"flat words"}', "flat words"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_reply_without_a_usable_text_is_a_bad_reply_that_keeps_the_raw(raw: bytes, words: str) -> None:
    with pytest.raises(BadReply, match=words) as caught:
        read_reply(raw)
    assert caught.value.raw == raw
    assert caught.value.cause == "malformed"
    assert caught.value.maybe_billed


# Usage.


@pytest.mark.parametrize(
    ("given", "usage"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2}, Usage(9, 2)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 999}, Usage(9, 2)),
        ({"prompt_tokens": 9}, Usage(9, 0)),
        ({"prompt_tokens": 9, "completion_tokens": None}, Usage(9, 0)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
            Usage(9, 2, 4),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "completion_tokens_details": {"reasoning_tokens": 1},
            },
            Usage(9, 2, 0, 1),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(9, 2)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": "4"},
            },
            Usage(9, 2),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 99},
            },
            Usage(9, 2, 9),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": -1},
            },
            Usage(9, 2),
        ),
        (None, None),
        ({}, None),
        ([], None),
        ("9", None),
        ({"prompt_tokens": None, "completion_tokens": 2}, None),
        ({"prompt_tokens": "9", "completion_tokens": 2}, None),
        ({"prompt_tokens": 9.5, "completion_tokens": 2}, None),
        ({"prompt_tokens": True, "completion_tokens": 2}, None),
        ({"prompt_tokens": -9, "completion_tokens": 2}, None),
        ({"prompt_tokens": 9, "completion_tokens": -2}, None),
        ({"prompt_tokens": 9, "completion_tokens": {"n": 2}}, None),
        ({"prompt_tokens": 2**63, "completion_tokens": 2}, None),  # no SQLite column holds it
        ({"prompt_tokens": 9, "completion_tokens": 2**64 - 1}, None),
    ],
    ids=repr,
)
def test_usage_is_believed_when_it_is_counts_and_left_out_when_not(
    given: object, usage: Usage | None
) -> None:
    raw = chat(usage=given)
    assert read_reply(raw).usage == usage
    assert usage_in(raw) == usage


def test_usage_is_found_in_a_reply_whose_text_cannot_be_used() -> None:
    assert usage_in(chat(None)) == Usage(9, 2)
    for raw in (b"", b"[]", b"null", b"<html>", b"\xff", b"[" * 100_000):
        assert usage_in(raw) is None


# Errors by status.


@pytest.mark.parametrize(
    ("status", "kind", "cause"),
    [
        (400, RowRefused, "bad_request"),
        (404, RowRefused, "not_found"),
        (413, RowRefused, "too_large"),
        (422, RowRefused, "bad_request"),
        (405, RowRefused, "bad_request"),
        (301, RowRefused, "bad_request"),
        (408, ServerFault, "server"),
        (409, ServerFault, "server"),
        (500, ServerFault, "server"),
        (502, ServerFault, "server"),
        (503, ServerFault, "server"),
        (529, ServerFault, "server"),
        (429, RateLimited, "rate_limit"),
    ],
)
def test_a_status_decides_the_error(status: int, kind: type[AskError], cause: str) -> None:
    error = read_error(status, {}, error_body("Sorry, no."))
    assert type(error) is kind
    assert isinstance(error, AskError)
    assert (error.cause, error.status, str(error)) == (cause, status, f"HTTP {status}: Sorry, no.")
    assert not error.maybe_billed


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_the_run_in_the_server_s_words(status: int) -> None:
    error = read_error(status, {}, error_body("Incorrect API key provided."))
    assert isinstance(error, AuthRefused)
    assert isinstance(error, RunStopped)
    assert str(error) == f"HTTP {status}: Incorrect API key provided."


@pytest.mark.parametrize(
    "body",
    [
        error_body("You exceeded your current quota", code="insufficient_quota"),
        error_body("You exceeded your current quota", kind="insufficient_quota"),
        error_body("Hard limit", code="billing_hard_limit_reached"),
    ],
)
def test_an_exhausted_quota_stops_the_run(body: bytes) -> None:
    assert isinstance(read_error(429, {}, body), QuotaExhausted)


def test_a_rate_limit_tells_the_wait_and_the_kind() -> None:
    body = error_body("Rate limit reached", code="rate_limit_exceeded", kind="tokens")
    error = read_error(429, {"retry-after-ms": "300"}, body)
    assert isinstance(error, RateLimited)
    assert (error.wait, error.kind) == (0.3, "tokens")
    plain = read_error(429, {}, b"slow down")
    assert isinstance(plain, RateLimited)
    assert (plain.wait, plain.kind, str(plain)) == (None, "", "HTTP 429: slow down")


def test_a_request_larger_than_the_limit_fails_at_once() -> None:
    words = "Request too large for gpt-4 on tokens per min (TPM): Limit 10000, Requested 12047."
    error = read_error(
        429, {"retry-after": "1"}, error_body(words, code="rate_limit_exceeded", kind="tokens")
    )
    assert isinstance(error, RowRefused)
    assert error.cause == "too_large"


@pytest.mark.parametrize("code", ["context_length_exceeded", "string_above_max_length"])
def test_a_prompt_longer_than_the_context_is_too_large(code: str) -> None:
    error = read_error(400, {}, error_body(code=code))
    assert isinstance(error, RowRefused)
    assert error.cause == "too_large"


def test_a_server_fault_tells_how_long_to_wait() -> None:
    error = read_error(503, {"retry-after": "30"}, b"")
    assert isinstance(error, ServerFault)
    assert error.wait == 30
    assert str(error) == "HTTP 503: no message"


@pytest.mark.parametrize(
    ("status", "code", "filtered"),
    [
        (400, "content_filter", True),
        (400, "content_policy_violation", True),
        (400, "invalid_request_error", False),
        (400, None, False),
        (500, "content_filter", False),
        (200, "content_filter", False),
    ],
)
def test_the_content_filter_s_400_is_told_from_others(status: int, code: str | None, filtered: bool) -> None:
    assert is_filtered(status, error_body(code=code)) == filtered


def test_a_long_message_is_cut() -> None:
    for body in (error_body("x" * 100_000), b"y" * 100_000):
        assert len(str(read_error(500, {}, body))) <= 520


# Nothing that a server may send crashes the reader, or what comes after it.

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | words
json_values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3), max_leaves=8
)


def some(*values: object) -> st.SearchStrategy[Any]:
    return st.sampled_from(values) | json_values


replies = st.fixed_dictionaries(
    {},
    optional={
        "choices": json_values
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "message": json_values
                    | st.fixed_dictionaries({}, optional={"content": some("Hi"), "refusal": some("No")}),
                    "finish_reason": some("stop", "length", "content_filter"),
                },
            ),
            max_size=2,
        ),
        "usage": json_values
        | st.fixed_dictionaries(
            {},
            optional={
                "prompt_tokens": some(1),
                "completion_tokens": some(2),
                "prompt_tokens_details": some({}),
            },
        ),
        "model": some("m"),
        "error": json_values | st.fixed_dictionaries({}, optional={"message": some("x"), "code": some("y")}),
    },
)
bodies = st.binary(max_size=50) | (replies | json_values).map(orjson.dumps)


def _read(raw: bytes) -> Reply | BadReply:
    try:
        return read_reply(raw)
    except BadReply as error:
        return error


@given(bodies)
def test_any_body_of_200_is_a_reply_or_a_bad_reply(raw: bytes) -> None:
    found = _read(raw)
    if isinstance(found, BadReply):
        assert found.raw == raw
    else:
        assert isinstance(found.text, str)
        assert usage_in(raw) == found.usage


@given(st.integers(300, 599), bodies, words | numbers)
def test_any_error_body_is_a_typed_error_with_words(status: int, raw: bytes, after: str) -> None:
    error = read_error(status, {"retry-after": after}, raw)
    assert str(error).startswith(f"HTTP {status}: ")
    assert isinstance(error, AskError | AuthRefused | QuotaExhausted)


CUT_EMOJI = rb"\ud83d"  # half of a surrogate pair: what a server makes that cuts by UTF-16 units


def test_half_an_emoji_in_an_error_can_be_stored_and_printed() -> None:
    raw = error_body("PLACE", "PLACE", "PLACE").replace(b"PLACE", b"too long: " + CUT_EMOJI)
    for status in (400, 401, 429, 500):
        str(read_error(status, {}, raw)).encode()
    with pytest.raises(BadReply) as caught:
        read_reply(raw)
    str(caught.value).encode()


def test_half_an_emoji_beside_the_text_can_be_stored() -> None:
    raw = chat("Hi", "PLACE", model="PLACE").replace(b"PLACE", CUT_EMOJI)
    reply = read_reply(raw)
    (reply.finish_reason + reply.model).encode()
