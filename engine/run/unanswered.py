"""Requests without an answer: `retry` makes failed ones pending again, `settle` shows what may have been
billed for others and settles it by hand.

Stored replies that no parser could read when they came are read again before a retry: those that can be read
by now become answers. What was billed only the provider's bill can tell: until it does, a budget counts these
requests at the most they can cost.
"""

import contextlib
import sqlite3
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from engine.collect.plan import role, settings_of_stage
from engine.provider.responses import stored_answer
from engine.tasks.task import Task
from engine.terminal import console_of, exact_dollars, plain
from store import costs
from store.costs import Doubt, Settled
from store.errors import DistillError, UsageError, is_intact
from store.queries import connect_reader, stage_of
from store.records import CAUSES, UNUSABLE
from store.run_folder import held, is_held, ledger_path
from store.schema import connect_writer

IF_NAMED = ("content_filter", "refusal", "length")  # outcomes that are asked again only by name


@dataclass(frozen=True, slots=True)
class Retried:
    """pending: requests that are pending again. read: stored replies that became answers."""

    pending: int
    read: int


def run_retry(run: Path, cause: str | None, stage: str | None) -> None:
    """`retry`, as the command line shows it."""
    found = retry(run, cause, stage)
    if found.read:
        print(f"{found.read:,} stored replies can be read now and need not be asked again", file=sys.stderr)
    print(
        f"{found.pending:,} failed requests are pending again: run the same command to send them",
        file=sys.stderr,
    )


def retry(run: Path, cause: str | None, stage: str | None) -> Retried:
    """Nothing is sent before the next run. Raises UsageError, RunFolderError."""
    outcomes = UNUSABLE if cause is None else tuple(o for o in (*UNUSABLE, *IF_NAMED) if o == cause)
    if cause is not None and not outcomes and cause not in CAUSES:
        known = ", ".join((*CAUSES, *UNUSABLE, *IF_NAMED))
        raise UsageError(f"--cause {cause}: unknown; choose from {known}")
    ledger_path(run)
    where, values = "answer IS NULL AND failure IS NOT NULL", []
    if cause is not None:
        where += " AND failure IN (SELECT id FROM errors WHERE cause = ?)"
        values.append(cast(object, cause))
    of_stage, stage_values = "", []
    if stage is not None:
        of_stage = " AND id IN (SELECT request FROM samples WHERE stage = ?)"
        stage_values.append(stage_of(run, stage)[0])
    where, values = where + of_stage, [*values, *stage_values]
    # these replies stay in the ledger; their requests have no answer again
    marks = ", ".join("?" * len(outcomes))
    in_vain = f"answer IN (SELECT id FROM responses WHERE outcome IN ({marks})){of_stage}"
    with held(run), contextlib.closing(connect_writer(run)) as connection:
        read = read_again(connection, where, values) if cause in (None, "unparsed") else 0
        count = connection.execute(f"UPDATE requests SET failure = NULL WHERE {where}", values).rowcount
        sql = f"UPDATE requests SET answer = NULL WHERE {in_vain}"
        count += connection.execute(sql, [*outcomes, *stage_values]).rowcount
    return Retried(count, read)


_FAILED = """
SELECT a.request, a.stage, CAST(w.item AS BLOB) FROM samples a JOIN requests r ON r.id = a.request
JOIN rows w ON w.id = (a.stage << 40) + a.position JOIN errors e ON e.id = r.failure
WHERE e.cause = 'unparsed' AND r.id IN (SELECT id FROM requests WHERE {where})
"""
_REPLIES = """
SELECT p.id, p.request, CAST(b.raw AS BLOB), b.checksum FROM responses p JOIN bodies b ON b.response = p.id
WHERE p.outcome = 'unparsed' ORDER BY p.id
"""


def read_again(connection: sqlite3.Connection, where: str, values: Sequence[object]) -> int:
    """Of the failed requests that `where` selects: those with a reply that can be read by now get it
    as their answer. Returns how many."""
    tasks: dict[int, Task] = {}
    rows: dict[int, tuple[Task, bytes]] = {}
    for request, stage, item in connection.execute(_FAILED.format(where=where), values).fetchall():
        if stage not in tasks:
            tasks[stage] = role(settings_of_stage(connection, stage))
        rows[request] = (tasks[stage], item)
    found: dict[int, tuple[int, str]] = {}
    for response, request, raw, checksum in connection.execute(_REPLIES):
        if request in rows and request not in found and is_intact(raw, checksum):
            outcome = _outcome(*rows[request], raw)
            if outcome != "unparsed":
                found[request] = (response, outcome)
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for request, (response, outcome) in found.items():
            connection.execute("UPDATE responses SET outcome = ? WHERE id = ?", (outcome, response))
            connection.execute(
                "UPDATE requests SET answer = ?, failure = NULL WHERE id = ?", (response, request)
            )
    return len(found)


def _outcome(task: Task, item: bytes, raw: bytes) -> str:
    """What is damaged cannot be read now either."""
    found = stored_answer(raw)
    if found is None:
        return "unparsed"
    try:
        row = task.decode(orjson.loads(item))
    except (ValueError, LookupError, TypeError, AttributeError, DistillError):
        return "unparsed"
    return task.check(row, found[0]) if task.check else "stop"


SHOWN = 50
UNEXPLAINED = "requests of earlier versions, which kept no figure for each"


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of requests (nothing: they are listed), and of which. `usd`: together; `id`: of rows."""

    lost: bool = False
    billed: bool = False
    usd: float | None = None
    stage: str | None = None
    id: Collection[str] = ()
    attempt: Collection[int] = ()

    @property
    def settles(self) -> bool:
        return self.lost or self.billed or self.usd is not None


def run_settle(run: Path, asked: Settlement, as_json: bool) -> None:
    """`settle`, as the command line shows it: lists what is in doubt, or settles it. Raises UsageError,
    RunFolderError."""
    if not asked.settles:
        with _in_doubt(run, asked) as (found, sums, total):
            if not as_json:
                _print(run, found, sums, total)
                return
            # one object, written as it is read: after an outage there may be very many
            running = is_held(run)
            sys.stdout.write('{"attempts":[')
            for number, one in enumerate(found):
                sys.stdout.write(("," if number else "") + orjson.dumps(_as_json(one)).decode())
            rest = orjson.dumps({**_sums_json(sums, total), "running": running}).decode()
            sys.stdout.write(f"],{rest[1:]}\n")
        return
    done = settle(run, asked)
    if not (done.attempts or done.sums):
        print("nothing was in doubt", file=sys.stderr)
        return
    what = f"{done.attempts:,} request{'s' * (done.attempts != 1)}" if done.attempts else ""
    both = " and ".join(part for part in (what, "a sum of earlier versions" if done.sums else "") if part)
    booked, released = exact_dollars(done.billed_micro), exact_dollars(done.released_micro)
    print(f"{both} settled: {booked} booked as spent, {released} released", file=sys.stderr)


def unconfirmed(run: Path, asked: Settlement) -> dict[str, Any]:
    """As `settle --json` prints it. Raises UsageError, RunFolderError."""
    with _in_doubt(run, asked) as (found, sums, total):
        return {"attempts": [*map(_as_json, found)], **_sums_json(sums, total), "running": is_held(run)}


def settle(run: Path, asked: Settlement) -> Settled:
    """Raises UsageError, RunFolderError."""
    if not asked.settles:
        raise UsageError("say what became of the requests: --lost, --billed or --usd X")
    if asked.lost and (asked.billed or asked.usd is not None):
        raise UsageError("--lost means that nothing was billed: leave out --billed and --usd")
    if asked.usd is not None and not 0 <= asked.usd < 1e9:
        raise UsageError(f"--usd {asked.usd}: must be an amount of dollars, 0 or more")
    ledger_path(run)
    if asked.stage is not None:
        stage_of(run, asked.stage)
    with held(run), contextlib.closing(connect_writer(run)) as connection:
        sums = _choose(run, connection, asked)
        total = costs.most_in_doubt(connection) + sum(sums.values())
        amount = round(asked.usd * 1e6) if asked.usd is not None else total if asked.billed else 0
        if amount > total:
            most = f"these requests can cost {exact_dollars(total)} together at most"
            raise UsageError(f"--usd {asked.usd}: {most}")
        return costs.settle(connection, sums, amount)


@contextlib.contextmanager
def _in_doubt(run: Path, asked: Settlement) -> Iterator[tuple[Iterator[Doubt], dict[str, int], int]]:
    """What is listed one by one, the sums of earlier versions, and the most that all can cost together."""
    ledger_path(run)
    if asked.stage is not None:
        stage_of(run, asked.stage)
    with contextlib.closing(connect_reader(run)) as reader:
        sums = _choose(run, reader, asked)
        yield costs.in_doubt(reader), sums, costs.most_in_doubt(reader) + sum(sums.values())


def _choose(run: Path, connection: sqlite3.Connection, asked: Settlement) -> dict[str, int]:
    """Leaves what was named; returns the sums that belong to it. Raises UsageError for what is not there."""
    costs.note_doubt(connection)
    sums = {} if asked.id or asked.attempt else costs.unexplained(connection, asked.stage)
    if missing := costs.choose(connection, asked.stage, asked.id, asked.attempt):
        names = ", ".join(sorted(missing)[:10])
        raise UsageError(f"nothing is in doubt for {names}; `distill settle --run {run}` lists what is")
    return sums


def _as_json(one: Doubt) -> dict[str, Any]:
    return {
        "attempt": one.attempt, "stage": one.stage, "position": one.position, "sample": one.sample,
        "id": one.id, "sent_at": one.sent_at, "most_usd": one.most_micro / 1e6, "cause": one.cause,
        "why": one.why,
    }  # fmt: skip


def _sums_json(sums: dict[str, int], total: int) -> dict[str, Any]:
    return {"earlier_usd": {name: most / 1e6 for name, most in sums.items()}, "at_risk_usd": total / 1e6}


def _print(run: Path, found: Iterator[Doubt], sums: dict[str, int], total: int) -> None:
    from rich.table import Table
    from rich.text import Text

    console = console_of()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("attempt", "stage", "row", "sent", "at most", "why"):
        table.add_column(name, justify="right" if name in ("attempt", "at most") else "left")
    count = 0
    for count, one in enumerate(found, 1):
        if count > SHOWN:
            continue
        sent = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.sent_at))
        row = "gone from the pool" if one.id is None else plain(one.id, 40)
        why = plain(f"{one.cause}: {one.why}", 100)
        cells = (str(one.attempt), plain(one.stage, 40), row, sent, exact_dollars(one.most_micro), why)
        table.add_row(*map(Text, cells))
    if not (count or sums):
        console.print("nothing is in doubt: every request has its answer or cost nothing")
        return
    if count:
        console.print(table)
    if count > SHOWN:
        console.print(f"and {count - SHOWN:,} more (--json lists all)")
    for name, most in sums.items():
        console.print(Text(f"stage {plain(name, 40)}: {exact_dollars(most)} for {UNEXPLAINED}"))
    if is_held(run):
        console.print("a run is under way: requests that are in flight at this moment are listed too")
    console.print(
        f"at most {exact_dollars(total)} in all. When you know from the provider's bill what became of them: "
        f"distill settle --run {run} --lost (not billed), --billed (at the most), or --usd X (X dollars in "
        "total); "
        "--stage, --id and --attempt choose some",
        markup=False,
    )
