"""`distill export`: the answers of a stage as a data set, in the form that the file's name asks for.

What the rows are, and which formats there are, is in answers.py. Here they are written, and what was left out
is counted.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from engine.answers import (
    LINES,
    POOLED,
    SHAPES,
    Read,
    check_format,
    check_outcomes,
    check_reasoning,
    check_task,
    pooled_rows,
    read_stage,
)
from engine.collect.other_settings import Other, counting
from engine.terminal import counted, plain, tell
from store.datasets import check_name, write, write_lines
from store.errors import Damages, words_of
from store.files import is_stdout, shape_of
from store.queries import connect_reader, stage_of, stage_status


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of a stage's rows: lines written, replies that could not be read, rows left out by
    outcome. others: rows with an answer under other settings than the last run's, which are left out or,
    `mixed` in with so many of the last run's, part of the data set. kept: rows in it that `--reuse` has kept
    from other settings. damages: answers that are damaged. unpaired: pairs of answers of which neither is
    better. unanswered: rows without an answer, pending or by the cause for which they failed."""

    rows: int
    unread: int
    left_out: Mapping[str, int]
    damages: Damages
    others: tuple[Other, ...] = ()
    mixed: int | None = None
    kept: tuple[Other, ...] = ()
    unpaired: int = 0
    unanswered: Mapping[str, int] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What was left out, or mixed."""
        said = f"; {self.unread:,} replies could not be read and are left out" if self.unread else ""
        if self.left_out:
            count = sum(self.left_out.values())
            kinds = ", ".join(f"{outcome} {n:,}" for outcome, n in sorted(self.left_out.items()))
            said += f"; {count:,} {'row' if count == 1 else 'rows'} left out: {kinds}"
        if self.unpaired:
            pairs = f"{self.unpaired:,} pair{'s' * (self.unpaired != 1)}"
            said += f"; {pairs} left out, because neither answer is better (by the margin asked for)"
        if self.unanswered:
            count = sum(self.unanswered.values())
            kinds = ", ".join(f"{why} {n:,}" for why, n in sorted(self.unanswered.items()))
            said += f"; {count:,} {'row has' if count == 1 else 'rows have'} no answer: {kinds}"
        if self.kept:
            kept = ", ".join(f"{other.rows:,} ({other.why})" for other in self.kept)
            said += f"; answers under other settings that --reuse has kept are among them: {kept}"
        if not self.others:
            return said
        whose = ", ".join(f"{other.rows:,} ({other.why})" for other in self.others)
        if self.mixed is None:
            return f"{said}; rows with an answer under other settings are left out (--all-settings): {whose}"
        return f"{said}; settings are mixed: rows of the last run's: {self.mixed:,}, of others: {whose}"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What of a run becomes a data set. `format`: None for what the name says, else what the stage's task
    makes; `stage`: None for the only one; `outcome`: with commas; `reasoning`: what becomes of the thinking
    before answers, one of REASONING."""

    format: str | None = None
    stage: str | None = None
    outcome: str = "stop,length"
    min_margin: float = 0.0
    reasoning: str = "drop"
    all_settings: bool = False


def run_export(run: Path, out: Path, chosen: ExportOptions) -> int:
    """Writes the data set and says what it left out. Returns the exit code: 1 where answers were left out
    because they are damaged. Raises UsageError."""
    found = export_stage(run, out, chosen)
    where = "standard output" if is_stdout(out) else out
    print(f"{counted(found.rows, 'row')} written to {where}{found.words}", file=sys.stderr)
    if words := words_of([found.damages], run):
        tell(f"distill: {plain(words, 1000)}\n")
    return 1 if found.damages.count else 0


def export_stage(run: Path, out: Path, chosen: ExportOptions) -> Exported:
    """Writes the data set: of one setting, that of the newest run, or of all. Raises UsageError."""
    outcomes = check_outcomes(chosen.outcome)
    if chosen.format is not None:
        check_format(chosen.format)
    number, name = stage_of(run, chosen.stage)
    reader, damages = connect_reader(run), Damages(name)
    try:
        counted = counting(reader, number)
        settings = counted.settings
        shapes = SHAPES[settings.task]
        format = chosen.format or shapes[0]
        if chosen.format is None and shape_of(out).kind == "parquet" and "parquet" in shapes:
            format = "parquet"
        check_name(out, format)
        check_task(format, settings.task, name)
        check_reasoning(chosen.reasoning, format, settings.task, settings.field)
        left_out: Counter[str] = Counter()
        unread: list[int] = []
        plans = None if chosen.all_settings else counted.plans
        found = read_stage(reader, number, settings, format, outcomes, plans, left_out, unread, damages)
        pairs: Counter[str] = Counter()
        found = _counting_pairs(found, settings.task, pairs)
        if format in POOLED:
            answers = pooled_rows(found, settings, chosen.reasoning)
            is_kept = chosen.reasoning == "keep"
            count = write(out, format, answers, settings.samples, settings.system, is_kept)
        else:
            count = write_lines(out, map(orjson.dumps, LINES[format](found, settings, chosen.min_margin)))
        mixed = counted.rows if chosen.all_settings else None
        unpaired = pairs.total() - count if format == "comparisons" else 0
        told = stage_status(reader, number)
        unanswered = {"pending": told["pending"] or 0, **told["failed"]}
        if format == "reviews":
            unanswered.pop("unparsed", None)  # they are among the rows
        return Exported(
            count, len(unread), left_out, damages, counted.others, mixed, counted.kept, unpaired,
            {why: rows for why, rows in unanswered.items() if rows},
        )  # fmt: skip
    finally:
        reader.close()


def _counting_pairs(found: Iterator[Read], task: str, pairs: Counter[str]) -> Iterator[Read]:
    """Counts how many pairs of answers were judged: of K scores each with each, and two that were compared
    (in both orders) once."""
    for row, item, record in found:
        if task == "score":
            pairs[task] += len(record) * (len(record) - 1) // 2
        elif task == "compare" and row.sample == 0 and item.order[0] < item.order[1]:
            pairs[task] += 1
        yield row, item, record
