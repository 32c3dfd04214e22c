"""What stages of a recipe read: pools that change, files beside stages, a part of all stages."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from tests.support.cli import belongs, distill, rows, until, write_pool
from tests.support.judging import Judge
from tests.support.provider import Config, Provider
from tests.support.recipe_files import (
    after,
    assert_intact,
    export,
    files_of,
    generate,
    json_of,
    positions,
    run_recipe,
    score,
    stage_told,
    teacher,
    write_bare,
    write_recipe,
)
from tests.support.scripted import scripted


async def test_a_pool_may_grow_shrink_and_be_reordered_between_runs(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), tmp_path / "pool.jsonl"
    async with scripted(judge.answer) as url:
        tables = {
            "teacher.t": teacher(url),
            "stage.a": generate(pool),
            "stage.b": after("a"),
            "stage.s": score("a", "b"),
        }
        recipe = write_recipe(tmp_path, tables)
        orders = [range(10), range(14), [*range(13, 3, -1)], [2, 2, 9, 0], [*range(4), 20]]
        seen: set[int] = set()
        for order in orders:
            write_pool(pool, ({"instruction": f"Tell me of {n}."} for n in order))
            seen.update(order)
            assert (await run_recipe(recipe, run)).code == 0
            assert len(judge.asked) == 3 * len(seen)
            for name in "ab":
                exported = export(run, stage=name)
                assert [row["instruction"] for row in exported] == [f"Tell me of {n}." for n in order]
            lines = export(run, stage="s", format="scores")
            assert [line["prompt"] for line in lines] == [f"Tell me of {n}." for n in order]
        assert_intact(run)


async def test_a_limit_takes_the_first_rows_of_the_pool_whichever_are_answered_first(
    tmp_path: Path, run: Path
) -> None:
    judge, pool = Judge(), write_pool(tmp_path / "pool.jsonl", rows(12))
    judge.hold["row 1."] = asyncio.Event()
    async with scripted(judge.answer) as url:
        tables = {
            "teacher.t": teacher(url),
            "stage.a": generate(pool),
            "stage.b": after("a", limit=4),
            "stage.s": score("a", "b", limit=3),
        }
        ended = asyncio.ensure_future(run_recipe(write_recipe(tmp_path, tables), run))
        await until(lambda: judge.count("row") >= 12 + 3 + 2)
        judge.hold["row 1."].set()
        assert (await ended).code == 0
    assert positions(run, "b") == [0, 1, 2, 3]
    assert positions(run, "s") == [0, 1, 2]


async def test_a_row_of_a_stage_is_joined_with_a_file_by_its_prompt(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), write_pool(tmp_path / "pool.jsonl", rows(5))
    folder = tmp_path / "data"
    folder.mkdir()
    write_pool(folder / "vicuna.jsonl", ({**row, "output": f"V {n}"} for n, row in enumerate(rows(4))))
    async with scripted(judge.answer) as url:
        judging = {"task": "judge", "teacher": "t", "answers": "a", "against": "data/vicuna.jsonl"}
        tables = {
            "teacher.t": teacher(url),
            "stage.a": generate("pool.jsonl", prompt=write_bare(tmp_path)),
            "stage.s": score("data/vicuna.jsonl", "a", seed=3),
            "stage.j": {**judging, "both_orders": True, "attempts_parse": 0},
        }
        ended = await run_recipe(write_recipe(tmp_path, tables), run)
        assert ended.code == 0, ended.err
    assert pool.parent == tmp_path
    assert positions(run, "s") == [0, 1, 2, 3]
    assert positions(run, "j") == list(range(8))
    for line in export(run, stage="s", format="scores"):
        assert [answer["model"] for answer in line["answers"]] == ["vicuna", "a"]


async def test_only_a_stage_runs_when_what_it_reads_has_run(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), write_pool(tmp_path / "pool.jsonl", rows(6))
    async with scripted(judge.answer) as url:

        def recipe(temperature: float = 1.0) -> Path:
            tables = {
                "teacher.t": teacher(url),
                "stage.a": generate(pool, temperature=temperature),
                "stage.b": after("a"),
            }
            return write_recipe(tmp_path, tables)

        ended = await run_recipe(recipe(), run, "--only", "b")
        assert (ended.code, judge.asked) == (2, [])
        assert "reads stage 'a', which has not run" in ended.err
        ended = await run_recipe(recipe(), run, "--only", "x")
        assert (ended.code, judge.asked) == (2, [])
        assert "no such stage or step; there are a, b" in ended.err
        assert (await run_recipe(recipe(), run, "--only", "a")).code == 0
        assert len(judge.asked) == 6
        stale = await run_recipe(recipe(0.5), run, "--only", "b")
        assert (stale.code, len(judge.asked)) == (2, 6)
        assert re.search(r"recipe.toml, line \d+: stage.a: it has answers under other settings", stale.err)
        assert (await run_recipe(recipe(), run, "--only", "b")).code == 0
        assert len(judge.asked) == 12
        assert (await run_recipe(recipe(), run)).code == 0
        assert len(judge.asked) == 12


async def test_json_is_one_object_and_exit_codes_are_the_weightiest(tmp_path: Path, run: Path) -> None:
    async with Provider(Config(poison="row 1")).running() as p:
        pool = write_pool(tmp_path / "pool.jsonl", rows(4))
        tables = {"teacher.t": teacher(p.base_url), "stage.a": generate(pool), "stage.b": after("a")}
        ended = await run_recipe(write_recipe(tmp_path, tables), run, "--json")
    assert ended.code == 1
    found = json_of(ended.out)["stages"]
    assert found["a"]["failed"] == {"bad_request": 1}
    assert found["a"]["exit_code"] == 1
    assert found["b"] | {
        "done": 3, "total": 3, "failed": {}, "outcomes": {"stop": 3}, "cost_usd": 0.0, "exit_code": 0,
    } == found["b"]  # fmt: skip
    assert found["b"]["billed"]["completion_tokens"] == stage_told(run, "b")["completion_tokens"] > 0
    assert found["b"]["estimated"]["completion_tokens"]["expected"] > 0
    assert found["b"]["unusable"] == {"replies": 0, "cost_usd": 0, "outcomes": {}}
    exported = export(run, stage="b")
    assert all(not belongs(row["output"], "another") for row in exported)


async def test_a_pool_without_a_usable_row_is_bad_input(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), tmp_path / "pool.jsonl"
    pool.write_text("[]\n")
    async with scripted(judge.answer) as url:
        tables = {"teacher.t": teacher(url), "stage.a": generate(pool), "stage.b": after("a")}
        ended = await run_recipe(write_recipe(tmp_path, tables), run)
    assert (ended.code, judge.asked) == (2, [])
    assert "no usable row" in ended.err


async def test_a_teacher_that_the_recipe_would_serve_need_not_run_for_a_plan_or_for_other_stages(
    tmp_path: Path, run: Path
) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(3))
    scored = {**score("a", "b", to="served")}
    async with scripted(Judge().answer) as url:
        tables = {
            "teacher.served": {"serve": "scripted"},
            "teacher.t": teacher(url),
            "stage.a": generate(pool),
            "stage.b": after("a"),
            "stage.s": scored,
        }
        recipe = write_recipe(tmp_path, tables)
        planned = await distill("run", recipe, "--run", run, "--dry-run", "--json")
        assert planned.code == 0, planned.err
        assert files_of(run) == {}
        assert json_of(planned.out)["stages"]["s"]["requests"] == 3
        assert (await run_recipe(recipe, run, "--only", "a", "--only", "b")).code == 0
        again = await distill("run", recipe, "--run", run, "--dry-run", "--json", "--only", "s")
        assert again.code == 0, again.err
