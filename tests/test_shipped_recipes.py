"""The shipped recipes run as they are written, with stand-ins for their data, at a server that refuses what
the real models refuse: nothing is refused, and no answer is lost to thinking."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.cli import ROOT, Ended, Row, distill, environment, write_pool
from tests.support.recipe_files import export, stage_told
from tests.support.scripted import scripted
from tests.support.strict import Strict

PAPER, SMALL = ROOT / "recipes" / "gpt4-llm.toml", ROOT / "recipes" / "small.toml"
ROWS: list[Row] = [
    {"instruction": "Give three tips for staying healthy.", "input": "", "output": "Eat, sleep and move."},
    {"instruction": "Name the colours of the flag.", "input": "France", "output": "Blue, white and red."},
    {"instruction": "Describe the structure of an atom.", "input": "", "output": "A nucleus and electrons."},
]
CATEGORIES = ("generic", "coding", "math")
QUESTIONS = [
    {"question_id": n, "text": row["instruction"], "category": CATEGORIES[n]} for n, row in enumerate(ROWS)
]


def laid_out(folder: Path) -> Path:
    """The paper's recipe beside stand-ins for its files, as a user lays them out."""
    (folder / "recipes").mkdir()
    data = folder / "data"
    data.mkdir()
    (data / "alpaca_data.json").write_text(json.dumps(ROWS))
    for name in ("unnatural_core.jsonl", "opt-iml-answers.jsonl", "user-oriented-252.jsonl"):
        write_pool(data / name, ROWS)
    write_pool(data / "vicuna-questions.jsonl", QUESTIONS)
    path = folder / "recipes" / PAPER.name
    shutil.copy(PAPER, path)
    return path


def stages_of(recipe: Mapping[str, Any], without_steps: bool) -> list[str]:
    """Its stages; or those alone that need no step, for themselves or for what they read."""
    served = {name for name, one in recipe["teacher"].items() if isinstance(one.get("serve"), dict)}
    found: list[str] = []
    for name, stage in recipe["stage"].items():
        given = [stage.get("from"), stage.get("answers"), stage.get("against")]
        read = [one for value in given for one in (value if isinstance(value, list) else [value])]
        needs = [one for one in read if isinstance(one, str) and one in recipe["stage"]]
        steps = stage["teacher"] in served or any(isinstance(one, dict) for one in read)
        if not (without_steps and (steps or any(one not in found for one in needs))):
            found.append(name)
    return found


async def asked(path: Path, run: Path, url: str, only: list[str]) -> Ended:
    flags = [word for name in only for word in ("--only", name)]
    env = environment(OPENAI_BASE_URL=url)
    return await distill("run", path, "--run", run, "--yes", "--quiet", *flags, env=env, seconds=300)


def all_is_answered(run: Path, names: list[str]) -> None:
    for name in names:
        told = stage_told(run, name)
        assert told["done"] == told["total"] > 0, name
        assert set(told["outcomes"]) == {"stop"}, name


async def test_the_paper_s_stages_run_as_written(tmp_path: Path) -> None:
    path, run, strict = laid_out(tmp_path), tmp_path / "run", Strict()
    names = stages_of(tomllib.loads(PAPER.read_text()), without_steps=True)
    assert {"english", "translated", "chinese", "comparison", "vicuna-gpt4"} <= set(names)
    async with scripted(strict.answer) as url:
        ended = await asked(path, run, url, names)
    assert ended.code == 0, ended.err
    assert not strict.refused
    assert not strict.empty
    all_is_answered(run, names)
    assert {body["model"] for body in strict.bodies} == {"gpt-5.1", "gpt-5-mini"}
    assert [row["output"] != "" for row in export(run, stage="chinese")] == [True] * len(ROWS)
    assert export(run, "scores", "comparison")


def with_students(path: Path, url: str) -> None:
    """Leaves the steps out: in the place of what they leave stand servers and files."""
    recipe = tomllib.loads(path.read_text())
    lines = [f"budget = {recipe['budget']}"]
    for name, teacher in recipe["teacher"].items():
        served = {"model": "teacher", "base_url": url, "price_in": 0, "price_out": 0}
        lines += table(f"teacher.{name}", served if "serve" in teacher else teacher)
    for name, stage in recipe["stage"].items():
        ranked = isinstance(stage.get("answers"), dict)
        lines += table(
            f"stage.{name}", {**stage, "answers": f"../data/{stage['answers']['file']}"} if ranked else stage
        )
    path.write_text("\n".join(lines) + "\n")
    for place in range(1, 6):
        answers = [{"id": q["question_id"], "text": f"Answer {place} to {q['text']}"} for q in QUESTIONS]
        write_pool(path.parent.parent / "data" / f"rank{place}.jsonl", answers)


def table(name: str, values: Mapping[str, Any]) -> list[str]:
    return ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]


async def test_the_paper_s_judges_run_as_written_once_there_are_students(tmp_path: Path) -> None:
    path, run, strict = laid_out(tmp_path), tmp_path / "run", Strict()
    names = stages_of(tomllib.loads(PAPER.read_text()), without_steps=False)
    async with scripted(strict.answer) as url:
        with_students(path, url)
        ended = await asked(path, run, url, names)
    assert ended.code == 0, ended.err
    assert not strict.refused
    assert not strict.empty
    all_is_answered(run, names)
    assert len(export(run, "reviews", "judged-zh-zh")) == 2 * len(QUESTIONS)


async def test_the_small_recipe_s_stages_run_as_written(tmp_path: Path) -> None:
    """On the models that it names; the scripted one plays both, since SmolLM2 takes minutes on two cores."""
    recipe = tomllib.loads(SMALL.read_text())
    (tmp_path / "recipes").mkdir()
    (tmp_path / "engine").mkdir()
    write_pool(tmp_path / "recipes" / "demo_pool.jsonl", ROWS)
    text = SMALL.read_text()
    assert text.count('serve = "smollm2"') == 1
    path, run = tmp_path / "recipes" / SMALL.name, tmp_path / "run"
    path.write_text(text.replace('serve = "smollm2"', 'serve = "scripted"'))
    ended = await asked(path, run, "http://127.0.0.1:9/v1", [])
    assert ended.code == 0, ended.err
    all_is_answered(run, list(recipe["stage"]))
