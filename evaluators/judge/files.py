"""The figures as CSV, and every question with what was said of it as JSONL. The same bytes each time."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from evaluators.judge.judgements import Judgement, grouped
from store.export import write_lines

FIGURES = (
    "questions", "replies", "unparsed", "sum_a", "sum_b", "relative", "low", "high", "wins", "ties", "losses",
    "win_rate", "win_rate_low", "win_rate_high",
)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a table program would take a name for


def write_figures(path: Path, pairs: Iterable[Mapping[str, Any]]) -> None:
    """A line for each pair, and for each of its categories. Raises StorageError."""
    controlled = ("length_controlled", "length_controlled_low", "length_controlled_high")
    lines: list[list[Any]] = [["a", "b", "judge", "category", *FIGURES, *controlled]]
    for pair in pairs:
        found = pair["length_controlled"] or {}
        names = [_cell(pair[name]) for name in ("a", "b", "judge")]
        own = [found.get(name) for name in ("win_rate", "low", "high")]
        lines.append([*names, "", *(pair[name] for name in FIGURES), *own])
        for part in pair["by_category"]:
            lines.append([*names, _cell(part["category"]), *(part[name] for name in FIGURES), "", "", ""])
    write_lines(path, map(_csv_line, lines))


def write_groups(path: Path, groups: Iterable[Mapping[str, Any]]) -> None:
    """A line for each rank group and baseline. Raises StorageError."""
    lines: list[list[Any]] = [["rank", "name", *FIGURES]]
    lines += [
        [group.get("rank"), _cell(group["name"]), *(group.get(name) for name in FIGURES)] for group in groups
    ]
    write_lines(path, map(_csv_line, lines))


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def _csv_line(cells: Sequence[Any]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue().encode()


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
