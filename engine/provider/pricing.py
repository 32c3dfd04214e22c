"""What a request costs, in integer micro-dollars (a dollar a million tokens is one a token).

A price may depend on the prompt's length, on the tier that the reply names and on the hour. What a
server says that it charged is believed over our own price. Deliberately knows no limits, no ledger
and no list: where prices come from is in price_list.py.
"""

import ipaddress
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import NamedTuple
from urllib.parse import urlsplit

from store.records import Usage

LOCAL, GIVEN, LISTED, UNKNOWN = "free: local server", "given", "listed", "unknown"
MOST_TOLD = 100  # times the most that the list allows: a server that says it charged more is not believed
MOST_TOLD_FREE = 10_000_000  # micro-dollars; the same where we know no price
LEAST_COMPARED = 20  # micro-dollars; below this, rounding hides how a told cost compares with ours
TICKS = Decimal(10) ** 10  # of xAI's `cost_in_usd_ticks` to a dollar
WORST_KEPT = 4096
COST_HEADER = "x-litellm-response-cost"
HALF_HOUR, DAY_SLOTS = 1800, 49  # seconds; so many of them reach into the same hour of the next day
DEFAULT, SILENT, UNHEARD = "default", "", "?"  # tiers: the usual price; none named; nobody's
USUAL_TIERS = (DEFAULT, "auto", "standard", "standard_only", "on_demand", "scale")  # at the usual price


@dataclass(frozen=True, slots=True)
class Price:
    """USD a million tokens, which is micro-dollars a token.

    cache_write: of prompt tokens that are put into a cache; None: as the others. request: micro-dollars
    a request. steps: (tokens, price) of prompts longer than so many tokens, in ascending order; all of
    such a request costs that price.
    """

    prompt: Decimal
    completion: Decimal
    cached: Decimal
    cache_write: Decimal | None = None
    request: Decimal = Decimal(0)
    steps: tuple[tuple[int, "Price"], ...] = ()
    _units: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """The prices in whole units, and how many of these are a micro-dollar: replies are many."""
        each = (self.prompt, self.cached, self._written, self.completion, self.request)
        scale = 10 ** max(0, *(-int(amount.as_tuple().exponent) for amount in each))
        object.__setattr__(self, "_units", (scale, *(int(amount * scale) for amount in each)))

    def at(self, prompt_tokens: float) -> "Price":
        """The price of a prompt of this length."""
        reached = self
        for above, price in self.steps:
            if prompt_tokens > above:
                reached = price
        return reached

    def cost(self, usage: Usage) -> int:
        """Micro-dollars of a reply's usage, rounded half up; nothing where nothing was used."""
        if not (usage.prompt_tokens or usage.completion_tokens):
            return 0
        price = self.at(usage.prompt_tokens) if self.steps else self
        scale, prompt, read, write, completion, request = price._units
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        written = min(usage.cache_write_tokens, usage.prompt_tokens - cached)
        fresh = usage.prompt_tokens - cached - written
        units = fresh * prompt + usage.completion_tokens * completion + request
        if cached or written:
            units += cached * read + written * write
        return (2 * units + scale) // (2 * scale)

    def worst(self, prompt_tokens: int, max_tokens: int) -> int:
        """The most that a request can cost, however its prompt is cached and if it is shorter than
        was thought."""
        each = [self, *(price for above, price in self.steps if prompt_tokens > above)]
        return max(
            math.ceil(prompt_tokens * p._dearest_prompt + max_tokens * p.completion + p.request) for p in each
        )

    def times(self, factor: Decimal) -> "Price":
        write = None if self.cache_write is None else self.cache_write * factor
        steps = tuple((above, price.times(factor)) for above, price in self.steps)
        prompt, completion, cached = self.prompt * factor, self.completion * factor, self.cached * factor
        return Price(prompt, completion, cached, write, self.request * factor, steps)

    @property
    def _written(self) -> Decimal:
        return self.prompt if self.cache_write is None else self.cache_write

    @property
    def _dearest_prompt(self) -> Decimal:
        return max(self.prompt, self.cached, self._written)

    @property
    def free(self) -> bool:
        return not (self.prompt or self.completion or self.request or any(not p.free for _, p in self.steps))


FREE = Price(Decimal(0), Decimal(0), Decimal(0))


class Bill(NamedTuple):
    """What a reply is booked at, and what it costs by our own price, in micro-dollars."""

    cost: int
    own: int


PriceOf = Callable[[str, datetime], Price | None]  # of a tier at a time; None where nobody knows it


class Prices:
    """The prices of one model at one server. Learns which tiers its replies name and by how much the
    costs that it states exceed ours, so that what is set aside for the next request covers both."""

    def __init__(
        self, source: str, price_of: PriceOf, asked: str = DEFAULT, clock: Callable[[], float] = time.time
    ) -> None:
        """source: where the price is from, for people; asked: the tier that the requests ask for.
        `price_of` knows at least the prices of that tier and of the default one."""
        self.source, self._price_of, self._clock = source, price_of, clock
        self._asked = DEFAULT if asked in USUAL_TIERS else asked
        self._named = {SILENT}  # tiers, by the replies so far
        self._since = self._until = 0.0  # the half-hour that these are of
        self._now: dict[str, Price] = {}
        self._day: list[Price] = []
        self._worst: dict[tuple[int, int], int] = {}  # by prompt and bound, at the prices of that day
        self._factor, self._least = Decimal(1), 0

    @classmethod
    def of_one(cls, price: Price, source: str = GIVEN) -> "Prices":
        """The same for every tier at any time."""
        return cls(source, lambda _tier, _at: price)

    @property
    def asked(self) -> Price:
        """Of the tier that is asked for, now."""
        return self._current(self._asked)

    def of(self, tier: str | None) -> Price:
        """Of the tier that a reply names, now. A reply that names none, to a request that asked for one,
        may come from a server that does not know tiers: the dearer of the two. A tier that the list
        does not know: the dearest that it knows."""
        return self._current(self._kind(tier) if tier else SILENT)

    def cost(self, usage: Usage, tier: str | None = None) -> int:
        """By our own price, in micro-dollars."""
        return self.of(tier).cost(usage)

    def worst(self, prompt_tokens: int, max_tokens: int) -> int:
        """The most that a request can cost: in any tier that it may be put into, as far as the replies
        have shown, at the dearest time of the coming day."""
        if not self._since <= self._clock() < self._until:
            self._read_prices()
        if (worst := self._worst.get((prompt_tokens, max_tokens))) is None:
            worst = self._listed_worst(prompt_tokens, max_tokens)
        return max(worst if self._factor == 1 else math.ceil(worst * self._factor), self._least)

    def _listed_worst(self, prompt_tokens: int, max_tokens: int) -> int:
        """The same by the list alone, which is kept: requests are many, and their sizes are few."""
        worst = max(price.worst(prompt_tokens, max_tokens) for price in self._day)
        if len(self._worst) >= WORST_KEPT:
            self._worst.clear()
        self._worst[prompt_tokens, max_tokens] = worst
        return worst

    def bill(
        self, usage: Usage, tier: str | None, told: int | None, prompt_tokens: int, max_tokens: int
    ) -> Bill:
        """What to book for a reply to a request for which `worst(prompt_tokens, max_tokens)` was set aside.
        told: what the server says it cost, which is believed unless it is absurd, or zero for a reply
        that has a price. A reply that costs more than we thought possible raises what is set aside for
        the next one, whatever the reason."""
        kind = tier or SILENT
        if kind not in self._named and (kind := self._kind(kind)) not in self._named:
            self._named.add(kind)
            self._until = 0.0
        if not self._since <= self._clock() < self._until:
            self._read_prices()
        own = (self._now.get(kind) or self._current(kind)).cost(usage)
        if (most := self._worst.get((prompt_tokens, max_tokens))) is None:
            most = self._listed_worst(prompt_tokens, max_tokens)
        if told is None or told > (most * MOST_TOLD or MOST_TOLD_FREE) or (own and not told):
            told = own
        if told == own <= most:
            return Bill(told, own)
        if told and not most:
            self._least = max(self._least, told)
        over = max(told / Decimal(most or 1), told / Decimal(own) if own >= LEAST_COMPARED else Decimal(0))
        if most:
            self._factor = min(max(self._factor, over), Decimal(MOST_TOLD))
        return Bill(told, own)

    def _kind(self, tier: str) -> str:
        """One of a few names: what servers call their tiers is not kept."""
        name = tier.strip().lower()
        if name in self._named:
            return name
        if name in USUAL_TIERS:
            return DEFAULT
        return name if self._price_of(name, self._time()) else UNHEARD

    def _current(self, kind: str) -> Price:
        if not self._since <= self._clock() < self._until:
            self._read_prices()
        if (price := self._now.get(kind)) is None:
            price = self._now[kind] = self._price(kind, self._time())
        return price

    def _price(self, kind: str, at: datetime) -> Price:
        if kind not in (SILENT, UNHEARD) and (price := self._price_of(kind, at)):
            return price
        tiers = (self._asked, DEFAULT) if kind == SILENT else (self._asked, DEFAULT, "priority")
        return dearest(filter(None, (self._price_of(tier, at) for tier in tiers)))

    def _read_prices(self) -> None:
        """Prices that depend on the hour or the date are read again twice an hour."""
        slot = int(self._clock() // HALF_HOUR)
        times = [datetime.fromtimestamp((slot + n) * HALF_HOUR, UTC) for n in range(DAY_SLOTS)]
        self._since, self._until = slot * float(HALF_HOUR), (slot + 1) * float(HALF_HOUR)
        self._now, self._worst = {}, {}
        self._day = list(dict.fromkeys(self._price(kind, at) for kind in self._named for at in times))

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def dearest(prices: Iterable[Price]) -> Price:
    return max(prices, key=lambda price: (price.completion, price.prompt))


def _rounded(amount: Decimal) -> int:
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


COST_NAMES = ("estimated_cost", "total_cost")  # beside `cost`


def told_cost(usage: object, headers: Mapping[str, str] | None = None) -> int | None:
    """Micro-dollars that a server says it charged, or None where it does not say so in a way that can
    be believed.

    OpenRouter (and gateways like it): `usage.cost` in dollars, and with a key of one's own
    (`is_byok`) only its fee, to which the vendor's bill in `cost_details` is added. Perplexity:
    `usage.cost.total_cost`. DeepInfra: `usage.estimated_cost`. xAI: `usage.cost_in_usd_ticks`.
    LiteLLM: a header.
    """
    said: Mapping[str, object] = usage if isinstance(usage, dict) else {}
    header = headers.get(COST_HEADER) if headers else None
    cost = next((said[name] for name in ("cost", *COST_NAMES) if said.get(name) is not None), None)
    if header is None and cost is None and "cost_in_usd_ticks" not in said:
        return None
    usd = _amount(cost.get("total_cost") if isinstance(cost, dict) else cost)
    if usd is None and (ticks := _amount(said.get("cost_in_usd_ticks"))) is not None:
        usd = ticks / TICKS
    if usd is None:
        usd = _amount(header)
    if usd is not None and said.get("is_byok"):
        details = said.get("cost_details")
        upstream = _amount(details.get("upstream_inference_cost")) if isinstance(details, dict) else None
        usd = None if upstream is None else usd + upstream
    return None if usd is None else _rounded(usd * 1_000_000)


def _amount(value: object) -> Decimal | None:
    """A finite number that is not negative, also as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and 0 <= amount < 10**9 else None
