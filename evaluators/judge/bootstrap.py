"""How far sums over questions would move had other questions been drawn: the bootstrap, percentiles, 95 %.

Seeded, so that the same judgements give the same intervals.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Interval: TypeAlias = "tuple[float | None, float | None]"

RESAMPLES = 2000
SEED = 0
CELLS = 4_000_000  # draws that are in memory at once


def resampled(columns: Floats, seed: int = SEED, resamples: int = RESAMPLES) -> Floats:
    """columns: (k, questions). Sums of each column over as many questions, drawn with replacement, the same
    for all columns: (resamples, k)."""
    columns = np.atleast_2d(columns)
    count = columns.shape[1]
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // max(1, count * len(columns)))
    sums = [
        columns[:, rng.integers(count, size=(min(step, resamples - start), count))].sum(axis=-1).T
        for start in range(0, resamples, step)
    ]
    return np.concatenate(sums)


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
