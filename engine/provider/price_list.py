"""The price of a model at an address: from the list (genai-prices, offline), of a model that the user
names instead, or nothing on a local server. Reads the list's steps by length, tiers and batches."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from engine.provider.price_names import Entry, find, find_named, is_sold
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

BATCH_DISCOUNT = Decimal("0.5")  # where the list has no batch price of its own


def known_price(
    model: str,
    base_url: str | None,
    batch: bool = False,
    tier: str | None = None,
    price_as: str | None = None,
) -> Price | None:
    """The price now of the tier that is asked for, FREE for a local model, or None where nobody knows it.
    Raises UsageError for a `price_as` that is not on the list."""
    prices = known_prices(model, base_url, batch, tier, price_as)
    return None if prices is None else prices.asked


def known_prices(
    model: str,
    base_url: str | None,
    batch: bool = False,
    tier: str | None = None,
    price_as: str | None = None,
) -> Prices | None:
    """The same for whatever tier a reply names. None too where the list does not have the tier that is
    asked for."""
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

    def price_of(named: str, at: datetime) -> Price | None:
        return _batch_price(entry, at) if batch else _tier_price(entry, named, at)

    asked = (tier or DEFAULT).strip().lower()
    return None if price_of(asked, datetime.now(UTC)) is None else Prices(source, price_of, asked)


def _tier_price(entry: Entry, tier: str, at: datetime) -> Price | None:
    """Where the list has no figure for `flex`: OpenAI and Azure sell it at batch prices
    (developers.openai.com and learn.microsoft.com, flex processing), Groq at the usual ones
    (console.groq.com, flex processing)."""
    if tier in (SILENT, *USUAL_TIERS) or (tier == "flex" and entry.seller == "groq"):
        return _listed(entry, {}, at)
    if _has(entry, {"service_tier": tier}, at):
        return _listed(entry, {"service_tier": tier}, at)
    if tier == "batch" or (tier == "flex" and entry.seller in ("openai", "azure")):
        return _batch_price(entry, at)
    return None


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
