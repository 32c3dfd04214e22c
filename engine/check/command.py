"""`check RUN [--repair]`: says what is damaged and what that costs, and repairs it.

A file that SQLite cannot work with is first salvaged into a fresh one, page by page. For a check alone
that happens in a folder for temporary files; for a repair beside the ledger, which then takes the damaged
one's name. The damaged one stays as ledger.db.damaged-1.
"""

import contextlib
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from engine.check.damage import find
from engine.check.integrity import faults_of, faults_of_log
from engine.check.repair import mend
from engine.check.report import CheckReport, lines, told
from engine.terminal import plain, tell
from store.errors import RunFolderError, StorageError
from store.files import LEDGER
from store.queries import connect_reader
from store.run_folder import held, is_held, ledger_path
from store.salvage import salvage
from store.schema import VERSION, connect_writer, is_newer, version_words

SALVAGED = ".ledger.db.salvaged"
DAMAGED = 1
PASSES = 4  # what is made up from what others name is looked at again


def run_check(run: Path, repair: bool, as_json: bool) -> int:
    """`check`, as the command line shows it: 0 for an intact ledger, or one that has been repaired; 1 for a
    damaged one."""
    found = check(run, repair)
    if as_json:
        sys.stdout.write(orjson.dumps(found.as_json()).decode() + "\n")
    else:
        print(*lines(found.report, str(run)), sep="\n")
        if found.repair:
            _tell_repair(found.report, found.repair)
        elif not found.report.is_intact:
            print(f"repair it with: distill check --run {run} --repair")
    if found.repair and not found.is_intact:
        left = found.repair.left
        tell(f"distill: {run / LEDGER} is still damaged: {plain('; '.join(left), 600)}\n")
    return 0 if found.is_intact else DAMAGED


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair has done, and what is damaged after it. kept: where the damaged ledger lies, if a fresh
    one has its place. log: what was there before, if anything was changed."""

    done: Mapping[str, int]
    left: Sequence[str]
    kept: Path | None
    log: Path | None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check has found, and the repair, if there was one."""

    report: CheckReport
    repair: Repair | None = None

    @property
    def is_intact(self) -> bool:
        """Now."""
        return not self.repair.left if self.repair else self.report.is_intact

    def as_json(self) -> dict[str, Any]:
        found = self.report.as_json()
        if self.repair is None:
            return {**found, "repaired": False}
        kept, log = self.repair.kept, self.repair.log
        return {
            **found, "repaired": not self.report.is_intact, "done": self.repair.done,
            "intact_now": self.is_intact, "kept": str(kept) if kept else None,
            "log": str(log) if log else None,
        }  # fmt: skip


def check(run: Path, repair: bool) -> Checked:
    """Raises RunFolderError, StorageError."""
    ledger = ledger_path(run)
    # one that a newer version has written is not damaged, and one in the making is not either
    log = ledger.with_name(ledger.name + "-wal")
    if not ledger.stat().st_size and not (log.exists() and log.stat().st_size):
        raise RunFolderError(version_words(ledger, 0))
    with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
        with contextlib.closing(_connected(ledger)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            is_too_new = version > VERSION and is_newer(connection)
        if is_too_new:
            raise RunFolderError(version_words(ledger, version))
    try:
        return _repair(run) if repair else Checked(_check(run))
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"{ledger} cannot be checked: {error}") from error


def _salvaged(run: Path, fresh: Path) -> int:
    """Makes a fresh ledger of what can be read; how many records cannot be."""
    found = salvage(run / LEDGER, fresh)
    if not sum(found.records[table] for table in ("rows", "requests", "responses", "bodies")):
        raise RunFolderError(f"{run / LEDGER} has nothing of a ledger left: restore it from a backup")
    return found.unreadable


def _check(run: Path) -> CheckReport:
    faults = [] if is_held(run) else faults_of_log(run)
    if not faults:
        with contextlib.suppress(Exception):  # an older version; where that cannot be, the check says why
            connect_reader(run).close()
        faults = faults_of(run)
    if faults:
        with tempfile.TemporaryDirectory(prefix="distill-check-") as folder:
            fresh = Path(folder) / LEDGER
            unreadable = _salvaged(run, fresh)
            result = _look(fresh, run, faults)
            result.unreadable = unreadable
            return result
    return _look(run / LEDGER, run, [])


def _look(path: Path, run: Path, faults: list[str]) -> CheckReport:
    with contextlib.closing(_connected(path)) as connection:
        connection.execute("BEGIN")  # one picture of it all, whoever writes meanwhile
        found = find(connection)
        result = told(connection, str(run / LEDGER), faults, found)
        connection.execute("COMMIT")
        return result


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
    connection.execute("PRAGMA busy_timeout = 5000")
    connection.text_factory = lambda text: text.decode(errors="replace")
    return connection


def _repair(run: Path) -> Checked:
    with held(run):
        faults = faults_of_log(run)
        if not faults:
            with contextlib.suppress(Exception):
                connect_writer(run).close()
            faults = faults_of(run)
        kept, unreadable = None, 0
        log = run / f"repair-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
        if faults:
            fresh = run / SALVAGED
            unreadable = _salvaged(run, fresh)
            fresh.chmod((run / LEDGER).stat().st_mode & 0o777)
            result, done = _mended(fresh, run, faults, log)
            kept = _put_in_place(run, fresh)
        else:
            result, done = _mended(run / LEDGER, run, [], log)
        result.unreadable = unreadable
        left = faults_of(run)
        if not left and not (after := _look(run / LEDGER, run, [])).is_intact:
            left = [*lines(after, str(run))]
    return Checked(result, Repair(done, left, kept, log if log.exists() else None))


def _mended(path: Path, run: Path, faults: list[str], log: Path) -> tuple[CheckReport, dict[str, int]]:
    """Looks and repairs in one transaction: what was found at first, and what was done. What was there
    before goes into `log`, which is on the disk before the repair is."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    connection.text_factory = lambda text: text.decode(errors="replace")
    done: Counter[str] = Counter()
    with contextlib.closing(connection):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        found = find(connection)
        first = result = told(connection, str(run / LEDGER), faults, found)
        with log.open("a", encoding="utf-8") as file:

            def write(line: Mapping[str, Any]) -> None:
                file.write(json.dumps(line, ensure_ascii=False, default=repr) + "\n")

            for _ in range(PASSES):
                if result.is_intact or not (result.counts.total() or result.loose):
                    break
                done += mend(connection, found, write)
                found = find(connection)
                result = told(connection, str(run / LEDGER), [], found)
            file.flush()
            os.fsync(file.fileno())
            is_empty = file.tell() == 0
        if is_empty:
            log.unlink()
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return first, {what: count for what, count in done.items() if count}


def _put_in_place(run: Path, fresh: Path) -> Path:
    """The repaired file takes the ledger's name; at no moment is there none. Returns where the damaged one
    is kept, its write-ahead log beside it."""
    number = 1
    while (kept := run / f"{LEDGER}.damaged-{number}").exists():
        number += 1
    ledger = run / LEDGER
    try:
        os.link(ledger, kept)
    except OSError:  # a file system without links
        import shutil

        shutil.copy2(ledger, kept)
    wal, shared = (run / f"{LEDGER}{end}" for end in ("-wal", "-shm"))
    if wal.exists() and wal.stat().st_size:
        wal.rename(kept.with_name(kept.name + "-wal"))
    shared.unlink(missing_ok=True)
    fresh.replace(ledger)
    for end in ("-wal", "-shm"):
        fresh.with_name(fresh.name + end).unlink(missing_ok=True)
    descriptor = os.open(run, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return kept


def _tell_repair(report: CheckReport, repair: Repair) -> None:
    if report.is_intact:
        return
    print("repaired:")
    for what, count in repair.done.items():
        print(f"  {count:,} {what}")
    if repair.kept:
        print(f"  what could be read is in a fresh ledger; the damaged one is kept as {repair.kept}")
    if repair.log:
        print(f"  what was changed, and what it was before, is in {repair.log}")
    print("run the same command as before: it puts rows back and sends what is pending")
