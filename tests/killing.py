"""Trainings that are killed in the middle, with all their processes, and what a kill may leave behind."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import tiny
from cli import ROOT


def kill_at_step(command: list[str], out: Path, step: int) -> None:
    """kill -9 as soon as this step is measured."""
    process = subprocess.Popen(command, cwd=ROOT, env=tiny.env(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + tiny.SECONDS
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and ("step", step) in tiny.measured(out)):
        assert process.poll() is None, tiny.log(out)
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    while any(tiny.alive(pid) for pid in workers):  # nobody is left behind to write
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Children and theirs, down to the last."""
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, told) for found in (child, *children_of(child))]


def leave_traces_of_a_kill(checkpoints: Path) -> None:
    """As if it had come in the middle of writing a checkpoint: the kill may have come a little late."""
    shutil.rmtree(checkpoints / "checkpoint-6", ignore_errors=True)
    (checkpoints / "checkpoint-5").mkdir(exist_ok=True)
    (checkpoints / "checkpoint-5" / "trainer_state.json").write_text("{")
    (checkpoints / "checkpoint-5" / "complete.json").unlink(missing_ok=True)
