"""What a line of a batch's results means, and what its files prove. Decisions, without I/O."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import chain
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch.client import Endless, Remote, Splitter, Text
from engine.batch.download import Glance, Results, strangers_in
from engine.batch.files import Damaged, Line, NotRun, Stranger, Unclear, read_line
from engine.provider.errors import BadReply, QuotaExhausted, RateLimited, RowRefused, ServerFault
from engine.provider.responses import Reply
from store.provider_batches import Enqueued

KEY = hashlib.sha256(b"one").digest()
REMOTE = Remote("batch_1", "completed", "file_1", None, None, 0, 20, (), ())


def output(**record: Any) -> bytes:
    return orjson.dumps({"id": "x", "custom_id": KEY.hex(), "response": None, "error": None} | record)


def response(status: int, body: object) -> bytes:
    return output(response={"status_code": status, "body": body})


GOOD = {
    "model": "gpt-4", "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    "choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}],
}  # fmt: skip


def test_a_line_with_a_reply_is_that_reply() -> None:
    line = read_line(response(200, GOOD))
    assert isinstance(line, Line)
    assert isinstance(line.meaning, Reply)
    assert (line.key, line.meaning.text, orjson.loads(line.raw)) == (KEY, "Yes.", GOOD)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (response(400, {"error": {"message": "No.", "code": None}}), RowRefused),
        (response(429, {"error": {"message": "Slow.", "code": "rate_limit_exceeded"}}), RateLimited),
        (response(429, {"error": {"message": "Poor.", "code": "insufficient_quota"}}), QuotaExhausted),
        (response(500, {"error": {"message": "Oh."}}), ServerFault),
        (response(500, None), ServerFault),
        (response(200, {"choices": [], "usage": GOOD["usage"]}), BadReply),
        (response(400, {"error": {"message": "No.", "code": "content_filter"}}), Reply),
        (output(error={"code": "batch_expired", "message": "Too late."}), NotRun),
        (output(error={"code": "batch_cancelled", "message": "Gone."}), NotRun),
        (output(error={"code": "server_error", "message": "Oh."}), ServerFault),
        (response(201, GOOD), Reply),
        (output(error="Oh."), ServerFault),
        (output(response=7, error=7), ServerFault),
        (output(response={"status_code": 200, "body": GOOD}, error={"code": None, "message": None}), Reply),
        (output(response={"status_code": 200, "body": GOOD}, error={}), Reply),
    ],
)
def test_a_line_means_what_an_online_reply_would(text: bytes, kind: type) -> None:
    line = read_line(text)
    assert isinstance(line, Line)
    assert line.key == KEY
    assert isinstance(line.meaning, kind), line.meaning


@pytest.mark.parametrize("body", [None, {}, "", "<html>", {"choices": []}, [1]])
def test_a_success_that_shows_neither_an_answer_nor_usage_is_damaged(body: object) -> None:
    line = read_line(response(200, body))
    assert isinstance(line, Damaged)
    assert line.key == KEY


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (output(), "neither a response nor an error"),
        (output(response={}, error={"code": None}), "neither a response nor an error"),
        (output(response={"status_code": 0, "body": None}), "status_code 0"),
        (output(response={"status_code": 302, "body": None}), "status_code 302"),
        (output(response={"status_code": True, "body": None}), "status_code True"),
        (output(response={"status_code": "many"}), "status_code many"),
        (output(response={"body": None}), "status_code None"),
        (output(response={"status_code": 500}, error={"message": "Oh."}), "Oh."),
        (output(response={"status_code": 400}, error={"error": {"code": 400, "message": "No."}}), "No."),
    ],
)
def test_a_line_that_does_not_say_what_became_of_its_request_is_no_answer(text: bytes, words: str) -> None:
    line = read_line(text)
    assert isinstance(line, Line)
    assert isinstance(line.meaning, Unclear)
    assert words in line.meaning.words


@pytest.mark.parametrize("status", [0, 200, 500, None])
def test_an_unclear_line_whose_reply_tells_its_usage_is_kept_with_it(status: int | None) -> None:
    line = read_line(output(response={"status_code": status, "body": GOOD}, error={"code": "x"}))
    assert isinstance(line, Line)
    assert isinstance(line.meaning, BadReply)
    assert orjson.loads(line.meaning.raw) == GOOD


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (response(200, GOOD)[:-20], KEY),
        (output() + b"}", KEY),
        (b"{}", None),
        (b"null", None),
        (b"<html>", None),
        (b"\x00\xff", None),
        (b'{"custom_id": 7}', None),
    ],
)
def test_a_line_that_cannot_be_read_is_no_result_and_may_show_whose_it_is(
    text: bytes, key: bytes | None
) -> None:
    line = read_line(text)
    assert isinstance(line, Damaged)
    assert line.key == key


def test_lines_of_nobody_and_of_others_are_told_apart() -> None:
    assert read_line(b"") is None
    assert read_line(b"  \r") is None
    assert isinstance(read_line(b'{"custom_id": "another"}'), Stranger)
    assert isinstance(read_line(b"\xef\xbb\xbf" + response(200, GOOD)), Line)


@given(st.binary(), st.integers(1, 9))
def test_however_a_file_comes_its_lines_are_the_same(raw: bytes, size: int) -> None:
    splitter, found = Splitter(), []
    for start in range(0, len(raw), size):
        found += splitter.feed(raw[start : start + size])
    rest = splitter.rest()
    *ended, last = raw.split(b"\n")
    assert found == [Text(line) for line in ended]
    assert rest == (Text(last, is_cut=True) if last else None)


def test_a_huge_line_is_held_by_its_start_only_and_an_endless_one_ends_the_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("MAX_REPLY_BYTES", 100), ("KEPT_BYTES", 10), ("MOST_SKIPPED", 1000)):
        monkeypatch.setattr(f"engine.batch.client.{name}", value)
    splitter = Splitter()
    assert list(splitter.feed(b"a" * 90 + b"b" * 90 + b"\nshort\n")) == [
        Text(b"a" * 10, is_long=True), Text(b"short"),
    ]  # fmt: skip
    with pytest.raises(Endless):
        list(chain.from_iterable(map(splitter.feed, [b"c" * 90] * 20)))


KEYS = [hashlib.sha256(bytes([n])).digest() for n in range(20)]


def of_batch(completed: int | None, failed: int = 0, status: str = "completed") -> Results:
    waiting = {key: Enqueued(n, n, key, 0, 1, 1, 0) for n, key in enumerate(KEYS)}
    counts = None if completed is None else failed
    remote = replace(REMOTE, status=status, output_file="file_2", completed=completed, failed=counts)
    return Results(len(KEYS), remote, waiting)


def lines(keys: list[bytes], **record: Any) -> list[bytes]:
    return [orjson.dumps({"custom_id": key.hex(), **record}) for key in keys]


def paid(keys: list[bytes]) -> list[bytes]:
    return lines(keys, response={"status_code": 200, "body": GOOD})


def refused(keys: list[bytes]) -> list[bytes]:
    return lines(keys, response={"status_code": 400, "body": {}})


def expired(keys: list[bytes]) -> list[bytes]:
    return lines(keys, error={"code": "batch_expired", "message": "Late."})


def doubt(results: Results, texts: list[bytes]) -> str | None:
    """What is doubted when these lines have been read, each answer stored as it came."""
    glance = Glance()
    for text in texts:
        if line := results.take(Text(text), glance):
            if isinstance(line.meaning, Reply):
                del results.waiting[line.key]
                results.held.pop(line.key, None)
            else:
                results.hold(line)
    return results.doubt(glance)


def test_what_the_provider_counts_as_completed_must_be_there_before_anything_counts_as_missing() -> None:
    assert doubt(of_batch(20), paid(KEYS)) is None
    assert "20 of its requests are completed, and its files show 19" in (
        doubt(of_batch(20), paid(KEYS[:19])) or ""
    )
    assert doubt(of_batch(19, 1), paid(KEYS[:19])) is None  # the one that failed has no line
    assert doubt(of_batch(15, 5), paid(KEYS[:15]) + refused(KEYS[15:])) is None
    assert doubt(of_batch(15, 5), paid(KEYS[:14]) + refused(KEYS[15:]))
    assert doubt(of_batch(20, 0), paid(KEYS[:14]) + refused(KEYS[14:])) is None


def test_an_expired_batch_need_not_show_what_it_did_not_execute() -> None:
    assert doubt(of_batch(10, 0, "expired"), paid(KEYS[:10])) is None
    assert doubt(of_batch(10, 2, "expired"), paid(KEYS[:9]) + refused(KEYS[10:12]) + expired(KEYS[12:]))
    assert doubt(of_batch(10, 0, "cancelled"), paid(KEYS[:9]) + expired(KEYS[10:]))
    assert doubt(of_batch(0, 0, "expired"), []) is None
    assert doubt(of_batch(None, status="expired"), paid(KEYS[:3])) is None


def test_a_batch_without_counts_or_without_any_result_is_doubted() -> None:
    assert doubt(of_batch(None), paid(KEYS)) is None
    assert doubt(of_batch(None), paid(KEYS[:19]))
    assert doubt(of_batch(0), [])
    assert doubt(of_batch(20), [b"<html>"])


def test_a_line_that_says_what_became_of_a_request_counts_over_one_that_does_not() -> None:
    neither, results = lines(KEYS[:1]), of_batch(19, 1)
    assert doubt(results, neither + paid(KEYS[1:]) + refused(KEYS[:1]) + neither) is None
    assert isinstance(results.held[KEYS[0]].meaning, RowRefused)
    results, unusable = of_batch(20), lines(KEYS[:1], response={"status_code": 200, "body": {}})
    assert doubt(results, unusable + paid(KEYS)) is None
    assert not results.waiting
    results = of_batch(20)
    assert doubt(results, neither + paid(KEYS) + neither) is None
    assert not results.held
    assert not results.waiting


def test_lone_surrogates_and_huge_numbers_survive() -> None:
    body = (
        b'{"choices": [{"message": {"content": "a\\ud800b"}, "finish_reason": "stop"}], "n": 1'
        + b"0" * 30
        + b"}"
    )
    line = read_line(
        b'{"custom_id":"' + KEY.hex().encode() + b'","response":{"status_code":200,"body":' + body + b"}}"
    )
    assert isinstance(line, Line)
    assert isinstance(line.meaning, Reply)


def test_lines_of_other_batches_are_counted_and_those_that_were_stored_before_are_not() -> None:
    results, glance = of_batch(20), Glance()
    for key in KEYS[:12]:  # stored by an earlier process
        del results.waiting[key]
    own = set(results.waiting)
    others = [hashlib.sha256(bytes([n, 1])).digest() for n in range(3)]
    for text in [*paid(others), *paid(KEYS), b'{"custom_id": "request-7"}']:
        results.take(Text(text), glance)
    assert strangers_in(glance, own, stored=12) == 4
    assert glance.found == 8
