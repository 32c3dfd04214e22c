"""Commands that the documentation shows: each is one of ours, and so are its flags; links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from engine.cli.app import app
from tests.support.cli import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"bin/distill ((?:\\\n|[^`\n])+)")


def shown(page: Path) -> list[str]:
    """What stands behind `bin/distill` on a page, without comments."""
    text = page.read_text()
    return [re.split(r"\s#\s|\s{3,}#", found)[0].replace("\\\n", " ") for found in COMMAND.findall(text)]


SHOWN = [(page.name, line) for page in PAGES for line in shown(page)]


def wrong(line: str) -> str | None:
    """Why a line is no command of ours, or None."""
    words = shlex.split(re.sub(r"[\[\]|…]", " ", line))
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands"):
        return (
            None if not words or words[0].startswith("-") or words[0].isupper() else f"no command {words[0]}"
        )
    flags = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    unknown = [word for word in words if re.match(r"--[a-z]", word) and word.partition("=")[0] not in flags]
    return f"{command.name} has no {', '.join(unknown)}" if unknown else None


def test_many_commands_are_shown() -> None:
    assert len(SHOWN) > 30


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_a_command_that_is_shown_is_one(page: str, line: str) -> None:
    assert wrong(line) is None


@pytest.mark.parametrize("line", ["generte pool.jsonl", "generate pool.jsonl --modle x", "evaluate roguе x"])
def test_the_test_sees_what_is_none(line: str) -> None:
    assert wrong(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readme_is_read_in_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
