"""A stage's stored replies as rows of a data set: which shapes there are, and what a reply amounts to.

The task of the stage decides the shapes. Texts are read from the raw replies at this time, so a better parser
costs no second request. Writing them is for export.py.
"""

import contextlib
import sqlite3
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from engine.collect.other_settings import counting
from engine.collect.plan import role
from engine.collect.settings import Settings
from engine.provider.responses import logprobs_in, stored_answer
from engine.tasks.datasets import agreed, comparison_line, comparisons, ranking_line, review_line, verdict
from engine.tasks.task import Task
from store.datasets import ExportRow, Stored, line_of, question, stored
from store.errors import Damages, UsageError, words_of
from store.queries import connect_reader, stage_of
from store.records import OUTCOMES

POOLED = ("alpaca", "chat", "parquet")
SHAPES: Mapping[str, Sequence[str]] = {
    "generate": (*POOLED, "candidates", "logprobs"),
    "translate": POOLED,
    "score": ("comparisons", "scores"),
    "compare": ("comparisons",),
    "judge": ("reviews",),
}
REASONING = ("drop", "keep", "inline")
Read = tuple[Stored, Any, Any]  # what is stored, the row, what its reply amounts to


def check_format(format: str) -> None:
    """Raises UsageError for a shape that nobody knows."""
    every = dict.fromkeys(shape for shapes in SHAPES.values() for shape in shapes)
    if format not in every:
        raise UsageError(f"--format {format}: unknown; choose from {', '.join(every)}")


def check_outcomes(given: str) -> tuple[str, ...]:
    outcomes = tuple(name.strip() for name in given.split(",") if name.strip())
    for name in outcomes:
        if name not in OUTCOMES:
            raise UsageError(f"--outcome {name}: unknown; choose from {', '.join(OUTCOMES)}")
    return outcomes


def check_task(format: str, task: str, stage: str) -> None:
    if format not in SHAPES[task]:
        shapes = " or ".join(SHAPES[task])
        raise UsageError(f"--format {format}: stage '{stage}' ({task}) is exported as {shapes}")


def check_reasoning(given: str, format: str, task: str, field: str | None = None) -> None:
    """Raises UsageError where the data set has no place for thinking."""
    if given not in REASONING:
        raise UsageError(f"--reasoning {given}: unknown; choose from {', '.join(REASONING)}")
    if given == "drop":
        return
    if format not in POOLED:
        raise UsageError(
            f"--reasoning {given}: {format} hold no thinking; export it as {', '.join(POOLED)}, or leave it "
            "out (--reasoning drop)"
        )
    if given == "inline" and task == "translate" and field != "output":
        raise UsageError(
            "--reasoning inline: these rows are translated instructions without an answer to put it before; "
            "--reasoning keep gives the translator's thinking a field of its own"
        )


def read_stage(
    reader: sqlite3.Connection,
    number: int,
    settings: Settings,
    format: str,
    outcomes: Sequence[str],
    plans: Sequence[int] | None,
    left_out: Counter[str],
    unread: list[int],
    damages: Damages,
) -> Iterator[Read]:
    """A stage's rows with what their replies amount to, in the order of the pool. plans: only of these
    settings. Counts what it leaves out, and the positions of replies that cannot be read."""
    rows = stored(
        reader,
        number,
        outcomes,
        unparsed=format == "reviews",
        left_out=left_out,
        plans=plans,
        damages=damages,
    )
    return _read(rows, role(settings), None if "empty" in outcomes else left_out, unread, format, damages)


def _read(
    rows: Iterator[Stored],
    task: Task,
    left_out: Counter[str] | None,
    unread: list[int],
    format: str,
    damages: Damages,
) -> Iterator[Read]:
    """What the replies amount to. Those that cannot be read are counted, and kept for reviews only; empty
    ones are counted in `left_out`, also those that older versions stored under another outcome, or kept."""
    for row in rows:
        found = stored_answer(row.raw)
        text, reasoning = map(clean, found or ("", ""))
        if found and not text.strip() and row.outcome in ("stop", "length") and left_out is not None:
            left_out["empty"] += 1
            continue
        row = replace(row, text=text, reasoning=reasoning.strip())
        try:
            item = task.decode(row.item)
        except (LookupError, TypeError, AttributeError, ValueError) as error:  # of a damaged row
            damages.add(row.position, f"it cannot be read ({type(error).__name__})", row.item.get("id"))
            continue
        if not (found or row.has_checksum):  # it could be read when it was stored
            damages.add(row.position, "it cannot be read", row.item.get("id"))
            continue
        record = task.record(item, row.text) if found else None
        if record is None and format != "reviews":
            unread.append(row.position)
            continue
        yield row, item, record


def clean(text: str) -> str:
    """Lone surrogates become U+FFFD: no file of UTF-8 can hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def pooled_rows(found: Iterator[Read], settings: Settings, reasoning: str) -> Iterator[ExportRow]:
    """Answers as rows of a pool. What is translated is a pool again: nothing is answered yet."""
    for row, _, record in found:
        if settings.task == "translate" and settings.field != "output":
            record = replace(record, output="")
        # its thinking in a place of its own, before the answer, or nowhere
        if reasoning == "inline" and row.reasoning:
            record = replace(record, output=f"<think>\n{row.reasoning}\n</think>\n\n{record.output}")
        kept = row.reasoning if reasoning == "keep" else None
        yield ExportRow(record, row.sample, row.outcome, row.model, kept)


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


def _logprob_lines(found: Iterator[Read], settings: Settings, min_margin: float) -> Iterator[dict[str, Any]]:
    """Alpaca's rows with what the server told of each token (`--param logprobs=true`), for `train distill`;
    null where it told nothing."""
    alpaca = line_of("alpaca", settings.samples, settings.system, False)
    for read in found:
        (answer,) = pooled_rows(iter([read]), settings, "drop")
        yield {**alpaca(answer), "logprobs": logprobs_in(read[0].raw)}


def _score_lines(found: Iterator[Read], settings: Settings, min_margin: float) -> Iterator[dict[str, Any]]:
    return (ranking_line(item, record) for _, item, record in found)


def _review_lines(found: Iterator[Read], settings: Settings, min_margin: float) -> Iterator[dict[str, Any]]:
    judge = {"judge": settings.model}
    return (review_line(verdict(item, record, row.text)) | judge for row, item, record in found)


LINES: Mapping[str, Callable[[Iterator[Read], Settings, float], Iterator[dict[str, Any]]]] = {
    "comparisons": _comparison_lines,
    "scores": _score_lines,
    "candidates": _candidate_lines,
    "logprobs": _logprob_lines,
    "reviews": _review_lines,
}


def answers_of(
    run: Path,
    stage: str | None,
    format: str | None,
    outcome: str,
    min_margin: float,
    reasoning: str,
    all_settings: bool,
) -> Iterator[dict[str, Any]]:
    """The rows that `export` would write, one by one. format: None for what the stage's task makes, with the
    columns of Parquet where it answers a pool. Warns of answers that are damaged. Raises UsageError."""
    outcomes = check_outcomes(outcome)
    if format is not None:
        check_format(format)
    number, name = stage_of(run, stage)
    with contextlib.closing(connect_reader(run)) as reader:
        counted = counting(reader, number)
    settings = counted.settings
    if format is None:
        format = "parquet" if "parquet" in SHAPES[settings.task] else SHAPES[settings.task][0]
    check_task(format, settings.task, name)
    check_reasoning(reasoning, format, settings.task, settings.field)
    plans = None if all_settings else counted.plans
    return _rows(run, number, name, settings, format, outcomes, plans, min_margin, reasoning)


def _rows(
    run: Path,
    number: int,
    name: str,
    settings: Settings,
    format: str,
    outcomes: Sequence[str],
    plans: Sequence[int] | None,
    min_margin: float,
    reasoning: str,
) -> Iterator[dict[str, Any]]:
    damages = Damages(name)
    with contextlib.closing(connect_reader(run)) as reader:
        found = read_stage(reader, number, settings, format, outcomes, plans, Counter(), [], damages)
        if format in POOLED:
            made = line_of(format, settings.samples, settings.system, reasoning == "keep")
            yield from map(made, pooled_rows(found, settings, reasoning))
        else:
            yield from LINES[format](found, settings, min_margin)
    if words := words_of([damages], run):
        warnings.warn(words, stacklevel=2)
