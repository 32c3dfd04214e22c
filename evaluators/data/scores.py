"""How a judge's scores are spread over its scale, for each model (the paper's Figure 2).

Takes `export --format scores` (a prompt's answers with model and score) and whole lists (`model` and
`scores`). A score outside of the scale 1-10 is no score: published files write 0 where none could be read.
It is left out of mean and shares, and counted. Scores are counted, not kept.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.data.lengths import spread
from evaluators.stats import Z
from evaluators.tables import Sheet, Span, Value, publish
from store.errors import PoolError
from store.pool import Pool
from store.records import BadRow, columns_of

LOW, HIGH = 1, 10
MOST = 1e9  # beyond it, and where it is no number, nothing was scored
EXAMPLES = 3


@dataclass
class ScoreCounts:
    """What one model got. examples: of each score, the first rows that got it."""

    counts: Counter[float] = field(default_factory=Counter)
    outside: Counter[float] = field(default_factory=Counter)
    unscored: int = 0
    examples: dict[float, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, score: object, where: dict[str, Any]) -> None:
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not -MOST <= score <= MOST:
            self.unscored += 1
            return
        kept = self.counts if LOW <= score <= HIGH else self.outside
        kept[float(score)] += 1
        shown = self.examples.setdefault(float(score), [])
        if len(shown) < EXAMPLES:
            shown.append(where)

    def as_json(self) -> dict[str, Any]:
        n = self.counts.total()
        mean = sum(score * count for score, count in self.counts.items()) / n if n else None
        sd = spread(self.counts, mean) if mean is not None else None
        # half of the scores are at most the median; between two, it is their mean
        median = (_nth(self.counts, (n - 1) // 2) + _nth(self.counts, n // 2)) / 2 if n else None
        reach = Z * sd / math.sqrt(n) if sd is not None else None
        return {
            "n": n,
            "mean": mean,
            "low": mean - reach if mean is not None and reach is not None else None,
            "high": mean + reach if mean is not None and reach is not None else None,
            "sd": sd,
            "median": median,
            "outside": {f"{score:g}": count for score, count in sorted(self.outside.items())},
            "unscored": self.unscored,
            "shares": {f"{score:g}": count / n for score, count in sorted(self.counts.items())},
            "histogram": histogram(self.counts),
            "examples": {f"{score:g}": shown for score, shown in sorted(self.examples.items())},
        }


@dataclass(frozen=True)
class ScoreReport:
    models: Mapping[str, ScoreCounts]
    bad: int

    def as_json(self) -> dict[str, Any]:
        data = {name: scores.as_json() for name, scores in self.models.items()}
        return {"scale": [LOW, HIGH], "data": data, "bad_rows": self.bad}


def run_scores(files: Sequence[Path], json: bool, csv: Path | None) -> int:
    """Raises UsageError, PoolError."""
    report = measure(files).as_json()
    publish(report, sheets(report), json, csv)
    return 0


def measure(files: Sequence[Path]) -> ScoreReport:
    """Raises PoolError for a file in which nobody has a score."""
    models: dict[str, ScoreCounts] = {}
    bad = 0
    for file in files:
        found, why = False, ""
        for line, raw in Pool(file).objects():
            where, given = {"file": str(file), "line": line}, []  # (model, score, where) of all that it tells
            row = {} if isinstance(raw, BadRow) else raw
            if isinstance(row.get("answers"), list):
                for one in row["answers"]:
                    if isinstance(one, dict) and isinstance(one.get("model"), str):
                        given.append((one["model"], one.get("score"), where))
            elif isinstance(row.get("scores"), list) and isinstance(row.get("model"), str):
                for place, score in enumerate(row["scores"]):
                    given.append((row["model"], score, where | {"id": str(place)}))
            why = why or f"line {line}: {raw.reason if isinstance(raw, BadRow) else columns_of(raw)}"
            found = found or bool(given)
            bad += not given
            for model, score, place_of_it in given:
                models.setdefault(model, ScoreCounts()).add(score, place_of_it)
        if not found:
            raise PoolError(
                f"no scores in {file}: {why or 'it is empty'}; expected `answers` with model and score, or "
                "model and scores"
            )
    return ScoreReport(models, bad)


def _nth(counts: Mapping[float, int], place: int) -> float:
    for score in sorted(counts):
        place -= counts[score]
        if place < 0:
            return score
    raise IndexError(place)


def histogram(counts: Mapping[float, int]) -> list[int]:
    """Bin k holds scores from k up to, but not, k + 1; half points count with the whole one below."""
    found = [0] * (HIGH - LOW + 1)
    for score, count in counts.items():
        found[math.floor(score) - LOW] += count
    return found


def sheets(report: dict[str, Any]) -> list[Sheet]:
    columns = ["model", "n", "mean", "sd", "median", *map(str, range(LOW, HIGH + 1)), "outside", "unscored"]
    rows: list[list[Value]] = []
    for name, one in report["data"].items():
        shares = [f"{count / one['n']:.1%}" if one["n"] else None for count in one["histogram"]]
        head = [name, one["n"], Span(one["mean"], one["low"], one["high"]), one["sd"], one["median"]]
        rows.append([*head, *shares, sum(one["outside"].values()), one["unscored"]])
    notes = ["Share of each score; half points with the whole one below. Values outside 1-10 are not scores."]
    if report["bad_rows"]:
        notes.append(f"{report['bad_rows']:,} rows could not be used.")
    return [Sheet("Scores", columns, rows, notes)]
