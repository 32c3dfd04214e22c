"""One recipe all the way: answers, a student, its answers, scores, a reward model, ranks, judges; killed
and interrupted in the middle of its steps, and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

from tests.support import tiny
from tests.support.cli import ROOT, ledger
from tests.support.killing import children_of
from tests.support.recipe_files import write_recipe

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.long]
FEW = {"precision": "fp32", "epochs": 1, "max_length": 400, "warmup": 0, "save_every": 1}
PLACES = 2


def recipe(folder: Path) -> Path:
    pupil = tiny.student(folder / "pupil")
    pool = [{**row, "output": "", "id": f"q{n}"} for n, row in enumerate(tiny.rows(16))]
    poor = [{**row, "output": "no " * (1 + n % 3)} for n, row in enumerate(pool)]
    data, worse = tiny.write(folder / "pool.jsonl", pool), tiny.write(folder / "poor.jsonl", poor)
    five = {"samples": PLACES, "limit": 3, "max_tokens": 12}
    judge = {"task": "judge", "teacher": "rules", "against": "english"}
    tables: dict[str, dict[str, Any]] = {
        "teacher.rules": {"serve": "scripted"},
        "teacher.student": {"serve": {"step": "student"}},
        "stage.english": {"task": "generate", "teacher": "rules", "pool": str(data)},
        "stage.scored": {"task": "score", "teacher": "rules", "answers": ["english", str(worse)]},
        "step.student": {
            "run": "train sft", "data": {"stage": "english"}, "model": str(pupil), "batch": 4, **FEW,
        },
        "step.reward": {
            "run": "train reward", "data": {"stage": "scored", "format": "scores"}, "model": str(pupil),
            "batch": 4, **FEW,
        },
        "stage.several": {"task": "generate", "teacher": "student", "pool": str(data), **five},
        "step.best": {
            "run": "rank", "reward": {"step": "reward"},
            "candidates": {"stage": "several", "format": "candidates"},
        },
        "stage.judged1": {**judge, "answers": {"step": "best", "file": "rank1.jsonl"}},
        "stage.judged2": {**judge, "answers": {"step": "best", "file": "rank2.jsonl"}},
        "step.ranking": {"run": "evaluate ranking", "reviews": [{"stage": "judged1"}, {"stage": "judged2"}]},
    }  # fmt: skip
    path = write_recipe(folder, tables)
    path.write_text(inline(path.read_text()))
    return path


def inline(text: str) -> str:
    """JSON's objects as TOML's."""
    for key in ("step", "stage", "file", "format"):
        text = text.replace(f'"{key}": ', f"{key} = ")
    return text


def started(path: Path, run: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-P", "-m", "engine", "run", str(path), "--run", str(run), "--quiet", "--json"]
    return subprocess.Popen(words, cwd=ROOT, env=tiny.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stopped_in(path: Path, run: Path, step: str, number: signal.Signals) -> int:
    """The recipe, sent a signal when this training has made its first step; nobody must outlive it."""
    process = started(path, run)
    metrics = run / "steps" / step
    deadline = time.monotonic() + tiny.SECONDS
    while not ((metrics / "metrics.jsonl").exists() and ("step", 1) in tiny.measured(metrics)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    others = children_of(process.pid)
    assert others
    os.kill(process.pid, number)
    process.communicate(timeout=tiny.SECONDS)
    while any(tiny.alive(pid) for pid in others):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process.returncode


def test_the_whole_way_killed_and_interrupted_in_its_steps(tmp_path: Path) -> None:
    path, run = recipe(tmp_path), tmp_path / "run"
    assert stopped_in(path, run, "student", signal.SIGKILL) == -signal.SIGKILL
    assert "left" not in json.loads((run / "steps" / "student.json").read_bytes())
    assert stopped_in(path, run, "reward", signal.SIGINT) == 130
    process = started(path, run)
    out, err = process.communicate(timeout=tiny.SECONDS)
    assert process.returncode == 0, err
    told = orjson.loads(out)
    assert {name: step["state"] for name, step in told["steps"].items()} == {
        "student": "known", "reward": "done", "best": "done", "ranking": "done",
    }  # fmt: skip
    assert told["waiting"] == {}
    assert not list((run / "steps").glob("*.before-*"))  # what was begun was resumed, not begun anew
    assert {name: stage["done"] for name, stage in told["stages"].items()} == {
        "english": 16, "scored": 16, "several": 3 * PLACES, "judged1": 3, "judged2": 3,
    }  # fmt: skip
    ranked = (run / "steps" / "best" / "ranked.jsonl").read_bytes().splitlines()
    best = (run / "steps" / "best" / "rank1.jsonl").read_bytes().splitlines()
    for line, first in zip(ranked, best, strict=True):
        row = orjson.loads(line)
        assert orjson.loads(first)["text"] == row["candidates"][row["order"][0]]
    assert orjson.loads((run / "evaluations" / "ranking.json").read_bytes())


def ran(path: Path, run: Path, *flags: str) -> tuple[int, dict[str, Any], str]:
    words = [sys.executable, "-P", "-m", "engine", "run", str(path), "--run", str(run), "--quiet", "--json"]
    ended = subprocess.run([*words, *flags], cwd=ROOT, env=tiny.env(), capture_output=True, check=False)
    return ended.returncode, orjson.loads(ended.stdout or b"{}"), ended.stderr.decode()


def test_a_row_more_goes_all_the_way_again_and_nothing_stands_on_a_part(tmp_path: Path) -> None:
    """The student is another one then: its answers are asked again, as the recipe itself has it."""
    path, run = recipe(tmp_path), tmp_path / "run"
    _, plan, _ = ran(path, run, "--dry-run")
    code, told, err = ran(path, run)
    assert code == 0, err
    assert ledger(run, "SELECT count(*) FROM requests") == [(plan["total"]["requests"],)]
    _, plan, _ = ran(path, run, "--dry-run")
    assert plan["total"]["requests"] == 0
    pool = tmp_path / "pool.jsonl"
    pool.write_bytes(pool.read_bytes() + b'{"instruction": "Name a river.", "id": "q16"}\n')
    for name in ("best", "reward", "judged1"):
        code, _, err = ran(path, run, "--only", name)
        assert code == 3
        assert "stage 'english' is incomplete: 1 of 17 rows are pending" in err
    assert ran(path, run, "--only", "ranking")[0] == 3
    code, told, err = ran(path, run)
    assert code == 0, err
    states = {name: step["state"] for name, step in told["steps"].items()}
    assert (states["student"], told["stages"]["several"]["done"]) == ("done", 3 * PLACES)
    assert list((run / "steps").glob("student.before-1"))
    assert told["stages"]["english"]["done"] == 17
