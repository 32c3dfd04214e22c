"""The engine's flags, declared once and lent to every command that asks a teacher.

Knows what `--help` shows and nothing of what becomes of the values: that is environment.py.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.environment import checked_url, default_url, server_values, text_of_file
from store.errors import UsageError

if TYPE_CHECKING:
    from engine.collect.settings import Settings

JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
PANEL_WHO, PANEL_HOW, PANEL_LIMITS, PANEL_MONEY = "Teacher", "What is asked", "Limits", "Money"
PANEL_WATCH, PANEL_BATCH = "Watching", "Batch API"


def _option(*names: str, text: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, show_default=False)


def engine_options(
    model: Annotated[str, _option("--model", text="the teacher's name", panel=PANEL_WHO, metavar="M")],
    base_url: Annotated[
        list[str] | None,
        _option(
            "--base-url",
            text="the API's address; several share the work, each with the limits given "
            "[OPENAI_BASE_URL, else OpenAI]",
            panel=PANEL_WHO,
            metavar="URL",
        ),
    ] = None,
    api_key_env: Annotated[
        str,
        _option(
            "--api-key-env",
            text="variable that holds the key [OPENAI_API_KEY]",
            panel=PANEL_WHO,
            metavar="NAME",
        ),
    ] = "OPENAI_API_KEY",
    samples: Annotated[
        int, _option("--samples", text="answers wanted for each row [1]", panel=PANEL_HOW)
    ] = 1,
    temperature: Annotated[
        float | None,
        _option("--temperature", text="[1.0; 0.2 to translate, score, compare and judge]", panel=PANEL_HOW),
    ] = None,
    top_p: Annotated[float, _option("--top-p", text="[1.0]", panel=PANEL_HOW)] = 1.0,
    max_tokens: Annotated[
        int | None,
        _option(
            "--max-tokens",
            text="bound on the answer [512; 1024 to translate and judge]; room to think is added for "
            "models that think inside it",
            panel=PANEL_HOW,
        ),
    ] = None,
    model_kind: Annotated[
        str | None,
        _option(
            "--model-kind",
            text="reasoning or plain: what to take the model for [by its name]",
            panel=PANEL_HOW,
            metavar="KIND",
        ),
    ] = None,
    reasoning_effort: Annotated[
        str | None,
        _option(
            "--reasoning-effort",
            text="how hard it thinks: none, minimal, low, medium, high, … [the model's default]",
            panel=PANEL_HOW,
            metavar="EFFORT",
        ),
    ] = None,
    thinking_tokens: Annotated[
        int | None,
        _option(
            "--thinking-tokens",
            text="room to think, added to --max-tokens [by effort; estimate shows it]",
            panel=PANEL_HOW,
        ),
    ] = None,
    service_tier: Annotated[
        str | None,
        _option(
            "--service-tier",
            text="flex (cheaper and slower) or priority, with its price",
            panel=PANEL_HOW,
            metavar="TIER",
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        _option(
            "--param",
            text="a further parameter to send (value as JSON, else text)",
            panel=PANEL_HOW,
            metavar="K=V",
        ),
    ] = None,
    omit: Annotated[
        list[str] | None,
        _option("--omit", text="a parameter not to send", panel=PANEL_HOW, metavar="K"),
    ] = None,
    system: Annotated[
        str | None, _option("--system", text="system message", panel=PANEL_HOW, metavar="TEXT")
    ] = None,
    prompt: Annotated[
        Path | None,
        _option(
            "--prompt",
            text="a template of your own; docs/collecting.md names its placeholders [the task's]",
            panel=PANEL_HOW,
            metavar="FILE",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        _option("--stage", text="name of the stage [the task's]", panel=PANEL_HOW, metavar="NAME"),
    ] = None,
    reuse: Annotated[
        bool,
        _option(
            "--reuse",
            text="keep the answers that the stage's rows have under other settings, and ask only the rest",
            panel=PANEL_HOW,
        ),
    ] = False,
    replace: Annotated[
        bool,
        _option("--replace", text="ask rows with such an answer again", panel=PANEL_HOW),
    ] = False,
    structured: Annotated[
        bool,
        _option("--structured", text="ask for JSON by a schema where the task has one", panel=PANEL_HOW),
    ] = False,
    sample: Annotated[
        int | None,
        _option("--sample", text="only N pool rows, drawn with --seed", panel=PANEL_HOW, metavar="N"),
    ] = None,
    seed: Annotated[
        int, _option("--seed", text="for what is drawn at random here [0]; it is not sent", panel=PANEL_HOW)
    ] = 0,
    strict: Annotated[
        bool,
        _option("--strict", text="exit 2 if a row cannot be used; it is left out otherwise", panel=PANEL_HOW),
    ] = False,
    limit: Annotated[
        int | None,
        _option("--limit", text="only the first N pool rows", panel=PANEL_HOW, metavar="N"),
    ] = None,
    rpm: Annotated[float | None, _option("--rpm", text="requests a minute", panel=PANEL_LIMITS)] = None,
    tpm: Annotated[float | None, _option("--tpm", text="tokens a minute", panel=PANEL_LIMITS)] = None,
    rpd: Annotated[float | None, _option("--rpd", text="requests a day", panel=PANEL_LIMITS)] = None,
    tpd: Annotated[float | None, _option("--tpd", text="tokens a day", panel=PANEL_LIMITS)] = None,
    concurrency: Annotated[
        int | None,
        _option(
            "--concurrency",
            text="requests in flight [found from latency, or up to 1024]",
            panel=PANEL_LIMITS,
        ),
    ] = None,
    attempts: Annotated[
        int,
        _option(
            "--attempts",
            text="asks of a row that fails for passing reasons [8]",
            panel=PANEL_LIMITS,
        ),
    ] = 8,
    attempts_parse: Annotated[
        int,
        _option(
            "--attempts-parse",
            text="further samples of a row whose reply cannot be read [2]",
            panel=PANEL_LIMITS,
        ),
    ] = 2,
    attempts_empty: Annotated[
        int,
        _option(
            "--attempts-empty",
            text="paid requests for a row whose replies hold no answer [2]",
            panel=PANEL_LIMITS,
        ),
    ] = 2,
    timeout: Annotated[
        float | None,
        _option("--timeout", text="seconds for one reply [300; 900 for flex]", panel=PANEL_LIMITS),
    ] = None,
    give_up: Annotated[
        float,
        _option(
            "--give-up",
            text="seconds of outage after which the run stops [1800]",
            panel=PANEL_LIMITS,
        ),
    ] = 1800.0,
    give_up_share: Annotated[
        float,
        _option(
            "--give-up-share",
            text="stop when more than this share of the last 100 replies were paid for and hold no answer "
            "[0.5; 1 never stops]",
            panel=PANEL_LIMITS,
            metavar="SHARE",
        ),
    ] = 0.5,
    budget: Annotated[
        float | None,
        _option("--budget", text="hard cap for this run folder", panel=PANEL_MONEY, metavar="USD"),
    ] = None,
    price_in: Annotated[
        float | None,
        _option("--price-in", text="USD a million prompt tokens", panel=PANEL_MONEY, metavar="USD"),
    ] = None,
    price_out: Annotated[
        float | None,
        _option("--price-out", text="USD a million completion tokens", panel=PANEL_MONEY, metavar="USD"),
    ] = None,
    price_as: Annotated[
        str | None,
        _option(
            "--price-as",
            text="the listed model whose price it has, for a deployment's own name",
            panel=PANEL_MONEY,
            metavar="MODEL",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        _option(
            "--metrics-port",
            text="serve Prometheus metrics on loopback while it goes; 0 for any port",
            panel=PANEL_WATCH,
            metavar="P",
        ),
    ] = None,
    batch: Annotated[
        bool, _option("--batch", text="in batches: half the price for a day's wait", panel=PANEL_BATCH)
    ] = False,
    batch_requests: Annotated[
        int, _option("--batch-requests", text="requests in one batch at most [50000]", panel=PANEL_BATCH)
    ] = 50_000,
    batch_tokens: Annotated[
        int | None,
        _option(
            "--batch-tokens",
            text="prompt tokens that the provider lets wait in batches [learnt]",
            panel=PANEL_BATCH,
        ),
    ] = None,
    batch_grace: Annotated[
        float,
        _option(
            "--batch-grace",
            text="seconds for which its list of batches may lag behind [60]",
            panel=PANEL_BATCH,
        ),
    ] = 60.0,
    batch_abandon: Annotated[
        str | None,
        _option(
            "--batch-abandon",
            text="a batch whose results cannot be read: ask for the missing ones anew, perhaps paying twice",
            panel=PANEL_BATCH,
            metavar="ID",
        ),
    ] = None,
) -> None:
    """Only its signature is used."""


def lend(flags: Callable[..., None], name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command gets one more argument, `name`: all values of the flags by name."""
    lent = inspect.signature(flags).parameters

    def with_flags(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command)
        both = [p for n, p in own.parameters.items() if n != name] + [*lent.values()]

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            found = {each: values.pop(each) for each in lent}
            command(**values, **{name: found})

        shown: Any = wrapper
        shown.__signature__ = own.replace(
            parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in both]
        )
        wrapper.__annotations__ = {
            **{k: v for k, v in command.__annotations__.items() if k != name},
            **flags.__annotations__,
        }
        del shown.__wrapped__
        return wrapper

    return with_flags


with_engine_options = lend(engine_options, "options")


def settings_from(options: Mapping[str, Any], task: str, **own: Any) -> "Settings":
    """A checked value from flags and environment; `own`: what the task has beside the engine's
    options. Raises UsageError with the flag's name."""
    from pydantic import ValidationError

    from engine.collect.plan import DEFAULTS
    from engine.collect.settings import Quota, Settings
    from engine.provider.models import check_effort

    if task not in DEFAULTS:
        raise UsageError(f"--task {task}: unknown; there are {', '.join(DEFAULTS)}")
    _check_heeded(options, task)
    urls = [checked_url(url) for url in options["base_url"] or [default_url()]]
    if len({url.lower() for url in urls}) < len(urls):
        raise UsageError("--base-url was given twice with the same address")
    _check_text(options)
    values = {
        k: v for k, v in options.items() if k not in ("base_url", "api_key_env", "prompt", "param", "omit")
    }
    limits = {name: options[name] for name in Quota.model_fields}
    for name, usual in DEFAULTS[task].items():
        values[name] = usual if options[name] is None else options[name]
    values.update(
        **own,
        task=task,
        stage=options["stage"] or task,
        **server_values(urls[0], options["api_key_env"]),
        others=[{**limits, **server_values(url, options["api_key_env"])} for url in urls[1:]],
        prompt=text_of_file(options["prompt"]),
        param=_params(options["param"] or []),
        omit=tuple(options["omit"] or ()),
    )
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise UsageError(_first_problem(error)) from None
    check_effort(settings.model, settings.traits, settings.reasoning_effort)
    return settings


def _check_heeded(options: Mapping[str, Any], task: str) -> None:
    """What a task has no use for is not taken without a word."""
    if options["prompt"] is not None and task in ("score", "compare"):
        raise UsageError(f"--prompt: {task} has prompts of its own; judge takes FastChat's prompt file")
    if options["sample"] is not None and task in ("score", "compare", "judge"):
        raise UsageError(f"--sample draws from a pool; {task} reads models' answers: --limit takes the first")


def _check_text(options: Mapping[str, Any]) -> None:
    """Bytes of the command line that are no UTF-8 cannot be sent."""
    for name, value in options.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text != text.encode(errors="replace").decode():
                raise UsageError(f"--{name.replace('_', '-')} is not UTF-8")


def _first_problem(error: Any) -> str:
    problem = error.errors(include_input=False, include_url=False)[0]
    name = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-")
    return f"{name}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _params(pairs: list[str]) -> dict[str, Any]:
    import orjson

    params: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UsageError(f"--param {pair!r}: expected NAME=VALUE, for example --param seed=7")
        try:
            params[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            params[name] = value
    return params
