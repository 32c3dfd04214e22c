"""A model has its vendor's price wherever it is served, at the length, tier and time that are billed."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage as ListUsage
from genai_prices.data import providers

from engine.provider.price_list import Entry, _listed, is_sold, known_prices
from engine.provider.pricing import FREE, LOCAL, Price, Prices
from store.errors import UsageError
from store.records import Usage

HERE = "http://127.0.0.1:8080/v1"
ELSEWHERE = "https://llm.example.com/v1"
OPENAI = "https://api.openai.com/v1"
AZURE = "https://mine.openai.azure.com/openai/v1"


def known_price(model: str, url: str | None, **how: object) -> Price | None:
    """Of the tier that is asked for, now."""
    prices = known_prices(model, url, **how)  # type: ignore[arg-type]
    return None if prices is None else prices.asked


def listed(model: str, url: str = OPENAI, **how: object) -> Price:
    found = known_price(model, url, **how)
    assert found is not None
    return found


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
    found = listed(model)
    assert (found.prompt, found.completion) == (Decimal(prompt), Decimal(completion))
    assert found.cached <= found.prompt


def test_nobody_knows_the_price_of_an_unheard_of_model() -> None:
    assert known_price("acme/unheard-of-9b", OPENAI) is None
    assert known_price("acme/unheard-of-9b", ELSEWHERE) is None
    assert known_price("whisper-1", OPENAI) is None  # sold, but not by the token


# Names of vendors, as gateways and clouds write them.


@pytest.mark.parametrize("url", [HERE, ELSEWHERE])
@pytest.mark.parametrize(
    ("name", "model", "at"),
    [
        ("gpt-4o", "gpt-4o", OPENAI),
        ("GPT-4o", "gpt-4o", OPENAI),
        ("gpt4o", "gpt-4o", OPENAI),
        ("openai/gpt-4o-mini", "gpt-4o-mini", OPENAI),
        ("openai/gpt-4o-mini-2024-07-18", "gpt-4o-mini", OPENAI),
        ("azure/gpt-5", "gpt-5", OPENAI),
        ("gpt-35-turbo", "gpt-3.5-turbo", OPENAI),
        ("gpt-5-high", "gpt-5", OPENAI),
        ("openai/gpt-4o:online", "gpt-4o", OPENAI),
        ("@openai-prod/gpt-4o", "gpt-4o", OPENAI),
        ("openrouter/openai/gpt-4o", "openai/gpt-4o", "https://openrouter.ai/api/v1"),
        ("claude-sonnet-4-5", "claude-sonnet-4-5", "https://api.anthropic.com/v1"),
        ("claude-4.5-sonnet", "claude-sonnet-4-5", "https://api.anthropic.com/v1"),
        ("anthropic/claude-sonnet-4.5", "claude-sonnet-4-5", "https://api.anthropic.com/v1"),
        ("anthropic/claude-3-5-sonnet-20241022", "claude-3-5-sonnet", "https://api.anthropic.com/v1"),
        ("team-a/claude-opus-4-1", "claude-opus-4-1", "https://api.anthropic.com/v1"),
        ("databricks-claude-sonnet-4-5", "claude-sonnet-4-5", "https://api.anthropic.com/v1"),
        ("gemini-2.5-pro", "gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta"),
        ("google/gemini-2.5-flash-001", "gemini-2.5-flash", "https://generativelanguage.googleapis.com/"),
        ("models/gemini-2.5-pro", "gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta"),
        ("publishers/google/models/gemini-2.5-pro", "gemini-2.5-pro", "https://aiplatform.googleapis.com/"),
        ("vertex_ai/claude-sonnet-4-5@20250929", "claude-sonnet-4-5", "https://aiplatform.googleapis.com/"),
        ("xai/grok-3", "grok-3", "https://api.x.ai/v1"),
        ("cohere/command-r-plus-08-2024", "command-r-plus", "https://api.cohere.com/v2"),
        ("mistral/mistral-large-latest", "mistral-large", "https://api.mistral.ai/v1"),
        ("mistral/mistral-medium-2508", "mistral-medium-2508", "https://api.mistral.ai/v1"),
        ("deepseek/deepseek-chat", "deepseek-chat", "https://api.deepseek.com/v1"),
        ("openai:gpt-4o", "gpt-4o", OPENAI),
        ("anthropic:claude-sonnet-4-5", "claude-sonnet-4-5", "https://api.anthropic.com/v1"),
        ("google-gla:gemini-2.5-pro", "gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta"),
        ("groq:llama-3.3-70b-versatile", "llama-3.3-70b-versatile", "https://api.groq.com/openai/v1"),
        ("openrouter:openai/gpt-4o", "openai/gpt-4o", "https://openrouter.ai/api/v1"),
        ("kimi-k2-turbo-preview", "kimi-k2-turbo-preview", "https://api.moonshot.ai/v1"),
        ("moonshotai:kimi-k2-thinking-turbo", "kimi-k2-thinking-turbo", "https://api.moonshot.ai/v1"),
        ("kimi-k2.7-code-highspeed", "kimi-k2.7-code-highspeed", "https://api.moonshot.ai/v1"),
        ("qwen-max", "qwen-max", "https://openrouter.ai/api/v1"),
        ("qwen-vl-max", "qwen-vl-max", "https://openrouter.ai/api/v1"),
        ("glm-4-plus", "glm-4-plus", "https://open.bigmodel.cn/api/paas/v4"),
        ("groq/llama-3.3-70b-versatile", "llama-3.3-70b-versatile", "https://api.groq.com/openai/v1"),
        (
            "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "https://bedrock-runtime.us-east-1.amazonaws.com/",
        ),
        (
            "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "eu.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "https://bedrock-runtime.eu-west-1.amazonaws.com/",
        ),
    ],
)
def test_a_vendor_s_model_has_the_vendor_s_price_behind_any_gateway(
    name: str, model: str, at: str, url: str
) -> None:
    found, theirs = listed(name, url), listed(model, at)
    assert not found.free
    assert found == theirs


@pytest.mark.parametrize(
    "name",
    [
        "smollm2", "m", "teacher", "my-model", "my-model.gguf", "/models/x", "/models/gpt-4o", "./claude",
        "llama-3", "meta-llama/Llama-3.1-8B-Instruct", "qwen2.5-7b", "Qwen/Qwen3-8B", "google/gemma-3-27b-it",
        "gpt-oss-20b", "openai/gpt-oss-120b", "gpt2", "openai-community/gpt2", "gpt-j-6b", "gpt-4chan",
        "EleutherAI/gpt-neo-1.3b", "gpt-of-my-own", "openai/my-model", "deepseek-r1:7b",
        "deepseek-ai/DeepSeek-V3",
        "mistral", "mistralai/Mistral-7B-Instruct-v0.3", "mixtral-8x7b", "mistral-small:24b", "command-r:35b",
        "CohereLabs/c4ai-command-r-08-2024", "xai-org/grok-2", "grok-1", "kimi-k2", "glm-4.5-air", "phi-4",
        "reedmayhew/claude-3.7-sonnet-reasoning-gemma3-12B", "Qwen3-4B-Gemini-2.5-Flash-Distill",
        "Qwen/Qwen2.5-Max-Tuned-7B", "qwen:7b", "mistral:latest", "mistral:7b-instruct", "Qwen3-30B-A3B",
        "moonshotai/Kimi-K2-Instruct-0905", "zai-org/GLM-4.6", "openai:my-model", "openai:gpt-oss-20b",
        "gpt4all-13b", "o1-mini-distill-7b", "facebook/opt-1.3b", "claudette", "olmo-2",
    ],
)  # fmt: skip
def test_open_weights_and_names_of_one_s_own_are_free_on_this_machine_and_only_there(name: str) -> None:
    """Also where some host sells the same weights."""
    found = known_prices(name, HERE)
    assert found is not None
    assert (found.asked, found.source) == (FREE, LOCAL)
    assert known_price(name, ELSEWHERE) != FREE


@pytest.mark.parametrize(
    "name",
    [
        "gpt-9",
        "gpt-5-ultra",
        "gpt4o-prod",
        "claude-epic-9",
        "gemini-9-pro",
        "openrouter/auto",
        "openai:gpt-9",
        "qwen9-max",
        "kimi-k9-turbo",
        "doubao-pro-32k",
        "ernie-x1-turbo",
        "hunyuan-turbos-latest",
    ],
)
def test_a_vendor_s_model_that_the_list_does_not_know_is_not_free_but_unknown(name: str) -> None:
    """Nor has it the price of one whose name is the beginning of its own."""
    assert is_sold(name)
    assert known_price(name, HERE) is None
    assert known_price(name, ELSEWHERE) is None


@pytest.mark.parametrize(
    ("model", "url", "world", "more"),
    [
        ("gpt-5.4", "https://eu.api.openai.com/v1", OPENAI, "1.1"),
        ("gpt-4o", "https://eu.api.openai.com/v1", OPENAI, "1"),
        ("grok-4.6", "https://us.api.x.ai/v1", "https://api.x.ai/v1", "1.1"),
        (
            "claude-sonnet-4-5",
            "https://us-east5-aiplatform.googleapis.com/v1",
            "https://aiplatform.googleapis.com/v1",
            "1.1",
        ),
    ],
)
def test_a_region_that_costs_more_is_priced_so(model: str, url: str, world: str, more: str) -> None:
    assert listed(model, url) == listed(model, world).times(Decimal(more))


# Lengths.


@pytest.mark.parametrize(
    ("model", "tokens", "short", "long"),
    [
        ("gemini-2.5-pro", 200_000, ("1.25", "10"), ("2.5", "15")),
        ("claude-sonnet-4-5", 200_000, ("3", "15"), ("6", "22.5")),
        ("gpt-5.4", 272_000, ("2.5", "15"), ("5", "22.5")),
    ],
)
def test_a_long_prompt_has_the_price_of_its_length(
    model: str, tokens: int, short: tuple[str, str], long: tuple[str, str]
) -> None:
    it = listed(model, HERE)
    for length, (prompt, completion) in ((tokens, short), (tokens + 1, long)):
        price = it.at(length)
        assert (price.prompt, price.completion) == (Decimal(prompt), Decimal(completion))


LENGTHS = (1, 999, 128_000, 200_001, 272_001, 600_000)


def test_every_price_is_what_the_list_itself_calculates() -> None:
    """Of all models on it that are sold by the token, also those whose caches and fees have prices."""
    now, compared = datetime.now(UTC), 0
    for seller in providers:
        for model in seller.models:
            it = _listed(Entry(seller.id, model, True), {}, now)
            for length in LENGTHS if it else ():
                read, written = length // 3, length // 4
                usage = ListUsage(
                    input_tokens=length, output_tokens=500, cache_read_tokens=read, cache_write_tokens=written
                )
                theirs = model.calc_price(usage, seller, genai_request_timestamp=now).total_price
                assert it is not None
                ours = it.cost(Usage(length, 500, read, 0, written))
                assert abs(ours - theirs * 1_000_000) <= Decimal("0.5"), (seller.id, model.id, length)
                compared += 1
    assert compared > 5000


# Tiers and batches.


@pytest.mark.parametrize(
    ("model", "tier", "prompt", "completion"),
    [
        ("gpt-5", None, "1.25", "10"),
        ("gpt-5", "default", "1.25", "10"),
        ("gpt-5", "auto", "1.25", "10"),
        ("gpt-5", "flex", "0.625", "5"),
        ("gpt-5", "priority", "2.5", "20"),
        ("gpt-5", "fast", "2.5", "20"),
        ("gpt-4o", "flex", "1.25", "5"),  # not on the list: at batch prices
    ],
)
def test_a_tier_of_openai_has_its_price(model: str, tier: str | None, prompt: str, completion: str) -> None:
    for url in (OPENAI, HERE):
        price = listed(model, url, tier=tier)
        assert (price.prompt, price.completion) == (Decimal(prompt), Decimal(completion))


def test_nobody_knows_the_price_of_a_tier_that_the_list_has_no_figure_for() -> None:
    assert known_price("gpt-4", OPENAI, tier="priority") is None
    assert known_price("gpt-5", OPENAI, tier="ultrafast") is None
    assert known_price("gpt-4o", AZURE, tier="priority") is None  # OpenAI's is not Azure's
    assert known_price("claude-sonnet-4-5", HERE, tier="flex") is None


def test_flex_costs_what_its_seller_says() -> None:
    assert listed("gpt-4o", AZURE, tier="flex") == listed("gpt-4o", AZURE, batch=True)
    groq = "https://api.groq.com/openai/v1"
    assert listed("llama-3.3-70b-versatile", groq, tier="flex") == listed("llama-3.3-70b-versatile", groq)


def test_the_batch_api_costs_half() -> None:
    for model, url in (("gpt-4o", OPENAI), ("claude-sonnet-4-5", HERE), ("gpt-4o", AZURE)):
        online, batch = listed(model, url), listed(model, url, batch=True)
        assert (batch.prompt * 2, batch.completion * 2) == (online.prompt, online.completion)


def test_prices_of_any_tier_hold_what_is_set_aside() -> None:
    """For models with steps, tiers and dear caches."""
    for model in ("gpt-5.4", "gpt-4o", "claude-sonnet-4-5", "gemini-2.5-pro", "gpt-5.6-sol", "grok-4.3"):
        for asked in (None, "flex", "priority"):
            it = known_prices(model, HERE, tier=asked)
            if it is None:
                continue
            for tier in (None, "default", asked):
                it.bill(Usage(), tier, None, 0, 0)
                for length in LENGTHS:
                    for read, written in ((0, 0), (length, 0), (0, length), (length // 2, length // 2)):
                        cost = it.cost(Usage(length, 700, read, 0, written), tier)
                        assert it.worst(length, 700) >= cost, (model, asked, tier, length)


def test_deepseek_costs_more_by_day() -> None:
    def at(hour: int) -> Prices:
        it = known_prices("deepseek-chat", "https://api.deepseek.com/v1")
        assert it is not None
        it._clock = datetime(2026, 11, 27, hour, tzinfo=UTC).timestamp
        return it

    day, night = at(10).cost(Usage(10**6)), at(20).cost(Usage(10**6))
    assert day == 2 * night
    assert at(20).worst(10**6, 0) >= day


# The price of another model.


def test_a_deployment_has_the_price_of_the_model_that_is_named_for_it() -> None:
    for url in (HERE, AZURE, ELSEWHERE):
        it = known_prices("my-deployment", url, price_as="gpt-4o-mini")
        assert it is not None
        assert it.source == "listed: gpt-4o-mini"
        assert it.asked == listed("gpt-4o-mini")


def test_a_seller_s_own_model_can_be_named_too() -> None:
    it = known_price("llama", HERE, price_as="groq/llama-3.3-70b-versatile")
    assert it == listed("llama-3.3-70b-versatile", "https://api.groq.com/openai/v1")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("gpt-4o-minni", "gpt-4o-mini"),
        ("gpt4o-prod", "gpt-4o"),
        ("claude-sonet-4-5", "claude-sonnet-4-5"),
        ("llama-3.3-70b-versatile", "groq/llama-3.3-70b-versatile"),
    ],
)
def test_a_name_that_the_list_does_not_know_is_told_with_those_near_it(wrong: str, near: str) -> None:
    with pytest.raises(UsageError, match="did you mean") as told:
        known_price("m", HERE, price_as=wrong)
    assert near in str(told.value)
