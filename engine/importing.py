"""`distill import`: answers that were paid for elsewhere become a stage's, at no cost.

They are stored under the keys that `generate` would use. A row that the stage has already keeps its
place; the others are placed behind its last one, in the order of the file. Row, request and answer
go into the same commit, so that a kill leaves the file's beginning taken in, and the same command
continues there. What is there already is never replaced.
"""

import asyncio
import hashlib
import sqlite3
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from engine.collect import known_keys
from engine.feed import Plan
from engine.known import Known
from engine.replies import Reply, read_reply, text_of
from engine.roles import plan_of
from engine.settings import Settings
from engine.sources import Having, Sampled, pool_of
from engine.state import BAD_ROWS_KEPT
from engine.status import differences
from engine.terminal import plain
from engine.tokens import tokenizer_for
from store.errors import DistillError, PoolError, UsageError
from store.folder import LEDGER, held
from store.index import ANSWERED
from store.ledger import Ledger, connect_writer
from store.places import (
    answer_to,
    end_of,
    first_requests,
    one_row_of_each_plan,
    rows_and_pending,
    stage_facts,
)
from store.read import connect_reader, last_runs
from store.records import BadRow, Instruction, Request, Response, Usage

IMPORTED = "imported"
ROWS_A_TURN, TURNS_AHEAD = 500, 8  # rows between two looks at the writer; what may wait for its disk


@dataclass(slots=True)
class Counts:
    """What became of a file's rows."""

    taken: int = 0
    known: int = 0  # the same answer was there
    others: int = 0  # another answer was there, which stays
    empty: int = 0
    bad: int = 0
    bad_shown: list[BadRow] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return self.taken + self.known + self.others + self.empty


class PerRequest:
    """A number for each request, by its id; 0 until it is set. Eight bytes each."""

    def __init__(self) -> None:
        self._values = array("Q")

    def __getitem__(self, request: int) -> int:
        return self._values[request] if request < len(self._values) else 0

    def __setitem__(self, request: int, value: int) -> None:
        if request >= len(self._values):
            self._values.frombytes(bytes(8 * (request + 1024 - len(self._values))))
        self._values[request] = value


class Importer:
    """Takes the rows of a file one by one. `take` queues what is to be written; whoever calls lets
    the ledger commit between two rows."""

    def __init__(self, settings: Settings, plan: Plan, ledger: Ledger, stage: int, run: int) -> None:
        self._settings, self._plan, self._ledger, self._stage, self._run = settings, plan, ledger, stage, run
        self._known = Known(ledger.run, known_keys(ledger.run))
        self._end = end_of(self._known.reader, stage)
        self._places = PerRequest()  # of rows that the stage had and this file has not shown yet
        for request in first_requests(self._known.reader, stage):
            self._places[request] += 1
        self._digests = PerRequest()  # of answers, as far as they were looked at
        self._claimed = PerRequest()  # bits: samples that rows of this file stand for
        self.counts = Counts()

    def close(self) -> None:
        self._known.close()

    def take(self, row: Instruction | BadRow) -> None:
        counts = self.counts
        if isinstance(row, BadRow):
            counts.bad += 1
            counts.bad_shown += [row] if len(counts.bad_shown) < BAD_ROWS_KEPT else []
            return
        messages, body, keys = self._plan.seal(row)
        tokens = self._plan.tokenizer.count_messages(messages)
        numbers, new = [], []
        for sample, key in enumerate(keys):
            number = self._known.find(key)
            if number is None:
                number = self._known.new(key)
                new.append(Request(number, key, sample, body, tokens, self._plan.max_tokens))
            numbers.append(number)
        self._place(row, numbers, new)
        raw = _as_reply(self._settings.model, row.output)
        reply = read_reply(raw)
        if reply.is_unusable:
            counts.empty += 1
        else:
            self._answer(numbers, reply, raw, tokens)

    def _place(self, row: Instruction, numbers: Sequence[int], new: Sequence[Request]) -> None:
        """Equal rows have a place each, unless each row has several samples: then they are these."""
        first = numbers[0]
        if self._places[first]:
            self._places[first] -= len(numbers) == 1
            return
        self._places[first] = len(numbers) > 1
        if row.id == str(self.counts.rows):  # none of its own, but its number in the file
            row = replace(row, id=str(self._end))
        item = self._plan.task.encode(row)
        self._ledger.place(
            self._stage, self._end, item, self._plan.fingerprint, list(enumerate(numbers)), new
        )
        self._end += 1

    def _answer(self, numbers: Sequence[int], reply: Reply, raw: bytes, prompt_tokens: int) -> None:
        """For the first sample that no row of this file stands for and that has this answer or none."""
        first, digest = numbers[0], _digest(reply.text)
        free = [n for n in range(len(numbers)) if not self._claimed[first] >> min(n, 63) & 1]
        for sample in free:
            if self._digest_of(numbers[sample]) == digest:
                self._claimed[first] |= 1 << min(sample, 63)
                self.counts.known += 1
                return
        for sample in free:
            if self._known.index.state(numbers[sample]) != ANSWERED:
                self._claimed[first] |= 1 << min(sample, 63)
                self._put(numbers[sample], reply, raw, prompt_tokens)
                self._digests[numbers[sample]] = digest
                self.counts.taken += 1
                return
        if any(self._digest_of(number) == digest for number in numbers):
            self.counts.known += 1
        else:
            self.counts.others += 1

    def _put(self, request: int, reply: Reply, raw: bytes, prompt_tokens: int) -> None:
        attempt = self._ledger.journal(self._run, self._stage, request, 0)
        count = self._plan.tokenizer.count
        usage = Usage(prompt_tokens, count(reply.text) + count(reply.reasoning))
        text, reasoning = (None, None) if reply.plain else (reply.text, reply.reasoning or None)
        response = Response(
            reply.outcome, IMPORTED, usage, raw, 0, 0.0, self._settings.model, text, reasoning, estimated=True
        )
        self._ledger.put(self._stage, attempt, request, response, 0, final=True)
        self._known.index.mark(request, ANSWERED)

    def _digest_of(self, request: int) -> int:
        """Of the answer to a request; 0 where it has none."""
        if not self._digests[request] and self._known.index.state(request) == ANSWERED:
            self._digests[request] = _stored_digest(self._known.reader, request)
        return self._digests[request]


def _digest(text: str) -> int:
    """Never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()) | 1


def _stored_digest(reader: sqlite3.Connection, request: int) -> int:
    raw = answer_to(reader, request)
    try:
        return _digest(text_of(raw)) if raw is not None else 2
    except (ValueError, DistillError):
        return 2  # a reply that cannot be read: no answer of a file is the same


def run_import(settings: Settings, source: str, run: Path) -> int:
    """Says what became of the rows. Raises UsageError, PoolError, StorageError."""
    rows = pool_of(settings, source)
    if not rows.is_stream and not any(_has_answer(row) for row in rows):
        raise _no_answer(source)
    with held(run):
        _check(settings, run)
        connect_writer(run).close()
        counts, (placed, pending) = asyncio.run(_import(settings, rows, run))
    if not counts.rows - counts.empty:
        raise _no_answer(source)
    _say(counts, settings, placed, pending)
    return 0


def _has_answer(row: Instruction | BadRow) -> bool:
    return isinstance(row, Instruction) and bool(row.output.strip())


def _no_answer(source: str) -> PoolError:
    return PoolError(f"no row of {source} has an `output`; expected Alpaca's shape")


def _check(settings: Settings, run: Path) -> None:
    """Answers under other settings must not stand among those of the stage. Raises UsageError."""
    if not (run / LEDGER).exists():
        return
    reader = connect_reader(run)
    try:
        if (facts := stage_facts(reader, settings.stage)) is None:
            return
        number, samples = facts
        plan = plan_of(settings, tokenizer_for(settings.model))
        (last, *_) = last_runs(reader, number, 1)
        told = f"stage '{settings.stage}' of {run}"
        if last["settings"].get("task") != settings.task:
            raise UsageError(
                f"{told} is not one of answers ({last['settings'].get('task')}): name another with --stage"
            )
        if samples != settings.samples:
            raise UsageError(f"{told} wants {samples} answers to each row: give --samples {samples}")
        for item, key in one_row_of_each_plan(reader, number, but=plan.fingerprint):
            if plan.seal(plan.task.decode(item))[2][0] != key:
                changes = "; ".join(differences(last["settings"], settings.public()))
                raise UsageError(
                    f"{told} holds rows under other settings ({changes or 'of an earlier run'}): "
                    "give the same ones, or name another stage with --stage"
                )
    finally:
        reader.close()


async def _import(
    settings: Settings, rows: Sampled | Having | Any, run: Path
) -> tuple[Counts, tuple[int, int]]:
    ledger = Ledger(run)
    try:
        told = {**settings.public(), "pool": rows.source, IMPORTED: True}
        stage, number = ledger.begin(settings.stage, settings.task, settings.samples, told)
        plan = plan_of(settings, tokenizer_for(settings.model))
        importer = Importer(settings, plan, ledger, stage, number)
        try:
            await _take_all(importer, rows, ledger, settings.limit)
        finally:
            importer.close()
        await ledger.committed()
        return importer.counts, await _close_books(ledger, stage, number, importer.counts)
    finally:
        await ledger.close()


async def _take_all(importer: Importer, rows: Any, ledger: Ledger, limit: int | None) -> None:
    for turn, row in enumerate(rows, 1):
        importer.take(row)
        if turn % (ROWS_A_TURN * TURNS_AHEAD) == 0:
            await ledger.committed()
        elif turn % ROWS_A_TURN == 0:
            await asyncio.sleep(0)  # the writer commits what there is while the next rows are read
        if limit is not None and importer.counts.rows >= limit:
            return


async def _close_books(ledger: Ledger, stage: int, run: int, counts: Counts) -> tuple[int, int]:
    """The stage's total is what it holds, unless a pool that was not read to its end is its own."""
    reader = connect_reader(ledger.run)
    rows, pending = rows_and_pending(reader, stage)
    reader.close()
    ledger.note(
        "UPDATE stages SET bad_rows = ?, total = (SELECT count(*) FROM samples WHERE stage = ?) WHERE id = ? "
        "AND (total IS NOT NULL OR NOT EXISTS (SELECT 1 FROM runs WHERE stage = ? "
        f"AND json_extract(settings, '$.{IMPORTED}') IS NULL))",
        counts.bad, stage, stage, stage,
    )  # fmt: skip
    ledger.note("UPDATE runs SET ended = ?, exit_code = 0 WHERE id = ?", time.time(), run)
    await ledger.committed()
    return rows, pending


def _say(counts: Counts, settings: Settings, placed: int, pending: int) -> None:
    parts = [f"{counts.taken:,} answers taken in", f"{counts.known:,} were there already"]
    parts.append(f"{counts.empty:,} rows had none")
    if counts.others:
        parts.append(f"{counts.others:,} not taken in, since another answer is there")
    lines = [", ".join(parts)]
    if counts.bad:
        lines.append(f"{counts.bad:,} bad rows left out")
        lines += [f"  line {bad.line}: {plain(bad.reason, 100)}" for bad in counts.bad_shown]
    told = f"stage '{settings.stage}' has {placed:,} rows"
    if pending:
        what = "of them" if settings.samples == 1 else f"samples of them ({settings.samples} to a row)"
        told += f"; {pending:,} {what} have no answer yet, and generate asks for them"
    print("\n".join([*lines, told]), file=sys.stderr)


def _as_reply(model: str, output: str) -> bytes:
    """The shape of a reply, marked as imported, so that one reader serves all."""
    message = {"role": "assistant", "content": output}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return orjson.dumps({"object": IMPORTED, "model": model, "choices": [choice]})
