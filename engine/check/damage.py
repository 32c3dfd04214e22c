"""Which replies, rows and requests of a ledger are damaged. SQLite can read the file (integrity.py).

A reply is checked against its checksum, an older one by reading it. A row is checked by asking it again
in thought: its request's key is a hash of what was sent, so row, key and the link between them are right
together, or the key shows which of them is wrong. What is found is noted in temporary tables, on disk, for
`mend` and `told`.
"""

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import orjson

from engine.collect.plan import Plan, plan_of, settings_in
from engine.provider.responses import answer_of
from engine.provider.tokens import Tokenizer
from store.errors import is_intact
from store.records import OUTCOMES, UNUSABLE
from store.schema import STAGE_SHIFT

PAGE = 1000
NEAR = 64  # bits of 256: keys of two rows differ in about 128, a damaged key from itself in a few
STRAY = 1000  # numbers of requests beyond twice their count and this are damaged
SLACK = 16  # so many numbers at the end may be of lost requests that nothing names
MOST_FIGURE = 10**12
STORED = (*OUTCOMES, "malformed", "unparsed")

NOTES = """\
CREATE TEMP TABLE bad_replies (response INTEGER PRIMARY KEY, why TEXT NOT NULL);
CREATE TEMP TABLE bad_requests (request INTEGER PRIMARY KEY, why TEXT NOT NULL);
CREATE TEMP TABLE lost_requests (request INTEGER PRIMARY KEY, sample INTEGER, key BLOB);
CREATE TEMP TABLE bad_keys (request INTEGER PRIMARY KEY, key BLOB);
CREATE TEMP TABLE bad_rows (
  stage INTEGER, position INTEGER, why TEXT NOT NULL, PRIMARY KEY (stage, position)) WITHOUT ROWID;
CREATE TEMP TABLE mends (request INTEGER PRIMARY KEY, response INTEGER NOT NULL);
CREATE TEMP TABLE orphans (response INTEGER PRIMARY KEY, request INTEGER NOT NULL);
CREATE TEMP TABLE figureless (response INTEGER PRIMARY KEY);
CREATE TEMP TABLE misplaced (response INTEGER PRIMARY KEY, request INTEGER NOT NULL);
"""
_REPLIES = """
SELECT p.id, p.outcome, CAST(b.raw AS BLOB), typeof(b.raw), b.checksum
FROM responses p LEFT JOIN bodies b ON b.response = p.id WHERE p.id > ? ORDER BY p.id LIMIT ?
"""
_FIGURES = f"""
INSERT INTO figureless SELECT id FROM responses WHERE NOT (
  prompt_tokens BETWEEN 0 AND {MOST_FIGURE} AND completion_tokens BETWEEN 0 AND {MOST_FIGURE}
  AND cached_tokens BETWEEN 0 AND {MOST_FIGURE} AND reasoning_tokens BETWEEN 0 AND {MOST_FIGURE}
  AND cost_micro BETWEEN 0 AND {MOST_FIGURE} AND latency BETWEEN 0 AND 1e9)
"""
# Replies that name another request than their attempt and the request itself do.
_MISPLACED = """
INSERT INTO misplaced SELECT p.id, t.request FROM responses p JOIN attempts t ON t.id = p.attempt
JOIN requests r ON r.id = t.request AND r.answer = p.id WHERE p.request <> t.request
"""
_ANSWERS = (
    # the reply that counts is damaged, is not there, or is another request's
    "INSERT OR IGNORE INTO bad_requests SELECT r.id, x.why FROM temp.bad_replies x "
    "JOIN responses p ON p.id = x.response JOIN requests r ON r.id = p.request AND r.answer = p.id",
    "INSERT OR IGNORE INTO bad_requests SELECT r.id, 'its reply is missing' FROM requests r "
    "LEFT JOIN responses p ON p.id = r.answer "
    "WHERE r.answer IS NOT NULL AND (p.id IS NULL OR p.request <> r.id) "
    "AND NOT EXISTS (SELECT 1 FROM temp.misplaced x WHERE x.response = r.answer AND x.request = r.id)",
    "INSERT OR IGNORE INTO bad_requests SELECT r.id, 'its reply is not an answer' FROM responses p "
    "JOIN requests r ON r.id = p.request AND r.answer = p.id WHERE p.outcome IN ('malformed', 'unparsed')",
    "INSERT OR IGNORE INTO bad_requests SELECT r.id, 'the error that ended it is missing' FROM requests r "
    "LEFT JOIN errors e ON e.id = r.failure WHERE r.answer IS NULL AND r.failure IS NOT NULL "
    "AND (e.id IS NULL OR e.request <> r.id)",
)
_LOST = """
INSERT OR IGNORE INTO lost_requests (request, sample)
SELECT s.request, s.sample FROM samples s WHERE s.request BETWEEN 1 AND :most
  AND NOT EXISTS (SELECT 1 FROM requests r WHERE r.id = s.request)
UNION ALL SELECT p.request, NULL FROM responses p WHERE p.request BETWEEN 1 AND :most
  AND NOT EXISTS (SELECT 1 FROM requests r WHERE r.id = p.request)
"""
_PLACES = (
    "INSERT OR IGNORE INTO bad_rows SELECT s.stage, s.position, 'its text is missing' FROM samples s "
    f"WHERE NOT EXISTS (SELECT 1 FROM rows w WHERE w.id = (s.stage << {STAGE_SHIFT}) + s.position)",
    "INSERT OR IGNORE INTO bad_rows SELECT s.stage, s.position, 'its request is missing' FROM samples s "
    "WHERE s.request NOT BETWEEN 1 AND :most",
    f"INSERT OR IGNORE INTO bad_rows SELECT w.id >> {STAGE_SHIFT}, w.id & ((1 << {STAGE_SHIFT}) - 1), "
    "'its requests are missing' FROM rows w "
    f"WHERE NOT EXISTS (SELECT 1 FROM samples s WHERE s.stage = w.id >> {STAGE_SHIFT} "
    f"AND s.position = w.id & ((1 << {STAGE_SHIFT}) - 1))",
)
_ORPHANS = """
SELECT r.id, b.response, CAST(b.raw AS BLOB), b.checksum
FROM requests r JOIN bodies b ON b.response = r.answer
WHERE NOT EXISTS (SELECT 1 FROM responses p WHERE p.id = r.answer)
"""
# A run with fewer samples leaves those beyond as an earlier one had them, until it has come to its end.
_SAMPLES = """
SELECT a.position, a.sample, a.request, r.key
FROM samples a JOIN stages s ON s.id = a.stage LEFT JOIN requests r ON r.id = a.request
WHERE a.stage = ? AND a.position BETWEEN ? AND ? AND a.sample < s.samples ORDER BY a.position, a.sample
"""
_MENDS = f"""
INSERT INTO mends SELECT p.request, max(p.id) FROM responses p JOIN bodies b ON b.response = p.id
WHERE p.outcome IN ({", ".join(repr(outcome) for outcome in OUTCOMES if outcome not in UNUSABLE)})
  AND p.id NOT IN (SELECT response FROM temp.bad_replies)
  AND p.request IN (SELECT request FROM temp.bad_requests UNION SELECT request FROM temp.lost_requests)
GROUP BY p.request
"""


@dataclass
class Findings:
    """What the notes do not hold: rows that could be checked by their keys, and those of which neither key
    nor settings tell anything, by stage; the highest number that a request can have."""

    replies: int = 0
    rows: int = 0
    unverified: dict[str, int] = field(default_factory=dict)
    most_request: int = 0


def find(connection: sqlite3.Connection) -> Findings:
    """Looks at all of a ledger and leaves its notes in the connection's temporary tables, in the place of
    earlier ones."""
    for sql in NOTES.split(";\n"):  # not as a script, which would end the transaction
        if sql.startswith("CREATE TEMP TABLE "):
            connection.execute(f"DROP TABLE IF EXISTS temp.{sql.split()[3]}")
        connection.execute(sql)
    found = Findings()
    last = 0
    while some := connection.execute(_REPLIES, (last, PAGE)).fetchall():
        last, found.replies = some[-1][0], found.replies + len(some)
        bad = [(number, why) for number, *reply in some if (why := why_damaged(*reply))]
        connection.executemany("INSERT INTO bad_replies VALUES (?, ?)", bad)
    connection.execute(_FIGURES)
    connection.execute(_MISPLACED)
    for sql in _ANSWERS:
        connection.execute(sql)
    # requests that rows or replies name and that are missing; a number beyond `most` is damaged
    (count,) = connection.execute("SELECT count(*) FROM requests").fetchone()
    most = 2 * count + STRAY
    connection.execute(_LOST, {"most": most})
    (top,) = connection.execute("SELECT ifnull(max(id), 0) FROM requests WHERE id <= ?", (most,)).fetchone()
    beyond_top = "SELECT count(*) FROM temp.lost_requests WHERE request > ?"
    (beyond,) = connection.execute(beyond_top, (top,)).fetchone()
    found.most_request = most = int(top + (beyond + SLACK if beyond else 0))
    connection.execute("DELETE FROM temp.lost_requests WHERE request > ?", (most,))
    for sql in _PLACES:
        connection.execute(sql, {"most": most} if ":most" in sql else {})
    for stage, name in connection.execute("SELECT id, name FROM stages ORDER BY id").fetchall():
        _note_rows(connection, stage, str(name), found)
    for request, response, raw, checksum in connection.execute(_ORPHANS).fetchall():
        if why_damaged("stop", raw, "text", checksum) is None:
            connection.execute("INSERT OR IGNORE INTO orphans VALUES (?, ?)", (response, request))
    connection.execute(_MENDS)
    return found


def why_damaged(outcome: str, raw: bytes | None, kind: str, checksum: int | None) -> str | None:
    """What is wrong with a stored reply, or None. Replies of older versions have no checksum: they must
    be texts, and those that are answers must be readable. kind: of the body, as SQLite names it."""
    if raw is None:
        return "its body is missing"
    if outcome not in STORED:
        return "its outcome cannot be read"
    if checksum is not None:
        return None if zlib.crc32(raw) == checksum else "its checksum differs"
    try:
        if kind == "text":
            raw.decode()
        if outcome != "malformed":
            answer_of(raw)
    except Exception as error:  # whatever a reader makes of bytes that are no reply any more
        return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "it cannot be read"
    return None


def plans_of(connection: sqlite3.Connection, stage: int) -> dict[int, Plan]:
    """Every way in which the runs of a stage made requests, by fingerprint. Settings that cannot be read
    are passed over."""
    plans: dict[int, Plan] = {}
    rows = connection.execute("SELECT settings FROM runs WHERE stage = ? ORDER BY id DESC", (stage,))
    for (text,) in rows.fetchall():
        if (found := settings_in(text)) is not None:
            settings, params = found
            plan = plan_of(settings, cast(Tokenizer, None), params)  # nothing is counted here
            plans.setdefault(plan.fingerprint, plan)
    return plans


def _note_rows(connection: sqlite3.Connection, stage: int, name: str, found: Findings) -> None:
    """Rows of a stage: their texts, and their keys."""
    plans = plans_of(connection, stage)
    checked = unverified = 0
    for position, item, plan_id, checksum, samples in _rows(connection, stage):
        found.rows += 1
        plan = plans.get(plan_id)
        known = plan or next(iter(plans.values()), None)
        keys: Sequence[bytes] = ()  # that its requests must have
        try:
            if not is_intact(item, checksum):
                raise ValueError("its checksum differs")
            given = orjson.loads(item)
            if known is not None:
                most = min(max((sample for sample, _, _ in samples), default=0) + 1, PAGE)
                keys = replace(known, samples=most).seal(known.task.decode(given))[2]
            elif not isinstance(given["instruction"], str):
                raise ValueError("a row without an instruction")
        except Exception:  # of a text that is no row any more
            _note_row(connection, stage, position, "its text is damaged")
            continue
        if plan is None:
            unverified += checksum is None
            continue
        checked += 1
        for number, request, key in samples:
            right = keys[number] if 0 <= number < len(keys) else None
            if key == right:
                continue
            if key is None and right is not None:  # the request is lost, and the row tells its key
                connection.execute(
                    "UPDATE lost_requests SET key = ?, sample = ? WHERE request = ?", (right, number, request)
                )
            elif key and right and (int.from_bytes(key) ^ int.from_bytes(right)).bit_count() < NEAR:
                connection.execute("INSERT OR IGNORE INTO bad_keys VALUES (?, ?)", (request, right))
            else:
                _note_row(connection, stage, position, OTHER)
    (wrong,) = connection.execute(
        "SELECT count(*) FROM temp.bad_rows WHERE stage = ? AND why = ?", (stage, OTHER)
    ).fetchone()
    if wrong > 3 and 2 * wrong > checked:  # this is not damage: keys were made in another way
        connection.execute("DELETE FROM temp.bad_rows WHERE stage = ? AND why = ?", (stage, OTHER))
        unverified += checked
    if unverified:
        found.unverified[name] = unverified


OTHER = "it is not the row that was asked"
Samples = Sequence[tuple[int, int, bytes | None]]  # sample, request, its key


def _rows(
    connection: sqlite3.Connection, stage: int
) -> Iterator[tuple[int, bytes, int, int | None, Samples]]:
    """(position, item, plan, checksum, samples) of each row."""
    base, last = stage << STAGE_SHIFT, -1
    while some := connection.execute(
        "SELECT id - ?, CAST(item AS BLOB), plan, checksum FROM rows WHERE id > ? AND id < ? "
        "ORDER BY id LIMIT ?",
        (base, base + last, base + (1 << STAGE_SHIFT), PAGE),
    ).fetchall():
        first, last = some[0][0], some[-1][0]
        placed: dict[int, list[tuple[int, int, bytes | None]]] = {}
        for position, *sample in connection.execute(_SAMPLES, (stage, first, last)):
            placed.setdefault(position, []).append((sample[0], sample[1], sample[2]))
        for position, item, plan, checksum in some:
            yield position, item, plan, checksum, placed.get(position, [])


def _note_row(connection: sqlite3.Connection, stage: int, position: int, why: str) -> None:
    connection.execute("INSERT OR IGNORE INTO bad_rows VALUES (?, ?, ?)", (stage, position, why))
