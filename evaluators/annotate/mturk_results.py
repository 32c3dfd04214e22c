"""Mechanical Turk's results (`Batch_…_results.csv`) -> votes. A bad row is data: it is counted and said.

An assignment is taken once, so that the same file may be imported again when more has come in. What
the requester has rejected is left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.annotate.form import read_ballot
from evaluators.annotate.mturk import hit_id, left_of
from evaluators.annotate.study import spoken
from store.errors import UsageError
from store.pool import Pool
from store.records import BadRow
from store.votes import Votes
from store.votes_rules import tidy
from store.votes_schema import CRITERIA, Ballot, Study

NEEDED = ("WorkerId", "Input.hit", *(f"Answer.{name}" for name in CRITERIA))


@dataclass
class Told:
    """What became of the rows. known: assignments that were here already."""

    taken: int = 0
    known: int = 0
    rejected: int = 0
    bad: list[BadRow] = field(default_factory=list)

    def lines(self) -> Sequence[str]:
        return spoken(self.bad)

    def words(self) -> str:
        return (
            f"{self.taken:,} votes taken in, {self.known:,} were here already, "
            f"{self.rejected:,} rejected by the requester, {len(self.bad):,} bad rows"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """A usable row."""

    assignment: str
    worker: str
    pair: int
    ballot: Ballot
    seconds: float


def take_results(votes: Votes, path: Path) -> Told:
    """Puts all usable rows down. Raises UsageError for a file that is no table of results."""
    study, told = votes.study, Told()
    if study is None:
        raise UsageError("nothing is put to the vote in this folder: its HITs cannot have come from here")
    pairs = {hit_id(study, pair.id): pair.id for pair in votes.pairs()}
    for line, row in Pool(path).objects():
        found = row.reason if isinstance(row, BadRow) else _read(study, pairs, row)
        if isinstance(found, str):
            told.bad.append(BadRow(line, f"{path}: {found}"))
        elif found is None:
            told.rejected += 1
        else:
            _take(votes, study, found, told)
    return told


def _take(votes: Votes, study: Study, found: Result, told: Told) -> None:
    left = left_of(study, found.pair)
    new = votes.take(found.worker, found.pair, left, found.ballot, found.seconds, found.assignment)
    told.taken += new
    told.known += not new


def _read(study: Study, pairs: Mapping[str, int], row: Mapping[str, Any]) -> Result | str | None:
    """What the row says, what is wrong with it, or None where it was rejected."""
    if missing := [name for name in NEEDED if row.get(name) is None]:
        return f"no column {missing[0]}: is it a table of results, made from this project's page?"
    if str(row.get("AssignmentStatus") or "").strip().lower() == "rejected":
        return None
    pair = pairs.get(str(row["Input.hit"]).strip())
    if pair is None:
        return f"HIT {row['Input.hit']!r:.40} is none of this run's"
    worker = tidy(str(row["WorkerId"]))
    if not worker:
        return "no WorkerId"
    answers = {name: str(row.get(f"Answer.{name}") or "").strip().lower() for name in CRITERIA}
    ballot = read_ballot({**answers, "note": row.get("Answer.note") or ""}, left_of(study, pair))
    if isinstance(ballot, list):
        return f"no vote on {', '.join(ballot)} (expected left, tie or right)"
    seconds = _seconds(row.get("WorkTimeInSeconds"))
    if seconds is None:
        return f"WorkTimeInSeconds is {row.get('WorkTimeInSeconds')!r:.20}"
    assignment = str(row.get("AssignmentId") or "").strip() or f"{worker}/{row['Input.hit']}"
    return Result(assignment, worker, pair, ballot, seconds)


def _seconds(given: object) -> float | None:
    """0 where nothing is said, None where it is no time."""
    try:
        seconds = float(str(given or 0))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
