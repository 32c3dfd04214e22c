"""What a request costs, in integer micro-dollars (a dollar a million tokens is one a token).

Prices come from the package genai-prices (offline), or from flags for models that it does not
know. A server on loopback costs nothing unless it goes by the name of a model of OpenAI's
(then it is taken for a gateway to the real one). Deliberately knows no limits and no ledger.
"""

import ipaddress
import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from urllib.parse import urlsplit

from store.records import Usage

BATCH_DISCOUNT = Decimal("0.5")  # where genai-prices has no batch price of its own
_PROBE = 1000


@dataclass(frozen=True, slots=True)
class Price:
    """USD a million tokens, which is micro-dollars a token."""

    prompt: Decimal
    completion: Decimal
    cached: Decimal

    def cost(self, usage: Usage) -> int:
        """Micro-dollars of a reply's usage, rounded half up."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        exact = fresh * self.prompt + usage.cached_tokens * self.cached
        return _whole(exact + usage.completion_tokens * self.completion)

    def worst(self, prompt_tokens: int, max_tokens: int) -> int:
        """The most that a request can cost."""
        return math.ceil(prompt_tokens * self.prompt + max_tokens * self.completion)

    @property
    def free(self) -> bool:
        return not (self.prompt or self.completion)


FREE = Price(Decimal(0), Decimal(0), Decimal(0))


def _whole(amount: Decimal) -> int:
    return int(amount.quantize(Decimal(1), ROUND_HALF_UP))


def given_price(price_in: float | None, price_out: float | None) -> Price | None:
    """The price that the user gave; one flag alone leaves the other free."""
    if price_in is None and price_out is None:
        return None
    prompt, completion = Decimal(str(price_in or 0)), Decimal(str(price_out or 0))
    return Price(prompt, completion, prompt)


def is_loopback(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def known_price(model: str, base_url: str | None, batch: bool = False) -> Price | None:
    """The list price, FREE for a local model, or None where nobody knows it."""
    local = base_url is not None and is_loopback(base_url)
    if local and not model.startswith(("gpt-", "chatgpt-", "o1", "o3", "o4")):
        return FREE
    price = _listed(model, None if local else base_url, batch)
    return FREE if price is None and local else price


def _listed(model: str, base_url: str | None, batch: bool) -> Price | None:
    places: list[dict[str, str]] = [{"provider_id": "openai"}, {}]
    if base_url is not None:
        places.insert(0, {"provider_api_url": base_url})
    for place in places:
        try:
            return _listed_at(model, place, batch)
        except (LookupError, ValueError):
            continue
    return None


def _listed_at(model: str, place: dict[str, str], batch: bool) -> Price:
    from genai_prices import Usage as Priced
    from genai_prices import calc_price

    context = {"price_context": {"processing": "batch"}} if batch else {}

    def per_token(**usage: int) -> Decimal:
        found = calc_price(Priced(**usage), model, **place, **context)  # type: ignore[call-overload]
        return Decimal(found.total_price) * 1_000_000 / _PROBE

    online = Price(
        per_token(input_tokens=_PROBE),
        per_token(output_tokens=_PROBE),
        per_token(input_tokens=_PROBE, cache_read_tokens=_PROBE),
    )
    if batch:
        context = {}
        full = per_token(output_tokens=_PROBE)
        if online.completion == full:  # no batch price on the list
            return Price(*(p * BATCH_DISCOUNT for p in (online.prompt, online.completion, online.cached)))
    return online
