"""Repairs what `find` has noted: damaged answers are pending again, what belongs together is linked anew.

One transaction. Nothing of use is thrown away: a damaged reply stays, as a malformed one, with the bytes
that are left of it, and what a row, a key or a reference was before goes into the log.
"""

import contextlib
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any

import orjson

from engine.check.damage import Findings
from engine.check.integrity import loose_ends, mend_settings, wrong_accounts
from engine.provider.responses import FILTERED_REPLY, claim_in, read_reply
from store.errors import DistillError
from store.schema import STAGE_SHIFT

Log = Callable[[Mapping[str, Any]], None]

_RUN_OF_ATTEMPT = """
ifnull((SELECT run FROM attempts WHERE id < {0} ORDER BY id DESC LIMIT 1), (SELECT min(id) FROM runs))
"""
_ATTEMPTS_OF_REPLIES = f"""
INSERT OR IGNORE INTO attempts (id, run, request, sent_at, worst_micro)
SELECT p.attempt, {_RUN_OF_ATTEMPT.format("p.attempt")}, p.request, p.received_at - p.latency, 0
FROM responses p WHERE NOT EXISTS (SELECT 1 FROM attempts t WHERE t.id = p.attempt)
"""
_ATTEMPTS_OF_ERRORS = f"""
INSERT OR IGNORE INTO attempts (id, run, request, sent_at, worst_micro)
SELECT e.attempt, {_RUN_OF_ATTEMPT.format("e.attempt")}, e.request, e.at, ifnull(e.at_risk_micro, 0)
FROM errors e WHERE NOT EXISTS (SELECT 1 FROM attempts t WHERE t.id = e.attempt)
"""
_RUN = """
INSERT INTO runs (id, stage, started, pid, settings)
SELECT ?,
  ifnull((SELECT stage FROM runs WHERE id < ? ORDER BY id DESC LIMIT 1), (SELECT min(id) FROM stages)),
  (SELECT min(sent_at) FROM attempts WHERE run = ?), 0, '' WHERE EXISTS (SELECT 1 FROM stages)
"""
# A request that nothing names is never asked; its number is taken, because numbers must have no gaps.
_GAPS = """
WITH RECURSIVE ends AS MATERIALIZED (
  SELECT id + 1 AS first, following FROM (SELECT id, lead(id) OVER (ORDER BY id) AS following
    FROM (SELECT 0 AS id UNION ALL SELECT id FROM requests)) WHERE following > id + 1),
gaps(id, following) AS (
  SELECT first, following FROM ends UNION ALL SELECT id + 1, following FROM gaps WHERE id + 1 < following)
INSERT INTO requests (id, key, sample, prompt_tokens) SELECT id, randomblob(32), 0, 0 FROM gaps
"""
_SPARE = """
CREATE TEMP TABLE spare AS SELECT t.request, max(t.id) AS attempt FROM attempts t
WHERE t.request IN (SELECT request FROM temp.orphans) AND t.id NOT IN (SELECT attempt FROM responses)
GROUP BY t.request
"""
_GIVEN_BACK = """
UPDATE responses SET request = (SELECT x.request FROM temp.misplaced x WHERE x.response = responses.id)
WHERE id IN (SELECT response FROM temp.misplaced)
"""
_REBUILT = """
INSERT INTO responses (id, attempt, request, outcome, finish_reason, model, prompt_tokens, completion_tokens,
  cached_tokens, reasoning_tokens, cost_micro, latency, received_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?)
"""


# Micro-dollars of a stage's account that its replies do not explain, where that can be believed.
_UNEXPLAINED = """
SELECT c.stage, c.spent_micro - ifnull((SELECT sum(p.cost_micro) FROM responses p
  JOIN attempts t ON t.id = p.attempt JOIN runs u ON u.id = t.run WHERE u.stage = c.stage), 0) AS spare
FROM spending c WHERE c.spent_micro < 1000000000000 AND spare > 0 AND NOT EXISTS (SELECT 1 FROM settlements)
"""


def mend(connection: sqlite3.Connection, found: Findings, log: Log) -> Counter[str]:
    """What was done, counted. In the transaction that holds the notes of `find`."""
    done: Counter[str] = Counter()
    _give_parents(connection, done)
    _restore_requests(connection, found, log, done)
    done["replies given back to their requests"] += connection.execute(_GIVEN_BACK).rowcount
    _rebuild_replies(connection, done)
    _set_figures(connection, log, done)
    _set_replies_aside(connection, log, done)
    _link_answers(connection, log, done)
    _clear_rows(connection, log, done)
    mend_settings(connection, log, done)
    for table, column, named, _ in loose_ends(connection):  # what they name cannot be made up
        missing = f"NOT EXISTS (SELECT 1 FROM {named} y WHERE y.id = x.{column})"
        for row in connection.execute(f"SELECT * FROM {table} x WHERE {missing}").fetchall():
            log({"what": f"record of {table}", "was": [v.hex() if isinstance(v, bytes) else v for v in row]})
        done["records dropped that name others which are lost"] += connection.execute(
            f"DELETE FROM {table} AS x WHERE {missing}"
        ).rowcount
    for stage, right in list(wrong_accounts(connection)):
        before = connection.execute("SELECT * FROM spending WHERE stage = ?", (stage,)).fetchone()
        log({"what": "account", "stage": stage, "was": before})
        values = (stage, *astuple(right))
        connection.execute("INSERT OR REPLACE INTO spending VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        done["accounts made up anew"] += 1
    return done


def _give_parents(connection: sqlite3.Connection, done: Counter[str]) -> None:
    """Stages, runs and attempts that others name and that are not there."""
    stages = connection.execute(
        "SELECT stage FROM runs WHERE stage > 0 UNION SELECT DISTINCT stage FROM samples WHERE stage > 0 "
        "EXCEPT SELECT id FROM stages"
    ).fetchall()
    for (stage,) in stages:
        name, task, samples = f"recovered-{stage}", "generate", 1
        settings = connection.execute("SELECT settings FROM runs WHERE stage = ? ORDER BY id DESC", (stage,))
        for (text,) in settings.fetchall():
            with contextlib.suppress(ValueError, TypeError, LookupError):
                told = orjson.loads(text)
                name, task, samples = str(told["stage"]), str(told["task"]), int(told["samples"])
                break
        there = connection.execute("SELECT id FROM stages WHERE name = ?", (name,)).fetchone()
        sql = "SELECT 1 FROM samples WHERE stage = ? LIMIT 1"
        if there and not connection.execute(sql, there).fetchone():  # its number was damaged
            connection.execute("UPDATE stages SET id = ? WHERE id = ?", (stage, there[0]))
        else:
            new = (stage, f"recovered-{stage}" if there else name, task, samples)
            connection.execute("INSERT INTO stages (id, name, task, samples) VALUES (?, ?, ?, ?)", new)
    runs = connection.execute("SELECT DISTINCT run FROM attempts WHERE run > 0 EXCEPT SELECT id FROM runs")
    added = [run for (run,) in runs.fetchall()]
    connection.executemany(_RUN, [(run, run, run) for run in added])
    count = len(stages) + len(added)
    if connection.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
        count += connection.execute(_ATTEMPTS_OF_REPLIES).rowcount
        count += connection.execute(_ATTEMPTS_OF_ERRORS).rowcount
    done["records made up from others that name them"] += count


def _restore_requests(connection: sqlite3.Connection, found: Findings, log: Log, done: Counter[str]) -> None:
    """Numbers without a gap, each with the key of what was sent. A key that nobody knows becomes one that
    no request has, so that its answer is kept where its row has it."""
    for request, key in connection.execute(
        "SELECT r.id, r.key FROM requests r WHERE r.id > ?", (found.most_request,)
    ).fetchall():
        log({"what": "stray request", "request": request, "key": key.hex()})
    connection.execute("DELETE FROM requests WHERE id > ?", (found.most_request,))
    done["requests made up from rows and replies"] += connection.execute(
        "INSERT OR IGNORE INTO requests (id, key, sample, prompt_tokens) SELECT l.request, "
        "ifnull(l.key, randomblob(32)), ifnull(l.sample, 0), "
        "ifnull((SELECT p.prompt_tokens FROM temp.mends m JOIN responses p ON p.id = m.response "
        "WHERE m.request = l.request), 0) FROM temp.lost_requests l"
    ).rowcount
    connection.execute(_GAPS)
    for request, was, right in connection.execute(
        "SELECT r.id, r.key, k.key FROM temp.bad_keys k JOIN requests r ON r.id = k.request"
    ).fetchall():
        log({"what": "key", "request": request, "was": was.hex(), "is": right.hex()})
        connection.execute("UPDATE requests SET key = ? WHERE id = ?", (right, request))
        done["keys restored"] += 1


def _rebuild_replies(connection: sqlite3.Connection, done: Counter[str]) -> None:
    """Bodies that are intact and whose other half is lost: it is read from them again."""
    connection.execute("DROP TABLE IF EXISTS temp.spare")
    connection.execute(_SPARE)
    rows = connection.execute(
        "SELECT o.response, o.request, s.attempt, CAST(b.raw AS BLOB) FROM temp.orphans o "
        "JOIN bodies b ON b.response = o.response LEFT JOIN temp.spare s ON s.request = o.request"
    ).fetchall()
    for response, request, attempt, raw in rows:
        claim, reply = claim_in(raw), FILTERED_REPLY  # an answer's body may be a filter's refusal
        with contextlib.suppress(DistillError):
            reply = read_reply(raw)
        tokens = (claim.prompt or 0, claim.completion or 0, claim.cached, claim.reasoning)
        if attempt is None:
            attempt = connection.execute(
                "INSERT INTO attempts (run, request, sent_at, worst_micro) SELECT max(id), ?, 0, 0 FROM runs",
                (request,),
            ).lastrowid
        at = connection.execute("SELECT sent_at FROM attempts WHERE id = ?", (attempt,)).fetchone()[0]
        connection.execute(
            _REBUILT,
            (response, attempt, request, reply.outcome, reply.finish_reason, reply.model, *tokens, at),
        )
        connection.execute("INSERT OR IGNORE INTO figureless VALUES (?)", (response,))
        done["replies made up from their bodies"] += 1


def _set_figures(connection: sqlite3.Connection, log: Log, done: Counter[str]) -> None:
    """Tokens from the bodies; the cost is what their stage's account has beyond its other replies."""
    rows = connection.execute(
        "SELECT p.*, CAST(b.raw AS BLOB) FROM temp.figureless f JOIN responses p ON p.id = f.response "
        "LEFT JOIN bodies b ON b.response = p.id"
    ).fetchall()
    for response, *was, raw in rows:
        claim = claim_in(raw or b"")
        log({"what": "figures", "response": response, "was": was})
        connection.execute(
            "UPDATE responses SET prompt_tokens = ?, completion_tokens = ?, cached_tokens = ?, "
            "reasoning_tokens = ?, cost_micro = ?, latency = 0 WHERE id = ?",
            (claim.prompt or 0, claim.completion or 0, claim.cached, claim.reasoning, 0, response),
        )
    for stage, spare in connection.execute(_UNEXPLAINED).fetchall():
        of_stage = connection.execute(
            "SELECT p.id FROM temp.figureless f JOIN responses p ON p.id = f.response JOIN attempts t "
            "ON t.id = p.attempt JOIN runs u ON u.id = t.run WHERE u.stage = ? ORDER BY p.id",
            (stage,),
        ).fetchall()
        for number, (response,) in enumerate(of_stage):
            cost = spare // len(of_stage) + (number < spare % len(of_stage))
            connection.execute("UPDATE responses SET cost_micro = ? WHERE id = ?", (cost, response))
    connection.execute("DELETE FROM temp.figureless")
    if rows:
        done["figures read from bodies"] += len(rows)


def _set_replies_aside(connection: sqlite3.Connection, log: Log, done: Counter[str]) -> None:
    """What is left of a damaged reply is kept as a malformed one, with a checksum of what is left."""
    rows = connection.execute(
        "SELECT x.response, x.why, p.outcome, typeof(b.raw) FROM temp.bad_replies x "
        "JOIN responses p ON p.id = x.response LEFT JOIN bodies b ON b.response = x.response"
    )
    for response, why, outcome, kind in rows.fetchall():
        log({"what": "reply", "response": response, "why": why, "outcome": outcome})
        connection.execute("UPDATE responses SET outcome = 'malformed' WHERE id = ?", (response,))
        if kind == "null":
            connection.execute("INSERT INTO bodies (response, raw, checksum) VALUES (?, x'', 0)", (response,))
        else:
            sql = "SELECT CAST(raw AS BLOB) FROM bodies WHERE response = ?"
            (raw,) = connection.execute(sql, (response,)).fetchone()
            kept: str | bytes = raw
            with contextlib.suppress(UnicodeDecodeError):
                kept = raw.decode()
            connection.execute(
                "UPDATE bodies SET raw = ?, checksum = ?, text = NULL, reasoning = NULL WHERE response = ?",
                (kept, zlib.crc32(raw), response),
            )
        done["damaged replies kept as malformed ones"] += 1


def _link_answers(connection: sqlite3.Connection, log: Log, done: Counter[str]) -> None:
    rows = connection.execute(
        "SELECT x.request, x.why, r.answer, r.failure FROM temp.bad_requests x "
        "JOIN requests r ON r.id = x.request"
    )
    for request, why, answer, failure in rows.fetchall():
        log({"what": "request", "request": request, "why": why, "answer": answer, "failure": failure})
    connection.execute(
        "UPDATE requests SET answer = NULL, failure = NULL "
        "WHERE id IN (SELECT request FROM temp.bad_requests)"
    )
    for table in ("mends", "orphans"):
        done["answers linked to another intact reply"] += connection.execute(
            f"UPDATE requests SET failure = NULL, answer = (SELECT m.response FROM temp.{table} m "
            f"WHERE m.request = requests.id) WHERE id IN (SELECT request FROM temp.{table})"
        ).rowcount
    (pending,) = connection.execute(
        "SELECT count(*) FROM requests WHERE answer IS NULL AND failure IS NULL AND id IN "
        "(SELECT request FROM temp.bad_requests UNION SELECT request FROM temp.lost_requests)"
    ).fetchone()
    done["requests pending again"] += pending


def _clear_rows(connection: sqlite3.Connection, log: Log, done: Counter[str]) -> None:
    """Their requests and answers stay: the next run puts the rows back from the pool, for nothing."""
    for stage, position, why in connection.execute("SELECT * FROM temp.bad_rows").fetchall():
        place = (stage << STAGE_SHIFT) + position
        item = connection.execute("SELECT CAST(item AS BLOB) FROM rows WHERE id = ?", (place,)).fetchone()
        samples = connection.execute(
            "SELECT sample, request FROM samples WHERE stage = ? AND position = ?", (stage, position)
        ).fetchall()
        text = item[0].decode(errors="backslashreplace") if item else None
        was = {"stage": stage, "position": position, "item": text, "samples": samples}
        log({"what": "row", "why": why, **was})
        connection.execute("DELETE FROM rows WHERE id = ?", (place,))
        connection.execute("DELETE FROM samples WHERE stage = ? AND position = ?", (stage, position))
        done["rows taken out until the next run puts them back"] += 1
