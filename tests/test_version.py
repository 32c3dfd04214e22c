"""What `distill` says of itself."""

from __future__ import annotations

import re

from engine import __version__
from engine.cli.app import COMMANDS, app
from tests.support.cli import distill


async def test_the_version_is_told() -> None:
    ended = await distill("--version")
    assert (ended.code, ended.out) == (0, f"distill {__version__}\n")


async def test_commands_are_listed_in_the_order_of_the_work() -> None:
    listed = re.findall(r"(?m)^  ([a-z]+) {2,}", (await distill("--help")).out)
    assert tuple(listed) == COMMANDS
    assert len(app.registered_commands) + len(app.registered_groups) == len(COMMANDS)
