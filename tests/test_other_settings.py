"""Answers under other settings are another data set: nothing is mixed that nobody has asked for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.cli import (
    ROOT,
    asking,
    distill,
    environment,
    export,
    generate,
    ledger,
    rows,
    status,
    write_pool,
)
from tests.support.judging import Judge, translation
from tests.support.provider import Config, Provider
from tests.support.recipe_files import after, run_recipe, teacher, write_recipe
from tests.support.recipe_files import generate as asked
from tests.support.scripted import completion, scripted

CHOICES = ("--reuse", "--replace", "--stage")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.jsonl", rows(8))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.txt"
    path.write_text("In one word: {instruction}")
    return path


async def test_another_prompt_asks_nobody_before_it_is_said_what_becomes_of_the_answers(
    run: Path, pool: Path, other: Path
) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url)).code == 0
        before = ledger(run, "SELECT count(*), max(plan) FROM rows")
        for flags in ((), ("--limit", 5), ("--yes",), ("--limit", 5, "--yes", "--quiet")):
            ended = await generate(run, pool, url, "--prompt", other, *flags)
            assert ended.code == 2
            assert "8 of 8 rows already have an answer under other settings" in ended.err
            assert "prompt: the task's own -> In one word: {instruction}" in ended.err
            assert all(choice in ended.err for choice in CHOICES)
        assert len(judge.asked) == 8
        assert ledger(run, "SELECT count(*), max(plan) FROM rows") == before
        assert ledger(run, "SELECT count(*) FROM runs") == [(1,)]
        assert (await generate(run, pool, url, "--prompt", other, "--stage", "new")).code == 0
        assert (await generate(run, pool, url)).code == 0
    assert judge.count("In one word") == 8
    assert len(judge.asked) == 16


CHANGED: dict[str, tuple[object, ...]] = {
    "model: gpt-4 -> gpt-4o": ("--model", "gpt-4o", "--price-in", 0, "--price-out", 0),
    "system: not sent -> Be brief.": ("--system", "Be brief."),
    "temperature: 1.0 -> 0.5": ("--temperature", 0.5),
    "top_p: 1.0 -> 0.9": ("--top-p", 0.9),
    "top_p: 1.0 -> not sent": ("--omit", "top_p"),
    "max_tokens: 512 -> 600": ("--max-tokens", 600),
    "seed: not sent -> 7": ("--param", "seed=7"),
}


async def test_whatever_is_sent_counts_and_is_named(run: Path, pool: Path) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url)).code == 0
        for change, flags in CHANGED.items():
            ended = await generate(run, pool, url, *flags)
            assert (ended.code, len(judge.asked)) == (2, 8)
            assert f"({change})" in ended.err


async def test_an_estimate_says_the_same_and_counts_what_is_kept(run: Path, pool: Path) -> None:
    judge, change = Judge(), "seed: not sent -> 7"
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url)).code == 0
        words = asking(pool, run, url, *CHANGED[change], command="estimate")
        told = await distill(*words)
        assert told.code == 0
        assert f"8 of 8 rows already have an answer under other settings ({change})" in told.out
        found = orjson.loads((await distill(*words, "--json")).out)
        assert found["other_settings"] == {"rows": 8, "of": 8, "changes": [[change]]}
        assert found["requests"] == 8
        kept = orjson.loads((await distill(*words, "--json", "--reuse")).out)
        assert (kept["requests"], kept["other_settings"]) == (0, None)


async def test_what_is_not_sent_asks_nobody_anything(run: Path, pool: Path) -> None:
    """More rows, another order, more samples, other limits, another server."""
    judge = Judge()
    async with scripted(judge.answer) as url, scripted(judge.answer) as elsewhere:
        assert (await generate(run, pool, url)).code == 0
        write_pool(pool, [{"instruction": "A new one."}, *reversed(rows(9))])
        limits = ("--rpm", 5000, "--concurrency", 3, "--budget", 5, "--attempts", 2, "--give-up", 9)
        ended = await generate(run, pool, elsewhere, *limits, "--samples", 2)
        assert ended.code == 0, ended.err
        assert len(judge.asked) == 20
        assert (await generate(run, pool, url, "--limit", 2)).code == 0
    assert len(judge.asked) == 20


async def test_reused_answers_belong_to_the_stage_wherever_their_rows_go(
    tmp_path: Path, run: Path, pool: Path, other: Path
) -> None:
    judge = Judge()
    judge.refuse.add("row 6.")
    async with scripted(judge.answer) as url:
        flags = ("--prompt", other)
        assert (await generate(run, pool, url)).code == 1
        assert (await generate(run, pool, url, *flags, "--limit", 2, "--reuse")).code == 0
        assert len(judge.asked) == 8
        assert len(await export(run)) == 7
        judge.refuse.clear()
        write_pool(pool, [{"instruction": "A new one."}, *reversed(rows(9))])
        ended = await generate(run, pool, url, *flags)  # what was said once holds
        assert ended.code == 0, ended.err
        assert [text for _, text in judge.asked[8:]] == [
            "In one word: A new one.",
            "In one word: Tell me about row 8.",
            "In one word: Tell me about row 6.",
        ]
        out = tmp_path / "out.jsonl"
        ended = await distill("export", run, "--format", "alpaca", "--out", out)
        assert ended.err.startswith(
            f"10 rows written to {out}; answers under other settings that --reuse has "
        )
        assert "kept are among them: 7 (prompt" in ended.err
        answers = [orjson.loads(line)["output"] for line in out.read_bytes().splitlines()]
        assert sum("In one word" in answer for answer in answers) == 3
        assert (await generate(run, pool, url, *flags, "--samples", 2)).code == 0
        assert len(judge.asked) == 11 + 10
        ended = await generate(run, pool, url, *flags, "--samples", 2, "--replace")
        assert ended.code == 0, ended.err
        assert "7 of 10 rows already have an answer under other settings" in ended.err
        assert len(judge.asked) == 11 + 10 + 7
        assert all("In one word" in row["output"] for row in await export(run))


async def test_replaced_answers_are_left_out_and_told_or_mixed_with_a_flag(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    judge, out = Judge(), tmp_path / "out.jsonl"
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url)).code == 0
        ended = await generate(run, pool, url, "--temperature", 0.5, "--limit", 3, "--replace")
        assert ended.code == 0
        assert "8 of 8 rows" in ended.err
        words = ("export", run, "--format", "alpaca", "--out", out)
        ended = await distill(*words)
        assert ended.code == 0
        assert "3 rows written" in ended.err
        assert "left out (--all-settings): 5 (temperature: 1.0 -> 0.5)" in ended.err
        assert all("|0.5|" in line for line in out.read_text().splitlines())
        ended = await distill(*words, "--all-settings")
        assert "8 rows written" in ended.err
        assert (
            "settings are mixed: rows of the last run's: 3, of others: 5 (temperature: 1.0 -> 0.5)"
            in ended.err
        )
        assert len(out.read_text().splitlines()) == 8
        assert (await status(run))["other_settings"] == {"generate": 5}
        assert (await generate(run, pool, url)).code == 0  # the old answers are still there
        ended = await distill(*words)
    assert ended.err == f"8 rows written to {out}\n"
    assert len(judge.asked) == 11


async def test_a_ledger_in_which_settings_were_mixed_before_says_so(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    """As an older version left it, whose runs do not say by which number their rows are known."""
    judge, out = Judge(), tmp_path / "out.jsonl"
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url)).code == 0
        assert (await generate(run, pool, url, "--system", "Short.", "--limit", 3, "--replace")).code == 0
        db = sqlite3.connect(run / "ledger.db")
        db.execute(
            "UPDATE runs SET settings = json_remove(settings, '$.plan', '$.reused', '$.reuse', '$.replace')"
        )
        db.commit()
        db.close()
        ended = await distill("export", run, "--format", "alpaca", "--out", out)
        assert "3 rows written" in ended.err
        assert "5 (system: not sent -> Short.)" in ended.err
        ended = await generate(run, pool, url, "--system", "Short.")
        assert (ended.code, len(judge.asked)) == (2, 11)
        assert "5 of 8 rows" in ended.err
        ended = await generate(run, pool, url, "--system", "Short.", "--reuse")
        assert (ended.code, len(judge.asked)) == (0, 11)
        assert len(await export(run)) == 8


async def test_a_row_without_any_answer_is_no_reason_to_ask(run: Path, pool: Path) -> None:
    async with Provider(Config(refuse_params=("temperature",))).running() as p:
        assert (await generate(run, pool, p.base_url)).code == 3
        assert (await generate(run, pool, p.base_url, "--omit", "temperature")).code == 0


async def test_a_terminal_is_asked(run: Path, pool: Path) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url)).code == 0
        words = asking(pool, run, url, "--temperature", 0.5, "--quiet", "--yes")

        def at_terminal(answer: bytes) -> tuple[int, str]:
            ours, theirs = pty.openpty()
            command = [sys.executable, "-P", "-m", "engine", *map(str, words)]
            with subprocess.Popen(
                command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), cwd=ROOT
            ) as process:
                os.close(theirs)
                said = b""
                while b"[y/N]" not in said:
                    said += os.read(ours, 4096)
                os.write(ours, answer)
                with contextlib.suppress(OSError):  # the other end is closed
                    while some := os.read(ours, 4096):
                        said += some
            os.close(ours)
            return process.returncode, re.sub(r"\s+", " ", said.decode())

        code, said = await asyncio.to_thread(at_terminal, b"n\n")
        assert (code, len(judge.asked)) == (2, 8)
        assert "8 of 8 rows already have an answer under other settings" in said
        code, said = await asyncio.to_thread(at_terminal, b"y\n")
        assert (code, len(judge.asked)) == (0, 16)


async def test_roles_have_settings_of_their_own(tmp_path: Path, run: Path) -> None:
    """The language, the schema, the order in which answers are shown; and what cannot be kept is not."""
    judge = Judge()
    judge.says = lambda text: completion(translation(text) or "5 6") if "Translate" in text else None
    pool = write_pool(tmp_path / "pool.jsonl", rows(4))
    files = [
        write_pool(
            tmp_path / f"{name}.jsonl", [{**row, "output": f"{name} {n}"} for n, row in enumerate(rows(5))]
        )
        for name in ("one", "two")
    ]
    async with scripted(judge.answer) as url:

        async def go(command: str, *flags: object) -> str:
            ended = await distill(*asking(pool, run, url, *flags, command=command))
            assert ended.code in (0, 1, 2), ended.err
            return ended.err if ended.code == 2 else ""

        async def score(*flags: object) -> str:
            words = asking(files[0], run, url, *flags, command="score")
            ended = await distill(*words[:1], *files, *words[2:])
            assert ended.code in (0, 2), ended.err
            return ended.err if ended.code == 2 else ""

        assert await go("translate", "--to", "zh-CN") == ""
        asks = len(judge.asked)
        assert "(to: Simplified Chinese -> Traditional Chinese)" in await go("translate", "--to", "zh-TW")
        assert "(field: instruction -> output" in await go("translate", "--to", "zh-CN", "--field", "output")
        words = await go("translate", "--to", "zh-CN", "--field", "output", "--reuse")
        assert "--reuse: stage 'translate' has answers to another question" in words
        assert "task: translate -> generate" in await go("generate", "--stage", "translate")
        assert await go("translate", "--to", "zh-CN") == ""
        assert len(judge.asked) == asks
        assert await score() == ""
        asks = len(judge.asked)
        assert (
            "5 of 5 rows already have an answer under other settings (structured: False -> True)"
            in await score("--structured")
        )
        assert "5 of 5 rows already have an answer under other settings (seed: 0 -> 1)" in await score(
            "--seed", 1
        )
        assert "take the setting back" in await score("--seed", 1, "--reuse")
        assert await score("--structured", "--reuse") == ""
        assert len(judge.asked) == asks
        assert await score("--seed", 1, "--structured", "--replace") == ""
        assert len(judge.asked) > asks


async def test_an_older_fingerprint_of_the_same_requests_is_no_other_setting(run: Path, pool: Path) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url)).code == 0
        db = sqlite3.connect(run / "ledger.db")
        db.execute("UPDATE rows SET plan = 7")
        db.execute("UPDATE runs SET settings = json_remove(settings, '$.plan', '$.reused')")
        db.commit()
        db.close()
        assert len(await export(run)) == 8
        assert (await generate(run, pool, url, "--limit", 3)).code == 0
        assert len(await export(run)) == 8
    assert len(judge.asked) == 8


async def test_a_recipe_says_it_for_a_stage_or_its_command_for_all(
    tmp_path: Path, run: Path, pool: Path
) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:

        def recipe(**more: Any) -> Path:
            tables = {"teacher.t": teacher(url), "stage.a": asked(pool, **more), "stage.b": after("a")}
            return write_recipe(tmp_path, tables)

        assert (await run_recipe(recipe(), run)).code == 0
        line = recipe(temperature=0.5).read_text().splitlines().index("[stage.a]") + 1
        ended = await run_recipe(recipe(temperature=0.5), run, "--yes")
        assert (ended.code, len(judge.asked)) == (2, 16)
        assert f"recipe.toml, line {line}: stage.a: stage 'a': 8 of 8 rows" in ended.err
        plan = await distill("run", recipe(temperature=0.5), "--run", run, "--dry-run")
        assert "stage 'a': 8 of 8 rows already have an answer under other settings" in plan.out
        ended = await run_recipe(recipe(temperature=0.5, reuse=True, replace=True), run)
        assert ended.code == 2
        told = await distill("run", recipe(temperature=0.5, reuse=True), "--run", run, "--dry-run", "--json")
        assert orjson.loads(told.out)["total"]["requests"] == 0
        assert (await run_recipe(recipe(temperature=0.5, reuse=True), run)).code == 0
        assert len(judge.asked) == 16
        assert (await run_recipe(recipe(temperature=0.5), run)).code == 0
        assert len(judge.asked) == 16
        assert (await run_recipe(recipe(temperature=0.5), run, "--replace")).code == 0
        assert len(judge.asked) == 24  # what reads it sends its instructions on
        assert (await run_recipe(recipe(temperature=0.1), run, "--reuse")).code == 0
    assert len(judge.asked) == 24


async def test_a_pilot_is_a_run_as_well(run: Path, pool: Path) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url)).code == 0
        words = asking(pool, run, url, "--temperature", 0.5, "--pilot", 2, command="estimate")
        ended = await distill(*words)
        assert (ended.code, len(judge.asked)) == (2, 8)
        assert all(choice in ended.err for choice in CHOICES)


async def test_replies_without_an_answer_are_no_reason_to_ask(run: Path, pool: Path) -> None:
    """Who raises the bound after replies that came back empty has nothing to keep."""
    judge = Judge()
    judge.says = lambda text: completion("", finish_reason="length")
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url, "--attempts-empty", 1)).code in (1, 3)
        asks = len(judge.asked)
        assert asks > 0
        judge.says = None
        ended = await generate(run, pool, url, "--max-tokens", 900)
        assert ended.code == 0, ended.err
        assert len(judge.asked) == asks + 8
        assert len(await export(run)) == 8


async def test_an_import_goes_by_what_the_stage_keeps(tmp_path: Path, run: Path, pool: Path) -> None:
    judge = Judge()
    more = write_pool(tmp_path / "more.jsonl", [{**row, "output": "Bought."} for row in rows(10)])
    async with scripted(judge.answer) as url:

        async def imported(*flags: object) -> tuple[int, str]:
            ended = await distill("import", more, "--run", run, "--model", "gpt-4", *flags)
            return ended.code, ended.err

        assert (await generate(run, pool, url)).code == 0
        code, said = await imported("--temperature", 0.5)
        assert code == 2
        assert "temperature: 1.0 -> 0.5" in said
        assert (await imported("--reuse"))[0] == 2
        assert (await generate(run, pool, url, "--temperature", 0.5, "--reuse")).code == 0
        code, said = await imported("--temperature", 0.5)
        assert (code, len(judge.asked)) == (0, 8)
        assert "2 answers imported" in said
        assert [row["output"] for row in await export(run)][8:] == ["Bought.", "Bought."]
        write_pool(pool, rows(10))
        assert (await generate(run, pool, url, "--temperature", 0.5)).code == 0
        assert len(judge.asked) == 8
    assert len(await export(run)) == 10
