"""Usage as servers tell it, and what a row must then have cost: in micro-dollars, at the price of the flags
(MONEY) or at list prices (LISTED). Tokens that we count ourselves are not exact: the cost is a range."""

from __future__ import annotations

from typing import Any

from tests.support.dialects import COST, PRICE_IN, PRICE_OUT, Row, Sent, chat, refusal, reply, used

LONG = "word " * 200
LONG_COST = (150 * PRICE_OUT, 300 * PRICE_OUT)
SHORT_COST = (1, 2000)  # counted by us, and not nothing
EITHER = (1, 2001)  # read, or counted by us
AT_MOST = 512 * PRICE_OUT + 100 * PRICE_IN  # what a request can cost whose answer has 512 tokens


def costs(
    name: str, usage: Any, cost: int | tuple[int, int], text: str = "Fine.", listed: int | None = None
) -> Row:
    counted = {SHORT_COST: True, LONG_COST: True, COST: False}.get(cost)
    return Row(
        name, (reply(text, usage=usage),), "stop", 1, output=text, cost=cost, listed=listed, counted=counted
    )


MONEY = [
    costs("usage as the API has it", used(10, 5), COST),
    costs("a total above the sum (Gemini's thoughts)", used(10, 5) | {"total_tokens": 115}, 3250),
    costs(
        "reasoning beside completion tokens (xAI)",
        used(10, 5) | {"total_tokens": 115, "completion_tokens_details": {"reasoning_tokens": 100}},
        3250,
    ),
    costs("a total below the sum", used(10, 5) | {"total_tokens": 0}, COST),
    costs("zeros with a long text", used(0, 0), LONG_COST, LONG),
    costs(
        "no completion tokens with a long text", {"prompt_tokens": 10, "total_tokens": 10}, LONG_COST, LONG
    ),
    costs("completion tokens 0 with a long text", used(10, 0), LONG_COST, LONG),
    costs("no usage", ..., SHORT_COST),
    costs("usage null", None, SHORT_COST),
    costs("usage with nothing in it", {}, SHORT_COST),
    costs("usage as a string", "10 + 5", SHORT_COST),
    costs("usage in floats", used(10.0, 5.0), EITHER),
    costs("usage in strings", used("10", "5"), EITHER),
    costs("usage below zero", used(-10, -5), SHORT_COST),
    costs("usage with nulls", used(None, None), SHORT_COST),
    costs("input_tokens and output_tokens (Anthropic)", {"input_tokens": 10, "output_tokens": 5}, COST),
    costs(
        "both names at once",
        used(10, 5) | {"input_tokens": 10, "output_tokens": 5},
        COST,
    ),
    costs("a billion completion tokens", used(10, 10**9), (1, AT_MOST)),
    costs("a billion in total", used(10, 5) | {"total_tokens": 10**9}, (1, AT_MOST)),
    costs("a billion prompt tokens", used(10**9, 5), (1, AT_MOST)),
    costs("usage.cost (OpenRouter)", used(10, 5, cost=0.00123), 1230, listed=COST),
    costs("estimated_cost (DeepInfra)", used(10, 5, estimated_cost=0.00123), 1230, listed=COST),
    costs("usage.cost null", used(10, 5, cost=None), COST),
    costs("usage.cost below zero", used(10, 5, cost=-1), COST),
    costs("usage.cost of $5,000", used(10, 5, cost=5000.0), (1, AT_MOST)),
    costs("usage.cost as an object (Perplexity)", used(10, 5, cost={"total_cost": 0.006}), (COST, 6000)),
    costs("usage.cost 0 of a free model (OpenRouter)", used(10, 5, cost=0), (0, COST)),
    costs(
        "usage.cost with a key of one's own (OpenRouter)",  # the provider behind it bills apart
        used(10, 5, cost=0.00005, is_byok=True, cost_details={"upstream_inference_cost": 0.00123}),
        (1230, 1280),
    ),
    costs("cached tokens at one price", used(10, 5, prompt_tokens_details={"cached_tokens": 4}), COST),
    costs("more cached than there are", used(10, 5, prompt_tokens_details={"cached_tokens": 99}), COST),
]

WORDS = 985  # makes a prompt of about a thousand tokens, so that usage of a thousand can be believed


def listed(name: str, usage: Any, cost: int, **more: Any) -> Row:
    return Row(name, (reply("Fine.", usage=usage, **more),), "stop", 1, cost=cost, pad=WORDS)


CACHED = [  # gpt-4o: 2.50 in, 1.25 cached, 10 out
    listed("no cached tokens", used(1000, 5), 2550),
    listed("cached_tokens in the details", used(1000, 5, prompt_tokens_details={"cached_tokens": 800}), 1550),
    listed(
        "prompt_cache_hit_tokens (DeepSeek)",
        used(1000, 5, prompt_cache_hit_tokens=800, prompt_cache_miss_tokens=200),
        1550,
    ),
    listed("cached_tokens beside prompt_tokens (Moonshot)", used(1000, 5, cached_tokens=800), 1550),
]
WRITTEN = [  # claude-sonnet-4-5: 3 in, 0.30 read, 3.75 written, 15 out
    listed(
        "cached tokens within the prompt's (LiteLLM)",
        used(
            1100,
            5,
            cache_creation_input_tokens=200,
            cache_read_input_tokens=800,
            prompt_tokens_details={"cached_tokens": 800},
        ),
        1365,
    ),
    listed(
        "cached tokens beside input_tokens (Anthropic)",
        {
            "input_tokens": 100,
            "output_tokens": 5,
            "cache_creation_input_tokens": 200,
            "cache_read_input_tokens": 800,
        },
        1365,
    ),
]
TIERS = [  # gpt-5-mini: 0.25 in and 2 out, half of it as flex
    listed("flex as asked for", used(1000, 5), 130, service_tier="flex"),
    listed("default in place of flex", used(1000, 5), 260, service_tier="default"),
    Row(
        "flex after a 429 that costs nothing",
        (
            refusal(429, "Resource unavailable", "resource_unavailable"),
            Sent(chat(usage=used(1000, 5), service_tier="flex")),
        ),
        "stop",
        2,
        cost=130,
        retried="rate_limit",
        pad=WORDS,
    ),
]
LONG_PROMPT = [  # gemini-2.5-pro over 200,000 tokens: 2.50 in, 15 out
    Row("a long prompt", (reply("Fine.", usage=used(250_000, 10)),), "stop", 1, cost=625_150, pad=245_000)
]
LISTED: dict[str, tuple[tuple[object, ...], list[Row]]] = {
    "cached tokens": (("--model", "gpt-4o"), CACHED),
    "cached tokens written": (("--model", "claude-sonnet-4-5"), WRITTEN),
    "service tiers": (("--model", "gpt-5-mini", "--service-tier", "flex"), TIERS),
    "a price by the prompt's length": (("--model", "gemini-2.5-pro"), LONG_PROMPT),
    "a deployment's price": (("--model", "my-deployment", "--price-as", "gpt-4o"), CACHED[:2]),
    "a vendor's name on loopback": (("--model", "openai/gpt-4o"), CACHED[:2]),
}
