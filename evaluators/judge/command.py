"""`distill evaluate judge` and `evaluate ranking`: read judgements, measure, print, write CSV and JSONL."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, get_args

import orjson

from engine.terminal import plain, tell
from evaluators.judge.judgements import Judgement, grouped
from evaluators.judge.metrics import judge_report, judgements_of, ranking_report
from evaluators.judge.reviews import Naming, ReviewSource, Word, read_preferences, read_reviews, read_run
from evaluators.tables import write_csv
from store.answers import identity
from store.datasets import write_lines
from store.errors import UsageError
from store.pool import Pool, as_instruction
from store.records import BadRow

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
    rows = (
        {
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
        for of_a_pair in grouped(judgements).values()
        for said in of_a_pair
    )
    write_lines(path, map(orjson.dumps, rows))


@dataclass(frozen=True)
class JudgeOptions:
    """The flags: where the judgements are, and whose they are."""

    reviews: Sequence[Path] = ()
    preferences: Sequence[Path] = ()
    runs: Sequence[Path] = ()
    stages: Sequence[str] = ()
    baselines: Sequence[Path] = ()
    questions: Path | None = None
    a: str | None = None
    b: str | None = None
    judges: Sequence[str] = ()
    scores: str = "file"


def with_more(
    reviews: Sequence[Path], preferences: Sequence[Path], more: Sequence[Path]
) -> tuple[Sequence[Path], Sequence[Path]]:
    """Files behind `--reviews FILE` (or `--preferences FILE`) without a flag of their own belong to it.
    Raises UsageError where nobody can say to which."""
    if more and len(reviews) + len(preferences) > 1:
        raise UsageError(
            f"say what {more[0]} is: put --reviews or --preferences before each file, or only once"
        )
    return ([*reviews], [*preferences, *more]) if preferences else ([*reviews, *more], [])


def run_judge(asked: JudgeOptions, json: bool, csv: Path | None, rows: Path | None) -> int:
    """Raises UsageError, PoolError, RunFolderError, StorageError."""
    sources = read_sources(asked)
    report = judge_report(sources, asked.scores)
    if csv:
        write_figures(csv, report["pairs"])
    if rows:
        write_rows(rows, judgements_of(sources))
    if json:
        _print_json(report)
    else:
        from evaluators.judge.show import print_judged

        print_judged(report)
    return 0


def run_ranking(asked: JudgeOptions, json: bool, csv: Path | None, rows: Path | None) -> int:
    """Raises UsageError, PoolError, RunFolderError, StorageError."""
    if not (asked.reviews or asked.runs):
        raise UsageError("name the rank groups: --reviews FILE for each, or --run RUN")
    sources = read_sources(asked)
    baselines = read_sources(
        JudgeOptions(reviews=asked.baselines, b=asked.b, scores=asked.scores), some=False
    )
    report = ranking_report(sources, baselines, asked.scores)
    if csv:
        write_groups(csv, [*report["groups"], *report["baselines"]])
    if rows:
        write_rows(rows, judgements_of([*sources, *baselines]))
    if json:
        _print_json(report)
    else:
        from evaluators.judge.show import print_ranking

        print_ranking(report)
    return 0


def read_sources(asked: JudgeOptions, some: bool = True) -> list[ReviewSource]:
    """All that was named, in the order of the flags' kinds. `some`: at least one must be."""
    if asked.scores not in get_args(Word):
        raise UsageError(f"--scores {asked.scores}: unknown; choose from {', '.join(get_args(Word))}")
    named = [*asked.reviews, *asked.preferences, *asked.runs]
    if some and not named:
        raise UsageError("name what was judged: --reviews FILE, --preferences FILE or --run RUN")
    if asked.judges and len(asked.judges) != len(named):
        raise UsageError(f"{len(asked.judges)} judges for {len(named)} files and runs; name one for each")
    if asked.stages and not asked.runs:
        raise UsageError("--stage chooses among the stages of --run RUN")
    judges: Iterator[str | None] = iter(asked.judges) if asked.judges else repeat(None)
    word: Word = "text" if asked.scores == "text" else "file"
    found = [read_reviews(path, Naming(asked.a, asked.b, next(judges)), word) for path in asked.reviews]
    found += [read_preferences(path, next(judges)) for path in asked.preferences]
    found += [source for run in asked.runs for source in read_run(run, list(asked.stages), next(judges))]
    if asked.questions is None:
        return found
    questions = read_questions(asked.questions)  # their categories and words, joined by id
    for place, source in enumerate(found):
        if not any(said.question in questions for said in source.judgements):
            raise UsageError(
                f"{asked.questions} has none of the questions of {source.name}; they are joined by id"
            )
        judgements = []
        for said in source.judgements:
            category, prompt = questions.get(said.question, ("", said.prompt))
            judgements.append(replace(said, category=category or said.category, prompt=prompt))
        found[place] = replace(source, judgements=judgements)
    return found


def read_questions(path: Path) -> Mapping[str, tuple[str, str]]:
    """(category, prompt) by id. Raises PoolError, UsageError."""
    found: dict[str, tuple[str, str]] = {}
    bad: list[str] = []
    for line, row in Pool(path).objects():
        item = row.reason if isinstance(row, BadRow) else as_instruction(row, len(found))
        if isinstance(item, str):
            bad.append(f"line {line}: {item}")
        else:
            found[identity(item.id)] = (item.category, item.instruction)
    if not found:
        raise UsageError(f"no usable question in {path}: {bad[0] if bad else 'it is empty'}")
    if bad:
        tell(f"{path}: {len(bad):,} questions could not be used; {plain(bad[0], 200)}\n")
    return found


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
