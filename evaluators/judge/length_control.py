"""The win rate had both answers been of one length, in the manner of AlpacaEval 2 (arXiv 2404.04475).

For each model a logistic regression of its wins on a constant (how good it is), on tanh of the difference of
lengths in standard deviations, and, where enough other models met the same opponent, on how hard the question
is; the win rate is predicted again with the length term at 0. Differences from AlpacaEval 2: a question's
difficulty comes from the other models only, the penalty is weak and fixed instead of cross-validated, and
nothing guards against answers that were cut short on purpose.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evaluators.judge.judgements import PairTable
from evaluators.stats import Floats

LEAST = 20  # questions, below which three coefficients mean nothing
LEAST_OTHERS = 5  # models that tell how hard a question is
PENALTY = 0.1  # of a squared coefficient, against a question's log-likelihood: keeps it finite
Z = 1.959964


def length_controlled(win: Floats, lengths: Floats, difficulty: Floats | None) -> dict[str, Any] | None:
    """win: of a, by question, NaN where unknown. lengths: (2, questions), characters.

    None where lengths are unknown, questions are few, or always the same one won. plain: the win rate over
    the same questions. length_effect: the coefficient, above 0 where being longer wins. The interval
    is the regression's own (by its influence on each question), normal."""
    known = ~np.isnan(win) & ~np.isnan(lengths).any(axis=0)
    win, lengths = win[known], lengths[:, known]
    if len(win) < LEAST or np.all(win == win[0]):
        return None
    others = np.zeros((0, len(win))) if difficulty is None else difficulty[None, known]
    terms = np.stack([length_term(lengths), *others], axis=1)
    coefficients = fitted(terms, win)
    rate, error = _without_length(terms, win, coefficients)
    return {
        "win_rate": rate,
        "low": max(0.0, rate - Z * error),
        "high": min(1.0, rate + Z * error),
        "plain": float(win.mean()),
        "length_effect": float(coefficients[1]),
        "length_ratio": float(lengths[0].sum() / max(1.0, lengths[1].sum())),
        "mean_length_a": float(lengths[0].mean()),
        "mean_length_b": float(lengths[1].mean()),
        "questions": len(win),
        "difficulty": difficulty is not None,
    }


def length_term(lengths: Floats) -> Floats:
    difference = lengths[0] - lengths[1]
    spread = difference.std()
    return np.asarray(np.tanh(difference / spread)) if spread else np.zeros(len(difference))


def fitted(terms: Floats, win: Floats) -> Floats:
    """Coefficients of a constant and of the terms (rows x terms). A tie is half a win, half a loss."""
    from sklearn.linear_model import LogisticRegression

    won: Any = np.repeat([1, 0], len(win))
    weights = np.concatenate([win, 1 - win])
    model = LogisticRegression(C=1 / PENALTY, solver="newton-cholesky", tol=1e-8)
    model.fit(np.concatenate([terms, terms]), won, sample_weight=weights)
    return np.concatenate([model.intercept_, model.coef_[0]])


def _without_length(terms: Floats, win: Floats, coefficients: Floats) -> tuple[float, float]:
    """The mean prediction with the length term at 0, and its standard error."""
    whole = np.column_stack([np.ones(len(win)), terms])
    level = whole.copy()
    level[:, 1] = 0
    share, flat = _sigmoid(whole @ coefficients), _sigmoid(level @ coefficients)
    penalty = np.diag([0.0] + [PENALTY] * terms.shape[1])
    curvature = whole.T * (share * (1 - share)) @ whole + penalty
    slope = (flat * (1 - flat)) @ level
    moves = flat - flat.mean() + (whole * (win - share)[:, None]) @ np.linalg.solve(curvature, slope)
    return float(flat.mean()), float(moves.std() / np.sqrt(len(win)))


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -500, 500))))


def difficulties(tables: Sequence[PairTable]) -> Mapping[int, Floats]:
    """How easily models beat the opponent on each question of a table, by the table's place: from the other
    tables of the same opponent and judge, where there are enough of them."""
    found: dict[int, Floats] = {}
    for opponent in dict.fromkeys((table.b, table.judge) for table in tables):
        mine = [n for n, table in enumerate(tables) if (table.b, table.judge) == opponent]
        if len(mine) > LEAST_OTHERS:
            found |= zip(mine, _by_others([tables[n] for n in mine]), strict=True)
    return found


def _by_others(tables: Sequence[PairTable]) -> Iterator[Floats]:
    """Of each table's questions: one Newton step of a joint regression from models' own terms alone, with a
    penalty of 1 on each question's constant, and without the table itself."""
    place: dict[str, int] = {}
    for table in tables:
        for question in table.questions:
            place.setdefault(question, len(place))
    where = [np.array([place[question] for question in table.questions]) for table in tables]
    steps = [_surprise(table) for table in tables]
    whole = np.zeros((2, len(place)))
    for step, at in zip(steps, where, strict=True):
        whole[:, at] += step
    for step, at in zip(steps, where, strict=True):
        surprise, weight = whole[:, at] - step
        yield surprise / (weight + 1)


def _surprise(table: PairTable) -> Floats:
    """(2, questions): by how much a question went better than the model and the lengths say, and the variance
    of that; 0 where nothing is known."""
    win, found = table.win, np.zeros((2, len(table.questions)))
    known = ~np.isnan(win) & ~np.isnan(table.lengths).any(axis=0)
    if known.sum() < LEAST or np.all(win[known] == win[known][0]):
        return found
    terms = length_term(table.lengths[:, known])[:, None]
    coefficients = fitted(terms, win[known])
    share = _sigmoid(coefficients[0] + terms[:, 0] * coefficients[1])
    found[:, known] = win[known] - share, share * (1 - share)
    return found
