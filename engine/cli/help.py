"""How help looks, and how arguments are read: the same for every command.

On a terminal help has rich panels, elsewhere the same sections as plain text. `--run DIR` names the run
folder in every command; one that has no other argument takes it as its argument, too.
"""

import sys
from typing import Any

import typer
import typer.core

from engine.collect.build_settings import flag_of
from engine.collect.setting_fields import ALL, FLAGGED, declared
from store.errors import UsageError, in_our_words


def _untyped(params: list[Any]) -> None:
    """Types of arguments and of flags without a value tell nobody anything."""
    for param in params:
        if param.param_type_name == "argument" or param.is_flag:
            param.display_type_rich = lambda ctx: None


def _print_panels(command: Any, context: Any) -> None:
    from rich.markup import escape
    from typer.rich_utils import rich_format_help

    params = command.get_params(context)
    _untyped(params)
    for one in (command, *params, *getattr(command, "commands", {}).values()):
        one.help = escape(one.help) if one.help else one.help
    rich_format_help(obj=command, ctx=context, markup_mode="rich")


def _write_sections(command: Any, context: Any, formatter: Any) -> None:
    """Arguments, then options by panel, then commands by panel, none of them cut."""
    sections: dict[str, list[tuple[str, str]]] = {}
    params = command.get_params(context)
    _untyped(params)
    for param in params:
        usual = "Arguments" if param.param_type_name == "argument" else "Options"
        if record := param.get_help_record(context):
            sections.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(record)
    for name in command.list_commands(context) if hasattr(command, "commands") else ():
        one = command.commands[name]
        text = (one.help or "").partition("\n\n")[0].replace("\n", " ")
        sections.setdefault(one.rich_help_panel or "Commands", []).append((name, text))
    first = [title for title in ("Arguments", "Options") if title in sections]
    for title in dict.fromkeys([*first, *sections]):
        with formatter.section(title):
            formatter.write_dl(sections[title])


class Panels:
    """Help in panels, for a command or a group of commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if sys.stdout.isatty():
            _print_panels(self, ctx)
        else:
            super().format_help(ctx, formatter)  # type: ignore[misc]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_sections(self, ctx, formatter)

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
        self._refuse(args)
        self._refuse_no_name(args)
        try:
            return self._parsed(ctx, args)
        except typer.BadParameter as error:
            error.message = in_our_words(error.message)
            raise

    def _parsed(self, ctx: Any, args: list[str]) -> list[str]:
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

    def _refuse_no_name(self, args: list[str]) -> None:
        """`--run "$RUN"` of a variable that is not set would mean the folder that one stands in."""
        options: list[Any] = [param for param in self.params if param.param_type_name == "option"]
        flags = {name: option for option in options for name in option.opts}
        for before, arg in zip(["", *args], args, strict=False):
            flag = before if arg == "" else arg.removesuffix("=") if arg.endswith("=") else None
            if flag is None or (arg and flag not in flags):
                continue
            if flag not in flags or flags[flag].is_flag:
                raise UsageError("an argument is empty: name a file or folder")
            if (flags[flag].metavar or "").partition(".")[0] in ("DIR", "FILE", "PATH"):
                raise UsageError(f"{flag} '': it is empty; name a file or folder")

    def _refuse(self, args: list[str]) -> None:
        """A setting of other commands is refused with their names."""
        own = {name for param in self.params for name in param.opts}
        if self.name not in ALL or "--model" not in own:
            return
        for name, field in (one for model in FLAGGED for one in model.model_fields.items()):
            flag = flag_of(name, field)
            if flag not in own and any(arg.partition("=")[0] == flag for arg in args):
                raise UsageError(
                    f"{flag} does not apply to {self.name} (only to {', '.join(declared(field)['commands'])})"
                )
