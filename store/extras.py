"""Optional parts of the installation ("extras"): whether one is there, and how it comes.

In a checkout with the environment of bin/distill an extra is there when its stamp equals its pin files
(bin/environment.py): an install that was interrupted left no stamp. Elsewhere it is there when all the
packages that it names are installed. What an extra consists of stands in pyproject.toml only.
"""

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store.errors import MissingExtra

PINS = Path(__file__).parents[1] / "requirements"
NO_DEPENDENCIES = "-nodeps"
_NAME = re.compile(r"[\w.-]+")


def needs(*extras: str, purpose: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command of the command line with what it needs as its attribute `extras`, where recipes see it. With
    a purpose it is also required before the command begins."""

    def marked(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def checked(*arguments: Any, **values: Any) -> Any:
            if purpose:
                require(*extras, purpose=purpose)
            return command(*arguments, **values)

        checked.extras = extras  # type: ignore[attr-defined]
        return checked

    return marked


def require(*extras: str, purpose: str) -> None:
    """purpose: what needs them, as the subject of a sentence. Raises MissingExtra with those that are
    not installed."""
    if missing := [extra for extra in dict.fromkeys(extras) if not installed(extra)]:
        raise MissingExtra(missing, purpose)


def installed(extra: str) -> bool:
    stamps = Path(sys.prefix) / "pins"
    files = pin_files(extra)
    if files and stamps.is_dir():
        pairs = [(file, stamps / file.name) for file in files]
        return all(stamp.is_file() and stamp.read_bytes() == file.read_bytes() for file, stamp in pairs)
    from importlib.metadata import PackageNotFoundError, distribution, requires

    try:
        # The packages of pin files, or of the metadata of an installed wheel.
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        if not files:
            named = f"extra == '{extra}'"
            lines = [line for line in requires("distill") or () if named in line.replace('"', "'")]
        for line in lines:
            if found := _NAME.match(line):
                distribution(found[0])
    except PackageNotFoundError:
        return False
    return True


def pin_files(extra: str) -> list[Path]:
    """None of them is there outside a checkout."""
    files = (PINS / f"{extra}{kind}.txt" for kind in ("", NO_DEPENDENCIES))
    return [file for file in files if file.is_file()]
