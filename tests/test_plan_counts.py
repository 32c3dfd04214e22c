"""The price of a recipe before it runs: as many requests as it then asks, whatever its shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.cli import rows, write_pool
from tests.support.judging import Judge, translation
from tests.support.recipe_files import (
    FREE,
    PAID,
    Tables,
    after,
    generate,
    run_recipe,
    score,
    teacher,
    write_recipe,
)
from tests.support.scripted import scripted


def contests(task: str, answers: str, against: str, **more: Any) -> dict[str, Any]:
    judging = {"task": task, "teacher": "t", "answers": answers, "against": against}
    return {**judging, "attempts_parse": 0, **more}


def translated(**more: Any) -> dict[str, Any]:
    return {"task": "translate", "teacher": "t", "to": "Chinese", **more}


POOL = [*rows(9), *rows(2)]  # two rows stand twice
SHAPES: dict[str, Tables] = {
    "both orders": {
        "stage.a": generate("pool.jsonl"),
        "stage.b": after("a"),
        "stage.j": contests("judge", "a", "b", both_orders=True),
    },
    "one order": {
        "stage.a": generate("pool.jsonl"),
        "stage.b": after("a"),
        "stage.j": contests("judge", "a", "b"),
    },
    "a comparison": {
        "stage.a": generate("pool.jsonl"),
        "stage.b": generate("pool.jsonl", system="B."),
        "stage.c": contests("compare", "a", "b"),
    },
    "a comparison with a file": {
        "stage.a": generate("pool.jsonl"),
        "stage.c": contests("compare", "a", "answers.jsonl"),
    },
    "scores of three, by several samples and others": {
        "stage.a": generate("pool.jsonl", samples=3),
        "stage.b": after("a", samples=2),
        "stage.c": after("b", limit=4),
        "stage.s": score("a", "b", "c", attempts_parse=0, samples=2),
    },
    "translations and answers to these": {
        "stage.zh": translated(pool="pool.jsonl"),
        "stage.a": generate("pool.jsonl"),
        "stage.b": {"task": "generate", "teacher": "t", "from": "zh"},
        "stage.out": translated(field="output", **{"from": "a"}),
        "stage.again": translated(field="output", **{"from": "b"}),
        "stage.j": contests("judge", "out", "b", both_orders=True),
    },
    "stages that ask the same": {
        "stage.a": generate("pool.jsonl"),
        "stage.part": generate("pool.jsonl", sample=5),
        "stage.b": {"task": "generate", "teacher": "t", "from": "a", "system": "B."},
        "stage.part-b": {"task": "generate", "teacher": "t", "from": "part", "system": "B."},
    },
    "limits": {
        "stage.a": generate("pool.jsonl", limit=7),
        "stage.b": after("a", limit=5),
        "stage.j": contests("judge", "a", "b", both_orders=True, limit=7),
    },
}


async def planned(recipe: Path, run: Path, *flags: object) -> dict[str, Any]:
    told = await run_recipe(recipe, run, "--dry-run", "--json", *flags)
    assert told.code == 0, told.err
    found: dict[str, Any] = orjson.loads(told.out)
    return found


@pytest.mark.parametrize("shape", SHAPES)
async def test_as_many_requests_are_planned_as_are_asked(tmp_path: Path, shape: str) -> None:
    judge, run = Judge(), tmp_path / "run"
    judge.says = translation
    write_pool(tmp_path / "pool.jsonl", POOL)
    write_pool(tmp_path / "answers.jsonl", [{**row, "output": f"V {n}"} for n, row in enumerate(rows(6))])
    async with scripted(judge.answer) as url:
        recipe = write_recipe(tmp_path, {"teacher.t": teacher(url), **SHAPES[shape]})
        plan = await planned(recipe, run)
        ended = await run_recipe(recipe, run)
        assert ended.code == 0, ended.err
        assert plan["total"]["requests"] == len(judge.asked)
        assert sum(stage["requests"] for stage in plan["stages"].values()) == len(judge.asked)
        assert (await planned(recipe, run))["total"]["requests"] == 0  # nothing remains


async def test_what_remains_is_planned_of_the_answers_that_are_there(tmp_path: Path) -> None:
    """A row that has failed for good makes no row of what reads it."""
    judge, run = Judge(), tmp_path / "run"
    judge.refuse.add("row 3")
    write_pool(tmp_path / "pool.jsonl", rows(10))
    async with scripted(judge.answer) as url:
        recipe = write_recipe(tmp_path, {"teacher.t": teacher(url), **SHAPES["both orders"]})
        assert (await run_recipe(recipe, run, "--only", "a")).code == 1
        plan = await planned(recipe, run)
        assert {name: stage["requests"] for name, stage in plan["stages"].items()} == {
            "a": 0, "b": 9, "j": 18,
        }  # fmt: skip
        before = len(judge.asked)
        assert (await run_recipe(recipe, run)).code == 1
        assert len(judge.asked) - before == 27
        assert (await planned(recipe, run))["total"]["requests"] == 0


async def test_the_files_of_a_ranking_are_planned_as_different_answers(tmp_path: Path) -> None:
    """Five answers to a row, each of them judged; and the first once more, by another stage, for nothing."""
    write_pool(tmp_path / "pool.jsonl", rows(4))
    (tmp_path / "reward").mkdir()
    five = generate("pool.jsonl", samples=5)
    tables: dict[str, Any] = {
        "teacher.t": {"model": "gpt-4", "base_url": "http://127.0.0.1:1/v1", **FREE},
        "stage.five": five,
        "stage.other": generate("pool.jsonl", system="Other."),
        "stage.first": contests("judge", "five", "other"),
    }
    recipe = write_recipe(tmp_path, tables)
    ranked = '\n[step.best]\nrun = "rank"\nreward = "reward"\ncandidates = { stage = "five" }\n'
    for rank in range(1, 6):
        ranked += (
            f'[stage.rank{rank}]\ntask = "judge"\nteacher = "t"\nagainst = "other"\n'
            f'answers = {{ step = "best", file = "rank{rank}.jsonl" }}\n'
        )
    recipe.write_text(recipe.read_text() + ranked)
    plan = await planned(recipe, tmp_path / "run")
    stages = {name: stage["requests"] for name, stage in plan["stages"].items()}
    assert (stages["five"], stages["other"]) == (20, 4)
    assert sum(n for name, n in stages.items() if name not in ("five", "other")) == 20


async def test_teachers_that_a_recipe_serves_are_planned_as_different_models(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool.jsonl", rows(4))
    tables: dict[str, Any] = {
        "teacher.one": {"serve": "scripted"},
        "teacher.two": {"serve": "smollm2"},
        "teacher.same": {"serve": "scripted"},
        "stage.a": generate("pool.jsonl", "one"),
        "stage.b": generate("pool.jsonl", "two"),
        "stage.c": generate("pool.jsonl", "same"),
    }
    plan = await planned(write_recipe(tmp_path, tables), tmp_path / "run")
    assert plan["total"]["requests"] == 8


async def test_the_price_is_that_of_the_way_in_which_a_stage_is_asked(tmp_path: Path) -> None:
    """In batches at half the price; of several servers at the dearest's."""
    write_pool(tmp_path / "pool.jsonl", rows(4))
    address = {"base_url": "http://127.0.0.1:1/v1"}
    dear = '[[teacher.t.endpoint]]\nbase_url = "http://127.0.0.1:2/v1"\nprice_in = 20\nprice_out = 60\n'

    async def price(told: dict[str, Any], further: str = "", **more: Any) -> float:
        tables = {"teacher.t": told, "stage.a": generate("pool.jsonl", **more)}
        recipe = write_recipe(tmp_path, tables)
        recipe.write_text(recipe.read_text() + further)
        plan = await planned(recipe, tmp_path / "run")
        cost: float = plan["total"]["cost_usd"]["expected"]
        return cost

    listed = {"model": "gpt-4o", "base_url": "https://api.openai.com/v1"}
    assert await price(listed, batch=True) == pytest.approx(await price(listed) / 2)
    one = {"model": "gpt-4o", **address, **PAID}
    assert await price(one, dear) == pytest.approx(2 * await price(one))
