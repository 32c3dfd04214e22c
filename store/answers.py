"""Keeps the answers of many files on disk and finds, for each prompt, what every model said to it.

Files of millions of rows are joined in a private temporary SQLite database (SQLITE_TMPDIR or
TMPDIR says where), so that memory stays flat. Answers in Alpaca's shape are joined on
instruction and input, `{id, text}` and FastChat's `{question_id, text}` on the id. A `prediction`
(Self-Instruct's files) is the answer, and what stands beside it the reference. An empty answer is an
answer, and a number is its text. Where a prompt stands several times in a file, its n-th answer belongs
to the n-th answer of the other files. Knows nothing of orders, judges or scores.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from store.errors import PoolError, StorageError, UsageError
from store.pool import Pool, as_instruction
from store.records import BadRow, Instruction, columns_of, kind_of, missing, text_of

SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
CACHE_KIB = 32 * 1024
AT_ONCE = 256  # rows

_SCHEMA = f"""
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KIB};
CREATE TABLE answers (file INTEGER, line INTEGER, key BLOB, nth INTEGER, text TEXT,
    id TEXT, prompt TEXT, input TEXT, category TEXT);
CREATE TABLE questions (file INTEGER, line INTEGER, by_id BLOB, nth_id INTEGER,
    key BLOB, nth INTEGER, id TEXT, prompt TEXT, input TEXT, category TEXT);
CREATE TABLE bad (line INTEGER, reason TEXT);
BEGIN;
"""
# The n-th of several rows with one key in one file, from 0. Rows come in with 0, as most are alone.
_NUMBER = """
CREATE INDEX alike ON {table} ({key}, file);
UPDATE {table} SET {nth} = n FROM (
    SELECT rowid AS at, row_number() OVER (PARTITION BY {key}, file ORDER BY rowid) - 1 AS n FROM {table}
) WHERE {table}.rowid = at AND n > 0;
DROP INDEX alike;
"""
_KEYS = (("answers", "key", "nth"), ("questions", "key", "nth"), ("questions", "by_id", "nth_id"))
_INDEXES = """
CREATE INDEX answer_keys ON answers (key, nth, file);
CREATE INDEX question_ids ON questions (by_id, nth_id);
CREATE INDEX question_keys ON questions (key, nth);
"""
_PROMPTS_OF_QUESTIONS = "CREATE TEMP VIEW prompts AS SELECT rowid AS at, * FROM questions"
# Where no questions are given, each prompt is asked as the first file that holds it has it.
_PROMPTS_OF_ANSWERS = """
CREATE TEMP VIEW prompts AS
SELECT rowid AS at, file, line, NULL AS by_id, NULL AS nth_id, key, nth, id, prompt, input, category
FROM answers a WHERE file = 0 OR NOT EXISTS (
    SELECT 1 FROM answers b WHERE b.key = a.key AND b.nth = a.nth AND b.file < a.file)
"""
_PROMPTS = """
SELECT file, line, by_id, nth_id, key, nth, id, prompt, input, category FROM prompts ORDER BY at
"""
_ANSWERS = "SELECT file, text FROM answers WHERE key = ? AND nth = ?"
_STRAY = """
SELECT file, count(*), min(line) FROM answers a
WHERE NOT EXISTS (SELECT 1 FROM questions q WHERE q.by_id = a.key AND q.nth_id = a.nth)
AND NOT EXISTS (SELECT 1 FROM questions q WHERE q.key = a.key AND q.nth = a.nth) GROUP BY file
"""

Head = tuple[str | None, str | None, str | None, str | None]  # id, instruction, input, category
NO_HEAD: Head = (None, None, None, None)  # the questions tell


@dataclass(frozen=True, slots=True)
class PromptAnswers:
    """A prompt and what was answered to it: a file's place in the user's order -> its answer."""

    id: str
    prompt: str
    input: str
    category: str
    answers: dict[int, str]
    where: str
    line: int


class Answers:
    """The answers of several files, joined. They are read when the first row is asked for, once.

    Raises UsageError for names that do not tell the models apart, PoolError for unusable files.
    """

    def __init__(
        self,
        files: Sequence[Path | str],
        names: Sequence[str] | None,
        questions: Path | str | None,
        by_id: bool = False,
    ) -> None:
        """`by_id`: answers that name their prompt by id alone are kept without questions, for `said`."""
        self._by_id = by_id or questions is not None
        self.names = model_names(files, names)
        self._files = [Pool(file) for file in files]
        self._questions = Pool(questions) if questions is not None else None
        pools = [*([self._questions] if self._questions else []), *self._files]
        if sum(pool.source == "-" for pool in pools) > 1:
            raise UsageError("standard input ('-') is named twice; it can be read only once")
        self.source = ", ".join(pool.source for pool in pools)
        self.is_stream = any(pool.is_stream for pool in pools)
        self.total = 0
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None

    def bad_rows(self) -> Iterator[BadRow]:
        """What could not be read; the reason names the file, the line is that file's."""
        for line, reason in self._joined().execute("SELECT line, reason FROM bad ORDER BY rowid"):
            yield BadRow(line, reason)

    def __iter__(self) -> Iterator[PromptAnswers]:
        """Every prompt, in the order of the questions or of the files. Some may have no answer."""
        db = self._joined()
        for file, line, by_id, nth_id, key, nth, id, prompt, input, category in db.execute(_PROMPTS):
            said = dict(db.execute(_ANSWERS, (key, nth)).fetchall())
            if by_id is not None:
                said |= dict(db.execute(_ANSWERS, (by_id, nth_id)).fetchall())
            pool = self._files[file] if file >= 0 else self._questions
            where = pool.source if pool else ""
            yield PromptAnswers(id, prompt, input, category, dict(sorted(said.items())), where, line)

    def said(self, item: Instruction) -> dict[int, str]:
        """What the files say to one prompt, by its words or else by its id."""
        db = self._joined()
        said = dict(db.execute(_ANSWERS, (_id_key(item.id), 0)).fetchall())
        return said | dict(db.execute(_ANSWERS, (_prompt_key(item), 0)).fetchall())

    def _joined(self) -> sqlite3.Connection:
        with self._lock:
            if self._db is None:
                try:
                    self._db = self._load()
                except sqlite3.Error as error:
                    why = f"joining the answers on disk failed: {error}; TMPDIR says where it is done"
                    raise StorageError(why) from error
            return self._db

    def _load(self) -> sqlite3.Connection:
        db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        db.executescript(_SCHEMA)
        if self._questions:
            _load_questions(db, self._questions)
        for file, pool in enumerate(self._files):
            _load_answers(db, file, pool, has_questions=self._by_id)
        db.execute("COMMIT")
        for table, key, nth in _KEYS:
            db.executescript(_NUMBER.format(table=table, key=key, nth=nth))
        db.executescript(_INDEXES + (_PROMPTS_OF_QUESTIONS if self._questions else _PROMPTS_OF_ANSWERS))
        for file, count, line in db.execute(_STRAY).fetchall() if self._questions else ():
            what = "the answer belongs" if count == 1 else f"{count:,} answers, this the first, belong"
            _complain(db, self._files[file], line, f"{what} to none of the questions")
        (self.total,) = db.execute("SELECT count(*) FROM prompts").fetchone()
        return db


def _load_questions(db: sqlite3.Connection, pool: Pool) -> None:
    def rows() -> Iterator[tuple[object, ...]]:
        usable = 0
        for line, row in pool.objects():
            item = row.reason if isinstance(row, BadRow) else as_instruction(row, usable)
            if isinstance(row, BadRow) or isinstance(item, str):
                _complain(db, pool, line, str(item))
                continue
            usable += 1
            yield -1, line, _id_key(item.id), 0, _prompt_key(item), 0, *_head(item, row)

    if not _insert(db, "questions", rows()):
        raise PoolError(f"no usable question in {pool.source}{_last_complaint(db)}")


def _load_answers(db: sqlite3.Connection, file: int, pool: Pool, has_questions: bool) -> None:
    spoken = False

    def rows() -> Iterator[tuple[object, ...]]:
        nonlocal spoken
        usable = 0
        for line, row in pool.objects():
            found = row.reason if isinstance(row, BadRow) else _as_answer(row, usable, has_questions)
            if isinstance(found, str):
                _complain(db, pool, line, found)
                continue
            usable += 1
            key, text, head = found
            spoken = spoken or bool(text.strip())
            yield file, line, key, 0, text, *head

    count = _insert(db, "answers", rows())
    if not spoken:
        why = "every answer is empty" if count else "no usable answer"
        raise PoolError(f"{why} in {pool.source}{_last_complaint(db)}")


def _insert(db: sqlite3.Connection, table: str, rows: Iterator[tuple[object, ...]]) -> int:
    """Inserts all rows, some at a time; returns how many."""
    count = 0
    while batch := list(islice(rows, AT_ONCE)):
        places = ", ".join("?" * len(batch[0]))
        db.executemany(f"INSERT INTO {table} VALUES ({places})", batch)
        count += len(batch)
    return count


def _as_answer(row: dict[str, Any], position: int, has_questions: bool) -> tuple[bytes, str, Head] | str:
    """(key, answer, what it answers) of a row, or what is wrong with it."""
    if row.get("instruction") is not None:  # Alpaca's shape
        item = as_instruction(row, position)
        if isinstance(item, str):
            return item
        given = row.get("prediction", row.get("output", item.output or None))
        if (text := text_of(given)) is None:
            name = "prediction" if "prediction" in row else "output"
            if given is None and name == "output":
                return f"no answer: {missing(row, name)}"
            return f"no answer: `{name}` is {kind_of(given)}, not text"
        return _prompt_key(item), text, NO_HEAD if has_questions else _head(item, row)
    named = row.get("question_id") if row.get("question_id") is not None else row.get("id")
    if named is None or "text" not in row:
        return f"no answer: neither `instruction` and `output` nor `id` and `text`; {columns_of(row)}"
    if (text := text_of(row["text"])) is None:
        return f"no answer: `text` is {kind_of(row['text'])}, not text"
    if not has_questions:
        return "it has only an id, so the questions must be given (--questions)"
    return _id_key(identity(named)), text, NO_HEAD


def model_names(files: Sequence[Path | str], names: Sequence[str] | None) -> list[str]:
    """What the models are called: the names given, else the files' stems. Raises UsageError."""
    if names and len(names) != len(files):
        raise UsageError(
            f"{len(names)} names for {len(files)} files; give --name once for each, in order "
            f"({', '.join(map(str, files))})"
        )
    found = list(names) if names else [stem(Path(file).name) for file in files]
    for name in found:
        if found.count(name) > 1:
            raise UsageError(f"two models are called {name!r}; tell them apart with --name for each file")
    return found


def stem(name: str) -> str:
    """What a model is called by the file of its answers: the name without the endings of its form."""
    name = name.removesuffix(".gz")
    return next((name[: -len(end)] for end in SUFFIXES if name.lower().endswith(end)), name)


def _head(item: Instruction, row: dict[str, Any]) -> Head:
    category = row.get("category")
    return item.id, item.instruction, item.input, category if isinstance(category, str) else ""


def identity(value: object) -> str:
    """Tables give whole numbers back as 7.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _id_key(identity: str) -> bytes:
    return _digest("id", identity.strip())


def _prompt_key(item: Instruction) -> bytes:
    return _digest("prompt", item.instruction.strip(), item.input.strip())


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(errors="replace"), digest_size=16).digest()


def _complain(db: sqlite3.Connection, pool: Pool, line: int, reason: str) -> None:
    db.execute("INSERT INTO bad VALUES (?, ?)", (line, f"{pool.source}: {reason}"))


def _last_complaint(db: sqlite3.Connection) -> str:
    row = db.execute("SELECT line, reason FROM bad ORDER BY rowid DESC LIMIT 1").fetchone()
    return f"; line {row[0]} of {row[1]}" if row else ""
