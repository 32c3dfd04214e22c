"""Run folders that older versions made: opened, resumed and exported as those versions did.

tests/data/make_older.py tells how they came about; each zip holds the run folder, its inputs, what that
version exported, and what its `status --json` said.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.support.cli import MODEL, distill, ledger
from tests.support.ledgers import VERSIONS, unpacked
from tests.support.scripted import completion, scripted

MONEY = ("--model", MODEL, "--price-in", 10, "--price-out", 30)
EXPORTS = {
    "plain": (
        ("alpaca.jsonl", "--format", "alpaca"),
        ("alpaca.json", "--format", "alpaca"),
        ("chat.jsonl", "--format", "chat"),
    ),
    "recipe": (
        ("english.jsonl", "--stage", "english", "--format", "alpaca"),
        ("judged.jsonl", "--stage", "judged", "--format", "reviews"),
    ),
}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@pytest.fixture(params=["plain", "recipe"])
def folder(request: pytest.FixtureRequest, version: int, tmp_path: Path) -> Path:
    return unpacked(request.param, tmp_path, version)


def equal_where_told(old: Any, new: Any, where: str = "") -> None:
    """All that the old version told is told still; there may be more."""
    if isinstance(old, Mapping):
        assert old.keys() <= new.keys(), where
        for name, value in old.items():
            equal_where_told(value, new[name], f"{where}.{name}")
    else:
        assert new == old, where


async def status_is_as_it_was(folder: Path) -> None:
    ended = await distill("status", folder / "run", "--json")
    assert ended.code == 0, ended.err
    equal_where_told(orjson.loads((folder / "status.json").read_bytes()), orjson.loads(ended.out))


async def exports_are_as_they_were(folder: Path) -> None:
    for name, *flags in EXPORTS[folder.name]:
        out = folder / f"again-{name}"
        ended = await distill("export", folder / "run", *flags, "--out", out)
        assert ended.code == 0, ended.err
        assert out.read_bytes() == (folder / name).read_bytes(), name


async def test_status_tells_what_it_told(folder: Path) -> None:
    await status_is_as_it_was(folder)


async def test_exports_are_the_same_bytes(folder: Path) -> None:
    await exports_are_as_they_were(folder)


class Counting:
    """A teacher that is asked nothing."""

    def __init__(self) -> None:
        self.asked = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        return web.Response(body=completion("Asked again."), content_type="application/json")


async def test_a_finished_run_is_resumed_and_asks_nothing(version: int, tmp_path: Path) -> None:
    folder, teacher = unpacked("plain", tmp_path, version), Counting()
    flags = ("--samples", 2, "--prompt", folder / "bare.txt", "--yes")
    async with scripted(teacher.answer) as url:
        words = ("generate", folder / "pool.jsonl", "--run", folder / "run", "--base-url", url)
        ended = await distill(*words, *MONEY, *flags)
        assert ended.code == 0, ended.err
    assert teacher.asked == 0
    await exports_are_as_they_were(folder)
    assert ledger(folder / "run", "PRAGMA user_version") > [(version,)]


async def test_a_finished_recipe_is_resumed_and_asks_nothing(version: int, tmp_path: Path) -> None:
    folder, teacher = unpacked("recipe", tmp_path, version), Counting()
    recipe = folder / "recipe.toml"
    async with scripted(teacher.answer) as url:
        lines = [
            f'base_url = "{url}"' if "base_url" in line else line for line in recipe.read_text().split("\n")
        ]
        recipe.write_text("\n".join(lines))
        ended = await distill("run", recipe, "--run", folder / "run", "--yes")
        assert ended.code == 1, ended.err  # two rows failed for good, as before
    assert teacher.asked == 0
    await exports_are_as_they_were(folder)


async def test_what_had_failed_is_asked_after_retry_and_nothing_else(version: int, tmp_path: Path) -> None:
    folder, teacher = unpacked("recipe", tmp_path, version), Counting()
    assert (await distill("retry", folder / "run", "--stage", "english")).code == 0
    async with scripted(teacher.answer) as url:
        words = ("generate", folder / "pool.jsonl", "--run", folder / "run", "--stage", "english")
        flags = ("--base-url", url, *MONEY, "--prompt", folder / "bare.txt", "--yes")
        ended = await distill(*words, *flags)
        assert ended.code == 0, ended.err
    assert teacher.asked == 1
