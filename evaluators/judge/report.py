"""All that `evaluate judge` tells, as one JSON object. Pure: judgements in, numbers out."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from evaluators.intervals import RESAMPLES, SEED
from evaluators.judge.agreement import agreement
from evaluators.judge.figures import pair_figures
from evaluators.judge.judgements import Judgement, grouped, told_apart
from evaluators.judge.length_control import difficulties
from evaluators.judge.reviews import Source
from evaluators.judge.tables import Table, table_of

BAD_SHOWN = 3


def judge_report(sources: Sequence[Source], word: str = "file") -> dict[str, Any]:
    """`word`: whose word counted where a file's scores are not its text's; told as a setting."""
    tables = tables_of(judgements_of(sources))
    hard = difficulties(tables)
    return {
        "pairs": [pair_figures(table, hard.get(n)) for n, table in enumerate(tables)],
        "judges": agreement(tables),
        **told_of(sources, word),
    }


def judgements_of(sources: Sequence[Source]) -> list[Judgement]:
    return told_apart([source.judgements for source in sources])


def tables_of(judgements: Sequence[Judgement]) -> list[Table]:
    """One for each pair and judge, in the order in which they were met."""
    return [table_of(said) for said in grouped(judgements).values()]


def told_of(sources: Sequence[Source], word: str) -> dict[str, Any]:
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
