"""ROUGE of many rows, in one process or several: the same numbers in the same order.

Each row is scored by rouge-score by itself. Importing it takes seconds (nltk), so extra processes pay only
for large files.

The `default` tokens are rouge-score's own: lower-case ASCII letters and digits, so nothing is left of a
Chinese text. `unicode` keeps letters of every script. In scripts without spaces each character is a token,
as is usual for Chinese ROUGE. Both stem English words of more than three letters (Porter), as Super-
NaturalInstructions and Self-Instruct did, unless told not to. On ASCII texts both give the same numbers.
"""

import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import chain, islice
from typing import Any, Literal, NamedTuple, TypeAlias

from engine.tasks.languages import LETTERS
from evaluators.text import plain_words
from store.errors import UsageError

Tokens = Literal["default", "unicode"]
Asked = Literal["auto", "default", "unicode"]
ASKED: tuple[Asked, ...] = ("auto", "default", "unicode")
STEMMED_FROM = 4  # letters

_NOT_LATIN = re.compile(f"(?![{LETTERS['Latin']}])[^\\W\\d_]")


def asked_of(given: str) -> Asked:
    """Raises UsageError."""
    for known in ASKED:
        if given == known:
            return known
    raise UsageError(f"--tokenizer {given}: unknown; there are {', '.join(ASKED)}")


def tokens_for(references: list[str], asked: Asked) -> Tokens:
    """What a row is compared by. `auto`: unicode where a reference has a letter that is not Latin. The
    references alone decide, so that all models are measured alike."""
    if asked != "auto":
        return asked
    foreign = any(not text.isascii() and _NOT_LATIN.search(text) for text in references)
    return "unicode" if foreign else "default"


@cache
def scorer(tokens: Tokens, stemmer: bool) -> Any:
    """rouge-score's scorer of ROUGE-1, 2 and L."""
    from rouge_score.rouge_scorer import RougeScorer

    own = UnicodeTokenizer(stemmer) if tokens == "unicode" else None
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmer, tokenizer=own)


class UnicodeTokenizer:
    """What rouge-score asks of a tokenizer: `tokenize`."""

    def __init__(self, stemmer: bool) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem if stemmer else None

    def tokenize(self, text: str) -> list[str]:
        words = plain_words(text)
        if self._stem is None:
            return words
        return [self._stem(w) if len(w) >= STEMMED_FROM and w.isascii() else w for w in words]


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
