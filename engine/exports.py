"""`distill export`: a stage's answers as a data set, in the shapes that others read.

Which shapes there are depends on what the teacher was asked. Replies are read from the raw
bodies here and now: a better reader than the one of the run costs nothing.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from engine.earlier import Other, counting
from engine.judging.comparisons import (
    agreed,
    comparison_line,
    comparisons,
    ranking_line,
    review_line,
    verdict,
)
from engine.replies import text_of
from engine.roles import role
from engine.settings import Settings
from engine.tasks.task import Task
from store.errors import UsageError
from store.export import Answer, Stored, question, stored, write, write_lines
from store.files import is_stdout
from store.read import connect_reader, stage_of
from store.records import OUTCOMES

POOLED = ("alpaca", "chat", "parquet")
SHAPES: Mapping[str, Sequence[str]] = {
    "generate": (*POOLED, "candidates"),
    "translate": POOLED,
    "score": ("comparisons", "scores"),
    "compare": ("comparisons",),
    "judge": ("reviews",),
}
Read = tuple[Stored, Any, Any]  # what is stored, the row, what its reply amounts to


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of a stage's rows: how many lines were written and how many replies could not be read.
    others: rows with an answer under other settings than the last run's, which are left out or, `mixed`
    in with so many of the last run's, part of the data set."""

    rows: int
    unread: int
    others: tuple[Other, ...] = ()
    mixed: int | None = None

    @property
    def words(self) -> str:
        """What was left out, or mixed."""
        said = f"; {self.unread:,} replies could not be read and are left out" if self.unread else ""
        if not self.others:
            return said
        whose = ", ".join(f"{other.rows:,} ({other.why})" for other in self.others)
        if self.mixed is None:
            return f"{said}; rows with an answer under other settings are left out (--all-settings): {whose}"
        return f"{said}; settings are mixed: rows of the last run's: {self.mixed:,}, of others: {whose}"


def run_export(
    run: Path,
    format: str,
    out: Path,
    stage: str | None,
    outcome: str,
    min_margin: float,
    all_settings: bool = False,
) -> None:
    """Writes the data set and says what it left out. Raises UsageError."""
    found = export_stage(run, format, out, stage, outcome, min_margin, all_settings)
    where = "standard output" if is_stdout(out) else out
    print(f"{found.rows:,} rows written to {where}{found.words}", file=sys.stderr)


def export_stage(
    run: Path,
    format: str,
    out: Path,
    stage: str | None,
    outcome: str,
    min_margin: float,
    all_settings: bool = False,
) -> Exported:
    """Writes the data set: of one setting, that of the newest run, or of all. Raises UsageError."""
    outcomes = check_outcomes(outcome)
    check_format(format)
    number, name = stage_of(run, stage)
    reader = connect_reader(run)
    try:
        counted = counting(reader, number)
        settings = counted.settings
        _check(format, settings.task, name)
        plans = None if all_settings else counted.plans
        rows = stored(reader, number, outcomes, unparsed=format == "reviews", plans=plans)
        unread: list[int] = []
        found = _read(rows, role(settings), unread, keep=format == "reviews")
        count = _write(out, format, found, settings, min_margin)
        return Exported(count, len(unread), counted.others, counted.rows if all_settings else None)
    finally:
        reader.close()


def check_format(format: str) -> None:
    """Raises UsageError for a shape that nobody knows."""
    every = dict.fromkeys(shape for shapes in SHAPES.values() for shape in shapes)
    if format not in every:
        raise UsageError(f"--format {format}: unknown; there are {', '.join(every)}")


def check_outcomes(given: str) -> tuple[str, ...]:
    outcomes = tuple(name.strip() for name in given.split(",") if name.strip())
    for name in outcomes:
        if name not in OUTCOMES:
            raise UsageError(f"--outcome {name}: unknown; there are {', '.join(OUTCOMES)}")
    return outcomes


def _check(format: str, task: str, stage: str) -> None:
    if format not in SHAPES[task]:
        shapes = " or ".join(SHAPES[task])
        raise UsageError(f"--format {format}: stage '{stage}' ({task}) is exported as {shapes}")


def _read(rows: Iterator[Stored], task: Task, unread: list[int], keep: bool) -> Iterator[Read]:
    """What the replies amount to; those that cannot be read are counted, and kept only if wanted."""
    for row in rows:
        item = task.decode(row.item)
        record = task.record(item, clean(text_of(row.raw)))
        if record is None and not keep:
            unread.append(row.position)
            continue
        yield row, item, record


def clean(text: str) -> str:
    """Lone surrogates become U+FFFD: no file of UTF-8 can hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _write(out: Path, format: str, found: Iterator[Read], settings: Settings, min_margin: float) -> int:
    if format in POOLED:
        answers = (Answer(record, row.sample, row.outcome, row.model) for row, _, record in found)
        if settings.task == "translate" and settings.field != "output":  # a pool again: nothing answered yet
            answers = (replace(answer, item=replace(answer.item, output="")) for answer in answers)
        return write(out, format, answers, settings.samples, settings.system)
    return write_lines(out, map(orjson.dumps, _LINES[format](found, settings, min_margin)))


def _comparison_lines(
    found: Iterator[Read], settings: Settings, min_margin: float
) -> Iterator[dict[str, Any]]:
    said = ((item, record) for _, item, record in found)
    pairs = agreed(said) if settings.task == "compare" else comparisons(said, min_margin)
    return map(comparison_line, pairs)


def _candidate_lines(
    found: Iterator[Read], settings: Settings, min_margin: float
) -> Iterator[dict[str, Any]]:
    """All answers to a row, as `rank` takes them; the prompt as comparisons and scores have it."""
    for _, group in groupby(found, key=lambda read: read[0].position):
        answers = [(item, record.output) for _, item, record in group]
        item = answers[0][0]
        yield {"id": item.id, "prompt": question(item), "candidates": [text for _, text in answers]}


def _score_lines(found: Iterator[Read], settings: Settings, min_margin: float) -> Iterator[dict[str, Any]]:
    return (ranking_line(item, record) for _, item, record in found)


def _review_lines(found: Iterator[Read], settings: Settings, min_margin: float) -> Iterator[dict[str, Any]]:
    judge = {"judge": settings.model}
    return (review_line(verdict(item, record, text_of(row.raw))) | judge for row, item, record in found)


_LINES: Mapping[str, Callable[[Iterator[Read], Settings, float], Iterator[dict[str, Any]]]] = {
    "comparisons": _comparison_lines,
    "scores": _score_lines,
    "candidates": _candidate_lines,
    "reviews": _review_lines,
}
