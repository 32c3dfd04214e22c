"""How well rewards tell the better answer from the worse, beside telling them by length and by chance.

Intervals are 95 % and know that pairs of one prompt are alike: Wilson's interval with the number of pairs
that would vary as much if they were independent (the design effect, by the variance between prompts).
A difference of rewards, or of lengths, that is 0 is half right. Knows no model: numbers in, numbers out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Z = 1.959964
CHANCE = 0.5
FEW = 30  # pairs, below which a bucket proves little
MARGINS = ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, math.inf))
# Of the better answer's length against the worse one's, as a share of the longer.
LENGTHS = (
    ("better is much shorter (by over a half)", -1.0, -0.5),
    ("better is shorter", -0.5, -0.1),
    ("about as long (within a tenth)", -0.1, 0.1),
    ("better is longer", 0.1, 0.5),
    ("better is much longer (by over a half)", 0.5, 1.0),
)
BINS = 5  # of confidence, from 0.5 to 1
Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Judged:
    """Of each pair: r(better) − r(worse), margin (NaN: nobody said), characters of both, and its prompt."""

    difference: Floats
    margin: Floats
    better_length: Floats
    worse_length: Floats
    prompt: npt.NDArray[np.int64]


def report_on(judged: Judged) -> dict[str, Any]:
    """The figures of `evaluate reward`. over_length: accuracy above the length baseline's."""
    right, longer = half(judged.difference), half(judged.better_length - judged.worse_length)
    low, high = interval(right, judged.prompt)
    gap = right - longer  # of the same pairs, with a normal interval clustered by prompt
    mean, reach = float(gap.mean()), Z * math.sqrt(_variance_of_mean(gap, judged.prompt))
    return {
        "pairs": len(right),
        "prompts": len(np.unique(judged.prompt)),
        "accuracy": float(right.mean()),
        "low": low,
        "high": high,
        "interval": "95 %, Wilson, clustered by prompt",
        "length_baseline": float(longer.mean()),
        "chance": CHANCE,
        "over_length": {"difference": mean, "low": mean - reach, "high": mean + reach},
        "by_margin": [_bucket(n, m, right, longer, judged.prompt) for n, m in _by_margin(judged)],
        "by_length": [_bucket(n, m, right, longer, judged.prompt) for n, m in _by_length(judged)],
        "calibration": calibration(judged.difference),
    }


def half(difference: Floats) -> Floats:
    """1 where positive, 0 where negative, a half at 0."""
    return (np.sign(difference) + 1) / 2


def interval(right: Floats, prompt: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Wilson's, for the mean of `right` in clusters."""
    share, count = float(right.mean()), effective(right, prompt)
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    reach = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def effective(right: Floats, prompt: npt.NDArray[np.int64]) -> float:
    """How many independent pairs tell as much: at most all, and the prompts where nothing varies."""
    share = float(right.mean())
    variance = _variance_of_mean(right, prompt)
    if not variance or not 0 < share < 1:
        return float(len(np.unique(prompt)))
    return min(float(len(right)), share * (1 - share) / variance)


def _variance_of_mean(values: Floats, prompt: npt.NDArray[np.int64]) -> float:
    """Of a mean over pairs whose prompts were drawn, each with all its pairs."""
    _, place = np.unique(prompt, return_inverse=True)
    sums = np.bincount(place, values - values.mean())
    if len(sums) < 2:
        return 0.0
    return float((sums**2).sum() / len(values) ** 2 * len(sums) / (len(sums) - 1))


def _by_margin(judged: Judged) -> Iterator[tuple[str, Mask]]:
    known = ~np.isnan(judged.margin)
    for low, high in MARGINS:
        name = f"over {low:g}" if math.isinf(high) else f"over {low:g}, up to {high:g}"
        yield name, known & (judged.margin > low) & (judged.margin <= high)
    yield "unknown", ~known


def _by_length(judged: Judged) -> Iterator[tuple[str, Mask]]:
    longest = np.maximum(np.maximum(judged.better_length, judged.worse_length), 1)
    share = (judged.better_length - judged.worse_length) / longest
    for name, low, high in LENGTHS:
        above = share > low if low >= 0.1 else share >= low
        yield name, above & (share <= high if high >= 0.1 else share < high)


def _bucket(
    name: str, chosen: Mask, right: Floats, longer: Floats, prompt: npt.NDArray[np.int64]
) -> dict[str, Any]:
    if not chosen.any():
        return {"of": name, "pairs": 0}
    low, high = interval(right[chosen], prompt[chosen])
    return {
        "of": name,
        "pairs": int(chosen.sum()),
        "accuracy": float(right[chosen].mean()),
        "low": low,
        "high": high,
        "length_baseline": float(longer[chosen].mean()),
    }


def calibration(difference: Floats) -> dict[str, Any]:
    """How sure σ(Δr) is, and how often it is right. brier: mean (1 − σ(Δr))²; ece: the mean gap between
    confidence and accuracy over bins of confidence (of whichever answer is preferred)."""
    better = 1 / (1 + np.exp(-np.clip(difference, -500, 500)))
    sure, right = np.maximum(better, 1 - better), half(difference)
    place = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    bins = []
    for n in range(BINS):
        mine = place == n
        found = {"low": 0.5 + n / (2 * BINS), "high": 0.5 + (n + 1) / (2 * BINS), "pairs": int(mine.sum())}
        if mine.any():
            found |= {"confidence": float(sure[mine].mean()), "accuracy": float(right[mine].mean())}
        bins.append(found)
    gaps = sum(b["pairs"] * abs(b["confidence"] - b["accuracy"]) for b in bins if b["pairs"])
    return {"brier": float(((1 - better) ** 2).mean()), "ece": gaps / len(difference), "bins": bins}


def words(report: dict[str, Any]) -> list[str]:
    """The report in sentences; says plainly where it does not beat length."""
    over = report["over_length"]
    gap = f"{over['difference'] * 100:+.1f} points ({over['low'] * 100:+.1f} to {over['high'] * 100:+.1f})"
    if over["low"] > 0:
        against_length = f"It beats length by {gap}."
    elif over["high"] < 0:
        against_length = f"It does NOT beat length: {gap}."
    else:
        against_length = f"It is NOT shown to beat length: {gap}."
    told = [
        f"right on {share(report['accuracy'])} of {report['pairs']:,} pairs of {report['prompts']:,} prompts "
        f"({share(report['low'])} to {share(report['high'])}, 95 %); "
        f"'the longer answer wins' on {share(report['length_baseline'])}, chance on {share(CHANCE)}",
        against_length,
    ]
    if report["low"] <= CHANCE:
        told.append("It is NOT shown to be better than chance.")
    filled = [bucket for bucket in report["by_margin"] if bucket["pairs"]]
    behind = [bucket for bucket in filled if bucket["accuracy"] <= bucket["length_baseline"]]
    for bucket in behind if len(filled) > 1 else []:
        few = ", which are few" if bucket["pairs"] < FEW else ""
        told.append(
            f"It does not beat length at margin {bucket['of']}: {share(bucket['accuracy'])} against "
            f"{share(bucket['length_baseline'])} ({bucket['pairs']:,} pairs{few})."
        )
    return told


def shown(report: dict[str, Any]) -> list[str]:
    """For people: sentences and three small tables."""
    told = [*words(report)]
    if report["cut"]:
        told.append(f"{report['cut']:,} of {report['answers']:,} answers were too long and read in part.")
    if report["alike"]:
        told.append(f"{report['alike']:,} pairs read the same within the model's length: half right.")
    for heading, rows in (("margin", report["by_margin"]), ("length", report["by_length"])):
        told += ["", f"{'by ' + heading:<40} pairs  accuracy  (95 %)            longer wins"]
        for bucket in rows:
            if bucket["pairs"]:
                span = f"({share(bucket['low'])} to {share(bucket['high'])})"
                told.append(
                    f"  {bucket['of']:<38} {bucket['pairs']:>5}  {share(bucket['accuracy']):>8}  {span:<18}"
                    f"  {share(bucket['length_baseline'])}"
                )
    found = report["calibration"]
    told += ["", f"calibration of σ(Δr): Brier {found['brier']:.3f} (0.25: no idea), ECE {found['ece']:.3f}"]
    told += [
        f"  says {share(b['confidence'])}, is right {share(b['accuracy'])} ({b['pairs']:,} pairs)"
        for b in found["bins"]
        if b["pairs"]
    ]
    return told


def share(value: float) -> str:
    return f"{value * 100:.1f} %"
