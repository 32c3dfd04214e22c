"""`distill export`: the answers of a stage as a data set, in the form that the file's name asks for.

The task of the stage decides which formats there are. Texts are read from the raw replies at export time,
so a better parser costs no second request.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from engine.collect.other_settings import Other, counting
from engine.collect.plan import role
from engine.collect.settings import Settings
from engine.provider.responses import stored_answer
from engine.tasks.datasets import agreed, comparison_line, comparisons, ranking_line, review_line, verdict
from engine.tasks.task import Task
from engine.terminal import plain, tell
from store.damage import Damages, words_of
from store.datasets import ExportRow, Stored, check_name, question, stored, write, write_lines
from store.errors import UsageError
from store.files import is_stdout, shape_of
from store.queries import connect_reader, stage_of, stage_status
from store.records import OUTCOMES, Instruction

POOLED = ("alpaca", "chat", "parquet")
SHAPES: Mapping[str, Sequence[str]] = {
    "generate": (*POOLED, "candidates"),
    "translate": POOLED,
    "score": ("comparisons", "scores"),
    "compare": ("comparisons",),
    "judge": ("reviews",),
}
REASONING = ("drop", "keep", "inline")
Read = tuple[Stored, Any, Any]  # what is stored, the row, what its reply amounts to


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
            said += f"; {pairs} of answers left out, neither of which is (so much) better"
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


def run_export(
    run: Path,
    format: str | None,
    out: Path,
    stage: str | None,
    outcome: str,
    min_margin: float,
    reasoning: str = "drop",
    all_settings: bool = False,
) -> int:
    """Writes the data set and says what it left out. Returns the exit code: 1 where answers were left out
    because they are damaged. Raises UsageError."""
    found = export_stage(run, format, out, stage, outcome, min_margin, reasoning, all_settings)
    where = "standard output" if is_stdout(out) else out
    print(f"{found.rows:,} rows written to {where}{found.words}", file=sys.stderr)
    if words := words_of([found.damages], run):
        tell(f"distill: {plain(words, 1000)}\n")
    return 1 if found.damages.count else 0


def export_stage(
    run: Path,
    format: str | None,
    out: Path,
    stage: str | None,
    outcome: str,
    min_margin: float,
    reasoning: str = "drop",
    all_settings: bool = False,
) -> Exported:
    """Writes the data set: of one setting, that of the newest run, or of all. `format`: None for what the
    name says, else what the stage's task makes. `reasoning`: what becomes of the thinking before answers,
    one of REASONING. Raises UsageError."""
    outcomes = check_outcomes(outcome)
    if format is not None:
        check_format(format)
    number, name = stage_of(run, stage)
    reader, damages = connect_reader(run), Damages(name)
    try:
        counted = counting(reader, number)
        settings = counted.settings
        format = format or _usual_format(settings.task, out)
        check_name(out, format)
        _check(format, settings.task, name)
        check_reasoning(reasoning, format, settings.task, settings.field)
        left_out: Counter[str] = Counter()
        plans = None if all_settings else counted.plans
        rows = stored(
            reader,
            number,
            outcomes,
            unparsed=format == "reviews",
            left_out=left_out,
            plans=plans,
            damages=damages,
        )
        unread: list[int] = []
        answered = _answered(rows, outcomes, left_out)
        found = _read(answered, role(settings), unread, format == "reviews", damages)
        pairs: Counter[str] = Counter()
        count = _write(
            out, format, _counting_pairs(found, settings.task, pairs), settings, min_margin, reasoning
        )
        mixed = counted.rows if all_settings else None
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


def _usual_format(task: str, out: Path) -> str:
    shapes = SHAPES[task]
    return "parquet" if shape_of(out).kind == "parquet" and "parquet" in shapes else shapes[0]


def _counting_pairs(found: Iterator[Read], task: str, pairs: Counter[str]) -> Iterator[Read]:
    """Counts how many pairs of answers were judged: of K scores each with each, and two that were compared
    (in both orders) once."""
    for row, item, record in found:
        if task == "score":
            pairs[task] += len(record) * (len(record) - 1) // 2
        elif task == "compare" and row.sample == 0 and item.order[0] < item.order[1]:
            pairs[task] += 1
        yield row, item, record


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


def check_reasoning(given: str, format: str, task: str, field: str | None = None) -> None:
    """Raises UsageError where the data set has no place for thinking."""
    if given not in REASONING:
        raise UsageError(f"--reasoning {given}: unknown; there are {', '.join(REASONING)}")
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


def _answered(
    rows: Iterator[Stored], outcomes: Sequence[str], left_out: Counter[str]
) -> Iterator[tuple[Stored, bool]]:
    """The rows with what their replies hold, and whether that can be read. Empty answers are left out,
    also those that older versions stored under another outcome."""
    for row in rows:
        found = stored_answer(row.raw)
        text, reasoning = map(clean, found or ("", ""))
        if found and not text.strip() and row.outcome in ("stop", "length") and "empty" not in outcomes:
            left_out["empty"] += 1
            continue
        yield replace(row, text=text, reasoning=reasoning.strip()), found is not None


def _read(
    rows: Iterator[tuple[Stored, bool]], task: Task, unread: list[int], keep: bool, damages: Damages
) -> Iterator[Read]:
    """What the replies amount to; those that cannot be read are counted, and kept only if wanted."""
    for row, is_readable in rows:
        try:
            item = task.decode(row.item)
        except (LookupError, TypeError, AttributeError, ValueError) as error:  # of a damaged row
            damages.add(row.position, f"it cannot be read ({type(error).__name__})", row.item.get("id"))
            continue
        if not (is_readable or row.has_checksum):  # it could be read when it was stored
            damages.add(row.position, "it cannot be read", row.item.get("id"))
            continue
        record = task.record(item, row.text) if is_readable else None
        if record is None and not keep:
            unread.append(row.position)
            continue
        yield row, item, record


def clean(text: str) -> str:
    """Lone surrogates become U+FFFD: no file of UTF-8 can hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _write(
    out: Path, format: str, found: Iterator[Read], settings: Settings, min_margin: float, reasoning: str
) -> int:
    if format not in POOLED:
        return write_lines(out, map(orjson.dumps, _LINES[format](found, settings, min_margin)))
    answers = (_answer(row, record, reasoning) for row, _, record in found)
    if settings.task == "translate" and settings.field != "output":  # a pool again: nothing answered yet
        answers = (replace(answer, item=replace(answer.item, output="")) for answer in answers)
    return write(out, format, answers, settings.samples, settings.system, reasoning == "keep")


def _answer(row: Stored, record: Instruction, reasoning: str) -> ExportRow:
    """A line of a data set; its thinking in a place of its own, before the answer, or nowhere."""
    if reasoning == "inline" and row.reasoning:
        record = replace(record, output=f"<think>\n{row.reasoning}\n</think>\n\n{record.output}")
    kept = row.reasoning if reasoning == "keep" else None
    return ExportRow(record, row.sample, row.outcome, row.model, kept)


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
    return (review_line(verdict(item, record, row.text)) | judge for row, item, record in found)


_LINES: Mapping[str, Callable[[Iterator[Read], Settings, float], Iterator[dict[str, Any]]]] = {
    "comparisons": _comparison_lines,
    "scores": _score_lines,
    "candidates": _candidate_lines,
    "reviews": _review_lines,
}
