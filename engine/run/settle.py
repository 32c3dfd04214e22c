"""`settle`: shows what may have been billed for requests without an answer, and settles it by hand.

Only the provider's bill can tell. Until it does, a budget counts these requests at the most they can cost.
"""

import contextlib
import sqlite3
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from engine.terminal import console_of, exact_dollars, plain
from store import costs
from store.costs import Doubt, Settled
from store.errors import UsageError
from store.queries import connect_reader, stage_of
from store.run_folder import held, is_held, ledger_path
from store.schema import connect_writer

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
        with _in_doubt(run, asked) as found:
            if as_json:
                _write_json(*found, is_held(run))
            else:
                _print(run, *found)
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
            most = f"these requests can cost {exact_dollars(total)} together at the most"
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


def _write_json(found: Iterator[Doubt], sums: dict[str, int], total: int, running: bool) -> None:
    """One object, written as it is read: after an outage there may be very many."""
    sys.stdout.write('{"attempts":[')
    for number, one in enumerate(found):
        sys.stdout.write(("," if number else "") + orjson.dumps(_as_json(one)).decode())
    rest = orjson.dumps({**_sums_json(sums, total), "running": running}).decode()
    sys.stdout.write(f"],{rest[1:]}\n")


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
