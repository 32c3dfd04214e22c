"""ROUGE of many rows, in one process or several: the same numbers, in the same order.

A row is scored by rouge-score, by itself, so that nothing depends on who scores it. (Importing rouge-score
takes seconds, for it brings nltk: processes pay for large files only.)
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from typing import NamedTuple, TypeAlias

from evaluators.rouge.tokens import Tokens, scorer

AT_ONCE = 64  # rows that a process takes
FEW = 400  # rows, for which starting processes takes longer than scoring
METRICS = ("rouge1", "rouge2", "rougeL")
Scores = tuple[float, ...]  # of METRICS, F-measures


class Pair(NamedTuple):
    """What is compared: any of the references will do."""

    references: Sequence[str]
    prediction: str
    tokens: Tokens
    stemmer: bool


def score(pair: Pair) -> Scores:
    """The best F-measure over the references, for each metric by itself (rouge-score's `score_multi`)."""
    found = scorer(pair.tokens, pair.stemmer).score_multi(pair.references, pair.prediction)
    return tuple(float(found[metric].fmeasure) for metric in METRICS)


ScoreAll: TypeAlias = Callable[[Sequence[Pair]], Iterator[Scores]]


@contextmanager
def scoring(processes: int | None = None) -> Iterator[ScoreAll]:
    """Gives a function that scores pairs in the order given. processes: as many as there are cores, started
    for the first batch that is large enough, unless a number is given."""
    with ExitStack() as stack:
        started: list[ProcessPoolExecutor] = []

        def score_all(pairs: Sequence[Pair]) -> Iterator[Scores]:
            if processes == 1 or (processes is None and not started and len(pairs) <= FEW):
                return map(score, pairs)
            if not started:  # spawned, not forked: threads may be running here
                pool = ProcessPoolExecutor(processes or cores(), multiprocessing.get_context("spawn"))
                started.append(stack.enter_context(pool))
            return chain.from_iterable(started[0].map(_score_some, _cut(pairs)))

        yield score_all


def _score_some(pairs: list[Pair]) -> list[Scores]:
    return [score(pair) for pair in pairs]


def _cut(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    left = iter(pairs)
    while some := list(islice(left, AT_ONCE)):
        yield some


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
