"""`distill demo`: every command once, offline, on the embedded teacher.

Estimates, collects answers to 60 instructions, kills the run halfway on purpose, resumes, exports, runs the
other tasks as a recipe, trains a student and a reward model for a few steps, ranks with it, and writes the
report. Each step is the real command in its own process. This file only strings commands together.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape

from engine.recipe.load import SHIPPED
from engine.run.status import status_of
from engine.subprocesses import command, served
from engine.terminal import plain
from store.errors import DistillError, RunFolderError, UsageError, require
from store.files import LEDGER


class DemoFailed(DistillError):
    """A step of the demo did not do what it should."""

    exit_code = 1


def say(console: Console, title: str, words: str) -> None:
    console.print(f"\n[bold]{title}[/bold]  [dim]{escape(words)}[/dim]")


def distill(*arguments: str, some_may_fail: bool = False) -> None:
    """Runs a command and shows what it says. Raises DemoFailed where it does not exit with 0, or, where
    some rows may fail, with 1."""
    sys.stdout.flush()
    fine = (0, 1) if some_may_fail else (0,)
    if subprocess.run(command(*arguments), check=False).returncode not in fine:
        raise DemoFailed(f"this step failed: bin/distill {' '.join(arguments)}")


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    return map(orjson.loads, file.read_bytes().splitlines())


MODEL = "smollm2"
# A few steps, on a machine without a GPU: the way, not the quality.
FEW = ["--model", MODEL, "--epochs", "1", "--batch", "8", "--max-length", "128"]
FEW += ["--eval-every", "9", "--save-every", "9"]
STUDENT_ROWS, REWARD_PROMPTS = 18, 24
QUESTIONS, SAMPLES, MAX_TOKENS = 5, 4, 32


def train_and_rank(console: Console, pool: Path, data: Path, run: Path) -> None:
    """data: the collected answers. Leaves student/, reward/ and ranked.jsonl in the run folder."""
    student, reward = run / "student", run / "reward"
    say(console, "7. A student", f"bin/distill train sft --data {data} --model {MODEL} --out {student}")
    few = [*FEW, "--limit", str(STUDENT_ROWS), "--held-out", "0.1", "--samples", "1"]
    distill("train", "sft", "--data", str(data), "--out", str(student), *few)

    scores = run / "scores.jsonl"
    say(console, "8. A reward model", f"bin/distill train reward --data {scores} --out {reward}")
    distill("export", str(run), "--stage", "scored", "--format", "scores", "--out", str(scores))
    few = [*FEW, "--limit", str(REWARD_PROMPTS), "--held-out", "0.25"]
    distill("train", "reward", "--data", str(scores), "--out", str(reward), *few)

    say(console, "9. The best of several answers", f"bin/distill serve {student}; generate --samples; rank")
    candidates, ranked = run / "candidates.jsonl", run / "ranked.jsonl"
    with served(str(student), run / "student.log") as (url, model):
        asked = ["--limit", str(QUESTIONS), "--samples", str(SAMPLES), "--max-tokens", str(MAX_TOKENS)]
        asked += ["--attempts", "1", "--concurrency", "16"]  # it may have nothing to say, again and again
        where = ["--run", str(run), "--stage", "student", "--model", model, "--base-url", url, "--quiet"]
        distill("generate", str(pool), *where, *asked, some_may_fail=True)
    distill("export", str(run), "--stage", "student", "--format", "candidates", "--out", str(candidates))
    distill("rank", "--reward", str(reward), "--candidates", str(candidates), "--out", str(ranked))
    # the first question, with the answers that the reward model likes best and least
    row = next(rows_of(ranked))
    question = row["prompt"].strip().splitlines()[0]
    console.print(f"   [bold]{escape(plain(question, 90))}[/bold]")
    for words, place in (("best ", row["order"][0]), ("worst", row["order"][-1])):
        score, answer = row["scores"][place], row["candidates"][place]
        console.print(f"   {words} {score:+.2f}  {escape(plain(answer, 80))}")
    console.print("   Models this small, trained for a few steps, show the way, not the quality.")


RECIPE = SHIPPED / "small.toml"
KILL_AT = 25  # answers
MAX_TOKENS = 80
SHOWN = 3
# stage of the recipe -> how it is exported, and what of a line is shown
ROLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "translated": ("alpaca", lambda row: row["instruction"]),
    "scored": ("comparisons", lambda row: f"{row['models'][0]} beats {row['models'][1]}: {row['scores']}"),
    "judged": ("reviews", lambda row: f"{row['models'][0]} against {row['models'][1]}: {row['score']}"),
}
PATIENCE = 120.0  # seconds, for a step that takes a few


def run_demo(out: Path) -> int:
    """Returns the exit code; raises DemoFailed with the step that failed."""
    require("serve", MODEL, "train", "evaluate", purpose="the demo")
    console = Console(highlight=False, soft_wrap=True)
    run = out / "run"
    # only a folder of an earlier demo is cleared
    if (run / LEDGER).exists() or (out / "teacher.log").exists():
        shutil.rmtree(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}; name another with --out") from error
    pool = out / "pool.jsonl"
    shutil.copyfile(SHIPPED / "demo_pool.jsonl", pool)
    say(console, "1. A teacher", "SmolLM2-135M-Instruct behind the OpenAI chat API, on loopback")
    with served("smollm2", out / "teacher.log") as (url, model):
        console.print(f"   {url}, model {escape(plain(model))}")
        asking = [str(pool), "--model", model, "--base-url", url, "--max-tokens", str(MAX_TOKENS)]
        say(console, "2. What will it cost?", f"bin/distill estimate {pool} --model …")
        distill("estimate", *asking)
        say(console, "3. Collect, and pull the plug", f"kill -9 after {KILL_AT} answers")
        _collect_and_kill(asking, run)
        found = status_of(run)
        console.print(f"   killed: {_done(found)} answers are on disk, {found['unanswered']} were in flight")
        say(console, "4. The same command again", "sends only what has no answer yet")
        distill("generate", *asking, "--run", str(run))
    say(console, "5. The data set", f"bin/distill export --run {run} --format alpaca --out …")
    data = out / "answers.jsonl"
    distill("export", str(run), "--format", "alpaca", "--out", str(data))
    for row in islice(rows_of(data), SHOWN):
        console.print(f"   [bold]{escape(plain(row['instruction'], 75))}[/bold]")
        console.print(f"   {escape(plain(row['output'], 75))}")
    say(console, "6. The teacher's other roles", f"bin/distill run {RECIPE.name} --run {run}")
    console.print(
        "   A model this small can neither translate nor judge: a [bold]scripted[/bold] stand-in does."
    )
    distill("run", str(RECIPE), "--run", str(run), "--quiet")
    _show_roles(console, out, run)
    train_and_rank(console, pool, data, run)
    say(console, "10. What the ledger says", f"bin/distill status --run {run}")
    distill("status", str(run))
    say(console, "11. The report", f"bin/distill report --run {run} --out …")
    distill("report", str(run), "--out", str(out / "report.html"))
    _say_next(console, out)
    return 0


def _collect_and_kill(asking: list[str], run: Path) -> None:
    """Kills the collection with SIGKILL when enough answers are stored."""
    collecting = subprocess.Popen(command("generate", *asking, "--run", str(run), "--quiet"))
    deadline = time.monotonic() + PATIENCE
    while collecting.poll() is None and time.monotonic() < deadline:
        if (run / LEDGER).exists() and _done_so_far(run) >= KILL_AT:
            break
        time.sleep(0.1)
    if collecting.poll() is not None:
        raise DemoFailed("the collection ended before it could be killed")
    collecting.send_signal(signal.SIGKILL)
    collecting.wait()


def _done_so_far(run: Path) -> int:
    try:
        return _done(status_of(run))
    except RunFolderError:  # the tables are being made
        return 0


def _done(found: dict[str, dict[str, dict[str, int]]]) -> int:
    return sum(stage["done"] for stage in found["stages"].values())


def _show_roles(console: Console, out: Path, run: Path) -> None:
    """The first line of what each role is exported as."""
    for stage, (format, shown) in ROLES.items():
        data = out / f"{stage}.jsonl"
        distill("export", str(run), "--stage", stage, "--format", format, "--out", str(data))
        words = shown(next(rows_of(data)))
        console.print(f"   [bold]{stage}[/bold] (scripted)  {escape(plain(words, 90))}")


def _say_next(console: Console, out: Path) -> None:
    shown = escape(str(out) if not os.path.isabs(out) else out.name)
    console.print(
        f"""
[bold]Done.[/bold] Everything is in {shown}: report.html, the ledger (run/ledger.db), data sets, models.
A model this small shows the way, not the quality. With a real key:

   export OPENAI_API_KEY=…
   bin/distill estimate POOL.jsonl --model gpt-5.1 --rpm 10000 --tpm 1000000
   bin/distill generate POOL.jsonl --model gpt-5.1 --rpm 10000 --tpm 1000000 --run runs/mine --budget 50
   bin/distill export --run runs/mine --format alpaca --out sft.jsonl"""
    )
