"""Money is whole micro-dollars: exact for what was used, never too little for what may be."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.provider.pricing import FREE, Price, Prices, given_price, is_loopback, told_cost
from store.records import Usage

usd = st.integers(0, 600_000).map(lambda n: Decimal(n) / 1000)
counts = st.integers(0, 20) | st.integers(0, 2_000_000)


def first(pair: tuple[int, Price]) -> int:
    return pair[0]


def price(prompt: str, completion: str, cached: str | None = None) -> Price:
    return Price(Decimal(prompt), Decimal(completion), Decimal(cached or prompt))


# What a reply costs.


def test_a_dollar_a_million_tokens_is_a_micro_dollar_a_token() -> None:
    assert price("30", "60").cost(Usage(1000, 500)) == 30 * 1000 + 60 * 500


def test_cached_tokens_cost_their_own_price_and_are_counted_once() -> None:
    assert price("2.5", "10", "1.25").cost(Usage(1000, 100, cached_tokens=600)) == 1000 + 750 + 1000


def test_tokens_written_to_a_cache_cost_their_own_price() -> None:
    it = Price(Decimal(4), Decimal(20), Decimal("0.4"), Decimal(5))
    usage = Usage(1000, 10, cached_tokens=300, cache_write_tokens=200)
    assert it.cost(usage) == 500 * 4 + 120 + 200 * 5 + 200
    assert it.worst(1000, 10) == 1000 * 5 + 200


def test_a_cache_that_holds_more_than_the_prompt_is_not_believed() -> None:
    it = Price(Decimal(4), Decimal(0), Decimal("0.4"), Decimal(5))
    assert it.cost(Usage(100, 0, cached_tokens=900, cache_write_tokens=900)) == 40
    assert it.cost(Usage(100, 0, cached_tokens=60, cache_write_tokens=60)) == 24 + 200


def test_all_of_a_long_prompt_s_request_costs_the_price_of_its_length() -> None:
    it = Price(Decimal(1), Decimal(10), Decimal("0.1"), steps=((200_000, price("2", "15", "0.2")),))
    assert it.cost(Usage(200_000, 100)) == 200_000 + 1000
    assert it.cost(Usage(200_001, 100, cached_tokens=100_000)) == 100_001 * 2 + 20_000 + 1500
    assert it.worst(200_001, 100) == 400_002 + 1500


def test_a_fee_for_each_request_is_paid_by_those_that_used_something() -> None:
    it = Price(Decimal(1), Decimal(1), Decimal(1), request=Decimal(5000))
    assert it.cost(Usage(10, 10)) == it.worst(10, 10) == 5020
    assert it.cost(Usage()) == 0
    assert not Price(Decimal(0), Decimal(0), Decimal(0), request=Decimal(1)).free


def test_reasoning_tokens_are_part_of_the_completion() -> None:
    assert price("1", "8").cost(Usage(10, 100, reasoning_tokens=90)) == 10 + 800


@pytest.mark.parametrize(("tokens", "cost"), [(1, 0), (3, 0), (4, 1), (10, 2), (13, 2), (14, 2)])
def test_a_fraction_of_a_micro_dollar_is_rounded_half_up(tokens: int, cost: int) -> None:
    assert price("0.15", "0").cost(Usage(tokens, 0)) == cost


@given(usd, usd, counts, counts)
def test_the_cost_is_within_half_a_micro_dollar_of_the_exact_one(
    prompt: Decimal, completion: Decimal, used: int, said: int
) -> None:
    exact = Fraction(prompt) * used + Fraction(completion) * said
    assert abs(Price(prompt, completion, prompt).cost(Usage(used, said)) - exact) <= Fraction(1, 2)


flat = st.builds(Price, usd, usd, usd, st.none() | usd, usd)
steps = st.lists(st.tuples(st.integers(1, 300_000), flat), max_size=3).map(
    lambda s: tuple(sorted(s, key=first))
)
prices = st.builds(Price, usd, usd, usd, st.none() | usd, usd, steps)


@given(prices, counts, counts, st.data())
def test_no_reply_costs_more_than_the_most_that_it_could(
    it: Price, longest: int, most: int, data: st.DataObject
) -> None:
    """Else a budget could be passed: whatever is cached, and whatever length the prompt turns out to have."""
    used = data.draw(st.integers(0, longest))
    said, read, written = (data.draw(st.integers(0, n)) for n in (most, used, used))
    assert it.worst(longest, most) >= it.cost(Usage(used, said, read, 0, written))


@given(usd, usd, counts, counts)
def test_the_most_that_a_request_can_cost_is_rounded_up(
    prompt: Decimal, completion: Decimal, used: int, most: int
) -> None:
    exact = Fraction(prompt) * used + Fraction(completion) * most
    assert exact <= Price(prompt, completion, prompt).worst(used, most) < exact + 1


def test_what_is_free_costs_nothing() -> None:
    assert FREE.free
    assert FREE.cost(Usage(10**6, 10**6)) == FREE.worst(10**6, 10**6) == 0
    assert not price("0", "0.001").free


# Prices that the user gives.


def test_given_prices_are_taken_as_given() -> None:
    assert given_price(0.1, 0.2) == price("0.1", "0.2")  # Decimal(0.1) would not be
    assert given_price(0, 0) == FREE


def test_one_given_price_leaves_the_other_free() -> None:
    assert given_price(2.0, None) == price("2.0", "0")
    assert given_price(None, 2.0) == price("0", "2.0")


def test_without_given_prices_there_is_none() -> None:
    assert given_price(None, None) is None


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://localhost:8080/v1", True),
        ("http://api.localhost/v1", True),
        ("http://127.0.0.1", True),
        ("http://127.8.9.1:1/v1", True),
        ("http://[::1]:8080/v1", True),
        ("https://api.openai.com/v1", False),
        ("http://10.0.0.1/v1", False),
        ("http://0.0.0.0/v1", False),
        ("http://localhost.example.com/v1", False),
        ("http://127.0.0.1.example.com/v1", False),
        ("", False),
    ],
)
def test_only_this_machine_is_loopback(url: str, loopback: bool) -> None:
    assert is_loopback(url) == loopback


@given(usd, usd)
def test_more_tokens_never_cost_less(prompt: Decimal, completion: Decimal) -> None:
    assume(prompt or completion)
    it = Price(prompt, completion, prompt)
    costs = [it.cost(Usage(n, n)) for n in (0, 1, 10, 1000, 1001)]
    assert costs == sorted(costs)
    assert costs[0] == 0


# Tiers, hours, and what servers say that they charged.

TIERS = {"default": price("2", "10"), "flex": price("1", "5"), "priority": price("4", "20")}
ONE = Usage(1000, 100)
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC).timestamp()


def tiered(asked: str = "default", clock: float = NOON) -> Prices:
    return Prices("listed", lambda tier, _: TIERS.get(tier), asked, lambda: clock)


@pytest.mark.parametrize(
    ("asked", "named", "billed"),
    [
        ("default", None, 3000),
        ("default", "default", 3000),
        ("default", "standard", 3000),
        ("default", "priority", 6000),  # a project may be set to it
        ("flex", "flex", 1500),
        ("flex", "Flex ", 1500),
        ("flex", "default", 3000),
        ("flex", None, 3000),  # this server does not know tiers
        ("priority", "default", 3000),  # put back for want of room
        ("priority", None, 6000),
        ("default", "ultrafast", 6000),  # a tier that the list does not know
    ],
)
def test_a_reply_costs_the_price_of_the_tier_that_it_names(
    asked: str, named: str | None, billed: int
) -> None:
    assert tiered(asked).cost(ONE, named) == billed
    assert tiered(asked).bill(ONE, named, None, 1000, 100).cost == billed


def test_the_price_that_is_estimated_with_is_that_of_the_tier_that_is_asked_for() -> None:
    assert tiered("flex").asked == TIERS["flex"]
    assert tiered("auto").asked == TIERS["default"]


def test_a_tier_that_replies_name_is_set_aside_for_from_then_on() -> None:
    it = tiered()
    assert it.worst(1000, 100) == 3000
    it.bill(ONE, "priority", None, 1000, 100)
    assert it.worst(1000, 100) == 6000


def test_for_a_cheaper_tier_the_usual_price_is_set_aside() -> None:
    """The server may not know the tier."""
    assert tiered("flex").worst(1000, 100) == 3000


def test_a_price_that_depends_on_the_hour_is_billed_as_of_now_and_set_aside_at_its_dearest() -> None:
    at, night = [NOON], price("1", "10")
    it = Prices(
        "listed", lambda _, t: TIERS["default"] if 9 <= t.hour < 17 else night, "default", lambda: at[0]
    )
    assert it.cost(ONE) == 3000
    at[0] += 8 * 3600
    assert it.cost(ONE) == 2000
    assert it.worst(1000, 100) == 3000


def test_what_a_server_says_that_it_charged_is_believed_and_ours_is_kept() -> None:
    bill = tiered().bill(ONE, None, 2500, 1000, 100)
    assert (bill.cost, bill.own) == (2500, 3000)


@pytest.mark.parametrize("told", [None, 0, 10**9])
def test_a_cost_that_cannot_be_is_not_believed(told: int | None) -> None:
    assert tiered().bill(ONE, None, told, 1000, 100).cost == 3000


def test_a_cost_of_nothing_is_believed_where_the_list_says_so_too() -> None:
    assert Prices.of_one(FREE).bill(ONE, None, 0, 1000, 100).cost == 0


def test_a_server_that_charges_more_than_the_list_is_set_aside_for_from_then_on() -> None:
    it = tiered()
    short = Usage(1000, 10)
    assert it.bill(short, None, 3150, 1000, 100).cost == 3150  # the list: 2100
    assert it.worst(1000, 100) == 4500
    it.bill(ONE, None, 1000, 1000, 100)
    assert it.worst(1000, 100) == 4500


@pytest.mark.parametrize("replies", [1, 20])
def test_a_prompt_that_is_billed_longer_than_it_was_counted_is_set_aside_for_from_then_on(
    replies: int,
) -> None:
    """A server's own words before ours; however many replies were under way by then."""
    it = tiered()
    for _ in range(replies):
        it.bill(Usage(2000, 100), None, None, 1000, 100)
    assert 5000 <= it.worst(1000, 100) <= 5001


def test_a_local_server_that_tells_a_cost_is_a_gateway_and_its_cost_counts() -> None:
    it = Prices.of_one(FREE)
    assert it.bill(ONE, None, 700, 1000, 100).cost == 700
    assert it.worst(1000, 100) == 700


@given(
    st.sampled_from(["default", "flex", "priority"]),
    st.lists(st.sampled_from([None, "", "default", "flex", "priority", "scale", "new"]), max_size=5),
    st.integers(0, 10**6),
    st.integers(0, 10**5),
    st.data(),
)
def test_once_the_tiers_are_known_no_reply_costs_more_than_was_set_aside(
    asked: str, named: list[str | None], longest: int, most: int, data: st.DataObject
) -> None:
    it = tiered(asked)
    for tier in named:
        it.bill(Usage(), tier, None, 0, 0)
    usage = Usage(data.draw(st.integers(0, longest)), data.draw(st.integers(0, most)))
    for tier in {None, "default", asked, *named}:
        assert it.worst(longest, most) >= it.cost(usage, tier)


@pytest.mark.parametrize(
    ("usage", "micro"),
    [
        ({"cost": 0.0123}, 12_300),
        ({"cost": 0}, 0),
        ({"cost": "0.000415"}, 415),
        ({"cost": 1e-05}, 10),
        ({"cost": 0.002, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.002}}, 2000),
        ({"cost": 0.0001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.002}}, 2100),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
        ({"cost": 0, "is_byok": True}, None),
        ({"cost": {"input_tokens_cost": 0.001, "total_cost": 0.006}}, 6000),
        ({"cost_in_usd_ticks": 2_709_000}, 271),
        ({}, None),
        ({"cost": None}, None),
        ({"cost": True}, None),
        ({"cost": -0.1}, None),
        ({"cost": float("nan")}, None),
        ({"cost": float("inf")}, None),
        ({"cost": "much"}, None),
        ({"cost": [0.1]}, None),
        ({"cost": 1e300}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_cost_in_a_reply_s_usage_is_read(usage: object, micro: int | None) -> None:
    assert told_cost(usage) == micro


def test_the_cost_in_a_gateway_s_header_is_read() -> None:
    assert told_cost({}, {"x-litellm-response-cost": "0.000415"}) == 415
    assert told_cost({"cost": 0.5}, {"x-litellm-response-cost": "0.1"}) == 500_000
    assert told_cost(None, {"x-litellm-response-cost": "None"}) is None
