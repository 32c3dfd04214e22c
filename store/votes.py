"""Human votes, in RUN/votes.db: who sees which pair, on which side, and what they said.

One process writes (the folder's `votes.lock` is held meanwhile), from one thread, so that a call is a
decision: two people cannot be given the last place of a pair. Every call that changes something has
committed it (`synchronous=FULL`) when it returns. Knows nothing of pages or of Mechanical Turk.
"""

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from store.errors import DiskFull, RunFolderError, StorageError, UsageError
from store.votes_schema import (
    TABLES,
    VERSION,
    VOTES,
    WORDS_TABLE,
    Ballot,
    Pairs,
    Showing,
    Side,
    Study,
    VotePair,
    criteria_in,
    drawn,
    drawn_left,
    tidy,
    words_in,
)

KEPT_SECONDS = 1800.0  # how long a pair waits for the person that was given it
WAIT_SECONDS = 10.0
_IOERR, _FULL = 10, 13  # primary SQLite result codes

_ADD_PAIR = (
    "INSERT INTO pairs (id, turn, question, category, instruction, input, answer_a, answer_b) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
# The pair that a person gets: one that they have begun, else that with the fewest votes and people at it.
_NEXT = """
WITH busy AS (
  SELECT pair, count(*) AS people FROM showings
  WHERE vote IS NULL AND kept_until > :now AND annotator <> :me GROUP BY pair)
SELECT p.id FROM pairs p LEFT JOIN busy ON busy.pair = p.id
  LEFT JOIN showings s ON s.pair = p.id AND s.annotator = :me
WHERE s.vote IS NULL AND ifnull(s.skipped, 0) = 0
  AND (p.votes + ifnull(busy.people, 0) < :wanted OR s.kept_until > :now)
ORDER BY s.pair IS NULL, s.turn, p.votes + ifnull(busy.people, 0), p.turn LIMIT 1"""
_SHOW = """
INSERT INTO showings (annotator, pair, left, turn, kept_until)
VALUES (:me, :pair, :left, (SELECT ifnull(max(turn), 0) + 1 FROM showings WHERE annotator = :me), :until)
ON CONFLICT (annotator, pair) DO UPDATE SET kept_until = max(kept_until, excluded.kept_until)"""
_SHOWN = """
SELECT p.id, p.question, p.category, p.instruction, p.input, p.answer_a, p.answer_b,
  s.left, s.turn, s.skipped, v.id, v.helpful, v.honest, v.harmless, v.note,
  (SELECT b.pair FROM showings b WHERE b.annotator = s.annotator AND b.turn < s.turn
   ORDER BY b.turn DESC LIMIT 1)
FROM showings s JOIN pairs p ON p.id = s.pair LEFT JOIN votes v ON v.id = s.vote
WHERE s.annotator = ? AND s.pair = ?"""
_PROGRESS = """
SELECT count(s.vote), ifnull(sum(s.vote IS NULL AND s.skipped), 0),
  (SELECT count(*) FROM pairs p LEFT JOIN showings m ON m.pair = p.id AND m.annotator = :me
   WHERE p.votes < :wanted AND m.vote IS NULL AND ifnull(m.skipped, 0) = 0)
FROM showings s WHERE s.annotator = :me"""
_CAST = """
INSERT INTO votes (annotator, pair, helpful, honest, harmless, note, left, seconds, active_seconds,
  cast_at, assignment) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""


@dataclass(frozen=True, slots=True)
class VotingProgress:
    """done: pairs that the person has voted on. open: those that still want their vote."""

    done: int
    open: int
    skipped: int


class Votes:
    """The votes of a run folder that is held (`held(run, LOCK)`)."""

    def __init__(self, run: Path, clock: Callable[[], float] = time) -> None:
        self.run, self._path, self._clock = run, run / VOTES, clock
        try:
            self._db = sqlite3.connect(self._path, isolation_level=None, timeout=WAIT_SECONDS)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            raise RunFolderError(f"cannot open {self._path}: {error}") from error
        if version > VERSION:
            raise RunFolderError(f"{self._path} was written by a newer version of distill")
        if not version:
            with self._commit() as db:
                for statement in filter(str.strip, TABLES.split(";\n")):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        self._db.close()

    @property
    def study(self) -> Study | None:
        """What is put to the vote, or None as long as nothing is."""
        row = self._db.execute("SELECT a, b, wanted, seed, fingerprint, folder FROM study").fetchone()
        return Study(*row) if row else None

    def begin(self, study: Study, pairs: Pairs) -> Study:
        """Puts pairs to the vote, or continues with the same. Raises UsageError for others than there are."""
        found = self.study
        with self._commit() as db:
            if found is None:
                turns = sorted(pairs, key=lambda p: drawn(study.seed, p.id))
                place = {pair.id: n for n, pair in enumerate(turns)}
                db.executemany(_ADD_PAIR, ((p.id, place[p.id], p.question, p.category, p.instruction, p.input,
                                            p.answer_a, p.answer_b) for p in pairs))  # fmt: skip
                row = (study.a, study.b, study.wanted, study.seed, study.fingerprint, secrets.token_hex(8))
                db.execute("INSERT INTO study VALUES (1, ?, ?, ?, ?, ?, ?)", row)
            elif found.fingerprint != study.fingerprint:
                raise UsageError(
                    f"{self._path} has votes on other questions or answers ({found.a} against {found.b}); "
                    "name another folder with --run"
                )
            else:
                db.execute("UPDATE study SET wanted = ?", (study.wanted,))
        return self.study or study

    def want(self, wanted: int) -> None:
        """Changes how many people see each pair."""
        with self._commit() as db:
            db.execute("UPDATE study SET wanted = ?", (wanted,))

    @property
    def page_words(self) -> dict[str, Any] | None:
        """What the study's pages say, if it has words of its own."""
        return words_in(self._db)

    def keep_page_words(self, words: dict[str, Any]) -> None:
        """Raises UsageError for other criteria than there are votes on."""
        names = [one["name"] for one in words["criteria"]]
        if self.count and names != criteria_in(self._db):
            there, wanted = ", ".join(criteria_in(self._db)), ", ".join(names)
            raise UsageError(f"{self._path} has votes on {there}; for {wanted} name another folder (--run)")
        with self._commit() as db:
            db.execute(WORDS_TABLE)
            db.execute("INSERT OR REPLACE INTO page_words VALUES (1, ?)", (json.dumps(words),))

    def pairs(self) -> list[VotePair]:
        columns = "id, question, category, instruction, input, answer_a, answer_b"
        return [VotePair(*row) for row in self._db.execute(f"SELECT {columns} FROM pairs ORDER BY id")]

    @property
    def count(self) -> int:
        """Votes that count."""
        (found,) = self._db.execute("SELECT count(vote) FROM showings").fetchone()
        return int(found)

    def find(self, name: str) -> int | None:
        """The number of the person of this name."""
        row = self._db.execute("SELECT id FROM annotators WHERE key = ?", (name_key(name),)).fetchone()
        return int(row[0]) if row else None

    def join(self, name: str) -> int:
        """The number of the person of this name, who is new or comes back."""
        with self._commit() as db:
            row = (tidy(name), name_key(name), self._clock())
            db.execute("INSERT INTO annotators (name, key, joined_at) VALUES (?, ?, ?) "
                       "ON CONFLICT (key) DO NOTHING", row)  # fmt: skip
        return self.find(name) or 0

    def name(self, annotator: int) -> str | None:
        row = self._db.execute("SELECT name FROM annotators WHERE id = ?", (annotator,)).fetchone()
        return str(row[0]) if row else None

    def next_pair(self, annotator: int) -> int | None:
        """The pair that the person should look at, kept for them; None where there is none (now)."""
        now, study = self._clock(), self.study
        if study is None:
            return None
        with self._commit() as db:
            values = {"me": annotator, "now": now, "wanted": study.wanted}
            row = db.execute(_NEXT, values).fetchone()
            if row is not None:
                left = drawn_left(study.seed, row[0], str(self.name(annotator)))
                until = now + KEPT_SECONDS
                db.execute(_SHOW, {"me": annotator, "pair": row[0], "left": left, "until": until})
        return int(row[0]) if row else None

    def open(self, annotator: int, pair: int) -> Showing | None:
        """The pair as the person sees it, who is looking at it from now on; None if it is not theirs."""
        now = self._clock()
        with self._commit() as db:
            db.execute(
                "UPDATE showings SET opened_at = ifnull(opened_at, ?), "
                "kept_until = CASE WHEN kept_until > ? THEN ? ELSE kept_until END "
                "WHERE annotator = ? AND pair = ?",
                (now, now, now + KEPT_SECONDS, annotator, pair),
            )
        return self.showing(annotator, pair)

    def showing(self, annotator: int, pair: int) -> Showing | None:
        row = self._db.execute(_SHOWN, (annotator, pair)).fetchone()
        if row is None:
            return None
        left, turn, skipped, vote, *said, before = row[7:]
        ballot = Ballot(*said) if vote else None
        return Showing(VotePair(*row[:7]), left, turn, before, vote or 0, ballot, bool(skipped))

    def cast(self, annotator: int, pair: int, ballot: Ballot, active: float | None = None) -> bool:
        """Puts a vote down; it replaces an earlier one, which is kept. One that says nothing new is not
        put down again. False if the pair was never given to the person."""
        seen = self.showing(annotator, pair)
        if seen is None:
            return False
        if seen.ballot != ballot:
            with self._commit() as db:
                sql = "SELECT opened_at FROM showings WHERE annotator = ? AND pair = ?"
                (opened,) = db.execute(sql, (annotator, pair)).fetchone()
                now = self._clock()
                seconds = max(0.0, now - float(opened)) if opened else 0.0
                told = None if active is None else min(active, seconds)
                self._put(db, annotator, seen, ballot, (seen.left, seconds, told, now, None))
        return True

    def take(self, name: str, pair: int, left: Side, ballot: Ballot, seconds: float, assignment: str) -> bool:
        """Puts down a vote that was cast elsewhere. False where this assignment is here already."""
        known = self._db.execute("SELECT 1 FROM votes WHERE assignment = ?", (assignment,)).fetchone()
        if known:
            return False
        annotator, now = self.join(name), self._clock()
        with self._commit() as db:
            db.execute(_SHOW, {"me": annotator, "pair": pair, "left": left, "until": now})
            seen = self.showing(annotator, pair)
            assert seen
            self._put(db, annotator, seen, ballot, (left, seconds, None, now, assignment))
        return True

    def _put(
        self, db: sqlite3.Connection, me: int, seen: Showing, said: Ballot, rest: tuple[object, ...]
    ) -> None:
        choices = (said.helpful, said.honest, said.harmless, said.note)
        vote = db.execute(_CAST, (me, seen.pair.id, *choices, *rest)).lastrowid
        db.execute(
            "UPDATE showings SET vote = ?, skipped = 0, opened_at = NULL WHERE annotator = ? AND pair = ?",
            (vote, me, seen.pair.id),
        )
        if not seen.vote:
            db.execute("UPDATE pairs SET votes = votes + 1 WHERE id = ?", (seen.pair.id,))

    def skip(self, annotator: int, pair: int) -> None:
        """Leaves a pair to others; a vote on it stays."""
        with self._commit() as db:
            db.execute(
                "UPDATE showings SET skipped = vote IS NULL, opened_at = NULL, kept_until = 0 "
                "WHERE annotator = ? AND pair = ?",
                (annotator, pair),
            )

    def unskip(self, annotator: int) -> None:
        """The person wants to see again what they skipped."""
        with self._commit() as db:
            db.execute("UPDATE showings SET skipped = 0 WHERE annotator = ?", (annotator,))

    def progress(self, annotator: int) -> VotingProgress:
        study = self.study
        values = {"me": annotator, "wanted": study.wanted if study else 0}
        done, skipped, still = self._db.execute(_PROGRESS, values).fetchone()
        return VotingProgress(done, still, skipped)

    @contextmanager
    def _commit(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when it ends. SQLite's errors are mapped here."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            full = getattr(error, "sqlite_errorcode", 0) & 0xFF in (_IOERR, _FULL)
            kind = DiskFull if full else StorageError
            raise kind(f"cannot write {self._path} ({error}); what was stored before is safe") from error


def name_key(name: str) -> str:
    """Equal for what people would call the same name."""
    return tidy(name).casefold()
