"""`distill import`: answers that were paid for elsewhere become a stage's, at no cost.

They are stored under the keys that `generate` would use. A row that the stage has already keeps its
place; the others are placed behind its last one, in the order of the file. Row, request and answer
go into the same commit, so that a kill leaves the file's beginning taken in, and the same command
continues there. What is there already is never replaced.
"""

import asyncio
import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from engine.collect.importer import IMPORTED, ImportCounts, Importer
from engine.collect.other_settings import differences, kept_by
from engine.collect.plan import Plan, plan_of
from engine.collect.rows import Surveyed, pool_of
from engine.collect.settings import Settings
from engine.provider.tokens import tokenizer_for
from engine.run.job import Control
from engine.terminal import counted, plain
from store.errors import PoolError, UsageError
from store.files import LEDGER
from store.ledger import Ledger
from store.pool import Pool
from store.queries import connect_reader, last_runs
from store.records import BadRow, Instruction, missing
from store.run_folder import held
from store.schema import connect_writer
from store.stage_rows import one_row_of_each_plan, rows_and_pending, stage_facts

ROWS_A_TURN, TURNS_AHEAD = 500, 8  # rows between two looks at the writer; what may wait for its disk


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file's rows; the stage now has so many, of which `pending` have no answer yet."""

    counts: ImportCounts
    rows: int
    pending: int


def run_import(settings: Settings, source: str, run: Path) -> int:
    """`import`, as the command line shows it: says what became of the rows."""
    found = import_answers(settings, source, run)
    counts, told = found.counts, f"stage '{settings.stage}' has {counted(found.rows, 'row')}"
    if found.pending:
        what = "of them" if settings.samples == 1 else f"samples of them ({settings.samples} to a row)"
        told += f"; {found.pending:,} {what} have no answer yet, and generate asks for them"
    # what the file brought comes last, because that line is read first
    parts = f"{counted(counts.taken, 'answer')} imported, {counts.known:,} were there already, "
    parts += f"{counted(counts.empty, 'row')} had none"
    if counts.others:
        parts += f", {counts.others:,} not imported, because their requests have another reply already"
    print(f"{told}\n{parts}{_bad(counts)}", file=sys.stderr)
    return 0


def import_answers(settings: Settings, source: str, run: Path, control: Control | None = None) -> Imported:
    """control: of whoever has started this thread. Raises UsageError, PoolError, StorageError."""
    rows = pool_of(settings, source, answered=True)
    if (run / LEDGER).exists():
        with held(run):  # a folder that is in use is told first
            pass
    if not rows.is_stream:  # a file without an answer leaves nothing behind
        counts = ImportCounts()
        for row in rows:
            if isinstance(row, Instruction) and row.output.strip():
                break
            if isinstance(row, BadRow):
                counts.count_bad(row)
        else:
            pool = Pool(source)
            next(iter(pool), None)
            columns = f": {missing(pool.raw, 'output')}" if pool.raw else ""
            raise PoolError(f"no row of {source} has an answer{columns}{_bad(counts)}")
    with held(run):
        plan = _plan(settings, run)
        connect_writer(run).close()
        found = asyncio.run(_import(settings, plan, rows, run, control))
    if not found.counts.rows - found.counts.empty:
        raise PoolError(f"no row of {source} has an answer{_bad(found.counts)}")
    return found


def _plan(settings: Settings, run: Path) -> Plan:
    """How rows become requests, with the settings whose answers the stage keeps. Answers under others must
    not stand among those of the stage. Raises UsageError."""
    plan = plan_of(settings, tokenizer_for(settings.model))
    if settings.reuse or settings.replace:
        raise UsageError("--reuse and --replace are for commands that send requests: import replaces nothing")
    if not (run / LEDGER).exists():
        return plan
    reader = connect_reader(run)
    try:
        if (facts := stage_facts(reader, settings.stage)) is None:
            return plan
        number, samples = facts
        plan = kept_by(reader, number, plan)
        (last, *_) = last_runs(reader, number, 1)
        told = f"stage '{settings.stage}' of {run}"
        if last["settings"].get("task") != settings.task:
            raise UsageError(
                f"{told} is not one of answers ({last['settings'].get('task')}): name another with --stage"
            )
        if samples != settings.samples:
            raise UsageError(f"{told} has {samples} answers for each row: give --samples {samples}")
        for item, key in one_row_of_each_plan(reader, number, but=plan.accepted):
            if plan.seal(plan.task.decode(item))[2][0] != key:
                changes = "; ".join(differences(last["settings"], settings.public()))
                raise UsageError(
                    f"{told} holds rows under other settings ({changes or 'of an earlier run'}): "
                    "give the same ones, or name another stage with --stage"
                )
        return plan
    finally:
        reader.close()


async def _import(
    settings: Settings, plan: Plan, rows: Surveyed, run: Path, control: Control | None
) -> Imported:
    task = asyncio.current_task()
    assert task

    def stop(by: str, is_urgent: bool) -> None:
        if not is_urgent:  # the first time: what was read is stored, and no more can be hurried
            task.cancel()

    with control.attached(stop) if control else contextlib.nullcontext():
        return await _taken(settings, plan, rows, Ledger(run))


async def _taken(settings: Settings, plan: Plan, rows: Surveyed, ledger: Ledger) -> Imported:
    try:
        told = {**settings.public(), **plan.recorded, "pool": rows.source, IMPORTED: True}
        stage, number = ledger.begin(settings.stage, settings.task, settings.samples, told)
        importer = Importer(settings, plan, ledger, stage, number)
        try:
            for turn, row in enumerate(rows, 1):
                importer.take(row)
                if turn % (ROWS_A_TURN * TURNS_AHEAD) == 0:
                    await ledger.committed()
                elif turn % ROWS_A_TURN == 0:
                    await asyncio.sleep(0)  # the writer commits what there is while the next rows are read
                if settings.limit is not None and importer.counts.rows >= settings.limit:
                    break
        finally:
            importer.close()
        await ledger.committed()
        # the stage's total is what it holds, unless a pool that was not read to its end is its own
        reader = connect_reader(ledger.run)
        held, pending = rows_and_pending(reader, stage)
        reader.close()
        ledger.note(
            "UPDATE stages SET bad_rows = ?, total = (SELECT count(*) FROM samples WHERE stage = ?) "
            "WHERE id = ? AND (total IS NOT NULL OR NOT EXISTS (SELECT 1 FROM runs WHERE stage = ? "
            f"AND json_valid(settings) AND json_extract(settings, '$.{IMPORTED}') IS NULL))",
            importer.counts.bad, stage, stage, stage,
        )  # fmt: skip
        ledger.note("UPDATE runs SET ended = ?, exit_code = 0 WHERE id = ?", time.time(), number)
        await ledger.committed()
        return Imported(importer.counts, held, pending)
    finally:
        await ledger.close()


def _bad(counts: ImportCounts) -> str:
    if not counts.bad:
        return ""
    first = counts.first_bad
    why = f"; the first is line {first.line}: {plain(first.reason, 200)}" if first else ""
    return f"; {counted(counts.bad, 'bad row')} left out{why}"
