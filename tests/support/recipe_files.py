"""Recipes for tests: written from tables, run through the front door.

recipe = write_recipe(tmp_path, {"teacher.t": {"model": MODEL, ...}, "stage.a": {...}})
ended = await run_recipe(recipe, run, "--only", "a")
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from engine.export import ExportOptions, run_export
from store.queries import connect_reader, stage_of, stage_status
from tests.support.cli import MODEL, Ended, Row, distill, ledger

Tables = Mapping[str, Mapping[str, Any]]
# Stages and steps that feed each other; nothing is wrong with it.
GOOD = """\
[teacher.t]
model = "gpt-4"

[teacher.own]
serve = { step = "student" }  # line 5

[teacher.vllm]
model = "student"
base_url = "http://127.0.0.1:1/v1"
after = "student"  # line 10

[stage.a]
task = "generate"
teacher = "t"
pool = "pool.jsonl"

[step.student]
run = "train sft"  # line 18
data = { stage = "a", format = "chat" }
model = "small"  # line 20
zero = 3
lr = 2e-5
recompute = true

[stage.five]
task = "generate"
teacher = "own"
pool = "pool.jsonl"
samples = 5

[step.best]
run = "rank"
reward = "small"
candidates = { stage = "five", format = "candidates" }

[stage.judged]
task = "judge"  # line 37
teacher = "t"
answers = { step = "best", file = "rank1.jsonl" }
against = "a"

[stage.elsewhere]
task = "generate"
teacher = "vllm"
pool = "pool.jsonl"

[step.lengths]
run = "evaluate lengths"
files = [{ stage = "five" }, "pool.jsonl"]
csv = "lengths.csv"  # line 50
"""
FREE = {"price_in": 0, "price_out": 0}
PAID = {"price_in": 10, "price_out": 30}


def write_recipe(folder: Path, tables: Tables, name: str = "recipe.toml", **head: Any) -> Path:
    """JSON's texts, numbers, lists and truths are TOML's as well."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in head.items()]
    for table, values in tables.items():
        lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def teacher(url: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "base_url": url, **FREE, **more}


def generate(pool: object, to: str = "t", **more: Any) -> dict[str, Any]:
    return {"task": "generate", "teacher": to, "pool": str(pool), **more}


def after(stage: str, to: str = "t", **more: Any) -> dict[str, Any]:
    """A stage that asks the same rows again in other words."""
    return {"task": "generate", "teacher": to, "from": stage, "system": f"After {stage}.", **more}


def score(*members: object, to: str = "t", **more: Any) -> dict[str, Any]:
    return {"task": "score", "teacher": to, "answers": [str(member) for member in members], **more}


async def run_recipe(recipe: Path, run: Path, *flags: object, seconds: float = 150) -> Ended:
    return await distill("run", recipe, "--run", run, "--quiet", *flags, seconds=seconds)


def export(run: Path, format: str = "alpaca", stage: str | None = None, min_margin: float = 0.0) -> list[Row]:
    """A stage's data set, as rows; in this process, which is quicker than another."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"
        run_export(run, out, ExportOptions(format, stage, min_margin=min_margin))
        return [json.loads(line) for line in out.read_bytes().splitlines()]


def files_of(run: Path) -> dict[str, int]:
    """When each file of a run folder was written; SQLite's shared memory is written by readers, too."""
    if not run.exists():
        return {}
    return {path.name: path.stat().st_mtime_ns for path in run.iterdir() if path.suffix != ".db-shm"}


def stage_told(run: Path, name: str) -> dict[str, Any]:
    """One stage as `status --json` has it."""
    reader = connect_reader(run)
    try:
        return stage_status(reader, stage_of(run, name)[0])
    finally:
        reader.close()


def write_bare(folder: Path) -> str:
    """A prompt that is the instruction alone, beside the recipe."""
    (folder / "bare.txt").write_text("{instruction}")
    return "bare.txt"


def assert_intact(run: Path) -> None:
    assert ledger(run, "SELECT ifnull(max(id), 0) = count(*) FROM requests") == [(1,)]
    assert ledger(run, "PRAGMA integrity_check") == [("ok",)]
    assert ledger(run, "PRAGMA foreign_key_check") == []


def positions(run: Path, name: str) -> list[int]:
    sql = "SELECT position FROM samples a JOIN stages s ON s.id = a.stage WHERE s.name = ? ORDER BY 1"
    return [position for (position,) in ledger(run, sql, name)]


def json_of(out: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(out)
    return found
