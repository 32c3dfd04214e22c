"""The price of a model at an address: from the list (the package genai-prices, offline), of a model that the
user names instead, or nothing on a local server. The package is loaded when a name has to be looked up.

Gateways and clouds spell the same model in many ways: `openai/gpt-4o-mini`, `azure/gpt-5`,
`us.anthropic.claude-sonnet-4-5-20250929-v1:0`, `publishers/google/models/gemini-2.5-pro`. A server on this
machine may be a gateway to a paid one, so a vendor's own name has the vendor's price there too. Names of
models with open weights have none there, even where some host sells them.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from engine.provider.pricing import (
    DEFAULT,
    FREE,
    LISTED,
    LOCAL,
    SILENT,
    USUAL_TIERS,
    Price,
    Prices,
    is_loopback,
)
from store.errors import UsageError

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

BATCH_DISCOUNT = Decimal("0.5")  # where the list has no batch price of its own
UNLISTED = "unlisted"  # a vendor whom the list does not know: its price has to be given

# Names that only their vendor serves, by the list's id for it or for who sells it. Of vendors that publish
# weights too (Cohere, DeepSeek, Mistral, Moonshot, Qwen) only what they keep or names of their API alone.
VENDORS: tuple[tuple[str, str], ...] = (
    ("openai", r"(ft:)?(chatgpt-|gpt-?[3-9](?![a-np-z])|o[1-9](?![a-z0-9])|codex-)"),
    ("openai", r"(ft:)?(davinci-00|babbage-00)|text-(ada|babbage|curie|davinci)-"),
    ("anthropic", r"claude(?![a-z])"),
    ("google", r"gemini(?![a-z])"),
    ("x-ai", r"grok(?!-1(?![0-9]))"),
    ("aws", r"nova-(micro|lite|pro|premier|2)|titan-text"),
    ("cohere", r"command(-light|-nightly|-a|-r|-r-plus|-r7b)?(-\d\d-\d{4})?$"),
    ("mistral", r"(mistral|magistral|devstral)-(medium|saba)|codestral-2[5-9]"),
    ("mistral", r"(open-)?[a-z]*(stral|mixtral)[a-z0-9-]*-latest$"),
    ("deepseek", r"deepseek-(chat|reasoner)$"),
    ("moonshotai", r"moonshot-v1|kimi-(latest|[a-z0-9.-]*(preview|turbo|highspeed))"),
    ("openrouter", r"(qwen[0-9.]*|qwq|qvq)-([a-z]+-)?(max|plus|turbo|flash|long)(?![a-z])"),  # Alibaba's
    ("zhipuai", r"glm-(4|4v|z1)-(plus|airx?|flashx?|long)(?![a-z])|glm-zero"),
    (UNLISTED, r"abab[0-9]|doubao-|hunyuan-(turbos?|lite|standard|pro|large)|ernie-(bot|speed|lite|x1)"),
    (UNLISTED, r"yi-(large|lightning|medium|spark)|step-[12]-|spark-|sensechat|reka-(core|flash|edge)"),
    ("perplexity", r"sonar(-|$)"),
    ("meta", r"muse-"),
)

# A first part that names the seller, as LiteLLM and OpenRouter write it. Not those that are owners on
# the Hugging Face hub as well (openai, google, mistralai, qwen ...): there the name itself decides.
SELLERS = {
    "openrouter": "openrouter", "groq": "groq", "together": "together", "together_ai": "together",
    "fireworks": "fireworks", "fireworks_ai": "fireworks", "bedrock": "aws", "bedrock_converse": "aws",
    "vertex_ai": "google", "gemini": "google", "azure": "azure", "azure_ai": "azure", "xai": "x-ai",
    "x-ai": "x-ai", "cohere": "cohere", "cohere_chat": "cohere", "deepseek": "deepseek",
    "mistral": "mistral", "codestral": "mistral", "moonshot": "moonshotai", "perplexity": "perplexity",
    "novita": "novita", "github_copilot": "github-copilot", "anthropic": "anthropic",
}  # fmt: skip

# The same before a colon (`openai:gpt-4o`, as Pydantic AI and others write it); None: the name decides. Not
# `mistral`, which Ollama writes before the tag of its own model.
COLONS = {
    "openai": None, "openai-chat": None, "openai-responses": None, "google": None, "google-gla": None,
    "google-vertex": None, "alibaba": None, "moonshotai": None, "zhipuai": None, "grok": "x-ai",
    **{name: seller for name, seller in SELLERS.items() if seller != "mistral"},
}  # fmt: skip

_WEIGHTS = re.compile(
    r"(^|[-_.:/])(\d+x)?\d+(\.\d+)?[bm]($|[-_.:/])"  # a number of parameters: 8b, 0.5b, 8x7b, 360m
    r"|gguf|safetensors|ggml|awq|gptq|exl2|mlx|lora|distill|quantized|int[48]|fp8|nvfp4|q\d_[k\d]"
    r"|gpt-?oss|gpt-?4all|llama|gemma|xai-org/"
)
_CLOUD = re.compile(
    r"^((us|us-gov|eu|uk|apac|au|jp|ca|in|sa|me|af|global|regional)\.)?"
    r"(anthropic|openai|amazon|cohere|mistral|google|xai)\.(?=[a-z])"
)
_ENDINGS = tuple(
    re.compile(pattern)
    for pattern in (
        r"[:@][a-z0-9._-]+$",  # openrouter's :online, bedrock's :0, vertex's @20250929
        r"-v\d+$",
        r"-(\d{8}|\d{4}-\d\d-\d\d|\d\d-\d\d(-\d{4})?|\d{4}|00\d)$",
        r"-(latest|preview|exp|experimental|beta|stable|global|thinking|reasoning|online)$",
        r"-(none|minimal|low|medium|high|xhigh)$",
    )
)
_SPELLINGS = (
    (re.compile(r"^gpt(?=[3-9])"), "gpt-"),
    (re.compile(r"^claude-(\d)[.-](\d)-(opus|sonnet|haiku)"), r"claude-\3-\1-\2"),
    (re.compile(r"^claude-(\d)-(opus|sonnet|haiku)"), r"claude-\2-\1"),
    (re.compile(r"^databricks-(?=claude|gpt|gemini)"), ""),
)

# Hosts that charge more for staying in a region, where the list has the global price: for which
# models, and how much. OpenAI: models released from 2026-03-05 on (developers.openai.com, data
# residency); xAI: docs.x.ai, regions; Claude on Vertex AI: platform.claude.com, Claude on Google Cloud.
_REGIONS = tuple(
    (re.compile(host), re.compile(model), Decimal("1.1"))
    for host, model in (
        (r"https://[a-z]{2}\.api\.openai\.com", r"gpt-(5\.[4-9]|[6-9])"),
        (r"https://[a-z]{2}\.api\.x\.ai", r"grok"),
        (r"https://(?!global)[a-z0-9-]+-aiplatform\.googleapis\.com", r"claude"),
    )
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A model on the list. `own`: it stands under this seller, whose tiers and batches it then has;
    else the list takes its price from the vendor. `surcharge`: of the host's region."""

    seller: str
    model: "ModelInfo"
    own: bool
    surcharge: Decimal = Decimal(1)


def is_sold(model: str) -> bool:
    """Whether the name itself says that somebody is paid for it, wherever the server is."""
    return _seller(model) is not None or _vendor(model) is not None


def find(model: str, base_url: str | None) -> Entry | None:
    """What the list knows of a name at an address; None for the address of no known seller."""
    name = _slashed(model)
    if base_url is not None and (entry := _first(_spellings(name), provider_api_url=base_url)):
        return _in_region(entry, base_url)
    seller, vendor = _seller(name), _vendor(name)
    if seller and (entry := _first(_spellings(name.partition("/")[2] or name), provider_id=seller)):
        return entry
    if vendor and (entry := _first(_spellings(name), provider_id=vendor)):
        return _in_region(entry, base_url)
    if seller or vendor:
        return None  # a model that the list does not know yet: not the namesake of another seller
    return _first([name], provider_id="openai") or _first([name])


def find_named(model: str, base_url: str | None) -> Entry:
    """The entry that the user names with --price-as, also of a seller's own id (`groq/llama-...`).
    Raises UsageError with names that are near it."""
    owner, _, rest = _slashed(model).partition("/")
    if entry := find(model, base_url) or (_first(_spellings(rest), provider_id=owner) if rest else None):
        return entry
    from genai_prices.data import providers

    # up to three names on the list that look like it: of vendors first, else with their seller
    name = model.strip().lower()
    vendors = {vendor for vendor, _ in VENDORS} - {"openrouter"}
    models = [(p.id, m.id) for p in providers for m in p.models if m.is_match(m.id)]
    plain = [model for seller, model in models if seller in vendors]
    routed = [f"{seller}/{model}" for seller, model in models]
    bare = _bare(name)
    begun = sorted({each for each in plain if bare.startswith(f"{each}-")}, key=len, reverse=True)[:1]
    near = list(dict.fromkeys([*begun, *difflib.get_close_matches(bare, dict.fromkeys(plain), 3)]))[:3]
    near = near or difflib.get_close_matches(name, routed, 3) or [r for r in routed if name in r][:3]
    hint = f"did you mean {', '.join(near)}?" if near else "see the models of the package genai-prices"
    raise UsageError(f"--price-as {model}: the price list does not know this model; {hint}")


def _slashed(model: str) -> str:
    """In lower case, and with the route before a slash where it stood before a colon."""
    name = model.strip().lower()
    first, colon, rest = name.partition(":")
    return f"{first}/{rest}" if colon and rest and first in COLONS else name


def _seller(name: str) -> str | None:
    name = _slashed(name)
    first, slash, _ = name.partition("/")
    if slash:
        return SELLERS.get(first) or COLONS.get(first)
    return "aws" if _CLOUD.match(name) else None  # Bedrock's names need no route before them


def _vendor(name: str) -> str | None:
    """Whose own name it is. One that tells of weights (a size, a format) is of a file on some disk."""
    name = _slashed(name)
    is_path = name.startswith(("/", "./", "../", "~", "\\")) or name[1:3] == ":\\"
    if is_path or _WEIGHTS.search(name):
        return None
    bare = _bare(name)
    return next((vendor for vendor, pattern in VENDORS if re.match(pattern, bare)), None)


def _bare(name: str) -> str:
    """Without owner, route and the cloud's prefix."""
    bare = _CLOUD.sub("", name.rpartition("/")[2])
    for pattern, written in _SPELLINGS:
        bare = pattern.sub(written, bare)
    return bare


def _spellings(name: str) -> Iterator[str]:
    """The name as it is, then with less and less around it. No part of a name goes that could be
    the model's: `gpt-5-turbo` must not pass for `gpt-5`."""
    seen = set()
    rests = [name]
    while "/" in rests[-1]:
        rests.append(rests[-1].partition("/")[2])
    for each in (*rests, _bare(name)):
        short = each
        while short and short not in seen:
            seen.add(short)
            yield short
            short = next((less for e in _ENDINGS if (less := e.sub("", short)) != short), "")


def _first(names: Iterator[str] | list[str], **place: str) -> Entry | None:
    from genai_prices import Usage, calc_price

    for name in names:
        try:
            found = calc_price(Usage(), name, **place)  # type: ignore[call-overload]
        except (LookupError, ValueError):
            continue
        own = any(found.model is model for model in found.provider.models)
        return Entry(found.provider.id, found.model, own)
    return None


def _in_region(entry: Entry, base_url: str | None) -> Entry:
    for host, model, factor in _REGIONS:
        if base_url and host.match(base_url.lower()) and model.match(entry.model.id):
            return Entry(entry.seller, entry.model, entry.own, factor)
    return entry


def known_prices(
    model: str,
    base_url: str | None,
    batch: bool = False,
    tier: str | None = None,
    price_as: str | None = None,
) -> Prices | None:
    """The price of whatever tier a reply names: FREE for a local model, None where nobody knows it or the
    list does not have the tier that is asked for. Raises UsageError for a `price_as` that is not on the list.
    """
    local = base_url is not None and is_loopback(base_url)
    host = None if local else base_url
    if price_as is not None:
        entry, source = find_named(price_as, host), f"{LISTED}: {price_as}"
    elif local and not is_sold(model):
        return Prices.of_one(FREE, LOCAL)
    elif (found := find(model, host)) is not None:
        entry, source = found, LISTED
    else:
        return None

    def price_of(tier: str, at: datetime) -> Price | None:
        if batch:
            return _batch_price(entry, at)
        # Where the list has no figure for `flex`: OpenAI and Azure sell it at batch prices
        # (developers.openai.com and learn.microsoft.com, flex processing), Groq at the usual ones
        # (console.groq.com, flex processing).
        if tier in (SILENT, *USUAL_TIERS) or (tier == "flex" and entry.seller == "groq"):
            return _listed(entry, {}, at)
        if _has(entry, {"service_tier": tier}, at):
            return _listed(entry, {"service_tier": tier}, at)
        if tier == "batch" or (tier == "flex" and entry.seller in ("openai", "azure")):
            return _batch_price(entry, at)
        return None

    asked = (tier or DEFAULT).strip().lower()
    return None if price_of(asked, datetime.now(UTC)) is None else Prices(source, price_of, asked)


def _batch_price(entry: Entry, at: datetime) -> Price | None:
    if _has(entry, {"processing": "batch"}, at):
        return _listed(entry, {"processing": "batch"}, at)
    price = _listed(entry, {}, at)
    return price and price.times(BATCH_DISCOUNT)


def _has(entry: Entry, context: Mapping[str, str], at: datetime) -> bool:
    """Whether the list has prices of its own for this; those of a vendor are not another seller's."""
    return entry.own and any(
        variant.when == context and (variant.constraint is None or variant.constraint.active(at))
        for variant in entry.model.price_variants or ()
    )


def _listed(entry: Entry, context: Mapping[str, str], at: datetime) -> Price | None:
    """The entry as a price with its steps; None for what is not sold by the token. Writing to a cache
    is priced as the list's usual kind (five minutes at Anthropic's)."""
    table = {k: v for k, v in vars(entry.model.get_prices(at, dict(context))).items() if v is not None}
    if "input_mtok" not in table and "output_mtok" not in table:
        return None

    def at_length(tokens: int) -> Price:
        def per_million(key: str, otherwise: Decimal) -> Decimal:
            value = table.get(key, otherwise)
            reached = [tier.price for tier in getattr(value, "tiers", ()) if tokens > tier.start]
            found: Decimal = reached[-1] if reached else getattr(value, "base", value)
            return found

        prompt = per_million("input_mtok", Decimal(0))
        written = per_million("cache_write_mtok", prompt)
        return Price(
            prompt,
            per_million("output_mtok", Decimal(0)),
            per_million("cache_read_mtok", prompt),
            None if written == prompt else written,
            per_million("requests_kcount", Decimal(0)) * 1000,
        )

    starts = sorted({tier.start for value in table.values() for tier in getattr(value, "tiers", ())})
    steps = tuple((start, at_length(start + 1)) for start in starts)
    return replace(at_length(0), steps=steps).times(entry.surcharge)
