"""What flows here: one reply of a judge about two models' answers to a question, whatever file it was in.

Knows no files and no figures. Pairs are looked at from one side: a is the model that was named first
where the pair was first met, and a reply about b and a is turned round.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Judgement:
    """win: of a, 1, 0.5 (a tie) or 0, or a share between; None where the reply could not be read.

    Scores are None where a judge gives none, or none that could be read. a_first: whether a's answer was
    shown first, None where nobody knows. lengths: characters of both answers. source, line: where it is
    written; reason: the judge's words.
    """

    question: str
    a: str
    b: str
    judge: str
    score_a: float | None
    score_b: float | None
    win: float | None
    a_first: bool | None = True
    category: str = ""
    prompt: str = ""
    lengths: tuple[int, int] | None = None
    reason: str = ""
    source: str = ""
    line: int = 0


Key = tuple[str, str, str]  # a, b, judge


def won(score_a: float, score_b: float) -> float:
    """What a has of a question: 1, 0.5 for a tie, 0."""
    return 0.5 if score_a == score_b else float(score_a > score_b)


def turned(said: Judgement) -> Judgement:
    """The same with b for a."""
    return replace(
        said,
        a=said.b,
        b=said.a,
        score_a=said.score_b,
        score_b=said.score_a,
        win=None if said.win is None else 1 - said.win,
        a_first=None if said.a_first is None else not said.a_first,
        lengths=None if said.lengths is None else (said.lengths[1], said.lengths[0]),
    )


def grouped(judgements: Iterable[Judgement]) -> dict[Key, list[Judgement]]:
    """By pair and judge, in the order in which they were first met."""
    side: dict[frozenset[str], str] = {}
    groups: dict[Key, list[Judgement]] = defaultdict(list)
    for said in judgements:
        a = side.setdefault(frozenset((said.a, said.b)), said.a)
        own = said if said.a == a else turned(said)
        groups[own.a, own.b, own.judge].append(own)
    return dict(groups)


def told_apart(sources: Sequence[Sequence[Judgement]]) -> list[Judgement]:
    """All judgements of several sources. Two sources in which one judge says the same thing twice (of the
    same answers in the same order) hold different judges, who are then called by the source as well."""
    owners: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for number, source in enumerate(sources):
        for said in source:
            owners[_place(said)].add(number)
    clashing = {
        (number, place[-1]) for place, numbers in owners.items() if len(numbers) > 1 for number in numbers
    }
    return [
        replace(said, judge=_called(said)) if (number, said.judge) in clashing else said
        for number, source in enumerate(sources)
        for said in source
    ]


def _place(said: Judgement) -> tuple[object, ...]:
    first, second = (said.a, said.b) if said.a_first in (True, None) else (said.b, said.a)
    return said.question, first, second, said.judge


def _called(said: Judgement) -> str:
    return f"{said.judge} ({said.source})" if said.judge else said.source
