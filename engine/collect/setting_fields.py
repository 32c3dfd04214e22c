"""Every setting for asking a teacher, declared once: default, bounds, text, panel of `--help`, commands.

The flags (engine/cli/options.py), the keys of recipes (engine/recipe/schema.py), the checked values of a run
(settings.py) and docs/settings.md are all made from these classes. A recipe's key has the field's name. Knows
nothing of the environment: what is left to it is None here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from engine.provider.models import Kind

Task = Literal["generate", "translate", "score", "compare", "judge"]
TASKS: tuple[str, ...] = get_args(Task)
POOLED = ("generate", "translate")  # tasks that read a pool, or one stage
JOINED = ("score", "compare", "judge")  # tasks that read several models' answers
ESTIMATED = (*TASKS, "estimate")
ALL = (*ESTIMATED, "import")

TEACHER, ASKED, ROWS, STAGE = "Teacher", "Request", "Rows", "Stage"
LIMITS, FAILURES, MONEY, BATCH, WATCHING = "Limits", "Failures", "Money", "Batch API", "Watching"
PANELS = (TEACHER, ASKED, ROWS, STAGE, LIMITS, FAILURES, MONEY, BATCH, WATCHING)  # in the order of their use

MOST_REQUESTS = 50_000  # in a batch, as OpenAI takes it
MOST = 10**12  # of what is counted: anything above is a slip of the keyboard
MOST_TOKENS = 10_000_000  # of a reply; room for it is reserved on the disk
Count = Annotated[int, Field(gt=0, le=MOST)]
CountOrNone = Annotated[int, Field(ge=0, le=MOST)]
Tokens = Annotated[int, Field(gt=0, le=MOST_TOKENS)]
Rate = Annotated[float, Field(gt=0, le=MOST)]
Seconds = Annotated[float, Field(ge=0, le=10**9)]
Dollars = Annotated[float, Field(ge=0, le=10**9)]
Text = Annotated[str, Field(min_length=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]

# What is sent unless the user says otherwise: the paper's for answers and judgements.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "generate": {"temperature": 1.0, "max_tokens": 512},
    "translate": {"temperature": 0.2, "max_tokens": 1024, "to": "Chinese", "field": "instruction"},
    "score": {"temperature": 0.2, "max_tokens": 512},
    "compare": {"temperature": 0.2, "max_tokens": 512},
    "judge": {"temperature": 0.2, "max_tokens": 1024},
}


def setting(
    default: Any, text: str, panel: str, commands: tuple[str, ...] = ESTIMATED, usual: str = "", **how: Any
) -> Any:
    """A field with its flag. `commands`: those that heed it; a stage of a recipe takes it if its task is
    one of them. `usual`: what happens where nothing is said, if the default does not tell. `how`: `flag` (its
    name, if not the field's), `metavar`, `repeat` (the flag may be given several times)."""
    return Field(
        default,
        description=text,
        json_schema_extra={"panel": panel, "commands": [*commands], "usual": usual, **how},
    )


class Declared(BaseModel):
    """defer_build: `--help` reads the fields and checks no values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Address(Declared):
    """Where a server is, as users name it."""

    base_url: str | None = setting(
        None, "API base URL; repeat it to use several servers, each with the limits given", TEACHER,
        usual="OPENAI_BASE_URL, else OpenAI", metavar="URL", repeat=True,
    )  # fmt: skip
    api_key_env: str = setting(
        "OPENAI_API_KEY", "environment variable that holds the API key", TEACHER, metavar="NAME"
    )


class ModelTraits(Declared):
    """How a model thinks, and which tier serves it."""

    model_kind: Kind | None = setting(
        None,
        "kind of model, if its name says nothing or the wrong thing",
        TEACHER,
        ALL,
        "by its name",
    )
    reasoning_effort: Text | None = setting(
        None, "how hard the model thinks: none, minimal, low, medium, high, …", TEACHER, ALL,
        "the model's default", metavar="EFFORT",
    )  # fmt: skip
    thinking_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = setting(
        None, "room for thinking, added to --max-tokens", TEACHER, ALL, "by effort; estimate shows it"
    )
    service_tier: Literal["flex", "priority"] | None = setting(
        None, "a cheaper and slower tier, or a faster one, at its own price", TEACHER, ALL
    )


class Quota(Declared):
    """What a server allows and charges."""

    rpm: Rate | None = setting(None, "requests per minute", LIMITS)
    tpm: Rate | None = setting(None, "tokens per minute", LIMITS)
    rpd: Rate | None = setting(None, "requests per day", LIMITS)
    tpd: Rate | None = setting(None, "tokens per day", LIMITS)
    concurrency: Annotated[int, Field(gt=0, le=100_000)] | None = setting(
        None, "requests in flight", LIMITS, usual="found from latency; up to 1024 with limits"
    )
    price_in: Dollars | None = setting(None, "USD for a million prompt tokens", MONEY, metavar="USD")
    price_out: Dollars | None = setting(None, "USD for a million completion tokens", MONEY, metavar="USD")
    price_as: Text | None = setting(
        None,
        "take the list price of this model, for a deployment with a name of your own",
        MONEY,
        metavar="MODEL",
    )


class Timeouts(Declared):
    """How long a teacher is waited for."""

    timeout: Annotated[float, Field(gt=0, le=10**9)] | None = setting(
        None, "seconds to wait for a reply", FAILURES, usual="300; 900 for flex", metavar="SECONDS"
    )
    give_up: Seconds = setting(
        1800.0, "seconds of outage after which the run stops", FAILURES, metavar="SECONDS"
    )
    give_up_share: Annotated[float, Field(gt=0, le=1)] = setting(
        0.5, "stop if a larger share of the last 100 replies was paid for without an answer; 1 never stops",
        FAILURES, metavar="SHARE",
    )  # fmt: skip


class StageSettings(Declared):
    """What a stage asks, about which rows, and what happens to failures. What depends on the task is None
    here and found in DEFAULTS."""

    to: str | None = setting(
        None, "language to translate into", ASKED, ("translate", "estimate"), metavar="LANGUAGE"
    )
    field: str | None = setting(
        None, "what to translate: instruction (with its input) or output", ASKED, ("translate", "estimate"),
        metavar="F",
    )  # fmt: skip
    both_orders: bool = setting(False, "ask each question twice, with either answer first", ASKED, ("judge",))
    language: str | None = setting(
        None, "language of the prompts: English or Chinese", ASKED, JOINED, "English", metavar="L"
    )
    names: tuple[str, ...] = setting(
        (), "a model's name, in the order of the files; repeat it", ASKED, JOINED, "the file's", flag="name",
        metavar="N", repeat=True,
    )  # fmt: skip
    prompt: str | None = setting(
        None, "file with your own prompt template; docs/collecting.md lists its placeholders", ASKED,
        (*POOLED, "judge", "estimate", "import"), "the task's", metavar="FILE",
    )  # fmt: skip
    system: str | None = setting(None, "system message", ASKED, ALL, metavar="TEXT")
    samples: Annotated[int, Field(gt=0, le=10_000)] = setting(1, "answers for each row", ASKED, ALL)
    temperature: Temperature | None = setting(None, "sampling temperature", ASKED, ALL)
    top_p: Annotated[float, Field(gt=0, le=1)] = setting(
        1.0, "share of the probability that is sampled from", ASKED, ALL
    )
    max_tokens: Tokens | None = setting(
        None, "most tokens of an answer; room for thinking is added if the model thinks within it", ASKED, ALL
    )
    structured: bool = setting(False, "ask for JSON with a schema", ASKED, ("translate", *JOINED, "estimate"))
    param: Mapping[str, Any] = setting(
        {},
        "another parameter to send (value as JSON, else text); repeat it",
        ASKED,
        ALL,
        metavar="K=V",
        repeat=True,
    )
    omit: tuple[str, ...] = setting(
        (), "a parameter to leave out; repeat it", ASKED, ALL, metavar="K", repeat=True
    )

    limit: Count | None = setting(None, "only the first N rows", ROWS, ALL)
    sample: Count | None = setting(
        None, "only N rows of the pool, drawn at random with --seed", ROWS, (*POOLED, "estimate", "import")
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = setting(
        0, "seed of random draws here; it is not sent", ROWS, ALL
    )
    strict: bool | None = setting(
        None, "exit with code 2 if a row cannot be used; otherwise it is left out", ROWS, ALL
    )

    reuse: bool = setting(
        False, "keep answers that rows have under other settings, and ask only for the rest", STAGE
    )
    replace: bool = setting(False, "ask again for rows that have an answer under other settings", STAGE)

    attempts: Count = setting(8, "attempts per request on transient errors", FAILURES)
    attempts_parse: CountOrNone = setting(2, "further samples if a reply cannot be parsed", FAILURES)
    attempts_empty: Count = setting(2, "paid requests for a row whose replies have no answer", FAILURES)

    budget: Dollars | None = setting(None, "most USD to spend in this run folder", MONEY, metavar="USD")

    batch: bool = setting(False, "use the Batch API: half the price, answers within a day", BATCH)
    batch_requests: Annotated[int, Field(gt=0, le=MOST_REQUESTS)] = setting(
        MOST_REQUESTS, "most requests in a batch", BATCH, TASKS
    )
    batch_tokens: Count | None = setting(
        None,
        "most prompt tokens that wait in batches at the provider",
        BATCH,
        TASKS,
        "learned from its refusals",
    )
    batch_grace: Seconds = setting(
        60.0,
        "seconds by which the provider's list of batches may lag behind",
        BATCH,
        TASKS,
        metavar="SECONDS",
    )
    batch_abandon: str | None = setting(
        None, "a batch whose results cannot be read: send its missing requests again, and perhaps pay twice",
        BATCH, TASKS, metavar="ID",
    )  # fmt: skip


class RunSettings(Declared):
    """What a command line or a whole recipe decides."""

    model: Text = setting(..., "name of the teacher's model", TEACHER, ALL, metavar="M")
    stage: str = setting("generate", "name of the stage", STAGE, ALL, "the task's", metavar="NAME")
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = setting(
        None,
        "serve Prometheus metrics on loopback during the run; 0 picks a free port",
        WATCHING,
        metavar="P",
    )


FLAGGED = (RunSettings, Address, ModelTraits, StageSettings, Quota, Timeouts)  # their order within a panel


def declared(field: FieldInfo) -> Mapping[str, Any]:
    """What `setting` was told beside default, text and bounds."""
    return cast(Mapping[str, Any], field.json_schema_extra)
