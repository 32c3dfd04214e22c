"""The ranking study (the paper's Figure 4a, b): a student's n samples put in order by a reward model, each
rank judged against one opponent. Does quality fall with the rank?

A rank group is a pair like any other (`rank-1` against the opponent). Questions are resampled for all
groups at once, since the ranks of a question hang together.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluators.judge.judgements import PairTable
from evaluators.judge.metrics import figures, judgements_of, scores, tables_of, told_of
from evaluators.judge.reviews import ReviewSource
from evaluators.stats import Floats, middle, resampled
from store.errors import UsageError

LEAST = 2
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
        raise UsageError(f"rank groups meet one opponent; here are {', '.join(map(repr, opponents))}")
    if len(judges) > 1:
        raise UsageError(f"rank groups have one judge; here are {', '.join(map(repr, judges))}")
    if len(tables) < LEAST:
        raise UsageError(f"a ranking needs two or more rank groups; here is {len(tables)}")
    if silent := [table.a for table in every if not table.scored]:
        raise UsageError(f"no score could be read of what was said of {', '.join(map(repr, silent))}")
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
