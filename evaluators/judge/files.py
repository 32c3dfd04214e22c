"""The figures as CSV, and every question with what was said of it as JSONL. The same bytes each time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from evaluators.csv_files import write_csv
from evaluators.judge.judgements import Judgement, grouped
from store.export import write_lines

FIGURES = (
    "questions", "replies", "unparsed", "sum_a", "sum_b", "relative", "low", "high", "wins", "ties", "losses",
    "win_rate", "win_rate_low", "win_rate_high",
)  # fmt: skip


def write_figures(path: Path, pairs: Iterable[Mapping[str, Any]]) -> None:
    """A line for each pair, and for each of its categories. Raises StorageError."""
    controlled = ("length_controlled", "length_controlled_low", "length_controlled_high")
    lines: list[list[Any]] = []
    for pair in pairs:
        found = pair["length_controlled"] or {}
        names = [pair[name] for name in ("a", "b", "judge")]
        own = [found.get(name) for name in ("win_rate", "low", "high")]
        lines.append([*names, "", *(pair[name] for name in FIGURES), *own])
        for part in pair["by_category"]:
            lines.append([*names, part["category"], *(part[name] for name in FIGURES), "", "", ""])
    write_csv(path, ["a", "b", "judge", "category", *FIGURES, *controlled], lines)


def write_groups(path: Path, groups: Iterable[Mapping[str, Any]]) -> None:
    """A line for each rank group and baseline. Raises StorageError."""
    lines = [[group.get(name) for name in ("rank", "name", *FIGURES)] for group in groups]
    write_csv(path, ["rank", "name", *FIGURES], lines)


def write_rows(path: Path, judgements: Sequence[Judgement]) -> None:
    """A line for each reply: what was asked, what it got, in which order, and why. Raises StorageError."""
    write_lines(path, map(orjson.dumps, map(_row, _in_order(judgements))))


def _in_order(judgements: Sequence[Judgement]) -> Iterator[Judgement]:
    for said in grouped(judgements).values():
        yield from said


def _row(said: Judgement) -> dict[str, Any]:
    return {
        "question": said.question,
        "category": said.category,
        "prompt": said.prompt,
        "a": said.a,
        "b": said.b,
        "judge": said.judge,
        "score_a": said.score_a,
        "score_b": said.score_b,
        "win": said.win,
        "shown_first": None if said.a_first is None else said.a if said.a_first else said.b,
        "lengths": said.lengths,
        "reason": said.reason,
        "source": said.source,
        "line": said.line,
    }
