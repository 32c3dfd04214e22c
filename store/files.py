"""Files that are written: whole, beside their name first, so that nobody ever reads half of one; and what is
no plain file, which is written through and never replaced.

A link is followed, and stays. `-` is standard output. Devices, pipes and descriptors (`/dev/stdout`,
`/dev/fd/3`) take what comes, in order. A replaced file keeps its permissions.
"""

import errno
import gzip
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import orjson

from store.errors import StorageError, UsageError

# A place where no file can be, whatever the disk.
NO_PLACE = (IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError)
_NO_PLACE = (errno.EBADF, errno.ENXIO, errno.ENODEV, errno.EROFS, errno.ENAMETOOLONG)
STDOUT = "-"
SQLITE = b"SQLite format 3\0"
LEDGER, LOCK, RESERVE = "ledger.db", "lock", "reserve"  # of a run folder
RUN_FILES = (LEDGER, LOCK, RESERVE)
MOST_LINKS = 40
LONGEST_NAME = 255
# Endings of what no output is: a name that promises it would be wrong.
FOREIGN = (".xlsx", ".xls", ".ods", ".zip", ".tar", ".tgz", ".zst", ".bz2", ".xz", ".7z", ".arrow", ".html")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a file is by its name. kind: jsonl (also of a name that says nothing), json, csv, parquet, or an
    ending of what is never written; separator: of CSV."""

    kind: str
    is_gzip: bool = False
    separator: str = ","


def shape_of(path: Path) -> Shape:
    name = path.name.lower()
    is_gzip, name = name.endswith(".gz"), name.removesuffix(".gz")
    ending = Path(name).suffix
    if ending in (".csv", ".tsv"):
        return Shape("csv", is_gzip, "\t" if ending == ".tsv" else ",")
    if ending in (".json", ".parquet", *FOREIGN):
        return Shape(ending[1:], is_gzip)
    return Shape("jsonl", is_gzip)


@contextmanager
def packed(path: Path) -> Iterator[IO[bytes]]:
    """As `replacing`, compressed where the name ends in .gz; the same contents give the same bytes."""
    with replacing(path) as file:
        if not shape_of(path).is_gzip:
            yield file
            return
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped:
            yield cast(IO[bytes], zipped)


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when all of it is on disk; on any error the old one stays."""
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    end = f".{os.getpid()}.part"
    name = path.name.encode()[: LONGEST_NAME - len(end) - 1].decode(errors="ignore")
    beside = path.with_name(f".{name}{end}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            # the new file may be read and written by whom the old one might, where there is one
            with suppress(OSError):
                old = path.stat()
                if stat.S_ISREG(old.st_mode):
                    with suppress(OSError):  # only root may give files away
                        os.fchown(file.fileno(), old.st_uid, old.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that was asked for by its name. Raises UsageError where there can be none, StorageError
    where the disk fails, and BrokenPipeError where the reader of a pipe has gone away."""
    try:
        if is_plain(path):
            # an SQLite database, or a file that a run folder needs, is never an output
            real = Path(os.path.realpath(path))
            name = real.name.removesuffix("-wal").removesuffix("-shm").removesuffix("-journal")
            beside = real.with_name(name)
            with suppress(OSError):
                if beside.is_file():
                    with beside.open("rb") as there:
                        if there.read(len(SQLITE)) == SQLITE:
                            raise UsageError(
                                f"cannot write {real}: {beside.name} is an SQLite database; name another file"
                            )
            if real.name in RUN_FILES and (real.parent / LEDGER).exists():
                raise UsageError(f"cannot write {real}: the run folder needs this file; name another one")
            with whole(path) as file:
                yield file
        else:  # as it is: nothing is made, cut or renamed; a pipe is waited for until somebody reads it
            number = descriptor_of(path)
            if number is None:
                opened = os.open(path, os.O_WRONLY | os.O_NOCTTY)
            else:
                if number == 1 and sys.stdout is not None:
                    sys.stdout.flush()  # what was printed before comes before
                opened = os.dup(number)
            with os.fdopen(opened, "wb") as file:
                yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        words = f"cannot write {path}: {error.strerror or error}"
        if isinstance(error, NO_PLACE) or error.errno in _NO_PLACE:
            raise UsageError(f"{words}; name another file") from error
        raise StorageError(words) from error


def is_plain(path: Path) -> bool:
    """Whether a plain file lies there, or none yet: it can be replaced, read again, and has things
    beside it. Raises UsageError where there can be no file."""
    if descriptor_of(path) is not None:
        return False
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return True
    except OSError as error:  # a path through a file, or links in a circle
        raise UsageError(f"cannot write {path}: {error.strerror}; name another file") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"cannot write {path}: it is a folder; name a file")
    if stat.S_ISSOCK(mode):
        raise UsageError(f"cannot write {path}: it is a socket; name a file or a pipe")
    return stat.S_ISREG(mode)


def is_stdout(path: Path | None) -> bool:
    return path is not None and descriptor_of(path) == 1


def descriptor_of(path: Path) -> int | None:
    """The open descriptor that a path means: 1 for `-` and /dev/stdout, N for /dev/fd/N."""
    if str(path) == STDOUT:
        return 1
    own = {f"/proc/{os.getpid()}/fd", f"/proc/{os.getpid()}/task/{os.getpid()}/fd", "/dev/fd"}
    for _ in range(MOST_LINKS):
        if path.name.isdecimal() and os.path.realpath(path.parent) in own:
            return int(path.name)
        try:
            path = path.parent / os.readlink(path)
        except OSError:
            return None
    return None


def loads(raw: bytes) -> Any:
    """JSON, with lone surrogates (legal in escapes) let through; raises ValueError."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json.loads(raw.decode())


def storable(value: Any) -> Any:
    """The same text or JSON value, with U+FFFD for half a surrogate pair, which can neither be stored nor
    printed."""
    if isinstance(value, str):
        return (
            value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )
    if isinstance(value, dict):
        return {storable(k): storable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [storable(v) for v in value]
    return value
