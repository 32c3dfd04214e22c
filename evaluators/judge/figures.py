"""What a pair's judgements come to: sums, their ratio, wins, in all and by category. Pure.

The sums are the paper's: of every reply that could be read. A question is won by the sums of its replies.
"""

from typing import Any

import numpy as np

from evaluators.judge.length_control import length_controlled
from evaluators.judge.position import balanced, position_bias
from evaluators.judge.tables import Floats, Mask, Table
from evaluators.judge.totals import SUMS, scores, wins


def pair_figures(table: Table, difficulty: Floats | None = None) -> dict[str, Any]:
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


def by_category(table: Table) -> list[dict[str, Any]]:
    """In the order in which the categories were met; [] where no question has one."""
    there = [name for name in dict.fromkeys(table.categories) if name]
    own = np.array(table.categories)
    return [{"category": name, **figures(table, own == name)} for name in there]


def figures(table: Table, chosen: Mask) -> dict[str, Any]:
    """Over the chosen questions. unparsed: replies that could not be read, left out of everything else."""
    read = chosen & (table.read > 0)
    counts = {
        "questions": int(chosen.sum()),
        "replies": int(table.replies[chosen].sum()),
        "unparsed": int((table.replies - table.read)[chosen].sum()),
    }
    sums = scores(table.sum_a[read], table.sum_b[read]) if table.scored else dict.fromkeys(SUMS)
    return {**counts, **sums, **wins(table.win[read])}
