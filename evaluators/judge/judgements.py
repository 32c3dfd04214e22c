"""One judge's reply about two answers to a question, from any file; and all of a pair as arrays.

A pair is seen from one side: a is the model that was named first where the pair first appeared. A reply
about b and a is turned round. A question's replies (both orders, several samples) stay together: they are
one draw of a bootstrap. Knows nothing about files or figures.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from evaluators.stats import Floats


@dataclass(frozen=True, slots=True)
class Judgement:
    """win: of a, 1, 0.5 (a tie) or 0, or a share between; None where the reply could not be read.

    Scores are None where a judge gives none, or none that could be read. a_first: whether a's answer was
    shown first, None where nobody knows. lengths: characters of both answers. source, line: where it is
    written; reason: the judge's words.
    """

    question: str
    a: str
    b: str
    judge: str
    score_a: float | None
    score_b: float | None
    win: float | None
    a_first: bool | None = True
    category: str = ""
    prompt: str = ""
    lengths: tuple[int, int] | None = None
    reason: str = ""
    source: str = ""
    line: int = 0


Key = tuple[str, str, str]  # a, b, judge


def won(score_a: float, score_b: float) -> float:
    """What a has of a question: 1, 0.5 for a tie, 0."""
    return 0.5 if score_a == score_b else float(score_a > score_b)


def turned(said: Judgement) -> Judgement:
    """The same with b for a."""
    return replace(
        said,
        a=said.b,
        b=said.a,
        score_a=said.score_b,
        score_b=said.score_a,
        win=None if said.win is None else 1 - said.win,
        a_first=None if said.a_first is None else not said.a_first,
        lengths=None if said.lengths is None else (said.lengths[1], said.lengths[0]),
    )


def grouped(judgements: Iterable[Judgement]) -> dict[Key, list[Judgement]]:
    """By pair and judge, in the order in which they were first met."""
    side: dict[frozenset[str], str] = {}
    groups: dict[Key, list[Judgement]] = defaultdict(list)
    for said in judgements:
        a = side.setdefault(frozenset((said.a, said.b)), said.a)
        own = said if said.a == a else turned(said)
        groups[own.a, own.b, own.judge].append(own)
    return dict(groups)


def told_apart(sources: Sequence[Sequence[Judgement]]) -> list[Judgement]:
    """All judgements of several sources. Two sources in which one judge says the same thing twice (of the
    same answers in the same order) hold different judges, who are then called by the source as well."""
    owners: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for number, source in enumerate(sources):
        for said in source:
            shown = (said.a, said.b) if said.a_first in (True, None) else (said.b, said.a)
            owners[said.question, *shown, said.judge].add(number)
    clashing = {
        (number, place[-1]) for place, numbers in owners.items() if len(numbers) > 1 for number in numbers
    }
    found: list[Judgement] = []
    for number, source in enumerate(sources):
        for said in source:
            own = f"{said.judge} ({said.source})" if said.judge else said.source
            found.append(replace(said, judge=own) if (number, said.judge) in clashing else said)
    return found


Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PairTable:
    """Of each question: how many replies there are and how many could be read, and over the latter the sums
    of scores and of wins. [orders]: the same for replies that showed a first, and b first, as (2, questions).
    scored: whether the judge gives scores. lengths: characters of a's and b's answers, NaN where unknown."""

    a: str
    b: str
    judge: str
    questions: tuple[str, ...]
    categories: tuple[str, ...]
    replies: Floats
    read: Floats
    sum_a: Floats
    sum_b: Floats
    wins: Floats
    orders_read: Floats
    orders_a: Floats
    orders_b: Floats
    orders_win: Floats
    lengths: Floats
    scored: bool

    @property
    def win(self) -> Floats:
        """a's share of a question: with scores 1, 0.5 or 0 by the sums over its replies, else the mean.
        NaN where no reply could be read."""
        if self.scored:
            value = (np.sign(self.sum_a - self.sum_b) + 1) / 2
            return np.asarray(np.where(self.read > 0, value, np.nan))
        unknown = np.full(len(self.read), np.nan)
        return np.asarray(np.divide(self.wins, self.read, out=unknown, where=self.read > 0))

    @property
    def both(self) -> Mask:
        """Questions that were read in both orders."""
        return np.asarray((self.orders_read > 0).all(axis=0))


def table_of(said: Sequence[Judgement]) -> PairTable:
    """`said`: of one pair and judge, all from the same side."""
    place: dict[str, int] = {}
    for one in said:
        place.setdefault(one.question, len(place))
    where = np.array([place[one.question] for one in said])
    read = np.array([one.win is not None for one in said], np.float64)
    order = np.array([{True: 0, False: 1, None: 2}[one.a_first] for one in said])
    columns = {
        "read": read,
        "a": _column([one.score_a for one in said]),
        "b": _column([one.score_b for one in said]),
        "win": _column([one.win for one in said]),
    }
    by_order = {
        name: np.stack([_summed(where[order == n], column[order == n], len(place)) for n in (0, 1)])
        for name, column in columns.items()
    }
    whole = {name: _summed(where, column, len(place)) for name, column in columns.items()}
    categories, lengths = [""] * len(place), np.full((2, len(place)), np.nan)
    for one in said:  # the first category, the last lengths that are known
        n = place[one.question]
        categories[n] = categories[n] or one.category
        if one.lengths:
            lengths[:, n] = one.lengths
    return PairTable(
        a=said[0].a,
        b=said[0].b,
        judge=said[0].judge,
        questions=tuple(place),
        categories=tuple(categories),
        replies=np.bincount(where, minlength=len(place)).astype(np.float64),
        read=whole["read"],
        sum_a=whole["a"],
        sum_b=whole["b"],
        wins=whole["win"],
        orders_read=by_order["read"],
        orders_a=by_order["a"],
        orders_b=by_order["b"],
        orders_win=by_order["win"],
        lengths=lengths,
        scored=any(one.score_a is not None for one in said),
    )


def _column(values: Sequence[float | None]) -> Floats:
    return np.array([0.0 if value is None else value for value in values], np.float64)


def _summed(where: npt.NDArray[np.int64], values: Floats, count: int) -> Floats:
    return np.bincount(where, values, minlength=count).astype(np.float64)
