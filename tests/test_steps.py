"""Steps of a recipe are checked against their commands before anything is spent, and come in their turn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from engine.cli.app import app
from engine.recipe.load import load
from engine.recipe.schema import OfStep
from engine.recipe.steps import commands_of, left_by, placed, steps_of
from store.errors import UsageError
from tests.support.recipe_files import GOOD

COMMANDS = commands_of(get_command(app))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pool.jsonl").write_text('{"instruction": "Hello."}\n')
    (tmp_path / "small").mkdir()
    return tmp_path


def complaint(folder: Path, text: str) -> tuple[int | None, str]:
    file = folder / "recipe.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as found:
        steps_of(load(file), COMMANDS)
    line = re.search(r"line (\d+)", str(found.value))
    return (int(line[1]) if line else None), str(found.value)


def good(folder: Path) -> Path:
    (folder / "recipe.toml").write_text(GOOD)
    return folder / "recipe.toml"


def test_a_stage_behind_a_step_waits_for_the_next_phase(folder: Path) -> None:
    recipe = load(good(folder))
    phases = recipe.phases
    assert {name for name, phase in phases.items() if phase == 0} == {"a", "student"}
    assert {name for name, phase in phases.items() if phase == 1} == {"five", "elsewhere", "best", "lengths"}
    assert phases["judged"] == 2
    assert recipe.needs("five") == ("student",)
    assert set(recipe.needs("best")) == {"five"}
    assert set(recipe.needs("judged")) == {"a", "best"}
    assert recipe.nodes.index("best") < recipe.nodes.index("judged")


def test_the_flags_are_those_of_the_command(folder: Path) -> None:
    steps = steps_of(load(good(folder)), COMMANDS)
    assert [flag.words for flag, _ in steps["student"].given] == [
        "--data", "--model", "--zero", "--lr", "--recompute",
    ]  # fmt: skip
    assert [flag.words for flag, _ in steps["lengths"].given] == ["", "--csv"]


CHANGES = {
    "a command that nobody knows": ('"train sft"', '"train ppo"', 18, "choose from"),
    "a command that asks": ('"train sft"', '"generate"', 18, "a step cannot run"),
    "a flag that nobody knows": ("zero = 3", "zeros = 3", 21, "train sft has no such flag"),
    "a flag of ours": ("zero = 3", "resume = true", 21, "distill sets it itself"),
    "where the result goes": ("zero = 3", 'out = "here"', 21, "distill sets it itself"),
    "a text for a number": ("zero = 3", 'zero = "three"', 21, "expected a whole number, found 'three'"),
    "a truth for a number": ("zero = 3", "zero = true", 21, "expected a whole number"),
    "a number for a truth": ("recompute = true", "recompute = 1", 23, "expected true or false"),
    "several for one": ("zero = 3", "zero = [2, 3]", 21, "it takes one value"),
    "a date": ("zero = 3", "zero = 2023-04-06", 21, "expected a value"),
    "no data": ('data = { stage = "a", format = "chat" }\n', "", 17, "train sft needs data"),
    "no command": ('run = "rank"\n', "", 31, "it is required"),
    "a stage that is not there": ('data = { stage = "a"', 'data = { stage = "b"', 19, "no stage 'b'"),
    "a step that is not there": ('{ step = "student" }', '{ step = "pupil" }', 5, "no step 'pupil'"),
    "a step that a teacher waits for": ('after = "student"', 'after = "pupil"', 10, "no step 'pupil'"),
    "a word that a stage lacks": ('format = "chat"', 'shape = "chat"', 19, "expected a value"),
    "a shape that a stage lacks": ('format = "chat"', 'format = "scores"', 19, "is exported as alpaca"),
    "an outcome": ('format = "chat"', 'outcome = "fine"', 19, "--outcome fine: unknown"),
    "a file that is not there": ('"pool.jsonl"]', '"none.jsonl"]', 49, "there is no file"),
    "a stage twice": ('"pool.jsonl"]', '{ stage = "five" }]', 49, "the same stage twice"),
    "a result elsewhere": ('"lengths.csv"', '"/tmp/lengths.csv"', 50, "a name only"),
    "a stage for a number": ("zero = 3", 'zero = { stage = "a" }', 21, "not the output of a stage or step"),
    "answers of a training": ('{ step = "best"', '{ step = "student"', 39, "makes no answers"),
    "answers of no rank": ('file = "rank1.jsonl"', 'file = "ranked.jsonl"', 39, 'file = "rank1.jsonl"'),
    "a circle": ('stage = "a", format', 'stage = "five", format', None, "depend on each other in a cycle"),
    "one name for two": ("[step.best]", "[step.a]", 31, "a stage has the same name"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_mistake_is_told_with_its_line(folder: Path, what: str) -> None:
    before, instead, line, words = CHANGES[what]
    assert before in GOOD
    at, told = complaint(folder, GOOD.replace(before, instead, 1))
    assert words in told
    assert line is None or at == line, told


def test_what_a_rank_will_make_is_priced_by_the_stage_that_it_ranks(folder: Path) -> None:
    recipe, run = load(good(folder)), folder / "run"
    assert placed(recipe, run).stage["judged"].members == ("five", "a")
    made = left_by(run, OfStep(step="best", file="rank1.jsonl"), "rank")
    made.parent.mkdir(parents=True)
    made.write_text("{}\n")
    found = placed(recipe, run).stage["judged"]
    assert found.members == (str(made), "a")
    assert found.names == ("rank1", "a")


def test_a_dry_run_lists_the_steps_and_starts_nothing(folder: Path) -> None:
    from typer.testing import CliRunner

    words = ["run", str(good(folder)), "--run", str(folder / "run"), "--dry-run"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert re.search(r"student +train sft +a\b", told.output)
    assert re.search(r"judged +judge", told.output)
    assert not (folder / "run").exists()
