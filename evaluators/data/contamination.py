"""Which rows of evaluation sets are contained in a training set, by n-grams of plain words.

As GPT-3 (13-grams; arXiv 2005.14165, appendix C): one n-gram in common and the row is contained. A row with
fewer words counts where all of it stands in a training row; below 5 words nobody can tell. The share of a
row's n-grams that are found tells chance phrases from copies (PaLM, arXiv 2204.02311, draws its line at 0.7).
The test sets' n-grams are held in memory; the training set passes by.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from evaluators.records import DataSet, data_sets, field_of, plain_words
from evaluators.tables import Sheet, Value, publish
from store.datasets import write_lines
from store.errors import UsageError

LEAST_WORDS = 5
MOSTLY = 0.7
SHOWN, TRAIN_SHOWN = 50, 3
TEXT = 200  # characters of an example


@dataclass
class EvaluationRow:
    """A row of a test set. found: its n-grams that occur in the training set, and in how many rows."""

    where: dict[str, Any]
    text: str
    total: int
    found: dict[str, int] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    train_rows: int = 0
    last: int = -1  # line of the training row that was met last

    @property
    def share(self) -> float:
        return len(self.found) / self.total

    def as_json(self) -> dict[str, Any]:
        ngram = min(self.found, key=lambda gram: (self.found[gram], gram))  # the rarest tells most
        head = {"share": self.share, "ngrams": len(self.found), "text": self.text, "ngram": ngram}
        return {**self.where, **head, "train_rows": self.train_rows, "train": self.train}


@dataclass
class EvaluationSet:
    """All rows that are long enough."""

    data: DataSet
    rows: list[EvaluationRow] = field(default_factory=list)
    too_short: int = 0

    def hits(self) -> list[EvaluationRow]:
        """The most contained first."""
        found = [row for row in self.rows if row.found]
        return sorted(found, key=lambda row: (-row.share, row.where["line"]))

    def as_json(self) -> dict[str, Any]:
        hits = self.hits()
        return {
            "rows": self.data.rows,
            "too_short": self.too_short,
            "bad_rows": self.data.bad,
            "contained": len(hits),
            "share": len(hits) / len(self.rows) if self.rows else None,
            "mostly": sum(row.share >= MOSTLY for row in hits),
            "whole": sum(row.share == 1 for row in hits),
            "hits": [row.as_json() for row in hits[:SHOWN]],
        }


@dataclass(frozen=True)
class OverlapReport:
    n: int
    train: DataSet
    field: str
    train_field: str
    tests: Sequence[EvaluationSet]

    def as_json(self) -> dict[str, Any]:
        own = self.train
        return {
            "n": self.n,
            "field": self.field,
            "train_field": self.train_field,
            "train": {"file": own.pool.source, "rows": own.rows, "bad_rows": own.bad},
            "tests": {test.data.name: test.as_json() for test in self.tests},
        }


def run_overlap(
    train: Path,
    tests: list[Path],
    n: int,
    fields: tuple[str, str],
    json: bool,
    csv: Path | None,
    out: Path | None,
) -> int:
    """fields: of the test sets and of the training set. Raises UsageError, PoolError."""
    report = measure(train, tests, n, fields)
    if out is not None:
        lines = ({"test": test.data.name, **row.as_json()} for test in report.tests for row in test.hits())
        write_lines(out, map(orjson.dumps, lines))
    told = report.as_json()
    publish(told, sheets(told), json, csv)
    return 0


def measure(train: Path, tests: list[Path], n: int, fields: tuple[str, str]) -> OverlapReport:
    if n < LEAST_WORDS:
        raise UsageError(f"--n must be at least {LEAST_WORDS} words, not {n}: shorter ones occur everywhere")
    asked, given = field_of(fields[0]), field_of(fields[1])
    index: defaultdict[str, list[EvaluationRow]] = defaultdict(list)
    read = [EvaluationSet(one) for one in data_sets(tests)]
    for test in read:
        for row in test.data:
            text = row.text(asked)
            words = plain_words(text)
            if len(words) < LEAST_WORDS:
                test.too_short += 1
                continue
            grams = set(ngrams(words, min(n, len(words))))
            tested = EvaluationRow(row.where, text[:TEXT], len(grams))
            test.rows.append(tested)
            for gram in grams:
                index[gram].append(tested)
    (own,) = data_sets([train])
    heads = {" ".join(gram.split(" ")[:LEAST_WORDS]) for gram in index}
    lengths = sorted({gram.count(" ") + 1 for gram in index})
    for row in own:
        # the n-grams of the index that the text has; few places of it begin like any of them
        words = plain_words(row.text(given))
        found: set[str] = set()
        for at in range(len(words) - LEAST_WORDS + 1):
            if " ".join(words[at : at + LEAST_WORDS]) in heads:
                some = (" ".join(words[at : at + n]) for n in lengths if at + n <= len(words))
                found.update(gram for gram in some if gram in index)
        for gram in sorted(found):
            for tested in index[gram]:
                tested.found[gram] = tested.found.get(gram, 0) + 1
                if tested.last == row.line:  # it may hold many n-grams of one test row, and counts once
                    continue
                tested.last = row.line
                tested.train_rows += 1
                if len(tested.train) < TRAIN_SHOWN:
                    tested.train.append(row.where)
    return OverlapReport(n, own, asked, given, read)


def ngrams(words: Sequence[str], n: int) -> Iterator[str]:
    return (" ".join(words[at : at + n]) for at in range(len(words) - n + 1))


def sheets(report: dict[str, Any]) -> list[Sheet]:
    columns = ["test set", "rows", "too short", "contained", "share", f"{MOSTLY:.0%} or more", "wholly"]
    rows: list[list[Value]] = []
    shown: list[list[Value]] = []
    for name, one in report["tests"].items():
        rows.append(
            [name, one["rows"], one["too_short"], one["contained"], one["share"], one["mostly"], one["whole"]]
        )
        for hit in one["hits"][:10]:
            lines = ", ".join(str(where["line"]) for where in hit["train"])
            shown.append([name, hit["id"], hit["share"], hit["train_rows"], lines, hit["ngram"]])
    train = report["train"]
    note = (
        f"Contained: a {report['n']}-gram of plain words of `{report['field']}` (a shorter row: all of it) "
        f"occurs in `{report['train_field']}` of the {train['rows']:,} rows of {train['file']}. "
        f"Too short: under {LEAST_WORDS} words, about which nothing is said."
    )
    tables = [Sheet("Overlap with the training set", columns, rows, [note])]
    if shown:
        heads = ["test set", "id", "share", "train rows", "train lines", "rarest n-gram found"]
        tables.append(Sheet("The most contained", heads, shown))
    return tables
