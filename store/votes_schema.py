"""RUN/votes.db: its tables, their types, and what they hold, also while people are voting.

Votes are kept by model (`a`, `b` or `tie`), with the side on which `a` was shown. A row of `votes` is never
changed or removed: `showings.vote` names the one that counts, so a changed vote keeps its history. Times
are Unix seconds. Sides, turns and names are pure decisions and are here too.
"""

import hashlib
import json
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from store.errors import RunFolderError

VERSION = 1
VOTES = "votes.db"
LOCK = "votes.lock"
CRITERIA = ("helpful", "honest", "harmless")

# The places of a study's criteria, up to three; a study of its own has names for them (`page_words`).
WORDS_TABLE = """
CREATE TABLE IF NOT EXISTS page_words (  -- one row: the study's criteria and what its pages say
  id INTEGER PRIMARY KEY CHECK (id = 1),
  -- JSON: language, criteria, texts
  words TEXT NOT NULL)"""

Choice = Literal["a", "b", "tie"]
Side = Literal["a", "b"]

TABLES = """
CREATE TABLE study (                   -- one row: what is put to the vote
  id INTEGER PRIMARY KEY CHECK (id = 1),
  a TEXT NOT NULL, b TEXT NOT NULL,    -- the models
  wanted INTEGER NOT NULL,             -- votes for each pair
  seed INTEGER NOT NULL, fingerprint TEXT NOT NULL,
  -- a random id, made once
  folder TEXT NOT NULL);
CREATE TABLE pairs (
  id INTEGER PRIMARY KEY, turn INTEGER NOT NULL,  -- its place in the order in which pairs are given out
  question TEXT NOT NULL, category TEXT NOT NULL, instruction TEXT NOT NULL, input TEXT NOT NULL,
  answer_a TEXT NOT NULL, answer_b TEXT NOT NULL,
  -- people who have voted on it
  votes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE annotators (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, key TEXT NOT NULL UNIQUE, joined_at REAL NOT NULL);
CREATE TABLE showings (                -- a pair that was given to a person
  annotator INTEGER NOT NULL REFERENCES annotators(id), pair INTEGER NOT NULL REFERENCES pairs(id),
  left TEXT NOT NULL CHECK (left IN ('a', 'b')),  -- the model on the left (or above), drawn once
  turn INTEGER NOT NULL,               -- the person's first, second, ... pair
  opened_at REAL,                      -- since when they have been looking at it; null: they are not
  kept_until REAL NOT NULL,            -- till then nobody else gets its place
  skipped INTEGER NOT NULL DEFAULT 0,
  -- the vote that counts
  vote INTEGER REFERENCES votes(id),
  PRIMARY KEY (annotator, pair)) WITHOUT ROWID;
CREATE INDEX showings_of_pair ON showings (pair);
CREATE INDEX showings_kept ON showings (kept_until) WHERE vote IS NULL;
CREATE TABLE votes (
  id INTEGER PRIMARY KEY, annotator INTEGER NOT NULL, pair INTEGER NOT NULL,
  helpful TEXT NOT NULL CHECK (helpful IN ('a', 'b', 'tie')),
  honest TEXT NOT NULL CHECK (honest IN ('a', 'b', 'tie')),
  harmless TEXT NOT NULL CHECK (harmless IN ('a', 'b', 'tie')),
  note TEXT NOT NULL, left TEXT NOT NULL,
  seconds REAL NOT NULL,               -- from the page's showing to the vote
  active_seconds REAL,                 -- of them with the page in view, where the browser told
  cast_at REAL NOT NULL,
  -- an assignment of Mechanical Turk
  assignment TEXT UNIQUE);
CREATE INDEX votes_of_pair ON votes (pair, annotator);
CREATE VIEW counted AS
  SELECT v.id, p.question, p.id AS pair, n.name AS annotator, v.helpful, v.honest, v.harmless, v.note,
    v.left, v.cast_at,
    (SELECT sum(coalesce(w.active_seconds, w.seconds)) FROM votes w
      WHERE w.pair = v.pair AND w.annotator = v.annotator) AS seconds
  FROM showings s JOIN votes v ON v.id = s.vote JOIN pairs p ON p.id = s.pair
  JOIN annotators n ON n.id = s.annotator;
"""


@dataclass(frozen=True, slots=True)
class VotePair:
    """A prompt and two models' answers to it. id: its place in the questions, from 1."""

    id: int
    question: str
    category: str
    instruction: str
    input: str
    answer_a: str
    answer_b: str


@dataclass(frozen=True, slots=True)
class Study:
    """What is put to the vote. wanted: people that see each pair."""

    a: str
    b: str
    wanted: int
    seed: int
    fingerprint: str
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Ballot:
    """One person's judgement of one pair."""

    helpful: Choice
    honest: Choice
    harmless: Choice
    note: str = ""


@dataclass(frozen=True, slots=True)
class Showing:
    """A pair as one person sees it. left: the model on the left. before: the pair they saw before it.
    vote: the number of their vote, 0 without one."""

    pair: VotePair
    left: Side
    turn: int
    before: int | None
    vote: int
    ballot: Ballot | None
    skipped: bool


@dataclass(frozen=True, slots=True)
class VoterTally:
    """How far a person is. last_at: of their latest vote; seconds: median for a pair."""

    name: str
    votes: int
    skipped: int
    last_at: float | None
    seconds: float | None


Pairs = Sequence[VotePair]


LONGEST_NAME = 60
WAIT_MS = 5000


def fingerprint(a: str, b: str, pairs: Pairs) -> str:
    """What tells one set of questions and answers from another."""
    digest = hashlib.blake2b(digest_size=16)
    for text in (a, b, *(t for p in pairs for t in (p.instruction, p.input, p.answer_a, p.answer_b))):
        said = text.encode(errors="replace")
        digest.update(len(said).to_bytes(8) + said)
    return digest.hexdigest()


def drawn_left(seed: int, pair: int, who: str) -> Side:
    """The model on the left, drawn for each pair and person."""
    return "a" if drawn(seed, pair, who)[0] & 1 else "b"


def drawn(seed: int, pair: int, who: str = "") -> bytes:
    """Random bytes that are always the same for the same."""
    return hashlib.blake2b(f"{seed}\0{pair}\0{who}".encode(), digest_size=8).digest()


def tidy(name: str) -> str:
    """A name as it is shown: one line of visible characters, not too long."""
    text = unicodedata.normalize("NFC", " ".join(name.split()))
    return "".join(c for c in text if unicodedata.category(c)[0] != "C")[:LONGEST_NAME].strip()


def words_in(db: sqlite3.Connection) -> dict[str, Any] | None:
    """What the study's own pages say: {language, criteria, texts}; None for the usual words."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'page_words'").fetchone():
        return None
    row = db.execute("SELECT words FROM page_words").fetchone()
    return dict(json.loads(row[0])) if row else None


def criteria_in(db: sqlite3.Connection) -> list[str]:
    """The names of the study's criteria, in the order of their places (CRITERIA)."""
    words = words_in(db)
    return [str(one["name"]) for one in words["criteria"]] if words else list(CRITERIA)


def votes_path(run: Path) -> Path:
    """RUN/votes.db, which must exist. Raises RunFolderError with what to do."""
    path = run / VOTES
    if not path.is_file():
        raise RunFolderError(f"no votes in {run} (expected {path}); `distill annotate` makes them")
    return path


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
            raise RunFolderError(f"{path} has nothing to vote on yet; `distill annotate` starts it")
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
