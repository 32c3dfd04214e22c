"""Flags of the command line, made from the fields of settings: one declaration for flag, default and check.

A flag hands on what was typed, and the model of the settings checks it. Here too: the engine's flags as a
checked value. What each setting means is said in engine/collect/setting_fields.py and trainers/config.py.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from engine.collect.setting_fields import DEFAULTS, FLAGGED, PANELS, POOLED, TASKS, Quota, declared
from engine.environment import checked_url, default_url, server_values, text_of_file
from store.errors import UsageError, wrong_value

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from engine.collect.settings import Settings

Fields = Mapping[str, "FieldInfo"]
Command = Callable[..., None]

JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
METAVARS = {bool: None, int: "N", float: "X", str: "TEXT", Path: "PATH"}  # of one value, by its type
MEANT = {"estimate": POOLED, "import": POOLED[:1], "": TASKS}  # the tasks that a command may be about


def engine_fields(command: str) -> Fields:
    """The settings that a command heeds, in the order of their use."""
    found = [one for model in FLAGGED for one in model.model_fields.items()]
    heeded = [(name, field) for name, field in found if command in declared(field)["commands"]]
    return dict(sorted(heeded, key=lambda one: PANELS.index(declared(one[1])["panel"])))


def flag_of(name: str, field: "FieldInfo") -> str:
    return "--" + (declared(field).get("flag") or name).replace("_", "-")


def usual(name: str, field: "FieldInfo", command: str = "") -> str:
    """What happens where nothing is said: the default, by task where it depends on the task."""
    tasks: dict[Any, list[str]] = {}
    for task in MEANT.get(command, (command,)):
        if name in DEFAULTS.get(task, {}):
            tasks.setdefault(DEFAULTS[task][name], []).append(task)
    if tasks:
        first, *others = tasks
        return "; ".join([str(first), *(f"{value} for {', '.join(tasks[value])}" for value in others)])
    if declared(field)["usual"] or isinstance(field.default, bool):
        return str(declared(field)["usual"])
    if isinstance(field.default, float):
        return f"{field.default:g}"
    return str(field.default) if isinstance(field.default, int | str) else ""


def kind_of(annotation: Any) -> Any:
    """The type of one value of a field: bool, int, float, str, Path or a Literal; None for no value."""
    if annotation in METAVARS or get_origin(annotation) is Literal:
        return annotation
    return next((kind for inner in get_args(annotation) if (kind := kind_of(inner)) is not None), None)


def _parameter(name: str, field: "FieldInfo", command: str) -> inspect.Parameter:
    """A field as typer's parameter. Its value stays as it was typed, for the model to check."""
    kind, told, shown = kind_of(field.annotation), declared(field), usual(name, field, command)
    choices = "|".join(map(str, get_args(kind)))
    option = typer.Option(
        flag_of(name, field),
        help=f"{field.description} [{shown}]" if shown else field.description,
        rich_help_panel=told["panel"],
        metavar=told.get("metavar") or choices or METAVARS[kind],
        parser=None if kind is bool else str,
        show_default=False,
    )
    needed = field.is_required() and told.get("needed", True)
    one: Any = list[kind] if told.get("repeat") else kind  # type: ignore[valid-type]
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if needed else None,
        annotation=Annotated[one if needed else one | None, option],
    )


def takes(
    fields: Fields, argument: str, command: str = "", build: Callable[..., Any] = dict
) -> Callable[[Command], Command]:
    """A decorator: the command gets a flag for each field, and one argument made of the given values."""
    lent = [_parameter(name, field, command) for name, field in fields.items()]

    def with_flags(function: Command) -> Command:
        own = [p for name, p in inspect.signature(function).parameters.items() if name != argument]

        @functools.wraps(function)
        def wrapper(**values: Any) -> None:
            typed = {name: values.pop(name) for name in fields}
            given = {name: value for name, value in typed.items() if value is not None}
            function(**values, **{argument: build(**given)})

        both = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *lent)]
        shown: Any = wrapper
        shown.__signature__ = inspect.Signature(both)
        wrapper.__annotations__ = {p.name: p.annotation for p in both}
        del shown.__wrapped__
        return wrapper

    return with_flags


def takes_settings(command: str, *names: str) -> Callable[[Command], Command]:
    """The engine's flags that a command heeds, or some of them, as its argument `options`."""
    fields = engine_fields(command)
    return takes({name: fields[name] for name in names or fields}, "options", command)


def settings_from(options: Mapping[str, Any], task: str, **own: Any) -> "Settings":
    """A checked value from flags and environment. Raises UsageError with the flag's name."""
    from pydantic import ValidationError

    from engine.collect.settings import Settings
    from engine.provider.models import check_effort

    _check_text(options)
    urls = [checked_url(url) for url in options.get("base_url") or [default_url()]]
    if len({url.lower() for url in urls}) < len(urls):
        raise UsageError("--base-url was given twice with the same address")
    key = options.get("api_key_env", "OPENAI_API_KEY")
    quota = {name: options[name] for name in Quota.model_fields if name in options}
    others: Any = [{**quota, **server_values(url, key)} for url in urls[1:]]
    kept = {name: value for name, value in options.items() if name in Settings.model_fields}
    kept |= {"stage": options.get("stage") or task, "prompt": text_of_file(options.get("prompt"))}
    kept |= {"param": _params(options.get("param", []))}
    try:
        settings = Settings(
            **{**DEFAULTS[task], **kept, **own, **server_values(urls[0], key)},
            task=task,
            others=others,
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = str(problem["loc"][-1 if problem["loc"][0] == "others" else 0])
        flag = flag_of(name, engine_fields(task)[name])
        raise UsageError(wrong_value(flag, problem)) from None
    check_effort(settings.model, settings.traits, settings.reasoning_effort)
    return settings


def _check_text(options: Mapping[str, Any]) -> None:
    """Bytes of the command line that are not UTF-8 cannot be sent."""
    for name, value in options.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text != text.encode(errors="replace").decode():
                raise UsageError(f"--{name.replace('_', '-')} is not UTF-8")


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
