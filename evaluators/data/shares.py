"""Shares of the answers of a run or a data set: of those that are cut short, filtered, refused, empty,
thought over, and in which languages (`evaluate shares`); and of each score that a judge gave to a model
(`evaluate scores`, the paper's Figure 2).

A run's outcomes are the provider's, from the ledger; of a file nobody knows them (null), unless its rows say
`outcome`, as our Parquet export does. `refused_in_words` is a guess for both: an answer that begins with
one of PHRASES. It misses polite refusals and takes 'I cannot … but' for one.

Scores come from `export --format scores` (a prompt's answers with model and score) or whole lists (`model`
and `scores`). One outside of the scale 1-10 is no score: published files write 0 where none could be read. It
is left out of mean and shares, and counted. Scores are counted, not kept.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.answers import clean
from engine.collect.other_settings import counting
from engine.provider.responses import answer_of
from engine.tasks.language_check import language_of
from engine.terminal import plain, tell
from evaluators.data.lengths import spread
from evaluators.records import data_sets, row_of
from evaluators.stats import Z, wilson
from evaluators.tables import Sheet, Span, Value, publish
from store.datasets import stored
from store.errors import Damages, PoolError, UsageError, words_of
from store.pool import Pool
from store.queries import connect_reader, stage_of, stage_status, stages
from store.records import OUTCOMES, BadRow, columns_of

PHRASES = (
    "i'm sorry, but", "i am sorry, but", "i apologize, but", "sorry, but", "i'm sorry, i can",
    "as an ai", "i cannot", "i can't", "i can not", "i am unable", "i'm unable", "i am not able",
    "i'm not able", "i won't", "i will not", "i do not have the ability", "i don't have the ability",
    "unfortunately, i cannot", "unfortunately, i can't", "unfortunately, i am unable",
    "it is not possible for me",
    "抱歉", "对不起", "很抱歉", "我无法", "我不能", "作为一个ai", "作为一个人工智能", "作为ai",
)  # fmt: skip
HEURISTIC = (
    "refused_in_words is a heuristic: the answer begins with a phrase like 'I'm sorry, but' or 'As an AI'"
)
UNKNOWN = "unknown"
EXAMPLES = 3
NAMED: Mapping[str, str] = {
    "truncated": "length", "content_filter": "content_filter", "refusal": "refusal",
    "untranslated": "untranslated", "tool_calls": "tool_calls", "other": "other",
}  # fmt: skip
COUNTED = ("empty", "reasoning", "refused_in_words")
_APOSTROPHE = re.compile("[’‘`]")


@dataclass
class Tally:
    """Counts of what the answers of one stage or file are, each with its first rows."""

    rows: int = 0
    bad: int = 0
    outcomes: Counter[str] | None = None
    failed: dict[str, int] | None = None
    counts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, text: str, thinking: str, where: dict[str, Any], outcome: str | None) -> None:
        self.rows += 1
        if thinking:
            self.counts["reasoning"] += 1
            self._show("reasoning", where)
        if outcome is not None:
            self.outcomes = self.outcomes if self.outcomes is not None else Counter()
            self.outcomes[outcome] += 1
            self._show(outcome, where)
        kind = "empty" if not text.strip() else "refused_in_words" if refuses(text) else ""
        if kind:
            self.counts[kind] += 1
            self._show(kind, where)
        if text.strip():
            language = language_of(text) or UNKNOWN
            self.languages[language] += 1
            self._show(f"in {language}", where)

    def _show(self, what: str, where: dict[str, Any]) -> None:
        shown = self.examples.setdefault(what, [])
        if len(shown) < EXAMPLES:
            shown.append(where)

    def as_json(self) -> dict[str, Any]:
        known = self.outcomes
        said = {name: None if known is None else self._part(known[o], o) for name, o in NAMED.items()}
        counted = {name: self._part(self.counts[name], name) for name in COUNTED}
        languages = {one: self._part(n, f"in {one}") for one, n in self.languages.most_common()}
        head = {"rows": self.rows, "bad_rows": self.bad, "outcomes": known, "failed": self.failed}
        return {**head, **said, **counted, "languages": languages}

    def _part(self, count: int, what: str) -> dict[str, Any]:
        low, high = wilson(count, self.rows)
        share = count / self.rows if self.rows else None
        return {"n": count, "share": share, "low": low, "high": high, "examples": self.examples.get(what, [])}


def run_shares(source: Path, stage: str | None, json: bool, csv: Path | None) -> int:
    """Raises UsageError, PoolError, RunFolderError."""
    report = measure_shares(source, stage)
    publish(report, share_sheets(report), json, csv)
    return 0


def measure_shares(source: Path, stage: str | None = None) -> dict[str, Any]:
    """As `--json` prints it. Of a run folder, all stages or one; of a file, its rows."""
    if stage is not None and not source.is_dir():
        raise UsageError(f"--stage {stage}: {source} is a file; stages are in a run folder")
    found = of_run(source, stage) if source.is_dir() else of_file(source)
    data = {name: tally.as_json() for name, tally in found.items()}
    return {"source": str(source), "data": data, "heuristic": HEURISTIC}


def of_run(run: Path, stage: str | None = None) -> dict[str, Tally]:
    reader = connect_reader(run)
    try:
        chosen = [stage_of(run, stage)] if stage is not None else stages(reader)
        found, damages = {}, []
        for number, name in chosen:
            damages.append(Damages(name))
            tally = Tally(outcomes=Counter(), failed=stage_status(reader, number)["failed"])
            plans = counting(reader, number).plans
            for row in stored(reader, number, OUTCOMES, plans=plans, damages=damages[-1]):
                where = {"id": str(row.item.get("id", row.position)), "line": None, "position": row.position}
                try:
                    text, thinking = answer_of(row.raw)
                except Exception:  # of an older version's body, which has no checksum
                    damages[-1].add(row.position, "it cannot be read", where["id"])
                    continue
                tally.add(clean(text), thinking, where, row.outcome)
            found[name] = tally
        if words := words_of(damages, run):
            tell(f"distill: {plain(words, 1000)}\n")
        return found
    finally:
        reader.close()


def of_file(file: Path) -> dict[str, Tally]:
    (one,) = data_sets([file])
    tally, why = Tally(), ""
    for line, raw in one.pool.objects():
        row = raw.reason if isinstance(raw, BadRow) else row_of(raw, line, tally.rows)
        if isinstance(raw, BadRow) or isinstance(row, str):
            tally.bad += 1
            why = why or f"line {line}: {row}"
            continue
        outcome = raw.get("outcome")
        tally.add(row.output, row.reasoning, row.where, outcome if outcome in OUTCOMES else None)
    if not tally.rows:
        raise UsageError(f"no usable row in {file}: {why or 'it is empty'}")
    return {one.name: tally}


def refuses(text: str) -> bool:
    """Whether an answer begins like a refusal."""
    return _APOSTROPHE.sub("'", text[:80]).lstrip(" \n\t\"'*").lower().startswith(PHRASES)


def share_sheets(report: dict[str, Any]) -> list[Sheet]:
    columns = ["data", "what", "rows", "share", "examples"]
    rows: list[list[Value]] = []
    notes: list[str] = []
    for name, one in report["data"].items():
        parts = [(what, one[what]) for what in (*NAMED, *COUNTED)]
        parts += [(f"in {language}", part) for language, part in one["languages"].items()]
        for what, part in parts:
            if part is not None:
                share = Span(part["share"], part["low"], part["high"])
                shown = ", ".join(example["id"] for example in part["examples"])
                rows.append([name, what.replace("_", " "), part["n"], share, shown])
        failed = sum((one["failed"] or {}).values())
        notes.append(
            f"{name}: {one['rows']:,} answers"
            + (f"; {failed:,} rows failed" if failed else "")
            + (f"; {one['bad_rows']:,} bad rows" if one["bad_rows"] else "")
            + ("; it is not known how they ended" if one["outcomes"] is None else "")
            + "."
        )
    notes.append(f"{report['heuristic']}.")
    return [Sheet(f"Shares of {report['source']}", columns, rows, notes)]


# Scores, as a judge gave them to each model.
LOW, HIGH = 1, 10
MOST = 1e9  # beyond it, and where it is no number, nothing was scored


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


def run_scores(files: Sequence[Path], json: bool, csv: Path | None) -> int:
    """Raises UsageError, PoolError."""
    report = measure_scores(files)
    publish(report, score_sheets(report), json, csv)
    return 0


def measure_scores(files: Sequence[Path]) -> dict[str, Any]:
    """As `--json` prints it. Raises PoolError for a file in which nobody has a score."""
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
    data = {name: scores.as_json() for name, scores in models.items()}
    return {"scale": [LOW, HIGH], "data": data, "bad_rows": bad}


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


def score_sheets(report: dict[str, Any]) -> list[Sheet]:
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
