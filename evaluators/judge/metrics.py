"""Everything that `evaluate judge` computes, as one JSON object. Pure: judgements in, numbers out.

Sums, their ratio and wins, overall and by category, each with an interval over questions. The sums are the
paper's: of every reply that could be read. A question is won by the sums of its replies. Position bias
comes from questions that were asked in both orders: only these can tell the position from the model.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any, Literal

import numpy as np

from evaluators.judge.judgements import Judgement, Mask, PairTable, grouped, table_of, told_apart
from evaluators.judge.length_control import difficulties, length_controlled
from evaluators.judge.reviews import ReviewSource
from evaluators.stats import RESAMPLES, SEED, Floats, mean_interval, ratio_interval

SUMS = ("sum_a", "sum_b", "relative", "low", "high")


def scores(a: Floats, b: Floats) -> dict[str, float | None]:
    """The sums of two columns, and their ratio."""
    sum_a, sum_b = float(a.sum()), float(b.sum())
    low, high = ratio_interval(a, b)
    relative = sum_a / sum_b if sum_b else None
    return dict(zip(SUMS, (sum_a, sum_b, relative, low, high), strict=True))


def wins(win: Floats) -> dict[str, Any]:
    """win: a's share of each question. win_rate counts a tie as half a win."""
    low, high = mean_interval(win)
    return {
        "wins": int((win > 0.5).sum()),
        "ties": int((win == 0.5).sum()),
        "losses": int((win < 0.5).sum()),
        "win_rate": float(win.mean()) if len(win) else None,
        "win_rate_low": low,
        "win_rate_high": high,
    }


EXACT = 1000  # questions, above which the sign test is a normal one with continuity correction


def position_bias(table: PairTable) -> dict[str, Any] | None:
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


def balanced(table: PairTable) -> dict[str, Any] | None:
    """The pair over questions that were read in both orders, each order weighing the same: a question's
    score is the mean of its two orders'. None where there is no such question."""
    both = table.both
    if not both.any():
        return None
    a_first, b_first = _margins(table)
    win = (np.sign(a_first + b_first) + 1) / 2
    sums: dict[str, float | None] = {}
    if table.scored:
        read = table.orders_read[:, both]
        a = (table.orders_a[:, both] / read).mean(axis=0)
        sums = scores(a, (table.orders_b[:, both] / read).mean(axis=0))
    return {"questions": len(win)} | sums | wins(win)


def sign_test(one: int, other: int) -> float:
    """Two-sided and exact: how likely it is that as few or fewer lie on one side, were both as likely."""
    count, few = one + other, min(one, other)
    if count > EXACT:
        return math.erfc(max(0, abs(one - other) - 1) / math.sqrt(2 * count))
    return min(1.0, sum(math.comb(count, n) for n in range(few + 1)) / 2.0 ** (count - 1))


def _margins(table: PairTable) -> tuple[Floats, Floats]:
    """By how much a was better where it was shown first, and where b was: means of a question's replies."""
    both = table.both
    read = table.orders_read[:, both]
    if table.scored:
        margins = (table.orders_a - table.orders_b)[:, both] / read
    else:
        margins = 2 * table.orders_win[:, both] / read - 1
    return margins[0], margins[1]


def pair_figures(table: PairTable, difficulty: Floats | None = None) -> dict[str, Any]:
    """One of `pairs`. difficulty: of each question, where it is known (length_control.py)."""
    return {
        "a": table.a,
        "b": table.b,
        "judge": table.judge,
        **figures(table, np.ones(len(table.questions), bool)),
        "by_category": by_category(table),
        "position_bias": position_bias(table),
        "balanced": balanced(table),
        "length_controlled": length_controlled(table.win, table.lengths, difficulty),
    }


def by_category(table: PairTable) -> list[dict[str, Any]]:
    """In the order in which the categories were met; [] where no question has one."""
    there = [name for name in dict.fromkeys(table.categories) if name]
    own = np.array(table.categories)
    return [{"category": name, **figures(table, own == name)} for name in there]


def figures(table: PairTable, chosen: Mask) -> dict[str, Any]:
    """Over the chosen questions. unparsed: replies that could not be read, left out of everything else."""
    read = chosen & (table.read > 0)
    counts = {
        "questions": int(chosen.sum()),
        "replies": int(table.replies[chosen].sum()),
        "unparsed": int((table.replies - table.read)[chosen].sum()),
    }
    sums = scores(table.sum_a[read], table.sum_b[read]) if table.scored else dict.fromkeys(SUMS)
    return {**counts, **sums, **wins(table.win[read])}


BAD_SHOWN = 3


def judge_report(sources: Sequence[ReviewSource], word: str = "file") -> dict[str, Any]:
    """`word`: whose word counted where a file's scores are not its text's; told as a setting."""
    tables = tables_of(judgements_of(sources))
    hard = difficulties(tables)
    return {
        "pairs": [pair_figures(table, hard.get(n)) for n, table in enumerate(tables)],
        "judges": agreement(tables),
        **told_of(sources, word),
    }


def judgements_of(sources: Sequence[ReviewSource]) -> list[Judgement]:
    return told_apart([source.judgements for source in sources])


def tables_of(judgements: Sequence[Judgement]) -> list[PairTable]:
    """One for each pair and judge, in the order in which they were met."""
    return [table_of(said) for said in grouped(judgements).values()]


def told_of(sources: Sequence[ReviewSource], word: str) -> dict[str, Any]:
    """Where the numbers come from, and what was wrong there."""
    return {
        "disagreements": [asdict(one) for source in sources for one in source.differences],
        "sources": [
            {
                "name": source.name,
                "replies": len(source.judgements),
                "bad_rows": len(source.bad),
                "bad_shown": [f"line {row.line}: {row.reason}" for row in source.bad[:BAD_SHOWN]],
                "unanswered": source.unanswered,
            }
            for source in sources
        ],
        "settings": {"scores": word, "resamples": RESAMPLES, "seed": SEED},
    }


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
    found = [_among(group, said) for group in groups]
    return {"names": names, "agreement": [one for one in found if one["questions"]]}


def _among(
    judges: Sequence[str], said: Mapping[str, Mapping[Unit, tuple[float, float, float]]]
) -> dict[str, Any]:
    """Over the questions on which at least two of the judges gave a readable reply."""
    count = Counter(unit for judge in judges for unit in said[judge])
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
