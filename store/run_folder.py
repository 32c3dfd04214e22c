"""The run folder: one process at a time, a reserve that is given up when the disk is full, and what is known
of a recipe's steps (RUN/steps/NAME.json).
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from store.errors import RunFolderError
from store.files import LEDGER, LOCK, RESERVE, whole

STEPS = "steps"
State = Literal["done", "known", "failed", "interrupted", "waiting"]
Record = dict[str, Any]


def ledger_path(run: Path) -> Path:
    """RUN/ledger.db, which must exist. Raises RunFolderError with what to do."""
    path = run / LEDGER
    if not path.is_file():
        raise RunFolderError(f"no ledger in {run}: it is not a run folder (expected {path})")
    return path


@contextlib.contextmanager
def held(run: Path, lock: str = LOCK, flag: str = "--run") -> Iterator[Path]:
    """The folder, made if need be, held by an advisory lock until the context ends.

    The lock goes with the process: a kill leaves nothing to clean up. `lock`: its file, where only a
    part of the folder is held. `flag`: what names the folder on the command line.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run / lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {flag[2:]} folder {run}: {error.strerror}; name another with {flag}"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise RunFolderError(f"cannot lock {run / lock}: {error.strerror}") from error
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise RunFolderError(
                f"{flag[2:]} folder {run} is in use by process {holder}; "
                f"wait for it, stop it, or name another folder with {flag}"
            ) from error
        with contextlib.suppress(OSError):  # the pid is a courtesy; a full disk must not stop us here
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield run
    finally:
        os.close(descriptor)


def is_held(run: Path) -> bool:
    """Whether a process holds the folder at this moment."""
    return holder(run) is not None


def holder(run: Path) -> int | None:
    """The process that holds the folder at this moment; 0 where its number cannot be read."""
    try:
        descriptor = os.open(run / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def make_reserve(run: Path, size: int) -> int:
    """Writes the reserve file, at most a quarter of the free space; returns its size in bytes."""
    path = run / RESERVE
    free = shutil.disk_usage(run).free + (path.stat().st_size if path.exists() else 0)
    size = min(size, free // 4)
    try:
        with path.open("wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        give_up_reserve(run)
        raise RunFolderError(f"cannot write in run folder {run}: {error.strerror}") from error
    return size


def give_up_reserve(run: Path) -> bool:
    """Frees the reserve's space; false if it was gone already."""
    try:
        (run / RESERVE).unlink()
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class StepResult:
    """known: it had been done before; waiting: `why` names what it waits for."""

    state: State
    exit_code: int = 0
    why: str = ""
    seconds: float = 0.0


def record_of(run: Path, name: str) -> Record:
    """{} where the step was never begun, or the record cannot be read."""
    try:
        found = orjson.loads((run / STEPS / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def steps_told(run: Path) -> dict[str, dict[str, Any]]:
    """The steps that were begun in a run folder, as `status` has them."""
    records = {file.stem: record_of(run, file.stem) for file in sorted((run / STEPS).glob("*.json"))}
    return {
        name: {"run": record["run"], "done": is_whole(run, record), "seconds": record.get("seconds")}
        for name, record in records.items()
        if "run" in record
    }


def is_whole(run: Path, record: Record) -> bool:
    """Whether a step came to its end, and all that it left still lies there."""
    left = record.get("left", {})
    try:
        return bool(left) and all((run / name).stat().st_size == seal["bytes"] for name, seal in left.items())
    except OSError:
        return False


def write_record(run: Path, name: str, record: Record) -> None:
    """Whole or not at all."""
    with whole(run / STEPS / f"{name}.json") as file:
        file.write(orjson.dumps(record, option=orjson.OPT_INDENT_2))
