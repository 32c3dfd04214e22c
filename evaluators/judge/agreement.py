"""How far several judges agree on the same answers: Krippendorff's alpha, Spearman, equal winners.

What a judge says of an answer is the mean over its replies (orders, samples). Only questions on which
at least two judges gave a readable reply tell anything.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from evaluators.judge.judgements import PairTable
from evaluators.stats import Floats

Unit = tuple[str, str, str]  # a, b, question


def agreement(tables: Sequence[PairTable]) -> dict[str, Any]:
    """names, and the agreement of every two judges, and of all where there are more."""
    names = list(dict.fromkeys(table.judge for table in tables))
    groups = [list(pair) for pair in combinations(names, 2)]
    groups += [names] if len(names) > 2 else []
    said = {name: _said([table for table in tables if table.judge == name]) for name in names}
    found = [_among(group, said) for group in groups]
    return {"names": names, "agreement": [one for one in found if one["questions"]]}


def _said(tables: Sequence[PairTable]) -> dict[Unit, tuple[float, float, float]]:
    """Of each question: mean score of a and of b (NaN without scores), and a's share of the win."""
    found = {}
    for table in tables:
        win = table.win
        for n in np.flatnonzero(table.read > 0):
            pair = (table.sum_a[n], table.sum_b[n]) if table.scored else (np.nan, np.nan)
            a, b = (value / table.read[n] for value in pair)
            found[table.a, table.b, table.questions[n]] = (float(a), float(b), float(win[n]))
    return found


def _among(
    judges: Sequence[str], said: Mapping[str, Mapping[Unit, tuple[float, float, float]]]
) -> dict[str, Any]:
    count: dict[Unit, int] = defaultdict(int)
    for judge in judges:
        for unit in said[judge]:
            count[unit] += 1
    units = [unit for unit, judges_of_it in count.items() if judges_of_it > 1]
    nothing = (np.nan, np.nan, np.nan)
    values = np.array([[said[judge].get(unit, nothing) for unit in units] for judge in judges])
    values = values.reshape(len(judges), len(units), 3)
    scores = np.concatenate([values[:, :, 0], values[:, :, 1]], axis=1)
    winners = np.sign(values[:, :, 2] - 0.5)
    return {
        "judges": list(judges),
        "questions": len(units),
        "alpha_interval": alpha(scores, "interval"),
        "alpha_ordinal": alpha(scores, "ordinal"),
        "alpha_winner": alpha(winners, "ordinal"),
        "spearman": _mean_of_pairs(scores, spearman),
        "same_winner": _mean_of_pairs(winners, lambda one, other: float((one == other).mean())),
    }


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
