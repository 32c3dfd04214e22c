"""The engine options, declared once and lent to every command that asks a teacher.

Here the environment is read (the API key, OPENAI_BASE_URL, proxies); nothing below does.
"""

import functools
import inspect
import os
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from store.errors import UsageError

if TYPE_CHECKING:
    from engine.settings import Settings

PER_SERVER = ("rpm", "tpm", "rpd", "tpd", "concurrency", "price_in", "price_out")
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
            text="[512; 1024 to translate, score and judge]; sent as max_completion_tokens where the model "
            "wants it",
            panel=PANEL_HOW,
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
            text="a template of your own; the README names what it may hold [the task's]",
            panel=PANEL_HOW,
            metavar="FILE",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        _option("--stage", text="name of the stage [the task's]", panel=PANEL_HOW, metavar="NAME"),
    ] = None,
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
    timeout: Annotated[
        float, _option("--timeout", text="seconds for one reply [300]", panel=PANEL_LIMITS)
    ] = 300.0,
    give_up: Annotated[
        float,
        _option(
            "--give-up",
            text="seconds of outage after which the run stops [1800]",
            panel=PANEL_LIMITS,
        ),
    ] = 1800.0,
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
) -> None:
    """Only its signature is used."""


def with_engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command gets one more argument, `options`: all engine options by name."""
    own = inspect.signature(command)
    lent = inspect.signature(engine_options)
    mine = [p for name, p in own.parameters.items() if name != "options"]
    both = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) if p.default is p.empty or i >= len(mine) else p
        for i, p in enumerate([*mine, *lent.parameters.values()])
    ]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        options = {name: values.pop(name) for name in lent.parameters}
        command(**values, options=options)

    shown: Any = wrapper
    shown.__signature__ = own.replace(
        parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in both]
    )
    wrapper.__annotations__ = {
        **{k: v for k, v in command.__annotations__.items() if k != "options"},
        **engine_options.__annotations__,
    }
    del shown.__wrapped__
    return wrapper


def settings_from(options: Mapping[str, Any], task: str, **own: Any) -> "Settings":
    """A checked value from flags and environment; `own`: what the task has beside the engine's
    options. Raises UsageError with the flag's name."""
    from pydantic import ValidationError

    from engine.roles import DEFAULTS
    from engine.settings import Settings

    if task not in DEFAULTS:
        raise UsageError(f"--task {task}: unknown; there are {', '.join(DEFAULTS)}")
    _check_heeded(options, task)
    urls = [_checked_url(url) for url in options["base_url"] or [default_url()]]
    if len({url.lower() for url in urls}) < len(urls):
        raise UsageError("--base-url was given twice with the same address")
    _check_text(options)
    values = {
        k: v for k, v in options.items() if k not in ("base_url", "api_key_env", "prompt", "param", "omit")
    }
    limits = {name: options[name] for name in PER_SERVER}
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
        return Settings(**values)
    except ValidationError as error:
        raise UsageError(_first_problem(error)) from None


def _check_heeded(options: Mapping[str, Any], task: str) -> None:
    """What a task has no use for is not taken without a word."""
    if options["prompt"] is not None and task in ("score", "compare"):
        raise UsageError(f"--prompt: {task} has prompts of its own; judge takes FastChat's prompt file")
    if options["sample"] is not None and task in ("score", "compare", "judge"):
        raise UsageError(f"--sample draws from a pool; {task} reads models' answers: --limit takes the first")


def server_values(url: str, key_variable: str) -> dict[str, Any]:
    """Address, key and proxy of one server. Raises UsageError."""
    return {"base_url": _checked_url(url), "api_key": _key(key_variable), "proxy": _proxy_for(url)}


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


def _key(variable: str) -> str | None:
    key = os.environ.get(variable)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UsageError(f"the API key in {variable} holds characters that no header can carry")
    return key or None


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--base-url {url!r} is no address; expected for example http://127.0.0.1:8080/v1")
    if parts.username or parts.password:
        raise UsageError("--base-url must not hold a password: give the key with --api-key-env")
    return url.rstrip("/")


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this address, as every HTTP client does."""
    parts = urlsplit(url)
    from engine.prices import is_loopback

    if is_loopback(url) or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def default_url() -> str:
    from engine.settings import OPENAI_URL

    return os.environ.get("OPENAI_BASE_URL") or OPENAI_URL


def text_of_file(path: Path | None) -> str | None:
    """A prompt's text. Raises UsageError."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read --prompt {path}: {error}") from error


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
