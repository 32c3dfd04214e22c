"""Progress of a training run (a bar on a terminal, lines elsewhere), and learning curves as a picture."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from store.files import whole

EVERY = 30.0  # seconds between lines where there is no terminal
SPEED_OVER = 0.1  # weight of the last step in the speed shown
SHOWN = 160  # characters of a sampled answer


class Display:
    """Takes the records of a training run, step by step."""

    def __init__(self, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        # Not the console's word: FORCE_COLOR, which notebooks set for what they start, makes it a terminal.
        self._live = sys.stderr.isatty() and not quiet
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"), TimeElapsedColumn(),
            console=self._console, disable=not self._live, transient=True,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._speed = self._pace = 0.0
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(escape(text))

    def step(self, record: dict[str, Any]) -> None:
        weight = SPEED_OVER if self._pace else 1.0
        self._pace += weight * (record["seconds"] - self._pace)
        self._speed += weight * (record["tokens"] / max(record["seconds"], 1e-9) - self._speed)
        left = (record["steps"] - record["step"]) * self._pace
        used = f" (MFU {record['mfu']:.0%})" if record.get("mfu") else ""
        told = f"loss {record['loss']:.3f}  {self._speed:,.0f} tokens/s{used}  {duration(left)} left"
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task("training", total=record["steps"], told="")
            self._bar.update(self._task, completed=record["step"], told=told)
        elif time.monotonic() - self._said >= EVERY or record["step"] == record["steps"]:
            self._said = time.monotonic()
            self.say(f"step {record['step']} of {record['steps']}: {told}")

    def scored(self, done: int, total: int) -> None:
        """So many answers of all have a reward."""
        if self._live:
            if self._task is None:
                self._task = self._bar.add_task("scoring", total=total, told="answers")
            self._bar.update(self._task, completed=done)
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            self.say(f"{done:,} of {total:,} answers have a reward")

    def held_out(self, record: dict[str, Any]) -> None:
        accuracy = record.get("held_out_accuracy")
        also = "" if accuracy is None else f", accuracy {accuracy:.3f}"
        self.say(f"step {record['step']}: held-out loss {record['held_out_loss']:.4f}{also}")
        for sample in record["samples"][:1]:
            self.say(f"  {_line(sample['prompt'], last=True)}\n  → {_line(sample['answer'])}")


def _line(text: str, last: bool = False) -> str:
    """One line without control characters."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(clean.split())
    if len(line) <= SHOWN:
        return line
    return "…" + line[-SHOWN:] if last else line[:SHOWN] + "…"


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def warn(text: str) -> None:
    print(f"distill: {text}", file=sys.stderr, flush=True)


SIZE, DPI = (7.0, 4.2), 150
# Okabe and Ito's colours, which people with colour blindness tell apart.
TRAINING, HELD_OUT, ACCURACY = "#0072B2", "#D55E00", "#009E73"
SMOOTHED_OVER = 20  # steps at most, as the time constant of an exponential mean
SMOOTHED_LEAST, SMOOTHED_SHARE = 5, 5  # of a short run a fifth, but no less than so many steps
CHANCE = 0.5


def draw(records: Sequence[dict[str, Any]], path: Path, title: str, loss_name: str) -> None:
    """Writes a PNG; nothing where nothing was measured yet."""
    from matplotlib.figure import Figure  # not pyplot: what a notebook draws with is its own choice

    steps = [(r["step"], r["loss"]) for r in records if r["kind"] == "step"]
    held = [(r["step"], r["held_out_loss"]) for r in records if r["kind"] == "held_out"]
    if not steps:
        return
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    places = [step for step, _ in steps]
    each = [loss for _, loss in steps]
    axes.plot(places, each, color=TRAINING, alpha=0.25, linewidth=0.8, label="training, each step")
    axes.plot(places, smoothed(each), color=TRAINING, label="training, smoothed")
    if held:
        line: dict[str, Any] = {"color": HELD_OUT, "marker": "o", "markersize": 3.5, "label": "held out"}
        axes.plot([step for step, _ in held], [loss for _, loss in held], **line)
        accuracy = [(r["step"], r["held_out_accuracy"]) for r in records if "held_out_accuracy" in r]
        if accuracy:  # on an axis of its own
            right = axes.twinx()
            right.plot(*zip(*accuracy, strict=True), color=ACCURACY, linestyle="--", marker="s", markersize=3)
            right.axhline(CHANCE, color=ACCURACY, linewidth=0.6, alpha=0.6)
            right.set_ylabel("held-out accuracy (dashed; chance 0.5)", color=ACCURACY)
            right.set_ylim(0, 1)
            right.spines[["top"]].set_visible(False)
    axes.set(xlabel="step", ylabel=loss_name, title=title)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False)
    with whole(path) as file:
        figure.savefig(file, format="png")


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential mean that is not drawn to 0 at its beginning, and in a short run does not lag."""
    keep = 1 - 1 / min(SMOOTHED_OVER, max(SMOOTHED_LEAST, len(values) // SMOOTHED_SHARE))
    found, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        found.append(mean / weight)
    return found
