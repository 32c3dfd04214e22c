"""Stages run together: at the same time, in any order of answers, to the same data set."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Row, distill, ledger, rows, until, write_pool
from tests.support.judging import Judge
from tests.support.provider import Config, Provider
from tests.support.recipe_files import (
    after,
    assert_intact,
    export,
    generate,
    json_of,
    positions,
    run_recipe,
    score,
    stage_told,
    teacher,
    write_recipe,
)
from tests.support.scripted import completion, scripted


async def test_a_later_stage_asks_before_the_earlier_one_has_all_its_answers(
    tmp_path: Path, run: Path
) -> None:
    judge, pool = Judge(), write_pool(tmp_path / "pool.jsonl", rows(20))
    judge.hold["row 13"] = asyncio.Event()
    async with scripted(judge.answer) as url:
        tables = {
            "teacher.t": teacher(url),
            "stage.a": generate(pool),
            "stage.b": after("a"),
            "stage.c": after("b"),
        }
        ended = asyncio.ensure_future(run_recipe(write_recipe(tmp_path, tables), run))
        await until(lambda: judge.count("After b.") == 19)  # all but the one that is held
        judge.hold["row 13"].set()
        assert (await ended).code == 0
    assert len(judge.asked) == 60
    for name in "abc":
        assert positions(run, name) == list(range(20))
    exported = export(run, stage="c")
    assert [row["instruction"] for row in exported] == [row["instruction"] for row in rows(20)]
    assert all(row["output"].startswith("<After b.|") for row in exported)
    assert_intact(run)


async def test_the_limits_of_different_teachers_are_used_at_the_same_time(tmp_path: Path, run: Path) -> None:
    first, second = Judge(), Judge()
    pool = write_pool(tmp_path / "pool.jsonl", rows(6))
    first.hold["row"], second.hold["row"] = asyncio.Event(), asyncio.Event()
    async with scripted(first.answer) as one, scripted(second.answer) as two:
        tables = {
            "teacher.one": teacher(one),
            "teacher.two": teacher(two, model="gpt-4o"),
            "stage.a": generate(pool, "one"),
            "stage.b": generate(pool, "two"),
            "stage.s": score("a", "b", to="two"),
        }
        ended = asyncio.ensure_future(run_recipe(write_recipe(tmp_path, tables), run))
        await until(lambda: first.asked and second.asked)
        second.hold["row"].set()
        await until(lambda: len(second.asked) == 6)
        assert second.count("### Answer 1") == 0  # of both, both must have answered
        first.hold["row"].set()
        assert (await ended).code == 0
    assert second.count("### Answer 1") == 6
    assert_intact(run)


async def test_a_stage_that_is_behind_hears_of_the_row_that_was_still_to_come(
    tmp_path: Path, run: Path
) -> None:
    """It has read a chunk of 64 rows, and is busy with it, when the last one is answered."""
    first, second = Judge(), Judge()
    wanted = [*rows(1, "first"), *rows(64, "middle"), *rows(1, "last")]
    pool = write_pool(tmp_path / "pool.jsonl", wanted)
    first.hold = {word: asyncio.Event() for word in ("middle", "last")}
    second.hold = {word: asyncio.Event() for word in ("first", "middle")}
    answered = "SELECT count(*) FROM responses"
    async with scripted(first.answer) as one, scripted(second.answer) as two:
        tables = {
            "teacher.one": teacher(one),
            "teacher.two": teacher(two, concurrency=2),
            "stage.a": generate(pool, "one"),
            "stage.b": after("a", "two"),
        }
        ended = asyncio.ensure_future(run_recipe(write_recipe(tmp_path, tables), run))
        await until(lambda: second.asked)
        first.hold["middle"].set()
        await until(lambda: ledger(run, answered) == [(65,)])
        second.hold["first"].set()
        await until(lambda: second.count("middle") == 2)
        first.hold["last"].set()
        await until(lambda: ledger(run, answered) == [(67,)])
        second.hold["middle"].set()
        assert (await ended).code == 0
    assert len(second.asked) == 66


async def graph(folder: Path, run: Path, pool: Path, **config: Any) -> tuple[list[list[Row]], Counter[str]]:
    """Three exports of a recipe that ran at a provider with such faults, and how often it was billed."""
    async with Provider(Config(scores=True, **config)).running() as p:
        tables = {
            "teacher.t": teacher(p.base_url, concurrency=24),
            "stage.a": generate(pool),
            "stage.b": after("a"),
            "stage.c": after("b", samples=2),
            "stage.s": {**score("a", "b", "c"), "attempts_parse": 0},
        }
        ended = await run_recipe(write_recipe(folder, tables), run)
        assert ended.code == 0, ended.err
        assert_intact(run)
        billed = Counter({c.question + key: c.billed for key, c in p.counts.contents.items()})
    assert positions(run, "s") == list(range(60))
    return [export(run, stage=name) for name in "abc"], billed


@pytest.mark.slow
async def test_the_result_is_the_same_bytes_whatever_the_timing(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", [*rows(50), *rows(10)])
    quiet, billed = await graph(tmp_path, tmp_path / "quiet", pool)
    faults = {"p_500": 0.1, "p_503": 0.05, "p_reset_before": 0.05, "p_429": 0.05, "latency": 0.02}
    noisy, again = await graph(tmp_path, tmp_path / "noisy", pool, latency_sigma=1.5, **faults)
    assert quiet == noisy
    assert billed == again
    assert {len(exported) for exported in quiet} == {60, 120}


async def test_the_same_request_of_two_stages_is_asked_once_and_later_stages_see_it(
    tmp_path: Path, run: Path
) -> None:
    judge = Judge()
    long, short = write_pool(tmp_path / "a.jsonl", rows(30)), write_pool(tmp_path / "b.jsonl", rows(9)[4:])
    judge.hold["row 7"] = asyncio.Event()
    async with scripted(judge.answer) as url:
        tables = {
            "teacher.t": teacher(url),
            "stage.a": generate(long),
            "stage.b": generate(short),
            "stage.c": after("b"),
        }
        ended = asyncio.ensure_future(run_recipe(write_recipe(tmp_path, tables), run, "--json"))
        await until(lambda: judge.count("After b.") == 4)
        judge.hold["row 7"].set()
        told = await ended
    assert told.code == 0, told.err
    assert len(judge.asked) == 30 + 5
    found = json_of(told.out)["stages"]
    assert {name: (found[name]["done"], found[name]["total"]) for name in "abc"} == {
        "a": (30, 30), "b": (5, 5), "c": (5, 5),
    }  # fmt: skip
    assert_intact(run)


async def test_what_a_stage_was_to_ask_for_two_fails_for_both(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), write_pool(tmp_path / "pool.jsonl", rows(5))
    judge.refuse.add("row 3")
    async with scripted(judge.answer) as url:
        tables = {"teacher.t": teacher(url), "stage.a": generate(pool), "stage.b": generate(pool)}
        ended = await run_recipe(write_recipe(tmp_path, tables), run, "--json")
    assert ended.code == 1
    assert len(judge.asked) == 5
    found = json_of(ended.out)["stages"]
    assert [(s["done"], sum(s["failed"].values())) for s in found.values()] == [(4, 1), (4, 1)]


async def test_a_row_that_failed_makes_no_row_and_after_retry_it_does(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), write_pool(tmp_path / "pool.jsonl", rows(6))
    judge.refuse.add("row 2")
    async with scripted(judge.answer) as url:
        recipe = write_recipe(
            tmp_path,
            {
                "teacher.t": teacher(url),
                "stage.a": generate(pool),
                "stage.b": after("a"),
                "stage.s": score("a", "b"),
            },
        )
        assert (await run_recipe(recipe, run)).code == 1
        assert positions(run, "b") == positions(run, "s") == [0, 1, 3, 4, 5]
        judge.refuse.clear()
        assert (await distill("retry", run)).code == 0
        asked = len(judge.asked)
        assert (await run_recipe(recipe, run)).code == 0
        assert len(judge.asked) == asked + 3
        assert positions(run, "b") == positions(run, "s") == list(range(6))
        assert [row["instruction"] for row in export(run, stage="b")] == [
            row["instruction"] for row in rows(6)
        ]
    assert_intact(run)


async def test_truncated_answers_go_on_and_filtered_or_empty_ones_do_not(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), write_pool(tmp_path / "pool.jsonl", rows(4))

    def says(text: str) -> bytes | None:
        if "row 1" in text:
            return completion("Cut off", finish_reason="length")
        return completion("", finish_reason="content_filter") if "row 2" in text else None

    judge.says = says
    async with scripted(judge.answer) as url:
        tables = {"teacher.t": teacher(url), "stage.a": generate(pool), "stage.b": after("a")}
        assert (await run_recipe(write_recipe(tmp_path, tables), run)).code == 0
    assert positions(run, "b") == [0, 1, 3]
    assert stage_told(run, "b")["total"] == 3


async def test_other_settings_upstream_leave_nothing_of_the_old_answers(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), write_pool(tmp_path / "pool.jsonl", rows(40))

    def says(text: str) -> str | None:
        return f"Old {text}" if len(judge.asked) <= before and "### Answer" not in text else None

    before, judge.says = 120, says
    async with scripted(judge.answer) as url:

        def recipe(temperature: float) -> Path:
            tables = {
                "teacher.t": teacher(url),
                "stage.a": generate(pool, temperature=temperature),
                "stage.b": {"task": "generate", "teacher": "t", "from": "a", "system": "B."},
                "stage.s": score("a", "b", attempts_parse=0),
            }
            return write_recipe(tmp_path, tables)

        assert (await run_recipe(recipe(1.0), run)).code == 0
        assert len(judge.asked) == 120
        judge.refuse.add("row 17")
        judge.hold["row 3."] = asyncio.Event()
        ended = asyncio.ensure_future(run_recipe(recipe(0.5), run, "--replace"))
        await until(lambda: judge.count("### Answer 1") >= 40 + 38)
        judge.hold["row 3."].set()
        assert (await ended).code == 1
    scored = [text for _, text in judge.asked[120:] if "### Answer 1" in text]
    assert len(scored) == 39
    assert all("|0.5|" in text for text in scored)  # its answer, not the old one
    assert positions(run, "s") == positions(run, "b") == [n for n in range(40) if n != 17]
    assert "Old" not in str([row["output"] for row in export(run, stage="a")])
