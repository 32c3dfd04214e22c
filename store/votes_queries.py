"""Reads a run's votes without a hand on them, also while people are voting."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.errors import RunFolderError
from store.votes import votes_path
from store.votes_schema import CRITERIA, VERSION, Choice, Side, Study, VoterTally, criteria_in

WAIT_MS = 5000


@dataclass(frozen=True, slots=True)
class Vote:
    """A vote that counts. seconds: all that the person spent on the pair."""

    pair: int
    question: str
    annotator: str
    helpful: Choice
    honest: Choice
    harmless: Choice
    note: str
    left: Side
    seconds: float
    cast_at: float


@dataclass(frozen=True, slots=True)
class Poll:
    """All that a run's votes say. replaced: votes that a later one of the same person replaced. criteria:
    their names, for the places of a vote (CRITERIA)."""

    study: Study
    pairs: int
    complete: int
    replaced: int
    skipped: int
    votes: tuple[Vote, ...]
    criteria: tuple[str, ...] = CRITERIA


_VOTES = """
SELECT pair, question, annotator, helpful, honest, harmless, note, left, seconds, cast_at
FROM counted ORDER BY pair, id"""


def read_poll(run: Path) -> Poll:
    """Raises RunFolderError where there is nothing to read."""
    path = votes_path(run).resolve()
    with _reading(path) as db:
        row = db.execute("SELECT a, b, wanted, seed, fingerprint, folder FROM study").fetchone()
        if row is None:
            raise RunFolderError(f"{path} puts nothing to the vote yet; `distill annotate` begins it")
        study = Study(*row)
        votes = tuple(Vote(*found) for found in db.execute(_VOTES))

        def count(sql: str, *values: object) -> int:
            return int(db.execute(f"SELECT count(*) FROM {sql}", values).fetchone()[0])

        return Poll(
            study,
            count("pairs"),
            count("pairs WHERE votes >= ?", study.wanted),
            count("votes") - len(votes),
            count("showings WHERE skipped AND vote IS NULL"),
            votes,
            tuple(criteria_in(db)),
        )


_PAIRS_DONE = "SELECT count(*), ifnull(sum(votes >= (SELECT wanted FROM study)), 0) FROM pairs"
_PEOPLE = """
SELECT n.name, count(s.vote), ifnull(sum(s.vote IS NULL AND s.skipped), 0), max(v.cast_at),
  (SELECT avg(seconds) FROM (
    SELECT seconds, row_number() OVER (ORDER BY seconds) AS place, count(*) OVER () AS places
    FROM counted WHERE annotator = n.name) WHERE place IN ((places + 1) / 2, (places + 2) / 2))
FROM annotators n LEFT JOIN showings s ON s.annotator = n.id LEFT JOIN votes v ON v.id = s.vote
GROUP BY n.id ORDER BY 2 DESC, n.name"""
_EQUAL = """
SELECT count(*), sum(x.helpful = y.helpful), sum(x.honest = y.honest), sum(x.harmless = y.harmless)
FROM counted x JOIN counted y ON y.pair = x.pair AND y.annotator > x.annotator"""


def overview(run: Path) -> dict[str, Any]:
    """How far all are: {study, pairs, complete, votes, people, agreement}. agreement: of two votes on one
    pair, by a criterion's place, how many are equal and how many there are. It does not say who is ahead."""
    with _reading(votes_path(run).resolve()) as db:
        row = db.execute("SELECT a, b, wanted, seed, fingerprint, folder FROM study").fetchone()
        pairs, complete = db.execute(_PAIRS_DONE).fetchone()
        both, *equal = db.execute(_EQUAL).fetchone()
        return {
            "study": Study(*row) if row else None,
            "pairs": pairs,
            "complete": complete,
            "votes": db.execute("SELECT count(vote) FROM showings").fetchone()[0],
            "people": [VoterTally(*found) for found in db.execute(_PEOPLE)],
            "agreement": [(count or 0, both) for count in equal],
        }


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A snapshot. SQLite's errors are mapped here."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
            db.execute(f"PRAGMA busy_timeout = {WAIT_MS}")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                raise RunFolderError(f"{path} is of version {version}; this distill reads version {VERSION}")
            db.execute("BEGIN")
            yield db
    except sqlite3.Error as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
