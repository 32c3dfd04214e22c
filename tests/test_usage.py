"""What a reply says that it cost is read under anybody's names, and believed only where it can be."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from engine.provider.responses import claim_in, read_reply
from engine.provider.usage import NO_CLAIM, Claim, believed, read_claim
from store.records import Usage


def chat(usage: object) -> bytes:
    choice = {"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    return orjson.dumps({"choices": [choice], "usage": usage})


@pytest.mark.parametrize(
    ("given", "claim"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2}, Claim(9, 2)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}, Claim(9, 2)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 999}, Claim(9, 990)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 3}, Claim(9, 2)),
        ({"prompt_tokens": 9, "total_tokens": 12}, Claim(9, 3)),
        ({"prompt_tokens": 9}, Claim(9, None)),
        ({"prompt_tokens": 9, "completion_tokens": None}, Claim(9, None)),
        ({"input_tokens": 9, "output_tokens": 2}, Claim(9, 2)),
        ({"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 61}, Claim(9, 52)),
        (
            {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
            Claim(9, 2, 4),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 4}, Claim(9, 2, 4)),
        (
            {
                "input_tokens": 9,
                "output_tokens": 2,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 7,
            },
            Claim(116, 2, 100, 7),
        ),
        ({"prompt_tokens": 116, "completion_tokens": 2, "cache_read_input_tokens": 100}, Claim(116, 2, 100)),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 8,
                "completion_tokens_details": {"reasoning_tokens": 6},
            },
            Claim(9, 8, reasoning=6),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 2,
                "completion_tokens_details": {"reasoning_tokens": 50},
            },
            Claim(9, 52, reasoning=50),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}, Claim(9, 2)),
        (
            {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 99}},
            Claim(9, 2, 9),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": -1}},
            Claim(9, 2),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 2, "cost": 0.00021}, Claim(9, 2, cost_micro=210)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "cost": "much"}, Claim(9, 2)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "cost": -1}, Claim(9, 2)),
        ({"prompt_tokens": 9.0, "completion_tokens": 2.0}, Claim(9, 2)),
        ({"prompt_tokens": 9.5, "completion_tokens": 2}, Claim(10, 2)),
        ({"prompt_tokens": "9", "completion_tokens": 2}, Claim(9, 2)),
        ({"prompt_tokens": None, "completion_tokens": 2}, Claim(None, 2)),
        ({"prompt_tokens": True, "completion_tokens": 2}, Claim(None, 2)),
        ({"prompt_tokens": -9, "completion_tokens": -2}, Claim(None, None)),
        ({"prompt_tokens": 9, "completion_tokens": {"n": 2}}, Claim(9, None)),
        ({"prompt_tokens": 2**63, "completion_tokens": 2**64 - 1}, Claim(None, None)),  # no column holds it
        (None, NO_CLAIM),
        ({}, NO_CLAIM),
        ([], NO_CLAIM),
        ("9", NO_CLAIM),
    ],
    ids=repr,
)
def test_a_claim_is_read_under_anybody_s_names(given: Any, claim: Claim) -> None:
    assert read_claim(given) == claim
    assert read_reply(chat(given)).claim == claim
    assert claim_in(chat(given)) == claim


def test_a_claim_is_found_in_a_body_that_is_not_a_reply() -> None:
    assert claim_in(b'{"usage":{"prompt_tokens":9,"completion_tokens":2}}') == Claim(9, 2)
    for raw in (b"", b"[]", b"null", b"<html>", b"\xff", b"[" * 100_000):
        assert claim_in(raw) == NO_CLAIM


PROMPT, SIZE, BOUND, WRITTEN = 50, 400, 512, 120  # our count, bytes of the request, its bound, our count


@pytest.mark.parametrize(
    ("claim", "usage", "estimated"),
    [
        (Claim(60, 130), Usage(60, 130), False),
        (Claim(60, 130, 10, 5, 100), Usage(60, 130, 10, 100, 5), False),
        (NO_CLAIM, Usage(PROMPT, WRITTEN), True),
        (Claim(0, 0), Usage(PROMPT, WRITTEN), True),  # zero is not believed where there is text
        (Claim(60, None), Usage(60, WRITTEN), True),
        (Claim(60, 0), Usage(60, WRITTEN), True),
        (Claim(None, 130), Usage(PROMPT, 130), True),
        (Claim(60, 1_000_000_000 - 1), Usage(60, WRITTEN), True),  # more than any model writes
        (Claim(90_000_000, 130), Usage(PROMPT, 130), True),  # more tokens than the request has bytes
        (Claim(60, 40_000), Usage(60, 40_000), False),  # thinking may stand beside the bound
    ],
    ids=repr,
)
def test_a_claim_is_believed_where_it_can_be(claim: Claim, usage: Usage, estimated: bool) -> None:
    assert believed(claim, PROMPT, SIZE, BOUND, lambda: WRITTEN) == (usage, estimated)


@pytest.mark.parametrize(("told", "booked"), [(1, WRITTEN), (29, WRITTEN), (30, 30), (90, 90)])
def test_far_fewer_tokens_than_the_text_has_are_not_believed(told: int, booked: int) -> None:
    usage, estimated = believed(Claim(60, told), PROMPT, SIZE, BOUND, lambda: WRITTEN, characters=2000)
    assert (usage, estimated) == (Usage(60, booked), told != booked)


def test_a_short_text_of_few_tokens_is_believed_without_counting() -> None:
    def count() -> int:
        raise AssertionError

    assert believed(Claim(60, 1), PROMPT, SIZE, BOUND, count, characters=32) == (Usage(60, 1), False)


def test_a_reply_without_a_text_may_have_cost_nothing() -> None:
    assert believed(Claim(60, 0), PROMPT, SIZE, BOUND, lambda: 0) == (Usage(60, 0), False)
