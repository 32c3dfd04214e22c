"""The engine's settings as one checked value: from flags or a recipe, never from the environment.

`params` are exactly what is sent beside model and messages, so they decide the request's key.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr

from engine.batch.packing import MOST_REQUESTS
from engine.prices import Price, given_price, is_loopback, known_price
from store.errors import UsageError

OPENAI_URL = "https://api.openai.com/v1"
REASONING_MODELS = ("o1", "o3", "o4", "gpt-5", "gpt-6")  # want max_completion_tokens
MOST_CONCURRENT = 1024


class Address(BaseModel):
    """Where a server is, and how it is reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str = OPENAI_URL
    api_key: SecretStr | None = None
    proxy: str | None = None


class Quota(BaseModel):
    """What a server allows, a minute and a day, and charges, in USD a million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rpm: PositiveFloat | None = None
    tpm: PositiveFloat | None = None
    rpd: PositiveFloat | None = None
    tpd: PositiveFloat | None = None
    concurrency: PositiveInt | None = None
    price_in: Annotated[float, Field(ge=0)] | None = None
    price_out: Annotated[float, Field(ge=0)] | None = None


class Server(Quota, Address):
    """One endpoint: its address, key, limits and price."""


class Settings(Server):
    """What a stage asks, whom, how fast and for how much. The server of its own fields is the
    first; `others` answer for the same model beside it."""

    task: str = "generate"
    stage: str = "generate"
    teacher: str = ""  # stages with the same name here share its servers and their limits
    others: tuple[Server, ...] = ()
    model: Annotated[str, Field(min_length=1)]
    samples: PositiveInt = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 512
    param: Mapping[str, Any] = {}
    omit: tuple[str, ...] = ()
    system: str | None = None
    prompt: str | None = None
    to: str | None = None
    field: str | None = None
    language: str | None = None
    structured: bool = False
    sample: PositiveInt | None = None
    seed: int = 0
    both_orders: bool = False
    names: tuple[str, ...] = ()
    attempts: PositiveInt = 8
    attempts_parse: Annotated[int, Field(ge=0)] = 2
    timeout: PositiveFloat = 300.0
    give_up: Annotated[float, Field(ge=0)] = 1800.0
    budget: Annotated[float, Field(ge=0)] | None = None
    limit: PositiveInt | None = None
    batch: bool = False
    batch_requests: Annotated[int, Field(gt=0, le=MOST_REQUESTS)] = MOST_REQUESTS
    batch_tokens: PositiveInt | None = None
    batch_grace: Annotated[float, Field(ge=0)] = 60.0
    batch_abandon: str | None = None
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None

    @property
    def is_reasoning(self) -> bool:
        return self.model.startswith(REASONING_MODELS)

    def params(self) -> dict[str, Any]:
        """The sampling parameters as sent. Reasoning models refuse the neutral temperature and
        top_p of the paper, so there these are sent only where they are not 1."""
        params: dict[str, Any] = {}
        for name, value in (("temperature", self.temperature), ("top_p", self.top_p)):
            if not (self.is_reasoning and value == 1):
                params[name] = value
        params["max_completion_tokens" if self.is_reasoning else "max_tokens"] = self.max_tokens
        params.update(self.param)
        for name in self.omit:
            params.pop(name, None)
        return params

    def sent_max_tokens(self) -> int:
        """The bound on the reply that is sent; 0 for none."""
        params = self.params()
        bound = params.get("max_completion_tokens", params.get("max_tokens"))
        return bound if isinstance(bound, int) and bound > 0 else 0

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
        given = given_price(server.price_in, server.price_out)
        return given or known_price(self.model, server.base_url, batch)

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

    def check(self, price: Price | None, needs_keys: bool = True) -> None:
        """Raises UsageError for what only shows when settings meet."""
        for name in ("model", "messages", "n", "stream"):
            if name in self.param:
                raise UsageError(f"--param {name} cannot be set: the engine sets it itself")
        if self.budget is not None and price is None:
            raise UsageError(
                f"--budget needs a price, and none is known for model '{self.model}': "
                "give --price-in and --price-out (USD a million tokens)"
            )
        if self.budget is not None and price and not price.free and not self.sent_max_tokens():
            raise UsageError("--budget needs a bound on replies: leave max_tokens in, or set it")
        if self.batch and self.others:
            raise UsageError("--batch asks one provider: give one --base-url")
        for server in self.servers():
            if needs_keys and server.api_key is None and not is_loopback(server.base_url):
                raise UsageError(f"no API key for {server.base_url}: set OPENAI_API_KEY, or name another "
                                 "variable with --api-key-env")  # fmt: skip
