"""`distill export`: a stage's answers as a data set, in the shapes that others read.

Which shapes there are depends on what the teacher was asked. Replies are read from the raw
bodies here and now: a better reader than the one of the run costs nothing.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from engine.judging.comparisons import (
    agreed,
    comparison_line,
    comparisons,
    ranking_line,
    review_line,
    verdict,
)
from engine.replies import text_of
from engine.roles import role, settings_of_stage
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


def run_export(run: Path, format: str, out: Path, stage: str | None, outcome: str, min_margin: float) -> None:
    """Writes the data set and says what it left out. Raises UsageError."""
    count, unread = export_stage(run, format, out, stage, outcome, min_margin)
    left_out = f"; {unread:,} replies could not be read and are left out" if unread else ""
    where = "standard output" if is_stdout(out) else out
    print(f"{count:,} rows written to {where}{left_out}", file=sys.stderr)


def export_stage(
    run: Path, format: str, out: Path, stage: str | None, outcome: str, min_margin: float
) -> tuple[int, int]:
    """Writes the data set: how many rows, and how many replies could not be read. Raises UsageError."""
    outcomes = check_outcomes(outcome)
    check_format(format)
    number, name = stage_of(run, stage)
    reader = connect_reader(run)
    try:
        settings = settings_of_stage(reader, number)
        _check(format, settings.task, name)
        rows = stored(reader, number, outcomes, unparsed=format == "reviews")
        unread: list[int] = []
        found = _read(rows, role(settings), unread, keep=format == "reviews")
        return _write(out, format, found, settings, min_margin), len(unread)
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
