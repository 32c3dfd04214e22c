"""Where the rows of a stage come from: a pool, a part of it, models' answers in files, or stages."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from engine.roles import role
from engine.settings import Settings
from store.answers import Answered, Answers, model_names
from store.contests import LEAST, Contests, drawn_orders, fixed_orders, judge_contests, score_contests, shown
from store.errors import UsageError
from store.pool import Pool
from store.records import BadRow, Contest, Instruction


class Sampled:
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

    def __init__(self, pool: Pool | Sampled, field: str) -> None:
        self._pool, self._field = pool, field
        self.source, self.is_stream = pool.source, pool.is_stream

    @property
    def fraction(self) -> float:
        return self._pool.fraction

    def __iter__(self) -> Iterator[Instruction | BadRow]:
        for number, row in enumerate(self._pool, 1):
            if isinstance(row, Instruction) and not getattr(row, self._field).strip():
                yield BadRow(number, f"no {self._field}")
            else:
                yield row


def pool_of(settings: Settings, source: str | Path) -> Pool | Sampled | Having:
    """The pool of a stage. Raises PoolError if it cannot be read, UsageError for bad settings."""
    role(settings)
    whole = Pool(source)
    pool = Sampled(whole, settings.sample, settings.seed) if settings.sample else whole
    return Having(pool, "output") if settings.field == "output" else pool


def contests_of(settings: Settings, answers: Sequence[str | Path], questions: str | Path | None) -> Contests:
    """The answers of models in files, as the tasks that look at several show them."""
    names = settings.names or None
    if settings.task == "score":
        return score_contests(answers, names, questions, settings.seed)
    first, second = answers
    return judge_contests(questions, first, second, names, settings.both_orders)


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
        answered = Answered(
            row.id, row.instruction, row.input, row.category, dict(sorted(said.items())), "", 0
        )
        return shown(answered, self._names, self._orders)
