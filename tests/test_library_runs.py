"""`import distill`: recipes, pilots, imports, and calls about a run folder that is there."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

import distill
from tests.support.cli import KEY, MODEL, environment, ledger, rows, write_pool
from tests.support.cli import distill as command
from tests.support.library import FREE, generate, served
from tests.support.provider import Config, Provider
from tests.support.recipe_files import generate as stage
from tests.support.recipe_files import teacher, write_recipe


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with served() as found:
        yield found


def recipe(folder: Path, url: str, count: int = 5, **steps: dict[str, Any]) -> Path:
    pool = write_pool(folder / "pool.jsonl", rows(count))
    tables = {"teacher.t": teacher(url), "stage.a": stage(pool)}
    return write_recipe(folder, tables | {f"step.{name}": table for name, table in steps.items()})


SHARES = {"run": "evaluate shares", "stage": "a"}
BROKEN = {"run": "evaluate lengths", "files": ["pool.jsonl"], "field": "none"}  # the command refuses it


# Recipes.


def test_a_recipe_runs_its_stages_and_steps(provider: Provider, tmp_path: Path) -> None:
    file, seen = recipe(tmp_path, provider.base_url, shares=SHARES), []
    planned = distill.plan(file, run=tmp_path / "run")
    assert (planned["total"]["requests"], list(planned["steps"]), provider.counts.requests) == (
        5,
        ["shares"],
        0,
    )
    assert not (tmp_path / "run").exists()
    for state in ("done", "known"):
        found = distill.run(file, run=tmp_path / "run", progress=seen.append)
        assert (found.stages["a"].done, found.steps["shares"].state) == (5, state)
    assert (seen[-1].stage, seen[-1].done) == ("a", 5)
    assert len(list(distill.answers(found))) == len(list(distill.answers(found.stages["a"]))) == 5
    assert distill.run(file, run=tmp_path / "run", only=["shares"], progress=False).stages == {}


async def test_a_recipe_runs_where_a_loop_is_running(tmp_path: Path) -> None:
    async with Provider().running() as p:
        found = await distill.arun(recipe(tmp_path, p.base_url), run=tmp_path / "run", progress=False)
    assert found.stages["a"].done == 5


def test_a_step_that_fails_is_an_error_and_the_stages_are_stored(provider: Provider, tmp_path: Path) -> None:
    file = recipe(tmp_path, provider.base_url, broken=BROKEN)
    with pytest.raises(distill.DistillError, match=r"^broken: `distill evaluate lengths .* exit code "):
        distill.run(file, run=tmp_path / "run", progress=False)
    assert distill.status(tmp_path / "run")["stages"]["a"]["done"] == 5


def test_a_stage_that_is_stopped_raises_why(tmp_path: Path) -> None:
    with (
        served(Config(bad_key=True)) as p,
        pytest.raises(distill.DistillError, match=r"^HTTP 401: Incorrect API key"),
    ):
        distill.run(recipe(tmp_path, p.base_url), run=tmp_path / "run", progress=False)


def test_a_wrong_recipe_says_what_the_command_line_says(provider: Provider, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(distill.UsageError, match=r"^cannot read recipe .*none\.toml"):
        distill.run(tmp_path / "none.toml", run=run)
    with pytest.raises(distill.UsageError, match=r"^--only b: no such stage or step; there are a$"):
        distill.run(recipe(tmp_path, provider.base_url), run=run, only=["b"])


STOPPED = """
import os, signal, sys, threading, distill
from engine.recipe import step_runner
def interrupt(words, *rest):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    return run_to_end([sys.executable, "-c", "import time; time.sleep(60)"], *rest)
run_to_end, step_runner.run_to_end = step_runner.run_to_end, interrupt
try:
    distill.run(sys.argv[1], run=sys.argv[2], progress=False)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_ends_a_step_too(provider: Provider, tmp_path: Path) -> None:
    """Only the main thread hears of signals; the step is waited for by another."""
    file = recipe(tmp_path, provider.base_url, shares=SHARES)
    ended = subprocess.run(
        [sys.executable, "-P", "-c", STOPPED, str(file), str(tmp_path / "run")],
        env=environment(), capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert (ended.stdout, ended.stderr) == ("interrupted\n", "")


# A pilot.


def test_a_pilot_sends_some_rows_and_keeps_their_answers(provider: Provider, tmp_path: Path) -> None:
    asked = {"base_url": provider.base_url, "model": MODEL, "price_in": 1, "price_out": 1, "budget": 1}
    told = distill.estimate(rows(50), run=tmp_path / "run", pilot=5, progress=False, **asked)
    assert (told.already_answered, provider.counts.requests) == (5, 5)
    with pytest.raises(distill.UsageError, match=r"^--pilot needs --run DIR"):
        distill.estimate(rows(5), pilot=5, **asked)
    with pytest.raises(distill.UsageError, match=r"^--pilot 0: must be at least 1 row"):
        distill.estimate(rows(5), run=tmp_path / "run", pilot=0, **asked)
    del asked["budget"]
    with pytest.raises(distill.UsageError, match="this run costs money"):
        distill.estimate(rows(5, "other"), run=tmp_path / "run", pilot=5, **asked)


async def test_a_pilot_runs_beside_other_tasks(tmp_path: Path) -> None:
    async with Provider().running() as p:
        asked = {"base_url": p.base_url, **FREE}
        told = await distill.aestimate(rows(9), run=tmp_path / "run", pilot=3, **asked)
    assert told.already_answered == 3


# Answers from elsewhere.


def test_answers_are_imported_and_asked_for_no_more(provider: Provider, tmp_path: Path) -> None:
    bought = [{**row, "output": "Bought."} for row in rows(3)] + [{**rows(4)[3], "output": ""}]

    async def cell() -> distill.Imported:  # a loop is running
        return distill.import_answers(bought, run=tmp_path / "run", model=MODEL)

    found = asyncio.run(cell())
    assert (found.taken, found.empty, found.pending, found.stage) == (3, 1, 1, "generate")
    assert [row["output"] for row in distill.answers(found)] == 3 * ["Bought."]
    again = distill.import_answers(bought, run=tmp_path / "run", model=MODEL)
    assert (again.taken, again.known) == (0, 3)
    assert generate(provider, tmp_path / "run", rows(5)).done == 5
    assert provider.counts.requests == 2
    for answers, words in (
        (rows(2), "^no row of answers.jsonl has an answer"),
        (tmp_path / "none.jsonl", "none.jsonl: No such file"),
    ):
        with pytest.raises(distill.UsageError, match=words):
            distill.import_answers(answers, run=tmp_path / "run", model=MODEL)
    with pytest.raises(distill.UsageError, match=r"^import has no setting rpm"):
        distill.import_answers(bought, run=tmp_path / "run", model=MODEL, rpm=5)


# What is there.


def test_failed_rows_are_retried(tmp_path: Path) -> None:
    with served(Config(poison="row 1.")) as p:
        result = generate(p, tmp_path / "run")
        assert distill.retry(result, cause="timeout").pending == 0
        assert distill.retry(result).pending == 1
        p.control(poison="no row")
        assert generate(p, tmp_path / "run").done == 5
    with pytest.raises(distill.UsageError, match=r"^--cause rain: unknown; choose from "):
        distill.retry(result, cause="rain")


async def test_a_ledger_is_checked_and_repaired(tmp_path: Path) -> None:
    async with Provider().running() as p:
        asked = {"run": tmp_path / "run", "base_url": p.base_url, **FREE}
        result = await distill.agenerate(rows(5), **asked)
        assert distill.check(result)["intact"]
        with sqlite3.connect(result.run / "ledger.db") as db:
            db.execute("UPDATE bodies SET raw = substr(raw, 2) WHERE response = 1")
        db.close()
        found = distill.check(result)
        assert found == orjson.loads((await command("check", result.run, "--json")).out)
        assert (found["intact"], found["damaged"]["replies"], found["asked_again"]) == (False, 1, 1)
        repaired = distill.check(result, repair=True)
        assert (repaired["repaired"], repaired["intact_now"]) == (True, True)
        assert (await distill.agenerate(rows(5), **asked)).done == 5
        assert p.counts.requests == 6


async def test_requests_in_doubt_are_listed_and_settled(tmp_path: Path) -> None:
    run, paid = tmp_path / "run", {"price_in": 1000, "price_out": 1000, "max_tokens": 100, "yes": True}
    with served(Config(p_stall=1, stall_seconds=30)) as p:
        generate(p, run, rows(3), timeout=1, attempts=1, **paid)
    found = distill.unconfirmed(run)
    assert len(found["attempts"]) == 3
    assert found == orjson.loads((await command("settle", run, "--json")).out)
    with pytest.raises(distill.UsageError, match=r"^say what became of the requests: --lost, "):
        distill.settle(run)
    first = found["attempts"][0]["attempt"]
    done = distill.settle(run, usd=0.01, attempt=[first])
    assert (done.attempts, done.billed_micro) == (1, 10_000)
    assert distill.settle(run, lost=True).attempts == 2
    assert distill.unconfirmed(run)["attempts"] == []
    assert ledger(run, "SELECT sum(spent_micro), sum(at_risk_micro) FROM spending") == [(10_000, 0)]
