"""Trainings that are killed in the middle, with all their processes, and what a kill may leave behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import tiny
from tests.support.cli import ROOT

TRIES = 3


def kill_at_step(command: list[str], out: Path, step: int, deaf: bool = False) -> None:
    """kill -9 of the command as soon as this step is measured; those that train end with it. deaf: it hears
    nothing more of them after the first step, as if it were slow."""
    _killed(command, out, step, lambda command, workers: os.kill(command, signal.SIGKILL), deaf)


def kill_a_worker_at_step(command: list[str], out: Path, step: int) -> tuple[int, str]:
    """kill -9 of the last of those that train. How the command ended, and what it said."""
    return _killed(command, out, step, lambda command, workers: os.kill(workers[-1], signal.SIGKILL))


def _killed(
    command: list[str], out: Path, step: int, kill: Callable[[int, list[int]], None], deaf: bool = False
) -> tuple[int, str]:
    """A training so small may end before a busy machine has killed it: then once more."""
    for _ in range(TRIES):
        process = at_step(command, out, 1 if deaf else step)
        if deaf:
            process.send_signal(signal.SIGSTOP)
            until_step(process, out, step)
        workers = children_of(process.pid)
        with contextlib.suppress(ProcessLookupError, IndexError):
            kill(process.pid, workers)
        _, said = process.communicate(timeout=tiny.SECONDS)
        until_gone(workers)
        if process.returncode != 0:
            return process.returncode, said
        shutil.rmtree(out)
    raise AssertionError(f"it ended {TRIES} times before it could be killed")


def at_step(command: list[str], out: Path, step: int) -> subprocess.Popen[str]:
    """The command, started and waited for until this step is measured."""
    process = subprocess.Popen(command, cwd=ROOT, env=tiny.env(), stderr=subprocess.PIPE, text=True)
    until_step(process, out, step)
    return process


def until_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    deadline = time.monotonic() + tiny.SECONDS
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and ("step", step) in tiny.measured(out)):
        assert not process.poll(), tiny.log(out)
        assert time.monotonic() < deadline
        time.sleep(0.002)


def until_gone(pids: list[int]) -> None:
    """Nobody is left behind to write."""
    deadline = time.monotonic() + tiny.SECONDS
    while any(tiny.alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Children and theirs, down to the last."""
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, told) for found in (child, *children_of(child))]


def leave_traces_of_a_kill(work: Path) -> None:
    """As if it had come in the middle of writing a checkpoint, or the result: the kill may have come a
    little late."""
    checkpoints = work / "checkpoints"
    shutil.rmtree(checkpoints / "checkpoint-6", ignore_errors=True)
    (checkpoints / "checkpoint-5").mkdir(exist_ok=True)
    (checkpoints / "checkpoint-5" / "trainer_state.json").write_text("{")
    (checkpoints / "checkpoint-5" / "complete.json").unlink(missing_ok=True)
    (work / "result").mkdir(exist_ok=True)
    (work / "result" / "torn.safetensors").touch()
