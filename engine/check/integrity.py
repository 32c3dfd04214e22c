"""Can SQLite read the ledger, do its columns hold what they should, and do its accounts add up?

A file that SQLite cannot read is salvaged page by page first. An account may hold more than its replies
show if replies are lost: that money was spent anyway. The rows of a stage carry a fingerprint of all that
decided their requests, so that a wrong bit in a run's settings can be found by trying.
"""

import contextlib
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from engine.collect.plan import plan_of, settings_in
from engine.provider.tokens import Tokenizer
from store.costs import billed_by_hand
from store.files import LEDGER
from store.salvage import shapes_of
from store.schema import STAGE_SHIFT, VERSION, migrate
from store.sqlite_pages import Pages

MOST_TOLD = 20
STEPS = 100_000  # of SQLite's machine, between two looks at the clock
MAGIC = b"SQLite format 3\0"
FIXED = {  # bytes of the header that are the same in every ledger: first, last + 1, what they are
    (18, 19): (b"\1", b"\2"), (19, 20): (b"\1", b"\2"),
    (20, 24): (b"\0\x40\x20\x20",), (44, 48): (b"\0\0\0\4",), (52, 60): (b"\0\0\0\0\0\0\0\1",),
    (64, 68): (b"\0\0\0\0",), (72, 92): (bytes(20),),
}  # fmt: skip
_TYPES = {
    "INTEGER": ("integer",), "REAL": ("real", "integer"), "TEXT": ("text",), "BLOB": ("blob",),
    "": ("text", "blob"),
}  # fmt: skip


def faults_of(run: Path, seconds: float | None = None) -> list[str]:
    """What makes the file unreadable in part or whole; empty for one that SQLite can work with. Reads all
    of it, unless `seconds` are not enough for that: then what was found until then."""
    path = run / LEDGER
    # SQLite believes most of the first 100 bytes, and would read texts in another encoding
    with Pages(path) as pages:
        head = pages.page(1)[:100] if pages.count else b""
    if not head.startswith(MAGIC):
        return ["its header is not that of an SQLite file"]
    if wrong := [str(a) for (a, b), right in FIXED.items() if head[a:b] not in right]:
        return [f"its header is damaged (byte {', '.join(wrong)})"]
    end = time.monotonic() + seconds if seconds is not None else math.inf
    try:
        # read-only, whatever version it says it is
        uri = f"{path.resolve().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            connection.execute("PRAGMA busy_timeout = 5000")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:  # a disk that is read-only: nobody can be writing
            connection.close()
            connection = sqlite3.connect(
                uri.replace("mode=ro", "immutable=1"), uri=True, isolation_level=None
            )
        connection.text_factory = lambda text: text.decode(errors="replace")
        with contextlib.closing(connection):
            connection.set_progress_handler(lambda: time.monotonic() > end, STEPS)
            if found := _schema(connection):
                return found
            check = connection.execute(f"PRAGMA integrity_check({MOST_TOLD})")
            found = [str(words) for (words,) in check]
            return found if found != ["ok"] else list(_types(connection))
    except UnicodeDecodeError:  # SQLite quotes the schema
        return ["its schema is damaged"]
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
            return []
        return [f"SQLite cannot read it: {error}"]


def faults_of_log(run: Path) -> list[str]:
    """The write-ahead log that a killed process has left. To be asked before anybody opens the ledger, for
    SQLite drops what follows the damage, and says nothing."""
    with Pages(run / LEDGER) as pages:
        return ["its write-ahead log is damaged"] if pages.is_log_damaged else []


def _schema(connection: sqlite3.Connection) -> list[str]:
    """Tables and views against those of a new ledger."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != VERSION:
        return [f"its version is {version}, which is not possible: expected {VERSION}"]
    with contextlib.closing(sqlite3.connect("")) as new:
        migrate(new)
        wanted = {shape.table: shape for shape in shapes_of(new)}
        views = [name for (name,) in new.execute("SELECT name FROM sqlite_master WHERE type = 'view'")]
    there = {shape.table: shape for shape in shapes_of(connection)}
    faults = [
        f"table {name} has an unexpected shape" for name, one in wanted.items() if there.get(name) != one
    ]
    for name in [] if faults else views:
        try:
            connection.execute(f"SELECT * FROM {name} LIMIT 0")
        except sqlite3.Error as error:
            faults.append(f"view {name} cannot be used: {error}")
    return faults


def _types(connection: sqlite3.Connection) -> Iterator[str]:
    """SQLite takes any value in any column; ours hold one kind each."""
    for shape in shapes_of(connection):
        others = []
        for column in shape.columns:
            kinds = _TYPES[column.kind] + (("null",) if column.can_be_null else ())
            others.append(f"typeof({column.name}) NOT IN ({', '.join(map(repr, kinds))})")
        if shape.by_rowid:
            others.append(f"{shape.columns[0].name} < 1")
        wrong = " OR ".join(others)
        (count,) = connection.execute(f"SELECT count(*) FROM {shape.table} WHERE {wrong}").fetchone()
        if count:
            yield f"{count:,} records of table {shape.table} hold values of another kind"


MOST = 10**15  # micro-dollars, tokens; an account beyond this is damaged

# What the replies of each stage add up to, and its attempts and those of them that have ended.
_REPLIES = """
SELECT u.stage, sum(p.cost_micro), sum(p.prompt_tokens), sum(p.completion_tokens) FROM responses p
JOIN attempts t ON t.id = p.attempt JOIN runs u ON u.id = t.run
WHERE p.id NOT IN (SELECT response FROM temp.figureless) GROUP BY 1
"""
_ATTEMPTS = """
SELECT u.stage, count(*), sum(t.id IN (SELECT attempt FROM responses) OR t.id IN (SELECT attempt FROM errors)
  OR t.id IN (SELECT attempt FROM settlements)) FROM attempts t JOIN runs u ON u.id = t.run GROUP BY 1
"""
_LOST = "SELECT ifnull(max(id), 0) - count(*) FROM responses"
# References that nothing else of the check looks at: (what it is, what it names, and where it is named).
LOOSE = (
    ("responses", "attempt", "attempts"), ("errors", "attempt", "attempts"), ("attempts", "run", "runs"),
    ("runs", "stage", "stages"), ("samples", "stage", "stages"), ("enqueued", "attempt", "attempts"),
    ("enqueued", "batch", "batches"), ("batches", "stage", "stages"), ("settlements", "attempt", "attempts"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Account:
    """A row of `spending`: money in micro-dollars."""

    spent: int
    at_risk: int
    prompt_tokens: int
    completion_tokens: int
    sent: int
    ended: int


def wrong_accounts(connection: sqlite3.Connection) -> Iterator[tuple[int, Account]]:
    """Stages whose accounts are damaged or missing, with what they should hold."""
    stored = {
        int(stage): Account(*values)
        for stage, *values in connection.execute(
            "SELECT stage, spent_micro, at_risk_micro, prompt_tokens, completion_tokens, sent, ended "
            "FROM spending"
        )
    }
    replies = {int(stage): values for stage, *values in connection.execute(_REPLIES)}
    attempts = {int(stage): values for stage, *values in connection.execute(_ATTEMPTS)}
    by_hand = billed_by_hand(connection)
    (lost,) = connection.execute(_LOST).fetchone()
    (figureless,) = connection.execute("SELECT count(*) FROM temp.figureless").fetchone()
    may_be_more = bool(lost or figureless)
    for (stage,) in connection.execute("SELECT id FROM stages ORDER BY id").fetchall():
        cost, *tokens = replies.get(stage, (0, 0, 0))
        least = (cost + by_hand.get(stage, 0), *tokens, *attempts.get(stage, (0, 0)))
        # spent, tokens of both kinds, sent, ended, as the ledger's rows show them
        if (has := stored.get(stage)) is None:
            right = Account(least[0], 0, *least[1:])
        else:
            told = (has.spent, has.prompt_tokens, has.completion_tokens, has.sent, has.ended)
            spent, *others = (
                said if may_be_more and shown < said < shown + MOST else shown
                for said, shown in zip(told, least, strict=True)
            )
            right = Account(spent, has.at_risk if 0 <= has.at_risk < MOST else 0, *others)
        if right != (has or Account(0, 0, 0, 0, 0, 0)):
            yield stage, right


def loose_ends(connection: sqlite3.Connection) -> list[tuple[str, str, str, int]]:
    """(table, column, table that it names, how many rows name what is not there)."""
    found = []
    for table, column, named in LOOSE:
        missing = f"NOT EXISTS (SELECT 1 FROM {named} y WHERE y.id = x.{column})"
        (count,) = connection.execute(f"SELECT count(*) FROM {table} x WHERE {missing}").fetchone()
        if count:
            found.append((table, column, named, int(count)))
    return found


MADE_UP = "settings of runs made up from their stage (prompt, system message and parameters are lost)"
MOST_TRIED = 64 << 10  # bytes of settings; a system prompt may be long, but not that long


def is_json(text: str | bytes | bytearray) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except ValueError:
        return False


def mend_settings(
    connection: sqlite3.Connection, log: Callable[[Mapping[str, Any]], None], done: Counter[str]
) -> None:
    """Settings, estimates and utilisations of runs that are not JSON any more."""
    runs = connection.execute("SELECT id, stage, CAST(settings AS BLOB), estimate, utilisation FROM runs")
    for run, stage, raw, *texts in runs.fetchall():
        for name, text in zip(("estimate", "utilisation"), texts, strict=True):
            if text is not None and not is_json(text):
                connection.execute(f"UPDATE runs SET {name} = NULL WHERE id = ?", (run,))
                done["estimates and utilisations dropped"] += 1
        if is_json(raw):
            continue
        log({"what": "settings", "run": run, "was": raw.decode(errors="backslashreplace")})
        if (found := _with_one_bit_right(connection, stage, raw)) is not None:
            done["settings of runs restored"] += 1
        else:  # the least that a stage can be exported with
            sql = "SELECT name, task, samples FROM stages WHERE id = ?"
            told = connection.execute(sql, (stage,)).fetchone()
            name, task, samples = told or (f"stage-{stage}", "generate", 1)
            model = connection.execute(
                "SELECT p.model FROM responses p JOIN attempts t ON t.id = p.attempt JOIN runs u "
                "ON u.id = t.run WHERE u.stage = ? AND p.model <> '' LIMIT 1",
                (stage,),
            ).fetchone()
            least = {"stage": name, "task": task, "samples": max(1, samples)}
            least["model"] = model[0] if model else "unknown"
            found = orjson.dumps(least).decode()
            done[MADE_UP] += 1
        connection.execute("UPDATE runs SET settings = ? WHERE id = ?", (found, run))


def _with_one_bit_right(connection: sqlite3.Connection, stage: int, raw: bytes) -> str | None:
    first, last = stage << STAGE_SHIFT, (stage + 1) << STAGE_SHIFT
    rows = connection.execute("SELECT DISTINCT plan FROM rows WHERE id >= ? AND id < ?", (first, last))
    plans = {plan for (plan,) in rows}
    if not plans or len(raw) > MOST_TRIED:
        return None
    tried = bytearray(raw)
    for place in range(8 * len(raw)):
        tried[place // 8] ^= 1 << place % 8
        if is_json(tried) and (found := settings_in(text := tried.decode())) is not None:
            settings, params = found
            # its tokenizer is None: nothing is counted here
            if plan_of(settings, cast(Tokenizer, None), params).fingerprint in plans:
                return text
        tried[place // 8] ^= 1 << place % 8
    return None
