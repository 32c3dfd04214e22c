"""A batch's input on our disk: written as requests come, read again for those without an answer.

RUN/batches/NAME.jsonl lives until the batch has all its results, so that what expired can be
asked again without the pool.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.batch.lines import body_of, input_line
from engine.batch.packing import Limits, Load
from store.errors import DiskFull, StorageError

FOLDER = "batches"


@dataclass(frozen=True, slots=True)
class Due:
    """A request that is to be asked. `own`: rows wait for it that are counted nowhere else."""

    request: int
    key: bytes
    body: bytes
    prompt_tokens: int
    worst: int
    tries: int
    own: bool = True

    def taken_over(self) -> "Due":
        return replace(self, own=True)


@dataclass(frozen=True, slots=True)
class Again:
    """What has to be asked again, without its body."""

    request: int
    prompt_tokens: int
    worst: int
    tries: int
    own: bool


class Parcel:
    """A file that is being filled. Raises DiskFull."""

    def __init__(self, path: Path) -> None:
        self.path, self.load = path, Load()
        self.requests: list[tuple[int, int, int]] = []  # id, worst, tries
        with _disk(path):
            path.parent.mkdir(exist_ok=True)
            self._file = path.open("wb")

    def takes(self, due: Due, limits: Limits) -> bool:
        return self.load.takes(len(input_line(due.key, due.body)), due.prompt_tokens, limits)

    def add(self, due: Due) -> None:
        line = input_line(due.key, due.body)
        with _disk(self.path):
            self._file.write(line)
        self.load.add(len(line), due.prompt_tokens, due.worst)
        self.requests.append((due.request, due.worst, due.tries))

    def seal(self) -> None:
        """On the disk, whole, before anything is said of it."""
        with _disk(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskFull(f"cannot write {path}: {error.strerror}; what was paid is stored") from error


@dataclass(slots=True)
class Leftover:
    """The requests of a batch that have to be asked again, by key; their bodies are in its file."""

    path: Path
    again: dict[bytes, Again]
    _lines: Iterator[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self._lines = self._read()

    def _read(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                yield from file
        except OSError as error:
            words = f"{self.path} is gone ({error.strerror}): run the same command again"
            raise StorageError(words) from None

    def next(self) -> Due | None:
        """None when all have been given; the file is gone then."""
        while self.again and (line := next(self._lines, None)) is not None:
            key, body = body_of(line)
            if a := self.again.pop(key, None):
                return Due(a.request, key, body, a.prompt_tokens, a.worst, a.tries, a.own)
        self.path.unlink(missing_ok=True)
        return None


def name_of(folder: str, number: int) -> str:
    """Of the file, here and at the provider; no two run folders share one."""
    return f"distill-{folder}-{number}.jsonl"


def sweep(run: Path, kept: set[str]) -> None:
    """Removes the files of batches that are closed, or were never put down."""
    for path in (run / FOLDER).glob("*.jsonl"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
