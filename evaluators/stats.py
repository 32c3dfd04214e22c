"""Intervals of 95 %: Wilson's for a share, the bootstrap's percentiles for all that is made of sums over
questions, or rows, or pairs; and the win rate had both answers been of one length.

Seeded: the same numbers give the same intervals. Knows no models or metrics: numbers in, numbers out.
"""

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Interval: TypeAlias = "tuple[float | None, float | None]"

RESAMPLES = 2000
SEED = 0
CELLS = 4_000_000  # that are drawn at once
Z = 1.959964


def resampled(columns: Floats, seed: int = SEED, resamples: int = RESAMPLES) -> Floats:
    """columns: (k, questions). Sums of each column over as many questions, drawn with replacement, the same
    for all columns, so that what belongs to one question stays together: (resamples, k)."""
    columns = np.atleast_2d(columns)
    count = columns.shape[1]
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // max(1, count * len(columns)))
    sums = [
        columns[:, rng.integers(count, size=(min(step, resamples - start), count))].sum(axis=-1).T
        for start in range(0, resamples, step)
    ]
    return np.concatenate(sums)


def column_means(values: Floats) -> tuple[Floats, Floats]:
    """(low, high) of the mean of each column of `values` (rows × columns). The difference of two columns has
    its paired interval when it is a column itself."""
    if not len(values):
        raise ValueError("nothing to resample")
    low, high = np.percentile(resampled(values.T) / len(values), [2.5, 97.5], axis=0)
    return low, high


def ratio_interval(above: Floats, below: Floats, seed: int = SEED) -> Interval:
    """Of sum(above) / sum(below) over questions. (None, None) where there is nothing to resample."""
    if not len(above):
        return None, None
    top, bottom = resampled(np.stack([above, below]), seed).T
    return middle(np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0))


def mean_interval(values: Floats, seed: int = SEED) -> Interval:
    return ratio_interval(values, np.ones(len(values)), seed)


def middle(values: Floats) -> Interval:
    """Between which 95 % of the values lie; those that are not numbers are left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None, None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def wilson(count: int, total: int) -> Interval:
    """(low, high) of a share; unknown where there is nothing."""
    if not total:
        return None, None
    share, spread = count / total, Z**2 / total
    center = (share + spread / 2) / (1 + spread)
    reach = Z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, center - reach), min(1.0, center + reach)


LEAST = 20  # questions, below which three coefficients mean nothing
PENALTY = 0.1  # of a squared coefficient, against a question's log-likelihood: keeps it finite


def length_controlled(win: Floats, lengths: Floats, difficulty: Floats | None) -> dict[str, Any] | None:
    """The win rate had both answers been of one length, in the manner of AlpacaEval 2 (arXiv 2404.04475).

    For each model a logistic regression of its wins on a constant (how good it is), on tanh of the difference
    of lengths in standard deviations, and, where enough other models met the same opponent, on how hard the
    question is; the win rate is predicted again with the length term at 0. Differences from AlpacaEval 2: a
    question's difficulty comes from the other models only, the penalty is weak and fixed instead of
    cross-validated, and nothing guards against answers that were cut short on purpose.

    win: of a, by question, NaN where unknown. lengths: (2, questions), characters.
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
    # the mean prediction with the length term at 0, and its standard error
    whole = np.column_stack([np.ones(len(win)), terms])
    level = whole.copy()
    level[:, 1] = 0
    share, flat = sigmoid(whole @ coefficients), sigmoid(level @ coefficients)
    penalty = np.diag([0.0] + [PENALTY] * terms.shape[1])
    curvature = whole.T * (share * (1 - share)) @ whole + penalty
    slope = (flat * (1 - flat)) @ level
    moves = flat - flat.mean() + (whole * (win - share)[:, None]) @ np.linalg.solve(curvature, slope)
    rate, error = float(flat.mean()), float(moves.std() / np.sqrt(len(win)))
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


def sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -500, 500))))
