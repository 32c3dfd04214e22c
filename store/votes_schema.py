"""The tables of RUN/votes.db and their types.

Votes are kept by model (`a`, `b` or `tie`), with the side on which `a` was shown. A row of `votes` is never
changed or removed: `showings.vote` names the one that counts, so a changed vote keeps its history. Times
are Unix seconds. Sides, turns and names are pure decisions and are here too.
"""

import hashlib
import json
import sqlite3
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
class VotingProgress:
    """done: pairs that the person has voted on. open: those that still want their vote."""

    done: int
    open: int
    skipped: int


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


def name_key(name: str) -> str:
    """Equal for what people would call the same name."""
    return tidy(name).casefold()


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
