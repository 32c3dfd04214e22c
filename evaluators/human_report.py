"""`distill evaluate human`: the figures of people's votes as a table, JSON or CSV."""

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path

import orjson

from engine.terminal import percent, plain
from evaluators.csv_files import write_csv
from evaluators.human import OUTCOMES, Figures, figures_of
from store.errors import UsageError
from store.votes_read import Poll, Vote, read_poll
from store.votes_schema import CRITERIA

NEEDED = ("numpy", "krippendorff")


def run_human(run: Path, json: bool, table: Path | None, votes: Path | None) -> None:
    """Raises UsageError, RunFolderError."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UsageError(f"evaluate human needs {', '.join(missing)} (the extra `evaluate`)")
    poll = read_poll(run)
    found = figures_of(poll)
    if table is not None:
        write_csv(table, ("criterion", "outcome", "share", "low", "high", "votes"), _table(found))
    if votes is not None:
        write_csv(votes, *_votes(poll))
    if json:
        sys.stdout.write(orjson.dumps(found).decode() + "\n")
    else:
        print("\n".join(_words(found)))


def _table(found: Figures) -> list[list[object]]:
    shares = [(name, outcome, found["criteria"][name][outcome]) for name in CRITERIA for outcome in OUTCOMES]
    return [[name, outcome, s["share"], s["low"], s["high"], s["votes"]] for name, outcome, s in shares]


def _votes(poll: Poll) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
    """A row for each vote; a choice by its model's name, `left` the model that stood there."""
    names = {"a": poll.study.a, "b": poll.study.b}
    heads = [field.name for field in fields(Vote)]
    chosen = {heads.index(name) for name in (*CRITERIA, "left")}
    rows = (
        [names.get(value, value) if at in chosen else value for at, value in enumerate(astuple(vote))]
        for vote in poll.votes
    )
    return heads, rows


def _words(found: Figures) -> list[str]:
    a, b = plain(found["a"], 40), plain(found["b"], 40)
    lines = [
        f"{a} against {b}: {found['votes']:,} votes on {found['voted']:,} of {found['items']:,} pairs "
        f"({found['complete']:,} with all {found['votes_wanted']}), {len(found['annotators'])} annotators; "
        f"{found['changed']:,} changed, {found['skipped']:,} skipped",
        "",
        f"{'':10}{'win':>23}{'tie':>23}{'loss':>23}   agreement",
    ]
    lines += [_line(name, found["criteria"][name]) for name in CRITERIA]
    seconds, left = found["seconds"], found["left"]
    if seconds["median"] is not None:
        lines += ["", f"time per vote: median {seconds['median']:.0f} s" + _quartiles(seconds)]
    if left["share"] is not None:
        lines.append(f"the left side was chosen in {_share(left)} of the votes that are no tie")
    lines += [
        f"{plain(row['name'], 40)}: {row['votes']:,} votes" + _habits(row) for row in found["annotators"]
    ]
    return lines


def _line(name: str, row: Figures) -> str:
    agreement = row["agreement"]
    alpha = "-" if agreement["alpha"] is None else f"{agreement['alpha']:.2f}"
    cells = "".join(f"{_share(row[outcome]):>23}" for outcome in OUTCOMES)
    return f"{name:10}{cells}   alpha {alpha}, {percent(agreement['share'])} equal"


def _share(found: Figures) -> str:
    if found["share"] is None:
        return "-"
    return f"{found['share']:.1%} ({found['low']:.1%}-{found['high']:.1%})".replace("%-", "-")


def _quartiles(seconds: Figures) -> str:
    if seconds["quarter"] is None:
        return ""
    return f" (half of them {seconds['quarter']:.0f}-{seconds['three_quarters']:.0f} s)"


def _habits(row: Figures) -> str:
    seconds = "" if row["seconds"] is None else f", median {row['seconds']:.0f} s"
    rest = f", ties {percent(row['ties'])}, left {percent(row['left'])}, agrees {percent(row['agreement'])}"
    return seconds + rest
