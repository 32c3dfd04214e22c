"""Whether it matters which answer a judge sees first: questions that were asked in both orders.

Only these can tell the place from the model that stood there.
"""

import math
from typing import Any

import numpy as np

from evaluators.intervals import mean_interval
from evaluators.judge.tables import Floats, Table
from evaluators.judge.totals import scores, wins

EXACT = 1000  # questions, above which the sign test is a normal one with continuity correction


def position_bias(table: Table) -> dict[str, Any] | None:
    """None where no question was read in both orders.

    first, second, ties: shares of replies that the answer in this place won. consistent: share of questions
    with the same winner (or a tie) in both orders; flips: with the other winner. advantage: what the first
    place is worth, in points of score (in wins, where there are no scores). p: of a two-sided sign test that
    the first place is worth nothing; it counts the questions that lean to either place.
    """
    if not table.both.any():
        return None
    a_first, b_first = _margins(table)
    by_place = np.concatenate([a_first, -b_first])
    worth = (a_first - b_first) / 2
    low, high = mean_interval(worth)
    return {
        "questions": len(worth),
        "first": float((by_place > 0).mean()),
        "ties": float((by_place == 0).mean()),
        "second": float((by_place < 0).mean()),
        "consistent": float((np.sign(a_first) == np.sign(b_first)).mean()),
        "flips": float((a_first * b_first < 0).mean()),
        "advantage": float(worth.mean()),
        "low": low,
        "high": high,
        "lean_first": int((worth > 0).sum()),
        "lean_second": int((worth < 0).sum()),
        "p": sign_test(int((worth > 0).sum()), int((worth < 0).sum())),
    }


def balanced(table: Table) -> dict[str, Any] | None:
    """The pair over questions that were read in both orders, each order weighing the same: a question's
    score is the mean of its two orders'. None where there is no such question."""
    both = table.both
    if not both.any():
        return None
    a_first, b_first = _margins(table)
    win = (np.sign(a_first + b_first) + 1) / 2
    return {"questions": len(win)} | (_sums(table) if table.scored else {}) | wins(win)


def sign_test(one: int, other: int) -> float:
    """Two-sided and exact: how likely it is that as few or fewer lie on one side, were both as likely."""
    count, few = one + other, min(one, other)
    if count > EXACT:
        return math.erfc(max(0, abs(one - other) - 1) / math.sqrt(2 * count))
    return min(1.0, sum(math.comb(count, n) for n in range(few + 1)) / 2.0 ** (count - 1))


def _margins(table: Table) -> tuple[Floats, Floats]:
    """By how much a was better where it was shown first, and where b was: means of a question's replies."""
    both = table.both
    read = table.orders_read[:, both]
    if table.scored:
        margins = (table.orders_a - table.orders_b)[:, both] / read
    else:
        margins = 2 * table.orders_win[:, both] / read - 1
    return margins[0], margins[1]


def _sums(table: Table) -> dict[str, float | None]:
    both = table.both
    read = table.orders_read[:, both]
    a = (table.orders_a[:, both] / read).mean(axis=0)
    b = (table.orders_b[:, both] / read).mean(axis=0)
    return scores(a, b)
