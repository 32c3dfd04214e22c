"""What is damaged in a ledger and left out of what is read from it: counted, and the first few named."""

import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

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


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file itself is damaged (SQLITE_CORRUPT, SQLITE_NOTADB)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (11, 26)


def is_foreign(error: sqlite3.Error) -> bool:
    """Whether the file does not begin as one of SQLite's: it never was a ledger, or its header is damaged."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == 26


WAS_ONE = ". If it was one before, `distill check` on its folder says what can be saved"
