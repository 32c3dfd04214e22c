"""Settings by name, from flags, a recipe's command line or Python, become one checked value.

A wrong value is told with its flag, whoever gave it. The environment's part (address, key, proxy) is added
here. Imports only what `--help` needs.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from engine.collect.setting_fields import DEFAULTS, FLAGGED, PANELS, Quota, declared
from engine.environment import OPENAI_KEY, checked_url, default_url, server_values, text_of_file
from store.errors import UsageError, wrong_value

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from engine.collect.settings import Settings

Fields = Mapping[str, "FieldInfo"]
Built = TypeVar("Built")


def engine_fields(command: str) -> Fields:
    """The settings that a command heeds, in the order of their use."""
    found = [one for model in FLAGGED for one in model.model_fields.items()]
    heeded = [(name, field) for name, field in found if command in declared(field)["commands"]]
    return dict(sorted(heeded, key=lambda one: PANELS.index(declared(one[1])["panel"])))


def flag_of(name: str, field: "FieldInfo") -> str:
    return "--" + (declared(field).get("flag") or name).replace("_", "-")


def checked(build: Callable[..., Built], fields: Fields, values: Mapping[str, Any]) -> Built:
    """A model of settings. Raises UsageError with the flag of a wrong value."""
    from pydantic import ValidationError

    try:
        return build(**values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = next(str(part) for part in reversed(problem["loc"]) if part in fields)
        raise UsageError(wrong_value(flag_of(name, fields[name]), problem)) from None


def settings_from(options: Mapping[str, Any], task: str, **own: Any) -> "Settings":
    """A checked value from settings by name and the environment. `param`: pairs NAME=VALUE, or a mapping.
    Raises UsageError with the flag's name."""
    from engine.collect.settings import Settings
    from engine.provider.models import check_effort

    fields = engine_fields(task)
    for name, value in options.items():  # bytes of the command line that are not UTF-8 cannot be sent
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text != text.encode(errors="replace").decode():
                raise UsageError(f"{flag_of(name, fields[name])} is not UTF-8")
    given = options.get("base_url") or [default_url()]
    urls = [checked_url(url) for url in ([given] if isinstance(given, str) else given)]
    if len({url.lower() for url in urls}) < len(urls):
        raise UsageError("--base-url was given twice with the same address")
    key = options.get("api_key_env", OPENAI_KEY)
    quota = {name: options[name] for name in Quota.model_fields if name in options}
    others = [{**quota, **server_values(url, key)} for url in urls[1:]]
    kept = {name: value for name, value in options.items() if name in Settings.model_fields}
    kept |= {"stage": options.get("stage") or task, "prompt": text_of_file(options.get("prompt"))}
    kept |= {"param": _params(options.get("param", []))}
    values = {**DEFAULTS[task], **kept, **own, **server_values(urls[0], key), "task": task, "others": others}
    settings = checked(Settings, fields, values)
    check_effort(settings.model, settings.traits, settings.reasoning_effort)
    return settings


def _params(pairs: list[str] | Mapping[str, Any]) -> dict[str, Any]:
    import orjson

    if isinstance(pairs, Mapping):
        return {**pairs}
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
