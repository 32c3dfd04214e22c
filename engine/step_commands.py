"""Which commands a step may run, and their flags, as the command line itself describes them.

Knows nothing of what the commands do: they are other packages', and run in processes of their own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

FIRST_WORDS = ("train", "rank", "evaluate", "report")
# What is the recipe's to say: where results go, what is resumed, in which form it is told.
OURS = ("resume", "quiet", "json", "run")
WRITTEN = ("out", "csv", "rows", "split")  # flags that name what is written
NEEDED = {"train sft": ("data", "model"), "train reward": ("data", "model")}  # or a recipe of their own


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag, or, without words of its own, one argument. off: the word for `false`."""

    name: str
    words: str
    off: str | None
    kind: type
    several: bool
    required: bool


Flags = Mapping[str, Flag]
Commands = Mapping[str, Flags]  # "train sft" -> its flags by their keys in a recipe


def commands_of(root: Any) -> Commands:
    """root: the command line as a typer group."""
    found = {words: {flag.name: flag for flag in map(_flag, c.params)} for words, c in _commands(root, ())}
    return {words: flags for words, flags in found.items() if _can_run(words, flags)}


def _can_run(words: str, flags: Flags) -> bool:
    """Not what needs people's votes, which lie in a folder of their own."""
    of_folder = "run" in flags and flags["run"].words and flags["run"].required
    return words.split()[0] in FIRST_WORDS and not of_folder


def _commands(group: Any, before: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*before, name))
        else:
            yield " ".join((*before, name)), command


def _flag(param: Any) -> Flag:
    """A key is the flag's name with underscores, as elsewhere in recipes."""
    is_option = param.param_type_name == "option"
    kind = param.type_descriptor.annotation
    inner = next(iter(get_args(kind)), kind)
    name = max(param.opts, key=len).lstrip("-").replace("-", "_")
    off = param.secondary_opts[0] if is_option and param.secondary_opts else None
    several = bool(getattr(param, "multiple", False)) or param.nargs == -1
    return Flag(name, max(param.opts, key=len) if is_option else "", off, inner, several, param.required)


def is_file(flag: Flag) -> bool:
    return flag.kind is Path
