"""Where the rows of a stage come from: pools, samples of pools, answer files, and their positions.

Knows nothing about requests or about how rows are asked. Rows of other stages are in upstream.py.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from engine.collect.plan import role
from engine.collect.settings import Settings
from store.answer_sets import LEAST, drawn_orders, fixed_orders, judge_contests, score_contests, shown
from store.answers import Answers, PromptAnswers, model_names
from store.errors import PoolError, UsageError
from store.pool import Pool
from store.records import BadRow, Contest, Instruction, Item, as_text, missing, no_text

BAD_NAMED = 3


Placed = tuple[int, Item]  # a row with its position in the stage
NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no row at this position, whatever an earlier run had there."""

    position: int


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a stage has come: its rows below `frontier` are in their places, but for those that
    are `pending`, which may still come."""

    frontier: int = 0
    pending: frozenset[int] = NOTHING


class Rows(Protocol):
    """Where a stage's rows come from. `is_stream`: they may come one by one, for ever."""

    @property
    def source(self) -> str: ...

    @property
    def is_stream(self) -> bool: ...

    @property
    def pending(self) -> frozenset[int]:
        """Positions that were passed over, whose rows may still come."""

    def placed(self, reader: sqlite3.Connection) -> Iterator[Placed | BadRow | Gone | None]:
        """Rows in any order of position; None: there will be more, but not now."""

    def follow(self, stage: str, progress: "Progress") -> None:
        """Told before the run, for each stage that runs at the same time and whose answers these
        rows are made of."""


class Progress(Protocol):
    """How far a stage is that others take their rows from."""

    @property
    def reach(self) -> Reach: ...

    @property
    def is_over(self) -> bool:
        """It will bring no more answers."""


class Source(Protocol):
    """What can be read in order: a pool, or the answers of several models joined."""

    @property
    def source(self) -> str: ...

    @property
    def is_stream(self) -> bool: ...

    def __iter__(self) -> Iterator[Item | BadRow]: ...


class Surveyed(Source, Protocol):
    """Rows that can be read more than once; `fraction` says how far the current pass is, 0-1."""

    @property
    def fraction(self) -> float: ...


class SampledPool:
    """So many rows of a pool, drawn at random with a seed, in the pool's order."""

    is_stream = False

    def __init__(self, pool: Pool, count: int, seed: int) -> None:
        if pool.is_stream:
            raise UsageError("--sample reads its pool twice: give a file, not a pipe")
        self._pool, self._count, self._seed = pool, count, seed
        self._chosen: frozenset[int] | None = None
        self.source = f"{pool.source} ({count} rows drawn with seed {seed})"

    @property
    def fraction(self) -> float:
        return self._pool.fraction

    def __iter__(self) -> Iterator[Instruction | BadRow]:
        if self._chosen is None:
            rows = sum(isinstance(row, Instruction) for row in self._pool)
            drawn = Random(self._seed).sample(range(rows), min(self._count, rows))
            self._chosen = frozenset(drawn)
        position = 0
        for row in self._pool:
            if isinstance(row, BadRow):
                yield row
                continue
            if position in self._chosen:
                yield row
            position += 1


class Having:
    """The rows of a pool that have the field that a task is about; the others are bad rows."""

    def __init__(self, rows: Pool | SampledPool, field: str, pool: Pool, may_lack: bool = False) -> None:
        """`pool`: where the rows come from in the end. may_lack: rows without the field are fine, and only
        those are bad in which it is not text."""
        self._rows, self._field, self._pool, self._may_lack = rows, field, pool, may_lack
        self.source, self.is_stream = rows.source, rows.is_stream

    @property
    def fraction(self) -> float:
        return self._pool.fraction

    def __iter__(self) -> Iterator[Instruction | BadRow]:
        for row in self._rows:
            if isinstance(row, Instruction) and not getattr(row, self._field).strip():
                raw = self._pool.raw
                if as_text(value := raw.get(self._field)) is None:
                    yield BadRow(self._pool.line, no_text(self._field, value))
                elif not self._may_lack:
                    yield BadRow(self._pool.line, missing(raw, self._field))
                else:
                    yield row
            else:
                yield row


class Strict:
    """Rows of which none may be bad. What can be read twice is read to its end before the first row is
    handed over, so that nothing is asked for a pool with a bad row; a stream ends at its first one."""

    def __init__(self, rows: Surveyed, limit: int | None) -> None:
        self._rows, self._limit = rows, limit
        self.source, self.is_stream = rows.source, rows.is_stream
        self._is_checked = False

    @property
    def fraction(self) -> float:
        return self._rows.fraction

    def __iter__(self) -> Iterator[Item | BadRow]:
        """Raises PoolError."""
        if not (self.is_stream or self._is_checked):
            self._check()
        for row in self._rows:
            if self.is_stream and isinstance(row, BadRow):
                raise _not_strict(self.source, 1, [row])
            yield row

    def _check(self) -> None:
        usable, count, named = 0, 0, list[BadRow]()
        for row in self._rows:
            if not isinstance(row, BadRow):
                usable += 1
            elif (count := count + 1) <= BAD_NAMED:
                named.append(row)
            if usable == self._limit:
                break
        if count:
            raise _not_strict(self.source, count, named)
        self._is_checked = True


def _not_strict(source: str, count: int, named: Sequence[BadRow]) -> PoolError:
    lines = "; ".join(f"line {row.line}: {row.reason}" for row in named)
    more = "; ..." if count > len(named) else ""
    many = f"{count:,} bad rows" if count > 1 else "a bad row"
    where = "standard input" if source == "-" else source
    return PoolError(f"{many} in {where}, and --strict allows none: {lines}{more}")


def pool_of(settings: Settings, source: str | Path, answered: bool = False) -> Surveyed:
    """The pool of a stage. answered: an output that is there must be text. Raises PoolError if it cannot be
    read, UsageError for bad settings."""
    role(settings)
    whole = Pool(source)
    rows: Pool | SampledPool = (
        SampledPool(whole, settings.sample, settings.seed) if settings.sample else whole
    )
    if answered or settings.field == "output":
        return checked(settings, Having(rows, "output", whole, may_lack=answered))
    return checked(settings, rows)


def checked(settings: Settings, rows: Surveyed) -> Surveyed:
    """The same rows, of which none may be bad where the settings say so."""
    return Strict(rows, settings.limit) if settings.strict else rows


def contests_of(settings: Settings, answers: Sequence[str | Path], questions: str | Path | None) -> Surveyed:
    """The answers of models in files, as the tasks that look at several show them."""
    names = settings.names or None
    if settings.task == "score":
        contests = score_contests(answers, names, questions, settings.seed)
    else:
        first, second = answers
        contests = judge_contests(questions, first, second, names, settings.both_orders)
    return checked(settings, contests)


class Members:
    """Contests of what stages and files say to the same prompt. `stages[i]` is the place of the i-th
    stage among the models; the others are files, looked up by the prompt or its id."""

    def __init__(self, settings: Settings, members: Sequence[str | Path], stages: Sequence[int]) -> None:
        self._stages = stages
        self.each = 2 if settings.both_orders else 1  # contests to a prompt
        drawn = settings.task == "score"
        self._orders = drawn_orders(settings.seed) if drawn else fixed_orders(settings.both_orders)
        names = [str(m) if i in stages else str(Path(m).name) for i, m in enumerate(members)]
        self._names = model_names(names, settings.names or None)
        files = {i: member for i, member in enumerate(members) if i not in stages}
        self._files = {i: Answers([file], [self._names[i]], None, by_id=True) for i, file in files.items()}
        if settings.strict and (bad := list(self.bad_rows())):
            raise _not_strict(", ".join(map(str, files.values())), len(bad), bad[:BAD_NAMED])

    def bad_rows(self) -> Iterator[BadRow]:
        """What could not be read in the files; the reason names the file."""
        for file in self._files.values():
            yield from file.bad_rows()

    def contests(self, records: Sequence[Instruction | None]) -> list[Contest]:
        """Of one position: what its stages answered, and the files with them. [] where fewer than two
        models have answered."""
        row = next((record for record in records if record is not None), None)
        if row is None:
            return []
        said = {
            place: record.output
            for place, record in zip(self._stages, records, strict=True)
            if record is not None
        }
        for place, file in self._files.items():
            if found := file.said(row):
                said[place] = found[0]
        if len(said) < LEAST:
            return []
        answered = PromptAnswers(
            row.id, row.instruction, row.input, row.category, dict(sorted(said.items())), "", 0
        )
        return shown(answered, self._names, self._orders)


class Numbered:
    """The rows of a file: usable ones are numbered in its order."""

    def __init__(self, source: Source) -> None:
        self._rows = source
        self.source, self.is_stream = source.source, source.is_stream
        self.pending = NOTHING

    def placed(self, reader: sqlite3.Connection) -> Iterator[Placed | BadRow | Gone | None]:
        position = 0
        for row in self._rows:
            if isinstance(row, BadRow):
                yield row
            else:
                yield position, row
                position += 1

    def follow(self, stage: str, progress: Progress) -> None:
        """Files follow nobody."""
