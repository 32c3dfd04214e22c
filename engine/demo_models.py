"""The demo's second half: a student and a reward model of a few steps, and the best of its answers."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from engine.demo_steps import distill, rows_of, say
from engine.serving import served
from engine.terminal import plain

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
    _show_ranked(console, ranked)


def _show_ranked(console: Console, ranked: Path) -> None:
    """The first question, with the answers that the reward model likes best and least."""
    row = next(rows_of(ranked))
    question = row["prompt"].strip().splitlines()[0]
    console.print(f"   [bold]{escape(plain(question, 90))}[/bold]")
    for words, place in (("best ", row["order"][0]), ("worst", row["order"][-1])):
        score, answer = row["scores"][place], row["candidates"][place]
        console.print(f"   {words} {score:+.2f}  {escape(plain(answer, 80))}")
    console.print("   Models this small, trained for a few steps, show the way, not the quality.")
