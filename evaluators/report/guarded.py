"""Results of evaluations come from files that anyone may have written: one that cannot be told is left out,
with the reason, and the rest of the report stands."""

from collections.abc import Callable, Iterable, Sequence

from evaluators.report.document import Block
from evaluators.report.found import Evaluation, Found

NOT_THERE = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError)
Tell = Callable[[Evaluation, int], Iterable[Block]]  # (evaluation, its number from 1)


def told(found: Found, kinds: Sequence[str], tell: Tell) -> list[tuple[Evaluation, list[Block]]]:
    """(evaluation, blocks) of those of some kinds."""
    heard = []
    mine = [e for kind in kinds for e in found.evaluated(kind)]
    for number, evaluation in enumerate(mine, 1):
        try:
            heard.append((evaluation, list(tell(evaluation, number))))
        except NOT_THERE as error:
            words = (
                f"is not as `evaluate {evaluation.kind} --json` writes it ({type(error).__name__}: {error})"
            )
            found.unread.append((f"evaluation {evaluation.name}", words))
    return heard
