"""Files that are written whole: beside their name first, so that nobody ever reads half of one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from store.errors import StorageError, UsageError

# A place where no file can be, whatever the disk.
NO_PLACE = (IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError)


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when all of it is on disk; on any error the old one stays."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
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
    where the disk fails."""
    try:
        with whole(path) as file:
            yield file
    except NO_PLACE as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}; name another file") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
