"""What the demo's parts share: each step is the real command in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape

from engine.processes import command
from store.errors import DistillError


class DemoFailed(DistillError):
    """A step of the demo did not do what it should."""

    exit_code = 1


def say(console: Console, title: str, words: str) -> None:
    console.print(f"\n[bold]{title}[/bold]  [dim]{escape(words)}[/dim]")


def distill(*arguments: str, some_may_fail: bool = False) -> None:
    """Runs a command and shows what it says. Raises DemoFailed where it does not exit with 0, or, where
    some rows may fail, with 1."""
    sys.stdout.flush()
    fine = (0, 1) if some_may_fail else (0,)
    if subprocess.run(command(*arguments), check=False).returncode not in fine:
        raise DemoFailed(f"this step failed: bin/distill {' '.join(arguments)}")


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    return map(orjson.loads, file.read_bytes().splitlines())
