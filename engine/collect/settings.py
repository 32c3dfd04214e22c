"""The engine's settings as one checked value: from flags or a recipe, never from the environment.

`params` are exactly what is sent beside model and messages, so they decide the request's key.
"""

from typing import Any

from pydantic import SecretStr

from engine.collect.setting_fields import (
    DEFAULTS,
    ModelTraits,
    Quota,
    RunSettings,
    StageSettings,
    Temperature,
    Timeouts,
    Tokens,
)
from engine.environment import OPENAI_URL
from engine.provider.models import (
    SAMPLING,
    Model,
    Thinking,
    Wish,
    accepted,
    check_effort,
    find_model,
    thinking_at,
    wish_in,
)
from engine.provider.price_list import known_prices
from engine.provider.pricing import LOCAL, UNKNOWN, Price, Prices, given_price, is_loopback
from store.errors import UsageError

TIMEOUT, FLEX_TIMEOUT = 300.0, 900.0  # seconds for one reply; flex processing may take its time
MOST_CONCURRENT = 1024


class Server(Quota):
    """One endpoint: its address, key, limits and price."""

    base_url: str = OPENAI_URL
    api_key: SecretStr | None = None
    proxy: str | None = None


class Settings(RunSettings, ModelTraits, StageSettings, Timeouts, Server):
    """What a stage asks, whom, how fast and for how much. The server of its own fields is the
    first; `others` answer for the same model beside it."""

    task: str = "generate"
    teacher: str = ""  # stages with the same name here share its servers and their limits
    others: tuple[Server, ...] = ()
    strict: bool = False  # whether a bad row ends the run
    temperature: Temperature = DEFAULTS["generate"]["temperature"]
    max_tokens: Tokens = DEFAULTS["generate"]["max_tokens"]

    @property
    def traits(self) -> Model:
        """What the model takes, by the table or as the user says."""
        return find_model(self.model, self.model_kind)

    @property
    def wish(self) -> Wish:
        """What the request says of thinking, in whatever server's words."""
        asked = {"reasoning_effort": self.reasoning_effort, **self.param}
        return wish_in({name: value for name, value in asked.items() if name not in self.omit})

    @property
    def effort(self) -> str:
        """How hard the model thinks: as asked for, or by itself."""
        asked, own = self.wish.effort, self.traits.effort
        if asked == "on":
            return own if own != "none" else "medium"
        return asked or own

    @property
    def thinking(self) -> Thinking:
        """How much it thinks. An effort that was asked for is believed of a model that nobody knows."""
        asked = self.wish.effort is not None and self.model_kind != "plain"
        return thinking_at(self.effort if self.traits.thinks or asked else "none")

    @property
    def thinking_room(self) -> int:
        """Tokens of thinking that a reply may take beside its answer."""
        if self.thinking_tokens is not None:
            return self.thinking_tokens
        return (self.thinking.room and self.wish.tokens) or self.thinking.room

    def params(self) -> dict[str, Any]:
        """The sampling parameters as sent: none that the model is known to refuse, and a bound on the
        output that leaves room to think."""
        model, asked = self.traits, {name: getattr(self, name) for name in SAMPLING}
        params: dict[str, Any] = dict(accepted(model, self.effort, asked))
        params[model.bound] = self.max_tokens + (self.thinking_room if model.inside else 0)
        if self.reasoning_effort is not None:
            params["reasoning_effort"] = self.reasoning_effort
        if self.service_tier is not None:
            params["service_tier"] = self.service_tier
        params.update(self.param)
        for name in self.omit:
            params.pop(name, None)
        return params

    def unsent(self) -> dict[str, float]:
        """Sampling parameters that are not sent although they would change something."""
        sent = self.params()
        asked = {name: getattr(self, name) for name in SAMPLING if name not in self.omit}
        return {name: value for name, value in asked.items() if value != 1 and name not in sent}

    def sent_max_tokens(self) -> int:
        """The bound on the reply that is sent; 0 for none."""
        params = self.params()
        bounds = (params.get("max_completion_tokens"), params.get("max_tokens"))
        return max((bound for bound in bounds if isinstance(bound, int) and bound > 0), default=0)

    def most_output(self) -> int:
        """The most tokens that a reply is billed for: its bound, and thinking that stands beside it."""
        bound = self.sent_max_tokens()
        return bound + self.thinking_room if bound and not self.traits.inside else bound

    def answer_bound(self) -> int:
        """The most tokens that the answer itself may have: what is sent, less the room to think within it;
        0 for no bound. A bound given with --param leaves no room beside it."""
        bound = self.sent_max_tokens()
        own = self.traits.bound not in self.param and self.traits.inside
        return max(1, bound - self.thinking_room) if bound and own else bound

    @property
    def reply_seconds(self) -> float:
        """How long one reply may take."""
        return self.timeout or (FLEX_TIMEOUT if self.service_tier == "flex" else TIMEOUT)

    def servers(self) -> list[Server]:
        mine = {name: getattr(self, name) for name in Server.model_fields}
        return [Server(**mine), *self.others]

    def price(self, batch: bool | None = None) -> Price | None:
        """USD a million tokens: as given, as listed, or None where nobody knows; of several servers
        the dearest, so that estimates and caps hold whoever answers. `batch`: of the Batch API; as
        the run will ask if not said."""
        batch = self.batch if batch is None else batch
        prices = [self.price_of(server, batch) for server in self.servers()]
        known = [price for price in prices if price is not None]
        return max(known, key=lambda p: (p.completion, p.prompt)) if len(known) == len(prices) else None

    def price_of(self, server: Server, batch: bool = False) -> Price | None:
        prices = self.prices_of(server, batch)
        return None if prices is None else prices.asked

    def prices_of(self, server: Server, batch: bool = False) -> Prices | None:
        """What replies of a server cost, in whatever tier; None where nobody knows the price. Raises
        UsageError for a `price_as` that is not on the list."""
        if given := given_price(server.price_in, server.price_out):
            if server.price_as is not None:
                raise UsageError(
                    "--price-as gives the price of a model: leave out --price-in and --price-out"
                )
            return Prices.of_one(given)
        tier = self.params().get("service_tier")
        asked = tier if isinstance(tier, str) else None
        return known_prices(self.model, server.base_url, batch, asked, server.price_as)

    def price_source(self) -> str:
        """Where the price is from, for people; of several servers, all that are different."""
        found = [prices.source if (prices := self.prices_of(s)) else UNKNOWN for s in self.servers()]
        return ", ".join(dict.fromkeys(found))

    @property
    def is_taken_as_free(self) -> bool:
        return LOCAL in self.price_source()

    def together(self, name: str) -> float | None:
        """A limit (`rpm`, `tpm`, …) of all servers together; None where one of them has none."""
        limits = [getattr(server, name) for server in self.servers()]
        return sum(limits) if all(limits) else None

    def public(self) -> dict[str, Any]:
        """For the ledger: everything but the secrets, with the parameters as sent."""
        secret = {"api_key", "proxy"}
        shown = self.model_dump(
            mode="json", exclude={"api_key": True, "proxy": True, "others": {"__all__": secret}}
        )
        return {**shown, "params": self.params()}

    def no_price(self) -> str:
        """What to do where nobody knows the price."""
        tier = self.params().get("service_tier")
        what = f" in tier '{tier}'" if isinstance(tier, str) else ""
        return (
            f"no price is known for model '{self.model}'{what}: give --price-in and --price-out "
            "(USD a million tokens), or name a listed model with --price-as"
        )

    def check(self, price: Price | None, needs_keys: bool = True) -> None:
        """Raises UsageError for what only shows when settings meet."""
        if self.reuse and self.replace:
            raise UsageError("--reuse keeps answers, --replace asks them again: give one of them")
        check_effort(self.model, self.traits, self.reasoning_effort)
        for name in ("model", "messages", "n", "stream"):
            if name in self.param:
                raise UsageError(f"--param {name} cannot be set: the engine sets it itself")
        if self.budget is not None and price is None:
            raise UsageError(f"--budget needs a price, and {self.no_price()}")
        if self.budget is not None and price and not price.free and not self.sent_max_tokens():
            raise UsageError("--budget needs a bound on replies: leave max_tokens in, or set it")
        if self.batch and self.others:
            raise UsageError("--batch asks one provider: give one --base-url")
        for server in self.servers():
            if needs_keys and server.api_key is None and not is_loopback(server.base_url):
                raise UsageError(f"no API key for {server.base_url}: set OPENAI_API_KEY, or name another "
                                 "variable with --api-key-env")  # fmt: skip
