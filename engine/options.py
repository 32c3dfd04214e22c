"""What becomes of the engine's flags (flags.py): a checked value of settings.

Here the environment is read (the API key, OPENAI_BASE_URL, proxies); nothing below does.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from store.errors import UsageError

if TYPE_CHECKING:
    from engine.settings import Settings


SECRET_NAME = re.compile(r"^(?:.*[-_])?(?:key|apikey|token|secret|sig|signature|password|code)$")


def settings_from(options: Mapping[str, Any], task: str, **own: Any) -> "Settings":
    """A checked value from flags and environment; `own`: what the task has beside the engine's
    options. Raises UsageError with the flag's name."""
    from pydantic import ValidationError

    from engine.models import check_effort
    from engine.roles import DEFAULTS
    from engine.settings import Quota, Settings

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
    """The base address, without what people paste around it: blanks, the path of the one call, a fragment.
    A query is kept, for gateways that want one."""
    url = url.strip()
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--base-url {url!r} is no address; expected for example http://127.0.0.1:8080/v1")
    if parts.username or parts.password:
        raise UsageError("--base-url must not hold a password: give the key with --api-key-env")
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if SECRET_NAME.search(name.lower()):
            raise UsageError(
                f"--base-url must not hold a key (?{name}=…), since addresses are kept in the run folder: "
                "give the key with --api-key-env"
            )
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this address, as every HTTP client does."""
    import urllib.request

    from engine.prices import is_loopback

    parts = urlsplit(url)

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
