"""A student's thinking apart from its answer, in a text that may still be growing. Pure."""

from typing import NamedTuple

from store.reasoning import Marks


class Parts(NamedTuple):
    """inside: whether more of the thinking may come."""

    thought: str
    answer: str
    inside: bool


def parts(text: str, marks: Marks | None, final: bool) -> Parts:
    """What of a text is thinking. Thinking comes first or not at all, and begins with its opening mark unless
    the prompt ended with that; one that is never closed has no answer. marks: None where nothing is looked
    for. final: no more text comes; until then what may still turn out to be a mark is held back."""
    if marks is None:
        return Parts("", text, False)
    opening, closing = marks.before.strip(), marks.after.strip()
    begins = text.lstrip()
    if opening and begins.startswith(opening):
        begins = begins.removeprefix(opening)
    elif not marks.opened:
        undecided = not final and opening.startswith(begins)
        return Parts("", "" if undecided else text, False)
    elif opening.startswith(begins) and not final:
        return Parts("", "", True)
    thought, closed, answer = begins.partition(closing)
    if closed:
        return Parts(thought.strip(), answer.lstrip(), False)
    if not final:
        thought = thought[: len(thought) - _begun(thought, closing)]
    return Parts(thought.strip(), "", True)


def _begun(text: str, mark: str) -> int:
    """How many signs at the end of the text may be the beginning of the mark."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if mark.startswith(text[-n:])), 0)
