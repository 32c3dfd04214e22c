"""How long the texts of data sets are, side by side, on common bins (the paper's Figure 1d).

Lengths are counted, not kept: a data set of any size takes as much memory as it has different lengths, and
quantiles are exact. Words as in `evaluators.records.word_count`; tokens as a model's API bills them.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from engine.provider.tokens import tokenizer_for
from evaluators.records import DataSet, Record, data_sets, field_of, word_count
from evaluators.tables import Sheet, Value, publish

QUANTILES = (5, 25, 50, 75, 95, 99)
MOST_BINS = 40  # up to the longest data set's 99th percentile; the last bin is open
STEPS = (1, 2, 5)  # times powers of ten: widths that people read easily
EXAMPLES = 3
WITH_ANSWER = ("output", "all")  # fields beside which the thinking is told
WORDS, TOKENS = "words", "tokens"


@dataclass
class Lengths:
    """How often each length came, with the shortest and the longest rows."""

    counts: Counter[int] = field(default_factory=Counter)
    shortest: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    longest: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)

    def add(self, length: int, row: Record) -> None:
        self.counts[length] += 1
        for kept, sign in ((self.shortest, 1), (self.longest, -1)):
            if len(kept) < EXAMPLES or sign * length < sign * kept[-1][0]:
                kept.append((length, row.line, row.where))
                kept.sort(key=lambda one: (sign * one[0], one[1]))
                del kept[EXAMPLES:]

    def as_json(self, edges: Sequence[int]) -> dict[str, Any]:
        counts, n = self.counts, self.counts.total()
        total = sum(length * count for length, count in counts.items())
        mean = total / n if n else None
        return {
            "total": total,
            "mean": mean,
            "sd": spread(counts, mean) if mean is not None else None,
            "min": min(counts, default=None),
            "max": max(counts, default=None),
            "quantiles": {str(q): quantile(counts, q / 100) for q in QUANTILES},
            "histogram": histogram(counts, edges),
            "examples": {
                "shortest": [{**where, "length": length} for length, _, where in self.shortest],
                "longest": [{**where, "length": length} for length, _, where in self.longest],
            },
        }


Measured: TypeAlias = Mapping[str, Mapping[str, Lengths]]


@dataclass(frozen=True)
class LengthReport:
    """measured: data set -> unit -> its lengths. thinking: the same of the thinking before the answers, of
    the rows that have it."""

    field: str
    sets: Sequence[DataSet]
    measured: Measured
    thinking: Measured
    empty: Mapping[str, int]
    tokens: Mapping[str, Any]  # of which model, exact or not; empty where none were counted

    def as_json(self) -> dict[str, Any]:
        """`reasoning` is null where no row thinks, else the same figures of the thinking."""
        heads = {
            one.name: {"rows": one.rows, "empty": self.empty[one.name], "bad_rows": one.bad}
            for one in self.sets
        }
        told = self._told(self.measured, heads)
        thinking = {name: own[WORDS].counts.total() for name, own in self.thinking.items()}
        of_thinking = {name: {"rows": n, "of": heads[name]["rows"]} for name, n in thinking.items()}
        reasoning = self._told(self.thinking, of_thinking) if any(thinking.values()) else None
        return {"field": self.field, **told, "reasoning": reasoning}

    def _told(self, measured: Measured, heads: Mapping[str, dict[str, int]]) -> dict[str, Any]:
        units = [WORDS, TOKENS] if self.tokens else [WORDS]
        edges = {unit: common_edges([own[unit].counts for own in measured.values()]) for unit in units}
        told: dict[str, dict[str, Any]] = {unit: {"edges": edges[unit]} for unit in units}
        if self.tokens:
            told[TOKENS] |= self.tokens
        data = {
            name: heads[name] | {unit: lengths.as_json(edges[unit]) for unit, lengths in own.items()}
            for name, own in measured.items()
        }
        return {"units": told, "data": data}


def run_lengths(
    files: list[Path], names: list[str] | None, field: str, model: str | None, json: bool, csv: Path | None
) -> int:
    """Raises UsageError, PoolError."""
    report = measure(data_sets(files, names), field, model).as_json()
    publish(report, sheets(report), json, csv)
    return 0


def measure(sets: Sequence[DataSet], field: str, model: str | None = None) -> LengthReport:
    chosen, count = field_of(field), {WORDS: word_count}
    tokens: dict[str, Any] = {}
    if model is not None:
        tokenizer = tokenizer_for(model)
        count[TOKENS], tokens = tokenizer.count, {"model": model, "exact": tokenizer.exact}
    measured: dict[str, dict[str, Lengths]] = {}
    thinking: dict[str, dict[str, Lengths]] = {}
    empty: Counter[str] = Counter()
    for one in sets:
        measured[one.name] = {unit: Lengths() for unit in count}
        thinking[one.name] = {unit: Lengths() for unit in count}
        for row in one:
            text = row.text(chosen)
            empty[one.name] += not text.strip()
            _add(measured[one.name], count, text, row)
            if row.reasoning and chosen in WITH_ANSWER:
                _add(thinking[one.name], count, row.reasoning, row)
    return LengthReport(chosen, sets, measured, thinking, empty, tokens)


def _add(
    own: Mapping[str, Lengths], count: Mapping[str, Callable[[str], int]], text: str, row: Record
) -> None:
    for unit, lengths in own.items():
        lengths.add(count[unit](text), row)


def spread(counts: Counter[int] | Counter[float], mean: float) -> float | None:
    """The standard deviation of a sample; unknown of one value."""
    n = sum(counts.values())
    return math.sqrt(sum(c * (x - mean) ** 2 for x, c in counts.items()) / (n - 1)) if n > 1 else None


def quantile(counts: Mapping[int, int], share: float) -> int | None:
    """The smallest length that at least this share of the rows does not exceed."""
    wanted, seen = share * sum(counts.values()), 0
    for length in sorted(counts):
        seen += counts[length]
        if seen >= wanted - 1e-9:
            return length
    return None


def common_edges(counts: Sequence[Mapping[int, int]]) -> list[int]:
    """Where bins begin, for all data sets alike. The last one is open."""
    high = max((quantile(own, 0.99) or 0 for own in counts if own), default=0)
    widths = (step * 10**power for power in range(20) for step in STEPS)
    width = next(w for w in widths if high / w < MOST_BINS)
    return list(range(0, high + width + 1, width))


def histogram(counts: Mapping[int, int], edges: Sequence[int]) -> list[int]:
    width, found = edges[1] - edges[0], [0] * len(edges)
    for length, count in counts.items():
        found[min(length // width, len(edges) - 1)] += count
    return found


def sheets(report: dict[str, Any]) -> list[Sheet]:
    notes = [
        f"Words between white space of `{report['field']}`; a character of a script without spaces is one."
    ]
    if (told := report["units"].get(TOKENS)) and not told["exact"]:
        notes.append(f"Tokens of {told['model']} are not known here; counted with o200k_base.")
    notes += [
        f"{name}: {one['bad_rows']:,} bad rows are left out."
        for name, one in report["data"].items()
        if one["bad_rows"]
    ]
    found = [_sheet("Lengths", report, "empty", notes)]
    if report["reasoning"]:
        words = ["Thinking of the rows that have it (`of` so many); the lengths above do not include it."]
        found.append(_sheet("Lengths of the thinking", report["reasoning"], "of", words))
    return found


def _sheet(title: str, report: dict[str, Any], beside: str, notes: list[str]) -> Sheet:
    """beside: the count that stands beside the number of rows."""
    columns = ["data", "unit", "rows", beside, "mean", "sd", "min", *(f"{q} %" for q in QUANTILES), "max"]
    rows: list[list[Value]] = []
    for name, one in report["data"].items():
        for unit in report["units"]:
            own = one[unit]
            row = [name, unit, one["rows"], one[beside], own["mean"], own["sd"], own["min"]]
            rows.append([*row, *own["quantiles"].values(), own["max"]])
    return Sheet(title, columns, rows, notes)
