"""Intervals of 95 %: Wilson's for a share, the bootstrap's percentiles for all that is made of sums over
questions, or rows, or pairs.

Seeded: the same numbers give the same intervals. Knows no models or metrics: numbers in, numbers out.
"""

import math
from typing import TypeAlias

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
