"""Reads a ledger: index, pages of rows, counts for `status`. Read-only, short transactions."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from store.costs import billed, in_vain
from store.errors import WAS_ONE, DamagedLedger, RunFolderError, UsageError, is_foreign
from store.records import OUTCOMES, UNUSABLE
from store.run_folder import held, ledger_path
from store.schema import STAGE_SHIFT, VERSION, connect_writer, is_newer, version_words

PAGE_OF_KEYS = 4096
IN_UNUSABLE = f"({', '.join(repr(outcome) for outcome in UNUSABLE)})"
# By position: the row's item with the settings that it belongs to; the request of each sample.
Page = tuple[dict[int, tuple[bytes, int]], list[dict[int, int]]]


def connect_reader(run: Path) -> sqlite3.Connection:
    """A read-only connection; readers never checkpoint. A ledger of an older version is brought up
    to date first. Raises RunFolderError without a ledger, DamagedLedger."""
    path = ledger_path(run).resolve()
    try:
        return _checked(run, path, "mode=ro")
    except sqlite3.OperationalError as error:
        wal = path.with_name(path.name + "-wal")
        if wal.exists() and wal.stat().st_size:
            raise RunFolderError(f"cannot read {path}: {error}") from error
        return _checked(run, path, "immutable=1")  # a disk that is read-only: nobody can be writing
    except UnicodeDecodeError as error:  # in the words of SQLite, which quotes the schema
        raise DamagedLedger(path, "its schema cannot be read") from error
    except sqlite3.DatabaseError as error:
        if is_foreign(error):
            raise RunFolderError(f"{path} is not a ledger: {error}{WAS_ONE}") from error
        raise DamagedLedger(path, error) from error


def _checked(run: Path, path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, check_same_thread=False)
    # A text that is damaged is read all the same; whoever needs its very bytes reads it as a blob.
    connection.text_factory = lambda raw: raw.decode(errors="replace")
    connection.execute("PRAGMA busy_timeout = 5000")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return connection
    if version > VERSION and not is_newer(connection):
        raise DamagedLedger(path, f"its version is given as {version}")
    connection.close()
    if not 0 < version < VERSION:
        raise RunFolderError(version_words(path, version))
    with held(run):
        connect_writer(run).close()
    return _checked(run, path, mode)


def ledger_name(reader: sqlite3.Connection) -> str:
    """The file that a connection reads."""
    return str(reader.execute("PRAGMA database_list").fetchone()[2])


def note_asked(reader: sqlite3.Connection) -> None:
    """Puts down how often each request without an answer has been asked in vain, in a table on disk
    (nothing leads from a request to its attempts). What was in flight at a crash is not counted."""
    reader.execute(
        "CREATE TEMP TABLE asked_before (request INTEGER PRIMARY KEY, times INTEGER NOT NULL, "
        "refused INTEGER NOT NULL)"
    )
    reader.execute(
        "INSERT INTO temp.asked_before SELECT t.request, count(DISTINCT t.attempt), max(t.refused) FROM ("
        "SELECT request, attempt, cause IN ('bad_request', 'too_large', 'not_found', 'auth') AS refused "
        "FROM errors UNION ALL SELECT request, attempt, 0 FROM responses WHERE outcome IN "
        "('malformed', 'unparsed', 'empty', 'other', 'tool_calls')"
        ") t JOIN requests r ON r.id = t.request WHERE r.answer IS NULL GROUP BY t.request"
    )
    reader.commit()


def times_asked(reader: sqlite3.Connection, request: int) -> tuple[int, bool]:
    """How often, and whether it was refused, as `note_asked` has put it down."""
    sql = "SELECT times, refused FROM temp.asked_before WHERE request = ?"
    times, refused = reader.execute(sql, (request,)).fetchone() or (0, 0)
    return int(times), bool(refused)


def placed_page(
    reader: sqlite3.Connection, stage: int, plans: Sequence[int], samples: int, start: int, stop: int
) -> Page:
    """What a stage holds at positions [start, stop) under any of these plans: the items' JSON with
    their plan, and the request of each sample."""
    base = stage << STAGE_SHIFT
    items = reader.execute(
        "SELECT id - ?, CAST(item AS BLOB), plan FROM rows WHERE id >= ? AND id < ? "
        f"AND plan IN ({', '.join('?' * len(plans))})",
        (base, base + start, base + stop, *plans),
    )
    page: Page = ({position: (item, plan) for position, item, plan in items}, [])
    for sample in range(samples):
        requests = reader.execute(
            "SELECT position, request FROM samples "
            "WHERE stage = ? AND position >= ? AND position < ? AND sample = ?",
            (stage, start, stop, sample),
        )
        page[1].append(dict(requests.fetchall()))
    return page


def account(reader: sqlite3.Connection) -> tuple[int, int]:
    """(spent, at risk) of all stages together, in micro-dollars."""
    row = reader.execute("SELECT ifnull(sum(spent_micro), 0), ifnull(sum(at_risk_micro), 0) FROM spending")
    spent, at_risk = row.fetchone()
    return int(spent), int(at_risk)


def stage_account(run: Path, stage: int) -> tuple[int, int]:
    """(spent, at risk) of one stage, in micro-dollars."""
    reader = connect_reader(run)
    try:
        sql = "SELECT spent_micro, at_risk_micro FROM spending WHERE stage = ?"
        spent, at_risk = reader.execute(sql, (stage,)).fetchone() or (0, 0)
    finally:
        reader.close()
    return int(spent), int(at_risk)


def stage_status(reader: sqlite3.Connection, stage: int) -> dict[str, Any]:
    """One stage as `status --json` shows it. Shared answers are counted where they are used,
    tokens and cost where they were paid."""
    total, bad = reader.execute("SELECT total, bad_rows FROM stages WHERE id = ?", (stage,)).fetchone()
    found = dict(
        reader.execute(
            "SELECT p.outcome, count(*) FROM samples a LEFT JOIN requests r ON r.id = a.request "
            "LEFT JOIN responses p ON p.id = r.answer AND p.request = r.id "
            "WHERE a.stage = ? AND (r.answer IS NOT NULL OR r.id IS NULL) GROUP BY 1 ORDER BY 1",
            (stage,),
        ).fetchall()
    )
    outcomes = {outcome: count for outcome, count in found.items() if outcome in OUTCOMES}
    failed = dict(
        reader.execute(
            "SELECT e.cause, count(*) FROM samples a JOIN requests r ON r.id = a.request "
            "JOIN errors e ON e.id = r.failure WHERE a.stage = ? AND r.answer IS NULL GROUP BY 1 ORDER BY 1",
            (stage,),
        ).fetchall()
    )
    paid = reader.execute(
        "SELECT prompt_tokens, completion_tokens, spent_micro, at_risk_micro, sent - ended "
        "FROM spending WHERE stage = ?",
        (stage,),
    ).fetchone() or (0, 0, 0, 0, 0)
    return {
        "total": total,
        "pending": None if total is None else max(0, total - sum(found.values()) - sum(failed.values())),
        "done": sum(count for outcome, count in outcomes.items() if outcome not in UNUSABLE),
        "failed": failed,
        "outcomes": outcomes,
        "prompt_tokens": paid[0],
        "completion_tokens": paid[1],
        "cost_usd": paid[2] / 1e6,
        "at_risk_usd": paid[3] / 1e6,
        "unanswered": paid[4],
        "bad_rows": bad,
        "damaged": sum(found.values()) - sum(outcomes.values()),  # as far as is seen without their bodies
        "billed": billed(reader, stage, paid[2]),
        **in_vain(reader, stage),
    }


def endpoint_accounts(reader: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """Who answered, and for how much, where several servers did; {} where there was but one."""
    (count,) = reader.execute("SELECT count(*) FROM endpoints").fetchone()
    if count < 2:
        return {}
    rows = reader.execute(
        "SELECT e.url, ifnull(c.answers, 0), ifnull(c.cost, 0) FROM endpoints e LEFT JOIN "
        "(SELECT t.endpoint, sum(r.answer = p.id) AS answers, sum(p.cost_micro) AS cost FROM responses p "
        "JOIN attempts t ON t.id = p.attempt JOIN requests r ON r.id = p.request GROUP BY 1) c "
        "ON c.endpoint = e.id ORDER BY e.id"
    )
    return {url: {"answered": n, "cost_usd": cost / 1e6} for url, n, cost in rows}


def stages(reader: sqlite3.Connection) -> list[tuple[int, str]]:
    return [(int(i), str(n)) for i, n in reader.execute("SELECT id, name FROM stages ORDER BY id")]


def stage_of(run: Path, name: str | None) -> tuple[int, str]:
    """(number, name) of a stage by its name, or of the only one. Raises UsageError."""
    reader = connect_reader(run)
    try:
        there = stages(reader)
    finally:
        reader.close()
    chosen = [(number, n) for number, n in there if name in (None, n)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(n for _, n in there) or "none yet"
    problem = f"no stage '{name}'" if name else "name one with --stage"
    raise UsageError(f"{run}: {problem}; its stages are: {names}")


def last_runs(reader: sqlite3.Connection, stage: int, count: int) -> list[dict[str, Any]]:
    """The newest runs of a stage, newest first, with their JSON columns read."""
    reader.row_factory = sqlite3.Row
    try:
        rows = reader.execute("SELECT * FROM runs WHERE stage = ? ORDER BY id DESC LIMIT ?", (stage, count))
        runs = [dict(row) for row in rows]
    finally:
        reader.row_factory = None
    for run in runs:
        for name in ("settings", "estimate", "utilisation"):
            try:
                found = orjson.loads(run[name] or b"null")
            except ValueError:  # the ledger is damaged
                found = None
            run[name] = found if isinstance(found, dict) else None
    return runs


def day_usage(reader: sqlite3.Connection, since: float, endpoint: int) -> list[tuple[float, int, int]]:
    """(minute, requests, tokens) of what was sent to a server since a time, for its daily limits."""
    rows = reader.execute(
        "SELECT CAST(t.sent_at / 60 AS INTEGER) * 60.0, count(*), "
        "sum(ifnull(p.prompt_tokens + p.completion_tokens, 0)) "
        "FROM attempts t LEFT JOIN responses p ON p.attempt = t.id WHERE t.sent_at >= ? "
        "AND ifnull(t.endpoint, ?) = ? GROUP BY 1",  # older attempts do not say where they went
        (since, endpoint, endpoint),
    )
    return [(float(at), int(n), int(tokens)) for at, n, tokens in rows]


def has_row(reader: sqlite3.Connection, stage: int, position: int) -> bool:
    sql = "SELECT 1 FROM rows WHERE id = ?"
    return reader.execute(sql, ((stage << STAGE_SHIFT) + position,)).fetchone() is not None


def has_answer(run: Path, stage: int, plan: int) -> bool:
    """Whether a row that a stage holds under a plan has a usable answer. (CROSS JOIN: row by row. The
    other way round every sample would walk through all rows.)"""
    reader = connect_reader(run)
    try:
        first = stage << STAGE_SHIFT
        sql = (
            "SELECT 1 FROM rows w CROSS JOIN samples a ON a.stage = ? AND a.position = w.id - ? "
            "JOIN requests r ON r.id = a.request JOIN responses p ON p.id = r.answer "
            f"WHERE w.id >= ? AND w.id < ? AND w.plan = ? AND p.outcome NOT IN {IN_UNUSABLE} LIMIT 1"
        )
        last = (stage + 1) << STAGE_SHIFT
        return reader.execute(sql, (stage, first, first, last, plan)).fetchone() is not None
    finally:
        reader.close()
