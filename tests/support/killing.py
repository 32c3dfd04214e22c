"""Runs and trainings that are killed in the middle, and what a kill may leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from tests.support import tiny
from tests.support.cli import ROOT, Command, ledger, until

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


# Runs, with a provider that knows what it has billed.


@dataclass
class Counted:
    """A provider in a process of its own, that writes a line for all that it bills."""

    url: str
    file: Path
    session: aiohttp.ClientSession
    names: dict[str, str] = field(default_factory=dict)  # content -> question

    async def counts(self, contents: bool = False) -> dict[str, Any]:
        address = f"{self.url.removesuffix('/v1')}/counts?contents={int(contents)}"
        async with self.session.get(address) as response:
            return dict(orjson.loads(await response.read()))

    async def idle(self) -> None:
        """Waits until it has noticed that nobody listens any more."""
        async with asyncio.timeout(10):
            while (await self.counts())["in_flight"]:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.01)

    def lines(self) -> int:
        return self.file.read_bytes().count(b"\n")

    async def billed(self) -> Counter[str]:
        """How often each question was billed."""
        contents = [orjson.loads(line)["content"] for line in self.file.read_bytes().splitlines()]
        if any(content not in self.names for content in contents):
            seen = (await self.counts(contents=True))["contents"]
            self.names.update({key: content["question"] for key, content in seen.items()})
        return Counter(self.names[content] for content in contents)


@contextlib.asynccontextmanager
async def counting(folder: Path, **config: Any) -> AsyncIterator[Counted]:
    settings, file = folder / "provider.json", folder / "billed.jsonl"
    settings.write_bytes(orjson.dumps(config))
    file.touch()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.provider", "--config", settings, "--counts", file,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout
        url = (await process.stdout.readline()).decode().split()[-1]
        async with aiohttp.ClientSession() as session:
            yield Counted(url, file, session)
    finally:
        process.kill()
        await process.communicate()


def moments(seed: int, early: int, late: int) -> list[tuple[str, float]]:
    """When to kill: so many seconds after the start, or after so many more bills and a blink."""
    dice = random.Random(seed)
    found = [("seconds", dice.uniform(0.02, 0.6)) for _ in range(early)]
    found += [("bills", dice.randrange(45) + dice.uniform(0.0, 0.99)) for _ in range(late)]
    dice.shuffle(found)
    return found


async def kill_at(command: Command, provider: Counted, kind: str, amount: float) -> None:
    if kind == "seconds":
        await asyncio.sleep(amount)
    else:
        wanted = provider.lines() + int(amount)
        await until(lambda: provider.lines() > wanted or command.process.returncode is not None, every=0.002)
        await asyncio.sleep(0.05 * (amount % 1))  # anywhere between two replies
    assert command.process.returncode is None, command.err.decode()
    command.send(signal.SIGKILL)
    assert (await command.ended()).code == -signal.SIGKILL


def stored(run: Path) -> tuple[int, int]:
    """(replies, requests sent without an end): what the ledger knows now."""
    if not ledger_has_tables(run):
        return 0, 0
    ((replies,),) = ledger(run, "SELECT count(*) FROM responses")
    ((unanswered,),) = ledger(run, "SELECT ifnull(sum(sent - ended), 0) FROM spending")
    return replies, unanswered


def ledger_has_tables(run: Path) -> bool:
    if not (run / "ledger.db").exists():
        return False
    return bool(ledger(run, "SELECT 1 FROM sqlite_master WHERE name = 'spending'"))


def assert_books_balance(run: Path) -> None:
    """The account is the sum of what it is made of; no request has two answers that count."""
    ((prompt, completion, cost),) = ledger(
        run,
        "SELECT sum(prompt_tokens), sum(completion_tokens), sum(cost_micro) FROM responses",
    )
    ((spent, at_risk, prompts, completions, sent, ended),) = ledger(
        run,
        "SELECT sum(spent_micro), sum(at_risk_micro), sum(prompt_tokens), sum(completion_tokens), "
        "sum(sent), sum(ended) FROM spending",
    )
    assert (spent, prompts, completions) == (cost, prompt, completion)
    assert cost > 0
    ((attempts,),) = ledger(run, "SELECT count(*) FROM attempts")
    ((unanswered, worst),) = ledger(
        run, "SELECT count(*), ifnull(sum(round(worst_usd * 1e6)), 0) FROM unanswered"
    )
    assert (sent, sent - ended) == (attempts, unanswered)
    assert at_risk >= worst
    no_answers = "('malformed', 'empty')"
    twice = f"SELECT request FROM responses WHERE outcome NOT IN {no_answers} GROUP BY 1 HAVING count(*) > 1"
    assert ledger(run, twice) == []
    assert ledger(run, "PRAGMA integrity_check") == [("ok",)]
    assert ledger(run, "PRAGMA foreign_key_check") == []
