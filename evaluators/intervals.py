"""Intervals of 95 %: Wilson's for a share, the bootstrap's for means over rows, all columns in one draw.

Fixed seed: the same numbers give the same intervals. Knows no models or metrics: numbers in, numbers out.
"""

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
SEED = 0
CELLS = 4_000_000  # that are drawn at once
Z = 1.959964
Floats: TypeAlias = npt.NDArray[np.float64]


def bootstrap(values: Floats) -> tuple[Floats, Floats]:
    """(low, high) of the mean of each column of `values` (rows × columns), by percentiles.

    A resample takes whole rows, so that what stands in one row stays together: the difference of two
    columns has its paired interval when it is a column itself.
    """
    rows = len(values)
    if rows == 0:
        raise ValueError("nothing to resample")
    draw = np.random.default_rng(SEED)
    means: list[Floats] = []
    at_once = max(1, CELLS // rows)
    for first in range(0, RESAMPLES, at_once):
        picked = draw.integers(0, rows, size=(min(at_once, RESAMPLES - first), rows))
        means.append(np.stack([column[picked].mean(axis=1) for column in values.T], axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return low, high


def wilson(count: int, total: int) -> tuple[float | None, float | None]:
    """(low, high) of a share; unknown where there is nothing."""
    if not total:
        return None, None
    share, spread = count / total, Z**2 / total
    middle = (share + spread / 2) / (1 + spread)
    reach = Z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)
