"""One judge's reply about two answers to a question, from any file; all of a pair as arrays; what they
tell of the questions and of the judges.

A pair is seen from one side: a is the model that was named first where the pair first appeared. A reply
about b and a is turned round. A question's replies (both orders, several samples) stay together: they are
one draw of a bootstrap. Knows nothing about files or figures.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from evaluators.stats import LEAST, Floats, fitted, length_term, sigmoid


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


LEAST_OTHERS = 5  # models that tell how hard a question is


def difficulties(tables: Sequence[PairTable]) -> Mapping[int, Floats]:
    """How easily models beat the opponent on each question of a table, by the table's place: from the other
    tables of the same opponent and judge, where there are enough of them."""
    found: dict[int, Floats] = {}
    for opponent in dict.fromkeys((table.b, table.judge) for table in tables):
        mine = [n for n, table in enumerate(tables) if (table.b, table.judge) == opponent]
        if len(mine) <= LEAST_OTHERS:
            continue
        # one Newton step of a joint regression from models' own terms alone, with a penalty of 1 on each
        # question's constant, and without the table itself
        names = dict.fromkeys(question for n in mine for question in tables[n].questions)
        place = {question: at for at, question in enumerate(names)}
        where = {n: np.array([place[question] for question in tables[n].questions]) for n in mine}
        steps = {n: _surprise(tables[n]) for n in mine}
        whole = np.zeros((2, len(place)))
        for n in mine:
            whole[:, where[n]] += steps[n]
        for n in mine:
            surprise, weight = whole[:, where[n]] - steps[n]
            found[n] = surprise / (weight + 1)
    return found


def _surprise(table: PairTable) -> Floats:
    """(2, questions): by how much a question went better than the model and the lengths say, and the variance
    of that; 0 where nothing is known."""
    win, found = table.win, np.zeros((2, len(table.questions)))
    known = ~np.isnan(win) & ~np.isnan(table.lengths).any(axis=0)
    if known.sum() < LEAST or np.all(win[known] == win[known][0]):
        return found
    terms = length_term(table.lengths[:, known])[:, None]
    coefficients = fitted(terms, win[known])
    share = sigmoid(coefficients[0] + terms[:, 0] * coefficients[1])
    found[:, known] = win[known] - share, share * (1 - share)
    return found


Unit = tuple[str, str, str]  # a, b, question


def agreement(tables: Sequence[PairTable]) -> dict[str, Any]:
    """How far judges agree on the same answers: names, and the agreement of every two, and of all where
    there are more. What a judge says of an answer is the mean over its replies (orders, samples)."""
    names = list(dict.fromkeys(table.judge for table in tables))
    groups = [list(pair) for pair in combinations(names, 2)]
    groups += [names] if len(names) > 2 else []
    # Of each question: mean score of a and of b (NaN without scores), and a's share of the win.
    said: dict[str, dict[Unit, tuple[float, float, float]]] = {name: {} for name in names}
    for table in tables:
        win = table.win
        for n in np.flatnonzero(table.read > 0):
            pair = (table.sum_a[n], table.sum_b[n]) if table.scored else (np.nan, np.nan)
            a, b = (float(value / table.read[n]) for value in pair)
            said[table.judge][table.a, table.b, table.questions[n]] = (a, b, float(win[n]))
    found = []
    nothing = (np.nan, np.nan, np.nan)
    for judges in groups:
        # the questions on which at least two of the judges gave a readable reply
        count = Counter(unit for judge in judges for unit in said[judge])
        units = [unit for unit, judges_of_it in count.items() if judges_of_it > 1]
        if not units:
            continue
        values = np.array([[said[judge].get(unit, nothing) for unit in units] for judge in judges])
        scores = np.concatenate([values[:, :, 0], values[:, :, 1]], axis=1)
        winners = np.sign(values[:, :, 2] - 0.5)
        found.append(
            {
                "judges": judges,
                "questions": len(units),
                "alpha_interval": alpha(scores, "interval"),
                "alpha_ordinal": alpha(scores, "ordinal"),
                "alpha_winner": alpha(winners, "ordinal"),
                "spearman": _mean_of_pairs(scores, spearman),
                "same_winner": _mean_of_pairs(winners, lambda one, other: float((one == other).mean())),
            }
        )
    return {"names": names, "agreement": found}


def alpha(ratings: Floats, level: Literal["interval", "ordinal"]) -> float | None:
    """Krippendorff's, of (judges, units) with NaN where a judge said nothing; None where there is no unit
    with two ratings, or nothing varies."""
    import krippendorff

    rated = ratings[:, (~np.isnan(ratings)).sum(axis=0) > 1]
    if not rated.size or len(np.unique(rated[~np.isnan(rated)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=rated, level_of_measurement=level))


def spearman(one: Floats, other: Floats) -> float | None:
    """None where either does not vary."""
    from scipy.stats import spearmanr

    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)


def _mean_of_pairs(ratings: Floats, measure: Any) -> float | None:
    """Over all pairs of judges, each on what both rated."""
    found = []
    for one, other in combinations(ratings, 2):
        both = ~np.isnan(one) & ~np.isnan(other)
        value = measure(one[both], other[both]) if both.any() else None
        found += [] if value is None else [value]
    return float(np.mean(found)) if found else None
