"""Flags of the command line, made from the fields of settings: one declaration for flag, default and check.

A flag hands on what was typed, and the model of the settings checks it. What each setting means is said in
engine/collect/setting_fields.py and trainers/config.py.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from engine.collect.build_settings import Fields, checked, engine_fields, flag_of
from engine.collect.setting_fields import DEFAULTS, POOLED, TASKS, declared

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Command = Callable[..., None]

JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
METAVARS = {bool: None, int: "N", float: "X", str: "TEXT", Path: "PATH"}  # of one value, by its type
MEANT = {"estimate": POOLED, "import": POOLED[:1], "all": TASKS}  # the tasks that a command may be about


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
            function(**values, **{argument: checked(build, fields, given)})

        both = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *lent)]
        both.sort(key=lambda p: p.default is not p.empty)  # what is required is shown first
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
