"""A recipe that ends early, in part or whole, goes on where it was: by budget, key, signal, kill -9."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.cli import MODEL, distill, environment, ledger, rows, started, until, write_pool
from tests.support.judging import Judge
from tests.support.killing import assert_books_balance, counting, kill_at, moments, stored
from tests.support.provider import Config, Provider
from tests.support.recipe_files import (
    PAID,
    after,
    assert_intact,
    export,
    files_of,
    generate,
    positions,
    run_recipe,
    score,
    stage_told,
    teacher,
    write_recipe,
)
from tests.support.scripted import scripted


def stages_of(out: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(out)["stages"]
    return found


async def test_a_stage_stops_at_its_own_budget_while_others_go_on(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    async with Provider(Config(mean_tokens=100, spread=0)).running() as p:

        def recipe(dollars: float) -> Path:
            tables = {
                "teacher.t": teacher(p.base_url, **PAID),
                "stage.a": generate(pool, budget=dollars, max_tokens=200),
                "stage.b": generate(pool, system="B.", max_tokens=200),
                "stage.c": after("a", max_tokens=200),
            }
            return write_recipe(tmp_path, tables, budget=1.0)

        ended = await run_recipe(recipe(0.02), run, "--json")
        assert ended.code == 3
        found = stages_of(ended.out)
        assert found["a"]["exit_code"] == 3
        assert 0 < found["a"]["done"] < 12
        assert 0.005 < found["a"]["cost_usd"] <= 0.02
        assert (found["b"]["exit_code"], found["b"]["done"]) == (0, 12)
        assert found["c"]["done"] == found["a"]["done"]
        assert stage_told(run, "c")["total"] is None  # nobody knows yet how many there will be
        ended = await run_recipe(recipe(0.02), run)
        assert ended.code == 3
        assert "continue with a larger budget of stage 'a'" in ended.err
        assert (await run_recipe(recipe(0.2), run)).code == 0
        assert p.counts.billed == 36
    assert_intact(run)
    assert positions(run, "c") == list(range(12))


async def test_the_recipes_budget_is_for_all_stages(tmp_path: Path, run: Path, pool: Path) -> None:
    async with Provider(Config(mean_tokens=100, spread=0)).running() as p:

        def recipe(dollars: float) -> Path:
            tables = {
                "teacher.t": teacher(p.base_url, **PAID),
                "stage.a": generate(pool, max_tokens=200),
                "stage.b": after("a", max_tokens=200),
            }
            return write_recipe(tmp_path, tables, budget=dollars)

        ended = await run_recipe(recipe(0.03), run)
        assert ended.code == 3
        assert "continue with a larger budget in the recipe" in ended.err
        ((spent,),) = ledger(run, "SELECT sum(spent_micro + at_risk_micro) FROM spending")
        assert 0 < spent <= 30_000
        assert (await run_recipe(recipe(1.0), run)).code == 0
        assert p.counts.billed == 24


@pytest.mark.parametrize("which", ["stage", "recipe"])
async def test_a_budget_without_a_price_is_refused_with_its_line(
    tmp_path: Path, run: Path, pool: Path, which: str
) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        unknown = {"base_url": url.replace("127.0.0.1", "teacher.invalid"), "model": "nobody-knows-it"}
        own = {"budget": 1.0} if which == "stage" else {}
        tables = {"teacher.t": unknown, "stage.a": generate(pool, **own)}
        recipe = write_recipe(tmp_path, tables, **({} if own else {"budget": 1.0}))
        for flags in (("--yes",), ("--dry-run",)):
            ended = await run_recipe(recipe, run, *flags)
            assert ended.code == 2
            assert "recipe.toml, line" in ended.err
            assert "no" in ended.err
            assert "price" in ended.err
    assert judge.asked == []


async def test_money_is_not_spent_without_leave_or_a_cap(tmp_path: Path, run: Path, pool: Path) -> None:
    async with Provider().running() as p:
        tables = {"teacher.t": teacher(p.base_url, **PAID), "stage.a": generate(pool)}
        ended = await run_recipe(write_recipe(tmp_path, tables), run)
        assert (ended.code, p.counts.requests) == (2, 0)
        tables = {"teacher.t": teacher(p.base_url, **PAID), "stage.a": generate(pool, budget=1.0)}
        assert (await run_recipe(write_recipe(tmp_path, tables), run)).code == 0


async def test_a_refused_key_stops_the_stages_of_its_teacher_only(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    async with Provider(Config(bad_key=True)).running() as bad, Provider().running() as good:
        tables = {
            "teacher.good": teacher(good.base_url),
            "teacher.bad": teacher(bad.base_url, model="gpt-4o"),
            "stage.a": generate(pool, "good"),
            "stage.b": after("a", "good"),
            "stage.x": generate(pool, "bad"),
            "stage.y": after("x", "good", system="After x."),
        }
        recipe = write_recipe(tmp_path, tables)
        ended = await run_recipe(recipe, run, "--json")
        assert ended.code == 3
        found = stages_of(ended.out)
        assert {name: found[name]["exit_code"] for name in "abxy"} == {"a": 0, "b": 0, "x": 3, "y": 0}
        assert {name: found[name]["done"] for name in "abxy"} == {"a": 12, "b": 12, "x": 0, "y": 0}
        bad.control(bad_key=False)
        assert (await run_recipe(recipe, run)).code == 0
        assert (good.counts.billed, bad.counts.billed) == (36, 12)
    assert_intact(run)


async def test_a_key_that_is_not_set_is_told_with_its_line_before_anything_is_asked(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        tables = {
            "teacher.t": teacher(url),
            "teacher.far": {
                "model": MODEL,
                "base_url": "https://teacher.invalid/v1",
                "api_key_env": "FAR_KEY",
            },
            "stage.a": generate(pool),
            "stage.b": after("a", "far"),
        }
        recipe = write_recipe(tmp_path, tables)
        line = recipe.read_text().splitlines().index('api_key_env = "FAR_KEY"') + 1
        ended = await run_recipe(recipe, run, "--yes")
        assert (ended.code, judge.asked) == (2, [])
        assert f"recipe.toml, line {line}" in ended.err
        assert "FAR_KEY is not set" in ended.err
        assert (await run_recipe(recipe, run, "--only", "a")).code == 0  # which needs no key
        assert len(judge.asked) == 12


async def test_a_plan_asks_nothing_writes_nothing_and_shows_what_remains(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    async with Provider(Config(mean_tokens=100, spread=0)).running() as p:

        def recipe(**more: Any) -> Path:
            tables = {
                "teacher.t": teacher(p.base_url, **PAID, model="gpt-4o"),
                "stage.a": generate("pool.jsonl", limit=10, max_tokens=300),
                "stage.b": after("a", samples=2),
                "stage.s": score("a", "b", attempts_parse=0),
                "stage.t": {
                    "task": "translate",
                    "teacher": "t",
                    "from": "a",
                    "to": "Chinese",
                    "field": "output",
                },
            }
            return write_recipe(tmp_path, tables, **more)

        words = ("run", recipe(budget=1), "--run", run, "--dry-run", "--json")
        env = {name: value for name, value in environment().items() if name != "OPENAI_API_KEY"}
        told = await distill(*words, env=env)
        assert told.code == 0, told.err
        assert (p.counts.requests, files_of(run)) == (0, {})
        plan = orjson.loads(told.out)
        assert {n: s["requests"] for n, s in plan["stages"].items()} == {"a": 10, "b": 20, "s": 10, "t": 10}
        assert plan["total"]["requests"] == 50
        cost = sum(s["cost_usd"]["expected"] for s in plan["stages"].values())
        assert plan["total"]["cost_usd"]["expected"] == pytest.approx(cost)
        shown = await distill(*words[:-1], env=env)
        assert "in all" in shown.out
        assert (await run_recipe(recipe(budget=1), run, "--only", "a")).code == 0
        before = files_of(run)
        plan = stages_of((await distill(*words)).out)
        assert {n: s["requests"] for n, s in plan.items()} == {"a": 0, "b": 20, "s": 10, "t": 10}
        assert before.items() <= files_of(run).items()
        assert (await run_recipe(recipe(budget=1), run, "--only", "b")).code == 0
        assert {n: s["requests"] for n, s in stages_of((await distill(*words)).out).items()} == {
            "a": 0, "b": 0, "s": 10, "t": 10,
        }  # fmt: skip


async def test_an_interrupted_recipe_keeps_what_comes_and_goes_on(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    judge = Judge()
    judge.hold["After a."] = asyncio.Event()
    async with scripted(judge.answer) as url:
        tables = {"teacher.t": teacher(url), "stage.a": generate(pool), "stage.b": after("a")}
        recipe = write_recipe(tmp_path, {**tables, "stage.c": after("b")})
        async with started("run", recipe, "--run", run) as command:
            await until(lambda: judge.count("After a.") >= 1 and judge.count("row") > 12)
            command.send(signal.SIGINT)
            await until(lambda: b"stopped by SIGINT" in command.err or not judge.hold["After a."].is_set())
            judge.hold["After a."].set()
            assert (await command.ended()).code == 130
        assert (await run_recipe(recipe, run)).code == 0
    assert len(judge.asked) == 36
    assert_intact(run)


@pytest.mark.slow
async def test_after_10_kills_every_row_of_every_stage_is_asked_once_and_nothing_done_is_billed_again(
    tmp_path: Path, run: Path
) -> None:
    wanted = [*rows(70), *rows(10)]
    pool = write_pool(tmp_path / "pool.jsonl", wanted)
    async with counting(tmp_path, scores=True, latency=0.05, latency_sigma=0.5) as provider:
        tables = {
            "teacher.t": teacher(provider.url, concurrency=8, **PAID),
            "stage.a": generate(pool),
            "stage.b": after("a"),
            "stage.s": score("a", "b", attempts_parse=0, max_tokens=1024),
        }
        recipe = write_recipe(tmp_path, tables)
        words = ("run", recipe, "--run", run, "--quiet", "--yes")
        extra = unanswered = 0
        for kind, amount in moments(seed=7, early=3, late=7):
            async with started(*words) as command:
                await kill_at(command, provider, kind, min(amount, 14.0))
            await provider.idle()
            replies, waiting = stored(run)
            lost = provider.lines() - replies
            assert 0 <= lost - extra <= waiting - unanswered <= 8
            extra, unanswered = lost, waiting
        ended = await distill(*words)
        assert ended.code == 0, ended.err
        assert provider.lines() == 210 + extra
        assert stored(run) == (210, unanswered)
    for name in "abs":
        assert positions(run, name) == list(range(80))
    for name in "ab":
        exported = export(run, stage=name)
        assert [row["instruction"] for row in exported] == [row["instruction"] for row in wanted]
    assert stage_told(run, "s")["done"] == 80
    assert_intact(run)
    assert_books_balance(run)
