"""The ledger: one SQLite file that never forgets a paid answer.

Calls come from the event loop, one writer thread commits (WAL, `synchronous=FULL`). Commits
are grouped by natural batching: whatever has queued while the last commit was on its way goes
into the next one. `await committed()` returns when all that was put before is on the disk.
When the disk is full the reserve file is given up, the commit is made in its space, and
`on_full` is called so that the run can stop. Deliberately knows nothing of HTTP or limits.
"""

import asyncio
import contextlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue

from store.errors import DamagedLedger, DiskFull, StorageError, is_damage
from store.files import LEDGER, storable
from store.records import Fault, Request, Response
from store.run_folder import give_up_reserve
from store.schema import STAGE_SHIFT, connect_writer
from store.transaction import Transaction

FOLD_MS = 2000  # to wait at the end for readers that are in the middle of a query
_IOERR, _FULL = 10, 13  # primary SQLite result codes


class Ledger:
    """Open it inside a running event loop, in a folder that is held; close it in the end."""

    def __init__(self, run: Path, on_full: Callable[[], None] = lambda: None) -> None:
        self.run = run
        self._on_full = on_full
        self._connection = connect_writer(run)
        self._loop = asyncio.get_running_loop()
        self._batch, self._idle = Transaction(), True  # idle: no batch is on its way to the disk
        self._broken: StorageError | None = None
        self._handed: SimpleQueue[Transaction | None] = SimpleQueue()
        self._last: dict[str, int] = {}
        for table in ("requests", "attempts", "responses", "errors", "batches"):
            highest = self._connection.execute(f"SELECT ifnull(max(id), 0) FROM {table}").fetchone()
            self._last[table] = int(highest[0])
        self._using = threading.Lock()
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    @property
    def last_request(self) -> int:
        """The highest request id in use when the ledger was opened."""
        return self._last["requests"]

    def begin(self, stage: str, task: str, samples: int, settings: Mapping[str, object]) -> tuple[int, int]:
        """Opens a stage and a run of it; returns (stage id, run id)."""
        with self._connected() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(
                "INSERT INTO stages (name, task, samples) VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET task = excluded.task, samples = excluded.samples",
                (stage, task, samples),
            )
            (number,) = db.execute("SELECT id FROM stages WHERE name = ?", (stage,)).fetchone()
            cursor = db.execute(
                "INSERT INTO runs (stage, started, pid, settings) VALUES (?, ?, ?, ?)",
                (number, time.time(), os.getpid(), json.dumps(settings, ensure_ascii=False)),
            )
        return int(number), int(cursor.lastrowid or 0)

    def next_batch(self) -> int:
        """A number that no batch of the folder has."""
        self._last["batches"] += 1
        return self._last["batches"]

    def note(self, sql: str, *values: object) -> None:
        """A rare statement of its own (totals, end of a run), in the next commit."""
        self._batch.notes.append((sql, values))
        if self._idle:
            self._schedule()

    def place(
        self,
        stage: int,
        position: int,
        item: bytes,
        plan: int,
        requests: list[tuple[int, int]],
        new: Sequence[Request] = (),
    ) -> None:
        """Remembers a pool row and the request of each of its samples: [(sample, request)].

        `plan` is a fingerprint of all that decides a key beside the item.
        `new` requests go into the same commit, so that no row ever points at nothing.
        """
        batch = self._batch
        for each in new:
            batch.requests.append((each.id, each.key, each.sample, each.prompt_tokens))
        batch.rows.append(((stage << STAGE_SHIFT) + position, item, plan, zlib.crc32(item)))
        for sample, request in requests:
            batch.samples.append((stage, position, sample, request))
        if self._idle:
            self._schedule()

    def clear(self, stage: int, position: int) -> None:
        """Forgets a row's place; its requests and their answers stay."""
        self.note("DELETE FROM rows WHERE id = ?", (stage << STAGE_SHIFT) + position)
        self.note("DELETE FROM samples WHERE stage = ? AND position = ?", stage, position)

    def add(self, new: Sequence[Request]) -> None:
        """Requests without a place in a pool (yet)."""
        self._batch.requests.extend((each.id, each.key, each.sample, each.prompt_tokens) for each in new)
        if self._idle:
            self._schedule()

    def endpoint(self, url: str) -> int:
        """The number under which attempts remember this server."""
        with self._connected() as db:
            db.execute("INSERT INTO endpoints (url) VALUES (?) ON CONFLICT (url) DO NOTHING", (url,))
            (number,) = db.execute("SELECT id FROM endpoints WHERE url = ?", (url,)).fetchone()
        return int(number)

    def journal(
        self, run: int, stage: int, request: int, worst_micro: int, endpoint: int | None = None
    ) -> int:
        """Puts down that the request is about to be sent, and where; returns the attempt's id."""
        self._last["attempts"] += 1
        attempt = self._last["attempts"]
        self._batch.attempts.append((attempt, run, request, time.time(), worst_micro, endpoint))
        account = self._batch.spending[stage]
        account.sent += 1
        account.at_risk += worst_micro
        if self._idle:
            self._schedule()
        return attempt

    def withdraw(self, stage: int, attempt: int, worst_micro: int) -> None:
        """Takes a journalled attempt back: it was never sent."""
        self.note("DELETE FROM attempts WHERE id = ?", attempt)
        account = self._batch.spending[stage]
        account.sent -= 1
        account.at_risk -= worst_micro

    def put(
        self,
        stage: int,
        attempt: int,
        request: int,
        response: Response,
        released_micro: int,
        final: bool,
    ) -> int:
        """A reply with its raw body, outcome, usage and cost; `final` if it is the answer. Returns the
        reply's number."""
        self._last["responses"] += 1
        number = self._last["responses"]
        raw, usage = response.raw, response.usage
        body: str | bytes = raw
        with contextlib.suppress(UnicodeDecodeError):
            body = raw.decode()
        self._batch.bodies.append((number, body, response.text, response.reasoning, zlib.crc32(raw)))
        self._batch.responses.append(
            (number, attempt, request, response.outcome, response.finish_reason, response.served_model,
             usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens,
             response.cost_micro, response.latency, time.time(), usage.cache_write_tokens,
             response.service_tier, response.listed_micro, response.estimated)
        )  # fmt: skip
        if final:
            self._batch.answers.append((number, request))
        account = self._batch.spending[stage]
        account.spent += response.cost_micro
        account.at_risk -= released_micro
        account.prompt_tokens += response.usage.prompt_tokens
        account.completion_tokens += response.usage.completion_tokens
        account.ended += 1
        if self._idle:
            self._schedule()
        return number

    def accept(self, request: int, response: int) -> None:
        """Makes a stored reply the answer of its request."""
        self._batch.answers.append((response, request))
        if self._idle:
            self._schedule()

    def error(
        self,
        stage: int,
        attempt: int,
        request: int,
        fault: Fault,
        released_micro: int,
        ended: bool = True,
        at_risk_micro: int = 0,
    ) -> int:
        """What went wrong with an attempt; what may have been billed all the same stays at risk
        (`at_risk_micro`), the rest is released.

        `ended` is false where a stored (malformed) reply has ended the attempt already.
        """
        self._last["errors"] += 1
        number = self._last["errors"]
        words = storable(fault.words)
        self._batch.errors.append(
            (number, attempt, request, fault.cause, fault.status, words, time.time(), at_risk_micro)
        )
        account = self._batch.spending[stage]
        account.at_risk -= released_micro
        account.ended += ended
        if self._idle:
            self._schedule()
        return number

    def fail(self, request: int, error: int) -> None:
        """Ends a request: it is not asked again until `retry`."""
        self._batch.failures.append((error, request))
        if self._idle:
            self._schedule()

    def committed(self) -> asyncio.Future[None]:
        """Done when everything put so far is on the disk. Raises StorageError if it cannot be."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        if self._broken:
            waiter.set_exception(self._broken)
            return waiter
        self._batch.waiters.append(waiter)
        if self._idle:
            self._schedule()
        return waiter

    async def close(self) -> None:
        """Commits what is left, folds the WAL in and lets go of the file."""
        try:
            if not self._broken:
                await self.committed()
        finally:
            self._handed.put(None)
            await asyncio.to_thread(self._thread.join)
            # SQLite itself folds the WAL in at the last close, but somebody may be reading still.
            with contextlib.suppress(sqlite3.Error):  # a full disk: the WAL stays, and is valid
                self._connection.execute(f"PRAGMA busy_timeout = {FOLD_MS}")
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A transaction of its own, for what cannot wait for the next commit."""
        with self._using:
            try:
                with self._connection as connection:
                    yield connection
            except sqlite3.Error as error:
                raise self._as_ours(error) from error

    def _schedule(self) -> None:
        """What this turn of the loop puts goes into one commit."""
        self._idle = False
        self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        batch, self._batch = self._batch, Transaction()
        self._handed.put(batch)

    def _write(self) -> None:
        """After a commit that failed nothing more is written: it could point at what is not there."""
        error: StorageError | None = None
        while (batch := self._handed.get()) is not None:
            error = error or self._apply(batch)
            self._loop.call_soon_threadsafe(self._done, batch, error)

    def _apply(self, batch: Transaction) -> StorageError | None:
        try:
            with self._using:
                batch.apply(self._connection)
        except sqlite3.Error as error:
            told = self._as_ours(error)
            if not isinstance(told, DiskFull):
                return told
            self._loop.call_soon_threadsafe(self._on_full)
            return self._apply(batch) if give_up_reserve(self.run) else told
        except Exception as error:  # the thread must live: whoever waits for this commit hears of it
            return StorageError(f"writing {self.run / LEDGER} failed: {error!r}")
        return None

    def _as_ours(self, error: sqlite3.Error) -> StorageError:
        """SQLite's errors are mapped at this one edge."""
        ledger = self.run / LEDGER
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (_IOERR, _FULL):
            return DiskFull(
                f"cannot write {ledger} ({error}); nothing stored is lost: check the disk (free some space) "
                "and run the same command again"
            )
        if is_damage(error):
            return StorageError(str(DamagedLedger(ledger, error)))
        return StorageError(f"writing {ledger} failed: {error}")

    def _done(self, batch: Transaction, error: StorageError | None) -> None:
        self._broken = self._broken or error
        for waiter in batch.waiters:
            if not waiter.done():
                waiter.set_exception(error) if error else waiter.set_result(None)
        self._idle = True
        if self._batch.has_work:
            self._schedule()
