"""Flags of the command line, made from the fields of settings; how help looks and how arguments are read.

A setting is declared once, for its flag, its default and its check. A flag hands on what was typed, and the
model of the settings checks it. What each setting means is said in engine/collect/setting_fields.py and
trainers/config.py.

On a terminal help has rich panels, elsewhere the same sections as plain text. `--run DIR` names the run
folder in every command; one that has no other argument takes it as its argument, too.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
import typer.core

from engine.collect.build_settings import Fields, checked, engine_fields, flag_of
from engine.collect.setting_fields import ALL, DEFAULTS, FLAGGED, POOLED, TASKS, declared
from store.errors import UsageError, in_our_words

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


def _untyped(params: list[Any]) -> None:
    """Types of arguments and of flags without a value tell nobody anything."""
    for param in params:
        if param.param_type_name == "argument" or param.is_flag:
            param.display_type_rich = lambda ctx: None


class Panels:
    """Help in panels, for a command or a group of commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if sys.stdout.isatty():
            from rich.markup import escape
            from typer.rich_utils import rich_format_help

            command: Any = self
            params = command.get_params(ctx)
            _untyped(params)
            for one in (command, *params, *getattr(command, "commands", {}).values()):
                one.help = escape(one.help) if one.help else one.help
            rich_format_help(obj=command, ctx=ctx, markup_mode="rich")
        else:
            super().format_help(ctx, formatter)  # type: ignore[misc]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options by panel, then commands by panel, none of them cut."""
        sections: dict[str, list[tuple[str, str]]] = {}
        command: Any = self
        params = command.get_params(ctx)
        _untyped(params)
        for param in params:
            usual = "Arguments" if param.param_type_name == "argument" else "Options"
            if record := param.get_help_record(ctx):
                sections.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(record)
        for name in command.list_commands(ctx) if hasattr(command, "commands") else ():
            one = command.commands[name]
            text = (one.help or "").partition("\n\n")[0].replace("\n", " ")
            sections.setdefault(one.rich_help_panel or "Commands", []).append((name, text))
        first = [title for title in ("Arguments", "Options") if title in sections]
        for title in dict.fromkeys([*first, *sections]):
            with formatter.section(title):
                formatter.write_dl(sections[title])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments as we call them: `POOL`, `[MODEL]`, `FILE...`, without braces of typer's around them."""
        pieces = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        for param in self.get_params(ctx):  # type: ignore[attr-defined]
            if param.param_type_name == "argument" and param.metavar:
                (theirs,) = param.get_usage_pieces(ctx)
                needed = param.required or param.metavar.startswith("[")
                pieces[pieces.index(theirs)] = param.metavar if needed else f"[{param.metavar}]"
        return list(pieces)


class PanelGroup(Panels, typer.core.TyperGroup):
    pass


class PanelCommand(Panels, typer.core.TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # a setting of other commands is refused with their names
        own = {name for param in self.params for name in param.opts}
        is_asking = self.name in ALL and "--model" in own
        for name, field in (one for model in FLAGGED if is_asking for one in model.model_fields.items()):
            flag = flag_of(name, field)
            if flag not in own and any(arg.partition("=")[0] == flag for arg in args):
                raise UsageError(
                    f"{flag} does not apply to {self.name} (only to {', '.join(declared(field)['commands'])})"
                )
        # `--run "$RUN"` of a variable that is not set would mean the folder that one stands in
        options: list[Any] = [param for param in self.params if param.param_type_name == "option"]
        flags = {name: option for option in options for name in option.opts}
        for before, arg in zip(["", *args], args, strict=False):
            empty = before if arg == "" else arg.removesuffix("=") if arg.endswith("=") else None
            if empty is None or (arg and empty not in flags):
                continue
            if empty not in flags or flags[empty].is_flag:
                raise UsageError("an argument is empty: name a file or folder")
            if (flags[empty].metavar or "").partition(".")[0] in ("DIR", "FILE", "PATH"):
                raise UsageError(f"{empty} '': it is empty; name a file or folder")
        try:
            names = {param.name for param in self.params if param.param_type_name == "option"}
            if "run" not in names or len(names) < len(self.params) or ctx.resilient_parsing:
                return super().parse_args(ctx, args)
            given, rest, _ = self.make_parser(ctx).parse_args(list(args))
            if not rest or "run" in given:
                return super().parse_args(ctx, args)
            ctx.allow_extra_args = True
            _, *others = super().parse_args(ctx, ["--run", rest[0], *args])
            if others:
                ctx.fail(f"Got unexpected extra argument ({others[0]})")
            return []
        except typer.BadParameter as error:
            error.message = in_our_words(error.message)
            raise
