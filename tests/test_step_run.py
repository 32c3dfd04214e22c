"""Steps are run when what they need is complete, once; what fails takes with it only what needs it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.main import get_command

from engine.cli.app import app
from engine.recipe.load import load
from engine.recipe.step_runner import run_step
from engine.recipe.steps import commands_of, steps_of
from engine.run.status import status_of
from engine.subprocesses import run_to_end
from store.run_folder import StepResult, is_whole, record_of
from store.schema import connect_writer
from tests.support.cli import rows, write_pool
from tests.support.judging import Judge
from tests.support.recipe_files import after, generate, run_recipe, teacher, write_recipe
from tests.support.scripted import scripted

COMMANDS = commands_of(get_command(app))


def lengths(*files: object, **more: Any) -> dict[str, Any]:
    return {"run": "evaluate lengths", "files": [str(file) for file in files], **more}


def once(recipe: Path, run: Path, name: str) -> StepResult:
    """One step, in this process."""
    found = load(recipe)
    return run_step(found, steps_of(found, COMMANDS)[name], run, True)


def answers(path: Path, *texts: str) -> Path:
    return write_pool(path, [{"instruction": f"Say {text}.", "output": text} for text in texts])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    connect_writer(tmp_path / "run").close()
    return tmp_path / "run"


def lone(folder: Path, **tables: dict[str, Any]) -> Path:
    """A recipe for its steps."""
    pool = write_pool(folder / "pool.jsonl", rows(1))
    known = {"teacher.t": {"model": "gpt-4"}, "stage.a": generate(pool)}
    return write_recipe(folder, {**known, **{f"step.{name}": table for name, table in tables.items()}})


def test_a_step_is_done_once_and_again_when_what_it_reads_has_changed(tmp_path: Path, run: Path) -> None:
    data = answers(tmp_path / "data.jsonl", "one", "two")
    recipe = lone(tmp_path, long=lengths(data, csv="table.csv"))
    assert once(recipe, run, "long").state == "done"
    told = run / "evaluations" / "long.json"
    first, made = told.read_bytes(), told.stat().st_mtime_ns
    assert "data" in json.loads(first)
    assert once(recipe, run, "long").state == "known"
    assert told.stat().st_mtime_ns == made
    answers(data, "one", "two and a half")
    assert once(recipe, run, "long").state == "done"
    assert told.read_bytes() != first
    assert (run / "steps" / "long.before-1" / "table.csv").is_file()  # kept aside
    assert (run / "steps" / "long" / "table.csv").is_file()


def test_a_step_whose_result_is_gone_is_run_again(tmp_path: Path, run: Path) -> None:
    recipe = lone(tmp_path, long=lengths(answers(tmp_path / "data.jsonl", "one")))
    assert once(recipe, run, "long").state == "done"
    (run / "evaluations" / "long.json").unlink()
    assert not status_of(run)["steps"]["long"]["done"]
    assert once(recipe, run, "long").state == "done"
    assert is_whole(run, record_of(run, "long"))
    assert status_of(run)["steps"]["long"]["done"]


def test_a_failed_step_says_so_and_is_run_again(tmp_path: Path, run: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("no JSON\n")
    recipe = lone(tmp_path, long=lengths(data))
    failed = once(recipe, run, "long")
    assert (failed.state, failed.exit_code) == ("failed", 1)
    assert "evaluate lengths" in failed.why
    assert not (run / "evaluations" / "long.json").exists()
    answers(data, "one")
    assert once(recipe, run, "long").state == "done"


async def test_stages_then_steps_and_what_fails_takes_only_what_needs_it(tmp_path: Path) -> None:
    judge, run = Judge(), tmp_path / "run"
    pool = write_pool(tmp_path / "pool.jsonl", rows(5))
    bad = tmp_path / "bad.jsonl"
    bad.write_text("no JSON\n")
    async with scripted(judge.answer) as url:
        tables = {
            "teacher.t": teacher(url),
            "teacher.later": teacher(url, after="fine"),
            "teacher.never": teacher(url, after="broken"),
            "stage.a": generate(pool),
            "stage.b": after("a", "later"),
            "stage.c": {**after("a", "never"), "system": "Never."},
            "step.fine": {"run": "evaluate lengths", "files": []},
            "step.broken": lengths(bad),
            "step.last": {"run": "evaluate lengths", "files": []},
            "step.not-begun": {"run": "evaluate lengths", "files": []},
        }
        recipe = write_recipe(tmp_path, tables)
        of = {"fine": "a", "last": "b", "not-begun": "c"}
        text = recipe.read_text()
        for name, stage in of.items():
            before = f'[step.{name}]\nrun = "evaluate lengths"\nfiles = []'
            assert before in text
            text = text.replace(before, before.replace("[]", f'{{ stage = "{stage}" }}'))
        recipe.write_text(text)
        ended = await run_recipe(recipe, run, "--json")
        assert ended.code == 1, ended.err
        told = orjson.loads(ended.out)
        assert {name: step["state"] for name, step in told["steps"].items()} == {
            "fine": "done", "broken": "failed", "last": "done",
        }  # fmt: skip
        assert told["waiting"] == {"c": "it needs broken", "not-begun": "it needs c"}
        assert [told["stages"][name]["done"] for name in "ab"] == [5, 5]
        assert judge.count("Never.") == 0
        asked = len(judge.asked)
        answers(bad, "good now")
        ended = await run_recipe(recipe, run, "--json")
        assert ended.code == 0, ended.err
        assert len(judge.asked) == asked + 5  # only stage c
        told = orjson.loads(ended.out)
        states = {name: step["state"] for name, step in told["steps"].items()}
        assert states == {"fine": "known", "last": "known", "broken": "done", "not-begun": "done"}
        ended = await run_recipe(recipe, run, "--only", "last", "--json")
        assert orjson.loads(ended.out)["steps"]["last"]["state"] == "known"
        assert len(judge.asked) == asked + 5


async def test_only_a_step_whose_stage_has_run(tmp_path: Path) -> None:
    recipe = lone(tmp_path, long={"run": "evaluate lengths", "after": "a", "files": "pool.jsonl"})
    ended = await run_recipe(recipe, tmp_path / "run", "--only", "long")
    assert ended.code == 2
    assert "it reads stage 'a', which has not run" in ended.err


SLEEPER = (
    "import subprocess, sys, time; p = subprocess.Popen(['sleep', '100']); print(p.pid, flush=True); p.wait()"
)


def test_a_second_interrupt_ends_a_command_and_its_children(tmp_path: Path) -> None:
    """The first is ignored by this one."""
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
    out = tmp_path / "out"

    def interrupt() -> None:
        while not out.read_text().strip():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    with out.open("wb") as file:
        thread = threading.Thread(target=interrupt)
        thread.start()
        assert run_to_end([sys.executable, "-c", stubborn], file, signal.SIGTERM) == 130
        thread.join()
    deadline = time.monotonic() + 10
    while _runs(int(out.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """A process whose parent has died may wait to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
