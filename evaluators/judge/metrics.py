"""Everything that `evaluate judge` and `evaluate ranking` compute, as one JSON object. Pure: judgements in,
numbers out.

Sums, their ratio and wins, overall and by category, each with an interval over questions. The sums are the
paper's: of every reply that could be read. A question is won by the sums of its replies. Position bias
comes from questions that were asked in both orders: only these can tell the position from the model.

The ranking study is the paper's Figure 4a, b: a student's n samples put in order by a reward model, each rank
judged against one opponent. Does quality fall with the rank? A rank group is a pair like any other (`rank-1`
against the opponent). Questions are resampled for all groups at once, since a question's ranks hang together.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluators.judge.judgements import (
    Judgement,
    Mask,
    PairTable,
    agreement,
    difficulties,
    grouped,
    table_of,
    told_apart,
)
from evaluators.judge.reviews import ReviewSource
from evaluators.stats import (
    RESAMPLES,
    SEED,
    Floats,
    length_controlled,
    mean_interval,
    middle,
    ratio_interval,
    resampled,
)
from store.errors import UsageError

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
    """One of `pairs`. difficulty: of each question, where it is known (`difficulties`)."""
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


LEAST_RANKS = 2
_NUMBERED = re.compile(r"(.*?)(\d{1,9})", re.S)


def ranking_report(
    sources: Sequence[ReviewSource], baselines: Sequence[ReviewSource] = (), word: str = "file"
) -> dict[str, Any]:
    """`sources`: the judged rank groups, the best rank first. Raises UsageError where they are no such thing:
    fewer than two, of several opponents or judges, or without scores."""
    every = tables_of(judgements_of([*sources, *baselines]))
    own = {(said.a, said.b) for source in baselines for said in source.judgements}
    tables = in_rank_order([table for table in every if (table.a, table.b) not in own])
    opponents = list(dict.fromkeys(table.b for table in every))
    judges = list(dict.fromkeys(table.judge for table in every))
    if len(opponents) > 1:
        raise UsageError(f"all rank groups need the same opponent; found {', '.join(map(repr, opponents))}")
    if len(judges) > 1:
        raise UsageError(f"all rank groups need the same judge; found {', '.join(map(repr, judges))}")
    if len(tables) < LEAST_RANKS:
        raise UsageError(f"a ranking needs two or more rank groups; found {len(tables)}")
    if silent := [table.a for table in every if not table.scored]:
        raise UsageError(f"no score could be read in the reviews of {', '.join(map(repr, silent))}")
    # (ranks, questions) of a's scores and of the opponent's; 0 in both where a rank was not judged
    place = {name: n for n, name in enumerate(dict.fromkeys(q for table in tables for q in table.questions))}
    a, b = np.zeros((2, len(tables), len(place)))
    for rank, table in enumerate(tables):
        at = [place[name] for name in table.questions]
        a[rank, at], b[rank, at] = table.sum_a, table.sum_b
    # what a sample drawn at random comes to: the ranks' sums, over how many ranks there are
    at_random = scores(a.sum(axis=0) / len(a), b.sum(axis=0) / len(a))
    return {
        "opponent": tables[0].b,
        "judge": tables[0].judge,
        "groups": [{"rank": n, "name": table.a, **_all(table)} for n, table in enumerate(tables, 1)],
        "baselines": [
            {"name": "mean over ranks", "questions": a.shape[1], **at_random},
            *({"name": table.a, **_all(table)} for table in every if table not in tables),
        ],
        **_trend(a, b),
        **told_of([*sources, *baselines], word),
    }


def in_rank_order(tables: Sequence[PairTable]) -> list[PairTable]:
    """By number where all names are one word with a number (`rank1`, `rank2`), else as they were met."""
    numbered = [
        (found[1], int(found[2]), n) for n, t in enumerate(tables) if (found := _NUMBERED.fullmatch(t.a))
    ]
    if len(numbered) < len(tables) or len({word for word, _, _ in numbered}) > 1:
        return list(tables)
    return [tables[n] for _, _, n in sorted(numbered)]


def _all(table: PairTable) -> dict[str, Any]:
    return figures(table, np.ones(len(table.questions), bool))


def _trend(a: Floats, b: Floats) -> Mapping[str, Any]:
    """Over relative scores by rank. spearman: of rank and relative score, -1 where each rank is worse than
    the one before. isotonic: the nearest relative scores that do not rise; violation: by how much the
    real ones differ from these at most. Shares and intervals are over resamples."""
    relative = _relative(a.sum(axis=1)[None], b.sum(axis=1)[None])[0]
    drawn = resampled(np.concatenate([a, b]))
    many = _relative(drawn[:, : len(a)], drawn[:, len(a) :])
    rho = spearmans(many)
    low, high = middle(rho)
    smooth = isotonic(relative)
    gap_low, gap_high = middle(many[:, 0] - many[:, -1])
    return {
        "spearman": float(spearmans(relative[None])[0]),
        "spearman_low": low,
        "spearman_high": high,
        "monotone": bool((np.diff(relative) <= 0).all()),
        "monotone_share": float((np.diff(many, axis=1) <= 0).all(axis=1).mean()),
        "isotonic": smooth.tolist(),
        "violation": float(np.abs(relative - smooth).max()),
        "first_over_last": {
            "difference": float(relative[0] - relative[-1]),
            "low": gap_low,
            "high": gap_high,
            "probability": float((many[:, 0] > many[:, -1]).mean()),
        },
    }


def _relative(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def spearmans(rows: Floats) -> Floats:
    """Of each row with 1, 2, 3, ...; ties get mean ranks, a row without differences 0."""
    from scipy.stats import rankdata

    ranks = rankdata(rows, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    places = np.arange(rows.shape[1]) - (rows.shape[1] - 1) / 2
    spread = np.sqrt((ranks**2).sum(axis=1) * (places**2).sum())
    return np.asarray(np.divide(ranks @ places, spread, out=np.zeros(len(rows)), where=spread > 0))


def isotonic(values: Floats) -> Floats:
    """The nearest values that do not rise from one to the next."""
    from sklearn.isotonic import IsotonicRegression

    return np.asarray(IsotonicRegression(increasing=False).fit_transform(np.arange(len(values)), values))
