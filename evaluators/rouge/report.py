"""`evaluate rouge`: ROUGE by length of the reference, several models, intervals and differences.

`all` is the mean over rows. Published figures are medians of bootstrapped means, as older `datasets` and
`rouge-score` aggregate; they differ from plain means in the fourth digit. (Their ROUGE-L for references of
0-2 words is above their ROUGE-1, which is impossible for a single row.) Length is in words of the first
reference.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from evaluators.records import at_least_one
from evaluators.rouge.join import Joined, Joining, References, joined, read_references
from evaluators.rouge.score import METRICS, Asked, Pair, ScoreAll, Tokens, asked_of, scoring, tokens_for
from evaluators.stats import RESAMPLES, Floats, column_means
from evaluators.tables import Sheet, Span, Value, publish
from evaluators.text import word_count
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
        return {
            "models": {name: by_length(rows, measured) for name, rows in self.models.items()},
            "against": self.against,
            "differences": self._differences(),
            "references": self._references(),
            "joined": {
                n: {how: j.by[how] for how in ("id", "prompt", "line")} for n, j in self.joinings.items()
            },
            "unmatched": {name: self._unmatched(joining) for name, joining in self.joinings.items()},
            "bad_rows": {name: joining.bad for name, joining in self.joinings.items()},
            "tokenizer": {"asked": self.asked, "stemmer": self.stemmer, "used": self._used()},
            "length": LENGTH,
            "interval": INTERVAL,
        }

    def _differences(self) -> dict[str, Any]:
        if self.against is None:
            return {}
        base = {(row.place, row.nth): row for row in self.models[self.against]}
        others = [name for name in self.models if name != self.against]
        return {name: compared(self.models[name], base) for name in others}

    def _references(self) -> dict[str, Any]:
        own = self.references
        return {"file": own.source, "rows": len(own.rows), "empty": own.empty, "bad_rows": own.bad}

    def _unmatched(self, joining: Joining) -> dict[str, Any]:
        rest = len(self.references.rows) - len(joining.found)
        return {"predictions": joining.unmatched, "references": rest, "examples": joining.examples}

    def _used(self) -> dict[str, int]:
        used = {row.place: row.tokens for rows in self.models.values() for row in rows}
        return {tokens: Counter(used.values())[tokens] for tokens in ("default", "unicode")}


def scored(row: Joined, tokens: Tokens, scores: tuple[float, ...]) -> Scored:
    own = row.reference
    return Scored(own.place, row.nth, own.id, row.line, bucket_of(own.texts[0]), tokens, scores)


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
        return _difference([gaps[id(row)] for row in part])

    return by_length([mine for mine, _ in pairs], differences)


def _difference(gaps: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    if not gaps:
        return {"n": 0, **{metric: dict.fromkeys(("difference", "low", "high")) for metric in METRICS}}
    values = _table(gaps)
    columns = zip(METRICS, values.mean(axis=0), *column_means(values), strict=True)
    found = {
        m: {"difference": float(d), "low": float(low), "high": float(high)} for m, d, low, high in columns
    }
    return {"n": len(gaps), **found}


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
        write_lines(out, map(orjson.dumps, _lines(report)))
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
