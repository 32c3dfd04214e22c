"""Makes contests of the answers of several models: what is shown to a judge, and in which order.

For scores the order is drawn at random for each prompt, from the seed and from what is shown
alone: not from the row's position, nor from the names or the order of the files, so that adding
rows or renaming a file asks nothing again. For judgements it is fixed: A first, or each first once.
Knows nothing of the judge's prompts.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson

from store.answers import Answers, PromptAnswers
from store.errors import PoolError, UsageError
from store.records import BadRow, Contest

LEAST = 2
Orders = Callable[[PromptAnswers], Sequence[tuple[int, ...]]]  # of the files whose answers are shown


class Contests:
    """The answers to each prompt, once in each of its orders. Has the face of a Pool.

    A prompt that fewer than two models have answered is a BadRow; where only some have, these are
    shown. Raises PoolError when there is nothing to show.
    """

    def __init__(self, answers: Answers, orders: Orders) -> None:
        self._answers, self._orders = answers, orders
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
                who = f"only {self._answers.names[next(iter(row.answers))]}" if row.answers else "no model"
                why = f"{row.where}: {who} has answered {row.prompt!r:.60} (id {row.id})"
                yield BadRow(row.line, why)
                continue
            found = True
            yield from shown(row, self._answers.names, self._orders)
        if not found:
            first = next(self._answers.bad_rows(), None)
            why = f"; line {first.line} of {first.reason}" if first else ""
            raise PoolError(f"no prompt has the answers of two models in {self._answers.source}{why}")


def score_contests(
    answers: Sequence[Path | str],
    names: Sequence[str] | None = None,
    questions: Path | str | None = None,
    seed: int = 0,
) -> Contests:
    """All answers to a prompt at once, in an order drawn at random. Raises UsageError, PoolError."""
    if len(answers) < LEAST:
        raise UsageError("scores compare models: name two or more files of answers")
    return Contests(Answers(answers, names, questions), drawn_orders(seed))


def judge_contests(
    questions: Path | str | None,
    answers: Path | str,
    against: Path | str,
    names: Sequence[str] | None = None,
    both_orders: bool = False,
) -> Contests:
    """Two models' answers to each question, A's first; with `both_orders` then once more, B's first.
    Raises UsageError, PoolError."""
    return Contests(Answers([answers, against], names, questions), fixed_orders(both_orders))


def drawn_orders(seed: int) -> Orders:
    """One, drawn at random: a function of the seed and of what is shown."""

    def orders(row: PromptAnswers) -> Sequence[tuple[int, ...]]:
        def drawn(file: int) -> bytes:
            shown = orjson.dumps([seed, row.prompt, row.input, row.answers[file]])
            return hashlib.blake2b(shown, digest_size=16).digest()

        return [tuple(sorted(row.answers, key=drawn))]

    return orders


def fixed_orders(both: bool) -> Orders:
    """Of two files: the first before the second, with `both` then the second before the first."""
    orders = ((0, 1), (1, 0)) if both else ((0, 1),)
    return lambda row: orders


def shown(row: PromptAnswers, names: Sequence[str], orders: Orders) -> list[Contest]:
    """The contests of a prompt, one for each order in which its answers are shown."""
    found = []
    for order in orders(row):
        models = tuple(names[file] for file in order)
        answers = tuple(row.answers[file] for file in order)
        found.append(Contest(row.id, row.prompt, row.input, row.category, models, answers, order))
    return found
