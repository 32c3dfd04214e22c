"""Makes contests of the answers of several models: what is shown to a judge, and in which order.

For scores the order is drawn at random for each prompt, from the seed and from what is shown
alone: not from the row's position, nor from the names or the order of the files, so that adding
rows or renaming a file asks nothing again. For judgements it is fixed: A first, or each first once.
Knows nothing of the judge's prompts.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson

from store.answers import Answered, Answers
from store.errors import PoolError, UsageError
from store.records import BadRow, Contest

LEAST = 2


class ScoreContests:
    """All answers to a prompt at once, in an order drawn at random. Has the face of a Pool.

    A prompt that fewer than two models have answered is a BadRow; where only some have, these are
    shown. Raises PoolError when there is nothing to score.
    """

    def __init__(
        self,
        answers: Sequence[Path | str],
        names: Sequence[str] | None = None,
        questions: Path | str | None = None,
        seed: int = 0,
    ) -> None:
        if len(answers) < LEAST:
            raise UsageError("scores compare models: name two or more files of answers")
        self._answers = Answers(answers, names, questions)
        self._seed = seed
        self._read = 0

    @property
    def source(self) -> str:
        return self._answers.source

    @property
    def is_stream(self) -> bool:
        return self._answers.is_stream

    @property
    def fraction(self) -> float:
        """Share of the prompts that this pass has read, 0-1."""
        return self._read / self._answers.total if self._answers.total else 0.0

    def __iter__(self) -> Iterator[Contest | BadRow]:
        found = False
        self._read = 0
        yield from self._answers.bad_rows()
        for row in self._answers:
            self._read += 1
            if len(row.answers) < LEAST:
                yield _too_few(row, self._answers.names)
                continue
            found = True
            yield shown(row, self._answers.names, drawn_order(self._seed, row))
        if not found:
            raise _nothing_joined(self._answers)


class JudgeContests:
    """Two models' answers to each question, A's first; with `both_orders` then once more, B's first.

    Has the face of a Pool. A question that one of them has not answered is a BadRow. Raises
    PoolError when there is nothing to judge.
    """

    def __init__(
        self,
        questions: Path | str | None,
        answers: Path | str,
        against: Path | str,
        names: Sequence[str] | None = None,
        both_orders: bool = False,
    ) -> None:
        self._answers = Answers([answers, against], names, questions)
        self._orders = ((0, 1), (1, 0)) if both_orders else ((0, 1),)
        self._read = 0

    @property
    def source(self) -> str:
        return self._answers.source

    @property
    def is_stream(self) -> bool:
        return self._answers.is_stream

    @property
    def fraction(self) -> float:
        """Share of the questions that this pass has read, 0-1."""
        return self._read / self._answers.total if self._answers.total else 0.0

    def __iter__(self) -> Iterator[Contest | BadRow]:
        found = False
        self._read = 0
        yield from self._answers.bad_rows()
        for row in self._answers:
            self._read += 1
            if len(row.answers) < LEAST:
                yield _too_few(row, self._answers.names)
                continue
            found = True
            for order in self._orders:
                yield shown(row, self._answers.names, order)
        if not found:
            raise _nothing_joined(self._answers)


def drawn_order(seed: int, row: Answered) -> tuple[int, ...]:
    """A random order of the files that answered: a function of the seed and of what is shown."""

    def drawn(file: int) -> bytes:
        shown = orjson.dumps([seed, row.prompt, row.input, row.answers[file]])
        return hashlib.blake2b(shown, digest_size=16).digest()

    return tuple(sorted(row.answers, key=drawn))


def shown(row: Answered, names: Sequence[str], order: tuple[int, ...]) -> Contest:
    """The contest of a prompt whose answers are shown in an order of their files."""
    models = tuple(names[file] for file in order)
    answers = tuple(row.answers[file] for file in order)
    return Contest(row.id, row.prompt, row.input, row.category, models, answers, order)


def _too_few(row: Answered, names: Sequence[str]) -> BadRow:
    who = f"only {names[next(iter(row.answers))]}" if row.answers else "no model"
    return BadRow(row.line, f"{row.where}: {who} has answered {row.prompt!r:.60} (id {row.id})")


def _nothing_joined(answers: Answers) -> PoolError:
    first = next(answers.bad_rows(), None)
    why = f"; line {first.line} of {first.reason}" if first else ""
    return PoolError(f"no prompt has the answers of two models in {answers.source}{why}")
