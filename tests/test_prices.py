"""Money is whole micro-dollars: exact for what was used, never too little for what may be."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.price_list import known_price
from engine.prices import FREE, Price, given_price, is_loopback
from store.records import Usage

LOCAL = "http://127.0.0.1:8080/v1"
OPENAI = "https://api.openai.com/v1"

usd = st.integers(0, 600_000).map(lambda n: Decimal(n) / 1000)
counts = st.integers(0, 20) | st.integers(0, 2_000_000)


def price(prompt: str, completion: str, cached: str | None = None) -> Price:
    return Price(Decimal(prompt), Decimal(completion), Decimal(cached or prompt))


# What a reply costs.


def test_a_dollar_a_million_tokens_is_a_micro_dollar_a_token() -> None:
    assert price("30", "60").cost(Usage(1000, 500)) == 30 * 1000 + 60 * 500


def test_cached_tokens_cost_their_own_price_and_are_counted_once() -> None:
    assert price("2.5", "10", "1.25").cost(Usage(1000, 100, cached_tokens=600)) == 1000 + 750 + 1000


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


@given(usd, usd, counts, counts, st.data())
def test_no_reply_costs_more_than_the_most_that_it_could(
    prompt: Decimal, completion: Decimal, used: int, most: int, data: st.DataObject
) -> None:
    """Else a budget could be passed. Cached tokens are never dearer than fresh ones."""
    cached = prompt / 2
    reply = Usage(used, data.draw(st.integers(0, most)), data.draw(st.integers(0, used)))
    it = Price(prompt, completion, cached)
    assert it.worst(used, most) >= it.cost(reply)


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


# Prices from the list.


@pytest.mark.parametrize(
    ("model", "prompt", "completion"),
    [
        ("gpt-4", "30", "60"),
        ("gpt-4o", "2.5", "10"),
        ("gpt-4o-mini", "0.15", "0.6"),
        ("gpt-3.5-turbo", "0.5", "1.5"),
    ],
)
def test_models_of_openai_have_their_list_price(model: str, prompt: str, completion: str) -> None:
    found = known_price(model, OPENAI)
    assert found is not None
    assert (found.prompt, found.completion) == (Decimal(prompt), Decimal(completion))
    assert found.cached <= found.prompt


def test_the_batch_api_costs_half() -> None:
    online, batch = known_price("gpt-4o", OPENAI), known_price("gpt-4o", OPENAI, batch=True)
    assert online is not None
    assert batch is not None
    assert (batch.prompt * 2, batch.completion * 2) == (online.prompt, online.completion)


def test_nobody_knows_the_price_of_an_unheard_of_model() -> None:
    assert known_price("acme/unheard-of-9b", OPENAI) is None
    assert known_price("acme/unheard-of-9b", "https://llm.example.com/v1") is None


def test_a_model_on_this_machine_is_free() -> None:
    assert known_price("smollm2", LOCAL) == FREE
    assert known_price("meta-llama/Llama-3.1-8B-Instruct", LOCAL) == FREE


def test_a_model_of_openai_s_on_this_machine_is_taken_for_a_gateway() -> None:
    """A proxy to the real API must not pass for free; a name nobody knows is a local model."""
    assert known_price("gpt-4o", LOCAL) == known_price("gpt-4o", OPENAI)
    assert known_price("gpt-of-my-own", LOCAL) == FREE


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
