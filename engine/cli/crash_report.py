"""What becomes of an error that nobody foresaw: one sentence for people, the traceback in a file.

The file is made when it is first needed, in the run folder that the command line names, else in the
folder for temporary files; nobody else may read it. What looks like a secret is taken out, for people
send such files to each other.
"""

import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from engine.terminal import plain, tell
from store.errors import DamagedLedger

EXIT_CODE = 4
LOOK_SECONDS = 5.0  # for damage of the ledger that may be behind an error
LEDGER = "ledger.db"
FOLDERS = ("--run", "--out")
SHORTEST_SECRET = 8  # characters; of a value that only looks like one, twice that
NAMED_SO = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
LOOKS_SO = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w.~+=-]+")  # what a name or a path does not look like
SHAPES = re.compile(
    r"\b(?:sk|pk|rk|hf|ghp|gho|xox[abp])[-_][\w-]{8,}"  # the usual prefixes of keys
    r"|(?<=bearer )\S{8,}"
    r"|(?<=://)[^\s/@]+(?=@)",  # user and password in an address
    re.IGNORECASE,
)


class Unexpected:
    """Takes errors of a process. `arguments`: the words of its command line."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._arguments = list(arguments)
        self._secrets = secrets_of(arguments, environment)
        self._file: Path | None = None
        self._lock = threading.Lock()

    def watch(self) -> None:
        """Also takes what ends a thread, what a destructor raises, and what libraries log for want of
        somebody to raise it to."""
        threading.excepthook = lambda args: self._raised(args.exc_value)
        sys.unraisablehook = lambda args: self._raised(args.exc_value)
        if not {"-h", "--help"}.intersection(self._arguments):
            import logging

            logged = self._logged

            class Handler(logging.Handler):
                def emit(self, record: logging.LogRecord) -> None:
                    logged(record.getMessage(), record.exc_info[1] if record.exc_info else None)

            logging.lastResort = Handler(logging.WARNING)

    def say(self, error: BaseException, of: str = "an unexpected error") -> int:
        """Writes its traceback down and says so. Returns the exit code."""
        words = self._redacted(plain(f"{type(error).__name__}: {error}", 300))
        folder = folder_of(self._arguments)
        if folder and (damage := _damage_of(folder, error)):
            tell(f"distill: {plain(str(damage), 1000)}\n")
            return damage.exit_code
        ledger = folder / LEDGER if folder else None
        saved = f"everything paid for is saved in {ledger}; " if ledger and ledger.is_file() else ""
        where = self._written(error, folder)
        lies = f"the traceback is in {where}" if where else "its traceback could not be written anywhere"
        tell(f"distill: {of} ({words}); {saved}{lies}\n")
        return EXIT_CODE

    def _raised(self, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, SystemExit):
            self.say(error)

    def _logged(self, message: str, error: BaseException | None) -> None:
        if error is None:
            tell(f"distill: {self._redacted(plain(message, 600))}\n")
        else:
            self.say(error, of=f"an unexpected error: {plain(message, 200)}")

    def _written(self, error: BaseException, folder: Path | None) -> Path | None:
        text = self._redacted("".join(traceback.format_exception(error)))
        stamp = f"{time.strftime('%Y-%m-%d %H:%M:%S')} distill {' '.join(self._arguments)}"
        with self._lock:
            for file in [self._file] if self._file else _places(folder):
                try:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                    descriptor = os.open(file, flags, 0o600)
                    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as out:
                        out.write(f"{self._redacted(stamp)}\n{text}\n")
                except OSError:
                    continue
                self._file = file
                return file
        return None

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return SHAPES.sub("[secret]", text)


def _damage_of(folder: Path, error: BaseException) -> DamagedLedger | None:
    """Whether it comes of a damaged ledger: SQLite says so, or no record of it can be believed."""
    import sqlite3

    from engine.check.integrity import faults_of
    from store.errors import is_damage

    ledger = folder / LEDGER
    if not ledger.is_file():
        return None
    if isinstance(error, sqlite3.Error) and is_damage(error):
        return DamagedLedger(ledger, error)
    try:
        faults = faults_of(folder, LOOK_SECONDS)
    except Exception:  # this is said of another error, which is not to be hidden by one of ours
        return None
    return DamagedLedger(ledger, faults[0]) if faults else None


def folder_of(arguments: Sequence[str]) -> Path | None:
    """The run folder that a command line names, as an argument or by a flag; else the folder that its
    flags name for something else (what a training run leaves)."""
    flags = [word.partition("=") for word in arguments] + [(f, "=", word) for f, word in pairwise(arguments)]
    named = [Path(word) for flag, _, word in flags if flag in FOLDERS and word]
    every = [*named, *(Path(word) for word in arguments if not word.startswith("-"))]
    runs = (path for path in every if (path / LEDGER).is_file())
    return next(runs, next((path for path in named if path.is_dir()), None))


def _places(folder: Path | None) -> Iterator[Path]:
    import tempfile

    name = f"traceback-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    if folder:
        yield folder / name
    yield Path(tempfile.gettempdir()) / f"distill-{name}"


def secrets_of(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Values that must not be seen: of variables that are named like secrets, or look like one."""
    named = {word for flag, word in pairwise(arguments) if "env" in flag}
    found = {
        value
        for name, value in environment.items()
        if len(value) >= SHORTEST_SECRET
        and (
            name in named
            or NAMED_SO.search(name)
            or (len(value) >= 2 * SHORTEST_SECRET and LOOKS_SO.fullmatch(value))
        )
    }
    return sorted(found, key=len, reverse=True)  # one may be a part of another
