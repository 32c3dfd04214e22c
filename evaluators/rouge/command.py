"""`evaluate rouge`: reads, joins, scores, tells."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from evaluators.rouge.joining import Joined, Joining, joined, read_references
from evaluators.rouge.report import ALL, BUCKETS, RougeReport, Scored, scored
from evaluators.rouge.scoring import METRICS, Pair, ScoreAll, scoring
from evaluators.rouge.tokens import Asked, asked_of, tokens_for
from evaluators.rows import at_least_one
from evaluators.sheets import Sheet, Span, Value, publish
from store.answers import model_names
from store.errors import UsageError
from store.export import write_lines
from store.pool import Pool

COLUMNS = ("model", "length", "n", *METRICS)


@dataclass(frozen=True)
class Told:
    """What the user asked for. processes: None for as many as pay."""

    names: Sequence[str] | None = None
    against: str | None = None
    tokenizer: str = "auto"
    stemmer: bool = True
    processes: int | None = None


def run_rouge(
    predictions: Sequence[Path], references: Path, told: Told, json: bool, csv: Path | None, out: Path | None
) -> int:
    """Prints the report; writes each row's scores to `out`. Raises UsageError, PoolError."""
    report = measure(predictions, references, told)
    if out is not None:
        write_lines(out, map(orjson.dumps, _lines(report)))
    found = report.as_json()
    publish(found, sheets(found), json, csv)
    return 0


def measure(predictions: Sequence[Path], references: Path, told: Told) -> RougeReport:
    names, asked = model_names(predictions, told.names), asked_of(told.tokenizer)
    if told.against is not None and told.against not in names:
        raise UsageError(f"--against {told.against}: no such model; there are {', '.join(names)}")
    at_least_one("--processes", told.processes)
    expected = read_references(Pool(references))
    joinings = {name: Joining() for name in names}
    with scoring(told.processes) as score_all:
        models = {
            name: _scored(list(joined(Pool(file), expected, joinings[name])), score_all, asked, told.stemmer)
            for name, file in zip(names, predictions, strict=True)
        }
    return RougeReport(models, joinings, expected, asked, told.stemmer, told.against)


def _scored(rows: Sequence[Joined], score_all: ScoreAll, asked: Asked, stemmer: bool) -> list[Scored]:
    pairs = [_pair(row, asked, stemmer) for row in rows]
    found = zip(rows, pairs, score_all(pairs), strict=True)
    return [scored(row, pair.tokens, scores) for row, pair, scores in found]


def _pair(row: Joined, asked: Asked, stemmer: bool) -> Pair:
    texts = row.reference.texts
    return Pair(texts, row.text, tokens_for(texts, asked), stemmer)


def _lines(report: RougeReport) -> Iterator[dict[str, Any]]:
    """The rows behind the numbers."""
    for name, rows in report.models.items():
        for row in rows:
            scores = dict(zip(METRICS, row.scores, strict=True))
            place = {"model": name, "id": row.id, "line": row.line, "length": row.bucket}
            yield {**place, "tokenizer": row.tokens, **scores}


def sheets(found: dict[str, Any]) -> list[Sheet]:
    """For people: means with intervals, then differences."""
    tables = [_means(found)]
    if found["differences"]:
        tables.append(_differences(found))
    return tables


def _means(found: dict[str, Any]) -> Sheet:
    title = "ROUGE, F-measure (95 %), by length of the reference"
    return Sheet(title, COLUMNS, _rows(found["models"], _mean), _notes(found))


def _mean(part: dict[str, Any], metric: str) -> Span:
    return Span(part[metric], part["low"][metric], part["high"][metric])


def _differences(found: dict[str, Any]) -> Sheet:
    title = f"Differences to {found['against']} (95 %), on the same rows"
    return Sheet(
        title, COLUMNS, _rows(found["differences"], lambda part, metric: Span(*part[metric].values()))
    )


def _rows(models: dict[str, Any], cell: Callable[[dict[str, Any], str], Span]) -> list[list[Value]]:
    return [
        [name, length, parts[length]["n"], *(cell(parts[length], metric) for metric in METRICS)]
        for name, parts in models.items()
        for length in (ALL, *BUCKETS)
    ]


def _notes(found: dict[str, Any]) -> list[str]:
    used, stemmer = found["tokenizer"]["used"], "with" if found["tokenizer"]["stemmer"] else "without"
    notes = [
        f"Length: {found['length']}. Intervals: {found['interval']}.",
        f"Tokens: rouge-score's for {used['default']:,} references, every script's for {used['unicode']:,}; "
        f"{stemmer} Porter's stemmer.",
    ]
    for name, parts in found["joined"].items():
        by = ", ".join(f"{n:,} by {how}" for how, n in parts.items() if n)
        alone, bad = found["unmatched"][name], found["bad_rows"][name]
        rest = f"; without partner {alone['predictions']:,} predictions, {alone['references']:,} references"
        notes.append(f"{name}: joined {by}{rest}" + (f"; {bad:,} bad rows" if bad else "") + ".")
    return notes
