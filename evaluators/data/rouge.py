"""`evaluate rouge`: ROUGE by length of the reference, several models, intervals and differences.

`all` is the mean over rows. Published figures are medians of bootstrapped means, as older `datasets` and
`rouge-score` aggregate; they differ from plain means in the fourth digit. (Their ROUGE-L for references of
0-2 words is above their ROUGE-1, which is impossible for a single row.) Length is in words of the first
reference.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from evaluators.data.rouge_scores import (
    METRICS,
    Asked,
    Joining,
    Pair,
    References,
    Tokens,
    asked_of,
    joined,
    read_references,
    scoring,
    tokens_for,
)
from evaluators.records import at_least_one, word_count
from evaluators.stats import RESAMPLES, Floats, column_means
from evaluators.tables import Sheet, Span, Value, publish
from store.answers import model_names
from store.datasets import write_lines
from store.errors import UsageError
from store.pool import Pool

ALL = "all"
BUCKETS: Mapping[str, tuple[int, float]] = {
    "0-2": (0, 2), "3-5": (3, 5), "6-10": (6, 10), ">10": (11, float("inf"))
}  # fmt: skip
LENGTH = "words of the first reference between white space; each character of a script without spaces is one"
INTERVAL = f"95 %, bootstrap over rows ({RESAMPLES:,} resamples), paired for differences"
LOWEST = 3  # rows shown behind a number


@dataclass(frozen=True, slots=True)
class Scored:
    """One prediction's scores (of METRICS) and where it belongs."""

    place: int
    nth: int
    id: str
    line: int
    bucket: str
    tokens: Tokens
    scores: tuple[float, ...]


@dataclass(frozen=True)
class RougeReport:
    """models: name -> its rows. against: whose rows the others are compared with."""

    models: Mapping[str, Sequence[Scored]]
    joinings: Mapping[str, Joining]
    references: References
    asked: Asked
    stemmer: bool
    against: str | None

    def as_json(self) -> dict[str, Any]:
        expected, differences = self.references, {}
        if self.against is not None:
            base = {(row.place, row.nth): row for row in self.models[self.against]}
            others = [name for name in self.models if name != self.against]
            differences = {name: compared(self.models[name], base) for name in others}
        tokens_of = {row.place: row.tokens for rows in self.models.values() for row in rows}
        used = Counter(tokens_of.values())
        return {
            "models": {name: by_length(rows, measured) for name, rows in self.models.items()},
            "against": self.against,
            "differences": differences,
            "references": {
                "file": expected.source,
                "rows": len(expected.rows),
                "empty": expected.empty,
                "bad_rows": expected.bad,
            },
            "joined": {
                n: {how: j.by[how] for how in ("id", "prompt", "line")} for n, j in self.joinings.items()
            },
            "unmatched": {
                name: {
                    "predictions": joining.unmatched,
                    "references": len(expected.rows) - len(joining.found),
                    "examples": joining.examples,
                }
                for name, joining in self.joinings.items()
            },
            "bad_rows": {name: joining.bad for name, joining in self.joinings.items()},
            "tokenizer": {
                "asked": self.asked,
                "stemmer": self.stemmer,
                "used": {tokens: used[tokens] for tokens in ("default", "unicode")},
            },
            "length": LENGTH,
            "interval": INTERVAL,
        }


def bucket_of(reference: str) -> str:
    length = word_count(reference)
    return next(name for name, (low, high) in BUCKETS.items() if low <= length <= high)


def by_length(rows: Sequence[Scored], measure: Any) -> dict[str, Any]:
    """`measure` of all rows and of those of each length."""
    parts = {name: [row for row in rows if row.bucket == name] for name in BUCKETS}
    return {name: measure(part) for name, part in {ALL: rows, **parts}.items()}


def measured(rows: Sequence[Scored]) -> dict[str, Any]:
    """Means with intervals, and the rows with the lowest ROUGE-L."""
    if not rows:
        return {
            "n": 0,
            **dict.fromkeys(METRICS),
            **{side: dict.fromkeys(METRICS) for side in ("low", "high")},
        }
    values = _table([row.scores for row in rows])
    low, high = column_means(values)
    lowest = sorted(rows, key=lambda row: (row.scores[-1], row.place, row.nth))[:LOWEST]
    return {
        "n": len(rows),
        **_named(values.mean(axis=0)),
        "low": _named(low),
        "high": _named(high),
        "examples": [{"id": row.id, "line": row.line, "rougeL": row.scores[-1]} for row in lowest],
    }


def compared(rows: Sequence[Scored], base: Mapping[tuple[int, int], Scored]) -> dict[str, Any]:
    """Differences to another model on the rows that both have."""
    pairs = [(row, base[key]) for row in rows if (key := (row.place, row.nth)) in base]
    if not pairs:
        raise UsageError("--against: the two models have no row in common")
    gaps = {
        id(mine): tuple(a - b for a, b in zip(mine.scores, its.scores, strict=True)) for mine, its in pairs
    }

    def differences(part: Sequence[Scored]) -> dict[str, Any]:
        if not part:
            return {"n": 0, **{metric: dict.fromkeys(("difference", "low", "high")) for metric in METRICS}}
        values = _table([gaps[id(row)] for row in part])
        columns = zip(METRICS, values.mean(axis=0), *column_means(values), strict=True)
        found = {
            m: {"difference": float(d), "low": float(low), "high": float(high)} for m, d, low, high in columns
        }
        return {"n": len(part), **found}

    return by_length([mine for mine, _ in pairs], differences)


def _table(rows: Sequence[tuple[float, ...]]) -> Floats:
    return np.array(rows, np.float64)


def _named(values: Floats) -> dict[str, float]:
    return {metric: float(value) for metric, value in zip(METRICS, values, strict=True)}


COLUMNS = ("model", "length", "n", *METRICS)


@dataclass(frozen=True)
class RougeOptions:
    """What the user asked for. processes: None for as many as pay."""

    names: Sequence[str] | None = None
    against: str | None = None
    tokenizer: str = "auto"
    stemmer: bool = True
    processes: int | None = None


def run_rouge(
    predictions: Sequence[Path],
    references: Path,
    told: RougeOptions,
    json: bool,
    csv: Path | None,
    out: Path | None,
) -> int:
    """Prints the report; writes each row's scores to `out`. Raises UsageError, PoolError."""
    report = measure(predictions, references, told)
    if out is not None:
        lines = (
            {
                "model": name,
                "id": row.id,
                "line": row.line,
                "length": row.bucket,
                "tokenizer": row.tokens,
                **dict(zip(METRICS, row.scores, strict=True)),
            }
            for name, rows in report.models.items()
            for row in rows
        )
        write_lines(out, map(orjson.dumps, lines))
    found = report.as_json()
    publish(found, sheets(found), json, csv)
    return 0


def measure(predictions: Sequence[Path], references: Path, told: RougeOptions) -> RougeReport:
    names, asked = model_names(predictions, told.names), asked_of(told.tokenizer)
    if told.against is not None and told.against not in names:
        raise UsageError(f"--against {told.against}: no such model; there are {', '.join(names)}")
    at_least_one("--processes", told.processes)
    expected = read_references(Pool(references))
    joinings = {name: Joining() for name in names}
    models: dict[str, list[Scored]] = {}
    with scoring(told.processes) as score_all:
        for name, file in zip(names, predictions, strict=True):
            rows, pairs = list(joined(Pool(file), expected, joinings[name])), []
            for row in rows:
                texts = row.reference.texts
                pairs.append(Pair(texts, row.text, tokens_for(texts, asked), told.stemmer))
            models[name] = []
            for row, pair, scores in zip(rows, pairs, score_all(pairs), strict=True):
                own, bucket = row.reference, bucket_of(row.reference.texts[0])
                found = Scored(own.place, row.nth, own.id, row.line, bucket, pair.tokens, scores)
                models[name].append(found)
    return RougeReport(models, joinings, expected, asked, told.stemmer, told.against)


def sheets(found: dict[str, Any]) -> list[Sheet]:
    """For people: means with intervals, then differences."""
    means: list[list[Value]] = []
    differences: list[list[Value]] = []
    for name, parts in found["models"].items():
        for length in (ALL, *BUCKETS):
            part = parts[length]
            spans = [Span(part[m], part["low"][m], part["high"][m]) for m in METRICS]
            means.append([name, length, part["n"], *spans])
    for name, parts in found["differences"].items():
        for length in (ALL, *BUCKETS):
            part = parts[length]
            differences.append([name, length, part["n"], *(Span(*part[m].values()) for m in METRICS)])
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
    tables = [Sheet("ROUGE, F-measure (95 %), by length of the reference", COLUMNS, means, notes)]
    if differences:
        title = f"Differences to {found['against']} (95 %), on the same rows"
        tables.append(Sheet(title, COLUMNS, differences))
    return tables
