"""The engine's settings as one checked value: from flags or a recipe, never from the environment.

`params` are exactly what is sent beside model and messages, so they decide the request's key.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr

from engine.feed import Plan
from engine.keys import KEY_VERSION, Sealer, canonical
from engine.packing import MOST_REQUESTS
from engine.prices import Price, given_price, is_loopback, known_price
from engine.tasks import generate
from engine.tokens import Tokenizer
from store.errors import UsageError

OPENAI_URL = "https://api.openai.com/v1"
REASONING_MODELS = ("o1", "o3", "o4", "gpt-5", "gpt-6")  # want max_completion_tokens
MOST_CONCURRENT = 1024


class Settings(BaseModel):
    """What a stage asks, whom, how fast and for how much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = generate.NAME
    stage: str = generate.NAME
    model: Annotated[str, Field(min_length=1)]
    base_url: str = OPENAI_URL
    api_key: SecretStr | None = None
    proxy: str | None = None
    rpm: PositiveFloat | None = None
    tpm: PositiveFloat | None = None
    rpd: PositiveFloat | None = None
    tpd: PositiveFloat | None = None
    concurrency: PositiveInt | None = None
    samples: PositiveInt = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 512
    param: Mapping[str, Any] = {}
    omit: tuple[str, ...] = ()
    system: str | None = None
    prompt: str | None = None
    attempts: PositiveInt = 8
    timeout: PositiveFloat = 300.0
    give_up: Annotated[float, Field(ge=0)] = 1800.0
    budget: Annotated[float, Field(ge=0)] | None = None
    price_in: Annotated[float, Field(ge=0)] | None = None
    price_out: Annotated[float, Field(ge=0)] | None = None
    limit: PositiveInt | None = None
    batch: bool = False
    batch_requests: Annotated[int, Field(gt=0, le=MOST_REQUESTS)] = MOST_REQUESTS
    batch_tokens: PositiveInt | None = None
    batch_grace: Annotated[float, Field(ge=0)] = 60.0

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

    def price(self, batch: bool | None = None) -> Price | None:
        """USD a million tokens: as given, as listed, or None where nobody knows. `batch`: of the
        Batch API; as the run will ask if not said."""
        given = given_price(self.price_in, self.price_out)
        return given or known_price(self.model, self.base_url, self.batch if batch is None else batch)

    def public(self) -> dict[str, Any]:
        """For the ledger: everything but the secrets, with the parameters as sent."""
        shown = self.model_dump(mode="json", exclude={"api_key", "proxy"})
        return {**shown, "params": self.params()}

    def check(self, price: Price | None) -> None:
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
        if self.api_key is None and not is_loopback(self.base_url):
            raise UsageError(f"no API key for {self.base_url}: set OPENAI_API_KEY, or name another "
                             "variable with --api-key-env")  # fmt: skip


def _fingerprint(settings: Settings) -> int:
    """63 bits over the task's prompts, the model and the parameters: all that a key is made of
    beside the row."""
    decisive = [KEY_VERSION, settings.task, generate.WITH_INPUT, generate.WITHOUT_INPUT]
    decisive += [settings.prompt, settings.system, settings.model, canonical(settings.params())]
    digest = hashlib.sha256(orjson.dumps(decisive, option=orjson.OPT_SORT_KEYS)).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def plan_of(settings: Settings, tokenizer: Tokenizer) -> Plan:
    """How the stage makes requests out of rows."""
    return Plan(
        _fingerprint(settings),
        generate.builder(settings.prompt, settings.system),
        Sealer(settings.model, settings.params()),
        tokenizer,
        settings.samples,
        settings.sent_max_tokens(),
        settings.limit,
    )
