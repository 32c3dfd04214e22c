"""A step runs on all that it is to read or not at all; what is missing is named, and how much of it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import orjson

from tests.support.cli import distill, generate, ledger, rows, started, until, write_pool
from tests.support.judging import Judge
from tests.support.provider import Config, Provider
from tests.support.recipe_files import (
    PAID,
    after,
    run_recipe,
    score,
    teacher,
    write_recipe,
)
from tests.support.recipe_files import (
    generate as asked,
)
from tests.support.scripted import scripted

Tables = dict[str, dict[str, Any]]


def recipe_with(folder: Path, tables: Tables, steps: str, **head: Any) -> Path:
    recipe = write_recipe(folder, tables, **head)
    recipe.write_text(recipe.read_text() + steps)
    return recipe


def measuring(stage: str, name: str = "long", more: str = "") -> str:
    return f'\n[step.{name}]\nrun = "evaluate lengths"\nfiles = {{ stage = "{stage}" }}\n{more}'


SCORES = '\n[step.scores]\nrun = "evaluate scores"\nfiles = { stage = "s", format = "scores" }\n'


def measured(run: Path, name: str = "long") -> int | None:
    """How many rows the step has seen."""
    told = run / "evaluations" / f"{name}.json"
    if not told.exists():
        return None
    (one,) = orjson.loads(told.read_bytes())["data"].values()
    found: int = one["rows"]
    return found


async def test_a_stopped_stage_holds_the_step_at_the_end_of_the_stages_that_read_it(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    """Scores of what little was answered are no scores of the pool, though none of them is missing."""
    async with Provider(Config(mean_tokens=100, spread=0, scores=True)).running() as p:

        def recipe(dollars: float) -> Path:
            tables = {
                "teacher.t": teacher(p.base_url, **PAID),
                "teacher.free": teacher(p.base_url),
                "stage.a": asked(pool, budget=dollars, max_tokens=200),
                "stage.b": after("a", "free"),
                "stage.s": score("a", "b", to="free", attempts_parse=0),
            }
            return recipe_with(tmp_path, tables, SCORES)

        ended = await run_recipe(recipe(0.02), run, "--json")
        assert ended.code == 3
        told = orjson.loads(ended.out)
        done = told["stages"]["a"]["done"]
        assert 0 < done < 12
        assert told["stages"]["s"]["done"] == done
        assert told["steps"] == {}
        left = f"which is incomplete: {12 - done} of 12 rows are pending"
        assert left in told["waiting"]["scores"]
        assert left in told["stages"]["s"]["incomplete"]
        assert not (run / "steps").exists()
        alone = await run_recipe(recipe(0.02), run, "--only", "scores")
        assert alone.code == 3
        assert f"stage 'a' is incomplete: {12 - done} of 12 rows are pending" in alone.err
        assert "scores needs s, which needs a" in alone.err
        assert not (run / "steps").exists()
        assert (await run_recipe(recipe(1.0), run)).code == 0
    assert (run / "evaluations" / "scores.json").exists()


async def test_a_refused_key_leaves_no_step_on_an_empty_file(tmp_path: Path, run: Path, pool: Path) -> None:
    async with Provider(Config(bad_key=True)).running() as p:
        tables = {"teacher.t": teacher(p.base_url), "stage.a": asked(pool), "stage.b": after("a")}
        recipe = recipe_with(tmp_path, tables, measuring("b"))
        ended = await run_recipe(recipe, run)
        assert ended.code == 3
        assert "long: not started: it needs b, which reads a, which is incomplete: 12 of 12" in ended.err
        assert "run the same command again" in ended.err
        alone = await run_recipe(recipe, run, "--only", "long")
        assert (alone.code, measured(run)) == (3, None)
        assert "12 of 12 rows are pending" in alone.err
        p.control(bad_key=False)
        assert (await run_recipe(recipe, run)).code == 0
    assert measured(run) == 12


async def test_a_kill_leaves_its_stage_incomplete(tmp_path: Path, run: Path, pool: Path) -> None:
    judge = Judge()
    judge.hold["row 7."] = asyncio.Event()
    async with scripted(judge.answer) as url:
        tables = {"teacher.t": teacher(url), "stage.a": asked(pool), "stage.b": after("a")}
        recipe = recipe_with(tmp_path, tables, measuring("b"))
        async with started("run", recipe, "--run", run) as command:
            answered = "SELECT count(*) FROM responses"
            await until(lambda: (run / "ledger.db").exists() and len(judge.asked) >= 12)
            await until(lambda: ledger(run, answered) == [(22,)])
            command.send(signal.SIGKILL)
            await command.ended()
        alone = await run_recipe(recipe, run, "--only", "long")
        assert (alone.code, measured(run)) == (3, None)
        assert "stage 'a' is incomplete: 1 of 12 rows are pending" in alone.err
        judge.hold["row 7."].set()
        assert (await run_recipe(recipe, run)).code == 0
    assert measured(run) == 12


async def test_rows_that_failed_for_good_hold_nobody_and_rows_to_be_retried_do(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    judge = Judge()
    judge.refuse.update(("row 2.", "row 5."))
    async with scripted(judge.answer) as url:
        tables = {"teacher.t": teacher(url), "stage.a": asked(pool), "stage.b": after("a")}
        recipe = recipe_with(tmp_path, tables, measuring("b"))
        assert (await run_recipe(recipe, run)).code == 1
        assert measured(run) == 10
        known = await run_recipe(recipe, run, "--only", "long", "--json")
        assert orjson.loads(known.out)["steps"]["long"]["state"] == "known"
        assert (await distill("retry", run)).code == 0
        alone = await run_recipe(recipe, run, "--only", "long")
        assert alone.code == 3
        assert "stage 'a' is incomplete: 2 of 12 rows are pending" in alone.err
        judge.refuse.clear()
        assert (await run_recipe(recipe, run)).code == 0
    assert measured(run) == 12


async def test_rows_that_no_run_has_asked_hold_a_step(tmp_path: Path, run: Path, pool: Path) -> None:
    """A part that was tried out, rows that were added, other settings: what there is is not the stage."""
    judge = Judge()
    async with scripted(judge.answer) as url:

        def recipe(**more: Any) -> Path:
            tables = {"teacher.t": teacher(url), "stage.a": asked(pool, **more)}
            return recipe_with(tmp_path, tables, measuring("a"))

        async def held(pending: int, **more: Any) -> None:
            alone = await run_recipe(recipe(**more), run, "--only", "long")
            assert (alone.code, measured(run)) == (3, None)
            assert f"stage 'a' is incomplete: {pending} of {len(rows_now)} rows are pending" in alone.err
            assert "--only a" in alone.err

        rows_now = rows(12)
        assert (await generate(run, pool, url, "--stage", "a", "--limit", 5)).code == 0
        await held(7)
        assert (await generate(run, pool, url, "--stage", "a")).code == 0
        rows_now = rows(15)
        write_pool(pool, rows_now)
        await held(3)
        await held(15, temperature=0.5)
        await held(15, samples=2)
        asks = len(judge.asked)
        assert (await run_recipe(recipe(), run)).code == 0
        assert len(judge.asked) == asks + 3
    assert measured(run) == 15


async def test_a_limit_in_the_recipe_is_all_that_is_wanted(tmp_path: Path, run: Path, pool: Path) -> None:
    """Also where the stage has more rows, of a run that went further."""
    judge = Judge()
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url, "--stage", "a")).code == 0
        tables = {"teacher.t": teacher(url), "stage.a": asked(pool, limit=5), "stage.b": after("a")}
        recipe = recipe_with(tmp_path, tables, measuring("b"))
        assert (await run_recipe(recipe, run, "--only", "a", "--only", "b")).code == 0
        assert (await run_recipe(recipe, run, "--only", "long")).code == 0
        assert measured(run) == 5
        assert (await run_recipe(recipe, run, "--only", "b")).code == 0
    assert len(judge.asked) == 17


async def test_a_stage_on_a_part_of_what_it_reads_is_a_part_itself(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    """It asks what can be asked; of several answers to a row all must be there, which no second run
    would buy anew."""
    judge, far = Judge(), Judge()
    async with scripted(judge.answer) as url, scripted(far.answer) as other:
        tables = {
            "teacher.t": teacher(url),
            "teacher.far": teacher(other),
            "stage.a": asked(pool),
            "stage.b": asked(pool, "far", system="B."),
            "stage.c": asked(pool, system="C."),
            "stage.s": score("a", "b", "c"),
        }
        recipe = recipe_with(tmp_path, tables, SCORES)
        assert (await run_recipe(recipe, run, "--only", "a", "--only", "c")).code == 0
        assert (await generate(run, pool, other, "--stage", "b", "--system", "B.", "--limit", 5)).code == 0
        ended = await run_recipe(recipe, run, "--only", "s", "--only", "scores", "--json")
        assert ended.code == 3
        assert judge.count("### Answer 3") == judge.count("### Answer 1") == 5
        told = orjson.loads(ended.out)
        assert "reads b, which is incomplete: stage 'b' is incomplete: 7 of 12" in told["waiting"]["scores"]
        assert (told["stages"]["s"]["done"], told["steps"]) == (5, {})
        assert (await run_recipe(recipe, run)).code == 0
        assert judge.count("### Answer 3") == judge.count("### Answer 1") == 12


async def test_what_a_step_made_of_other_data_is_not_what_another_needs(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        tables = {"teacher.t": teacher(url), "stage.a": asked(pool)}
        steps = measuring("a", "first") + measuring("a", "last", 'after = "first"\n')
        recipe = recipe_with(tmp_path, tables, steps)
        assert (await run_recipe(recipe, run)).code == 0
        write_pool(pool, rows(13))
        for name in ("first", "last"):
            ended = await run_recipe(recipe, run, "--only", name)
            assert ended.code == 3
            assert "stage 'a' is incomplete: 1 of 13 rows are pending" in ended.err
        assert (await run_recipe(recipe, run, "--only", "a")).code == 0
        ended = await run_recipe(recipe, run, "--only", "last")
        assert ended.code == 3
        assert "step 'first' was run with another command or on other data than now" in ended.err
        assert measured(run, "last") == 12
        assert (await run_recipe(recipe, run, "--only", "first")).code == 0
        assert (await run_recipe(recipe, run, "--only", "last")).code == 0
    assert (measured(run, "first"), measured(run, "last")) == (13, 13)


async def test_a_step_does_not_run_on_a_stage_that_has_nothing_to_give(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), write_pool(tmp_path / "pool.jsonl", rows(3))
    judge.refuse.add("row")
    async with scripted(judge.answer) as url:
        tables = {"teacher.t": teacher(url), "stage.a": asked(pool)}
        recipe = recipe_with(tmp_path, tables, measuring("a"))
        ended = await run_recipe(recipe, run, "--json")
        assert ended.code == 1
        step = orjson.loads(ended.out)["steps"]["long"]
        assert step["state"] == "failed"
        assert "stage 'a' has no row for it" in step["why"]
        again = await run_recipe(recipe, run)
        assert again.code == 1
    assert measured(run) is None


async def test_a_part_of_the_recipe_that_needs_nothing_of_it_runs_all_the_same(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    async with Provider(Config(bad_key=True)).running() as bad, Provider().running() as good:
        tables = {
            "teacher.good": teacher(good.base_url),
            "teacher.bad": teacher(bad.base_url, model="gpt-4o"),
            "stage.a": asked(pool, "good"),
            "stage.x": asked(pool, "bad"),
        }
        steps = measuring("a") + measuring("x", "other")
        ended = await run_recipe(recipe_with(tmp_path, tables, steps), run, "--json")
        assert ended.code == 3
        told = orjson.loads(ended.out)
        assert told["steps"]["long"]["state"] == "done"
        assert told["waiting"].keys() == {"other"}
    assert measured(run) == 12
