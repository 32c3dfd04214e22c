"""How the scripted teacher rates an answer: length up to a point, words of the question, repetition and
broken text. It knows nothing of truth; it is only better than giving everything the same score."""

import math
import re
import unicodedata
from dataclasses import dataclass

LONG_ENOUGH = 80  # words; more bring no more points
LEAST, MOST = 1, 10
LENGTH_POINTS, OVERLAP_POINTS, VARIETY_POINTS, BROKEN_POINTS = 4.0, 2.0, 3.0, 2.0
ENOUGH_OVERLAP = 0.5  # of the question's words
RUN = 3  # words that come again together are a repetition
SHORT_WORD = 3  # letters; shorter words say little of what is asked

# A Chinese or Japanese character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+?(?=[\u3040-\u30ff\u3400-\u9fff]|[\W_]|\Z)")
_ENDED = re.compile(r"""[.!?…。！？:;)\]}"'”’」`>|0-9]\s*\Z""")


@dataclass(frozen=True, slots=True)
class Rating:
    """score: a whole number, 1-10. why: in words, marked as scripted."""

    score: int
    why: str


def rate(question: str, answer: str) -> Rating:
    """The score of an answer to a question, with its reasons."""
    words = words_of(answer)
    if not words:
        return Rating(LEAST, "(scripted) There is no answer.")
    overlap, variety = _overlap(words_of(question), words), _variety(words)
    length = min(1.0, math.log1p(len(words)) / math.log1p(LONG_ENOUGH))
    flaws = _flaws(answer)
    points = (
        LEAST
        + LENGTH_POINTS * length
        + OVERLAP_POINTS * min(1.0, overlap / ENOUGH_OVERLAP)
        + VARIETY_POINTS * variety**2 * length
        - BROKEN_POINTS * len(flaws)
    )
    score = max(LEAST, min(MOST, math.floor(points + 0.5)))
    facts = [f"{len(words)} words", f"{overlap:.0%} of the question's words", f"{1 - variety:.0%} repeated"]
    return Rating(score, f"(scripted) {', '.join([*facts, *flaws])}.")


def words_of(text: str) -> list[str]:
    """The words in lower case."""
    return _WORD.findall(text.lower())


def _overlap(question: list[str], answer: list[str]) -> float:
    """The share of the question's words that come in the answer."""
    asked = {word for word in question if len(word) > SHORT_WORD or ord(word[0]) > 0x3000}
    return len(asked & set(answer)) / len(asked) if asked else 0.0


def _variety(words: list[str]) -> float:
    """The share of the runs of words that are not repetitions."""
    runs = [tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))]
    return len(set(runs)) / len(runs)


def _flaws(answer: str) -> list[str]:
    found = []
    if "\ufffd" in answer or any(unicodedata.category(c) == "Cc" for c in answer if c not in "\n\t\r"):
        found.append("broken characters")
    if answer.count("```") % 2:
        found.append("an open code block")
    elif not _ENDED.search(answer) and len(words_of(answer)) > LONG_ENOUGH:
        found.append("no end")
    return found
