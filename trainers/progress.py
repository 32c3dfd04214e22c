"""What a training shows while it runs: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

EVERY = 30.0  # seconds between lines where there is no terminal
SPEED_OVER = 0.1  # weight of the last step in the speed shown
SHOWN = 160  # characters of a sampled answer


class Display:
    """Takes the records of a training, step by step."""

    def __init__(self, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and not quiet
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
        told = f"loss {record['loss']:.3f}  {self._speed:,.0f} tokens/s  {duration(left)} left"
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
