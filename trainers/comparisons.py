"""Files of comparisons as groups: a prompt, its answers, and which of two is the better. No torch.

Two shapes, also mixed: {"prompt", "answers": [{"model", "text", "score"}]}, as `export --format scores`
writes it, and GPT-4-LLM's {"user_input", "completion_a", "completion_b"} (a is the better). Rows of one
prompt make one group, wherever they stand, so that a prompt lies on one side of a split. Ties and equal
texts give no pair; scores of different rows are not compared with each other.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from store.errors import PoolError
from store.pool import Pool
from store.records import BadRow

BAD_SHOWN = 3
Pair = tuple[int, int]  # places of the better and of the worse answer
Told = tuple[str, str, float | None]  # better, worse, margin


@dataclass
class Group:
    """All that is known of one prompt. pairs: with their margin, None where nobody said one."""

    prompt: str
    answers: list[str] = field(default_factory=list)
    pairs: dict[Pair, float | None] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)

    def add(self, better: str, worse: str, margin: float | None) -> None:
        """The same pair said twice is one."""
        self.pairs[self._place(better), self._place(worse)] = margin

    def _place(self, answer: str) -> int:
        if answer not in self.places:
            self.places[answer] = len(self.answers)
            self.answers.append(answer)
        return self.places[answer]


@dataclass
class Read:
    """What became of the rows of a file."""

    rows: int = 0
    bad: int = 0
    ties: int = 0  # pairs that say nothing: equal scores
    equal: int = 0  # or equal answers
    bad_shown: list[str] = field(default_factory=list)

    def refuse(self, line: int, reason: str) -> None:
        self.bad += 1
        if len(self.bad_shown) < BAD_SHOWN:
            self.bad_shown.append(f"line {line}: {reason}")


def read_groups(path: Path, limit: int | None = None) -> tuple[list[Group], Read]:
    """The groups that have a pair, in the order of the file. limit: rows. Raises PoolError where none has."""
    groups: dict[str, Group] = {}
    read = Read()
    for line, raw in Pool(path).objects():
        if limit is not None and read.rows == limit:
            break
        read.rows += 1
        found = raw.reason if isinstance(raw, BadRow) else as_pairs(raw, read)
        if isinstance(found, str):
            read.refuse(line, found)
            continue
        prompt, pairs = found
        for pair in pairs:
            groups.setdefault(prompt, Group(prompt)).add(*pair)
    if not groups:
        told = "; ".join(read.bad_shown) or (
            "all are ties, equal answers or have one answer only" if read.rows else "it is empty"
        )
        raise PoolError(f"no comparison in {path}: {told}")
    return list(groups.values()), read


def as_pairs(raw: dict[str, Any], read: Read) -> tuple[str, list[Told]] | str:
    """(prompt, pairs) of a row, or what is wrong with it."""
    if "answers" in raw:
        return _ranked(raw, read)
    values = [raw.get(name) for name in ("user_input", "completion_a", "completion_b")]
    if not all(isinstance(value, str) for value in values):
        return "neither prompt and answers, nor user_input, completion_a and completion_b"
    prompt, better, worse = (str(value) for value in values)
    if not prompt.strip():
        return "no prompt"
    margin: Any = raw.get("margin")
    if better == worse:
        read.equal += 1
        return prompt, []
    return prompt, [(better, worse, float(margin) if _is_number(margin) else None)]


def _ranked(raw: dict[str, Any], read: Read) -> tuple[str, list[Told]] | str:
    prompt, answers = raw.get("prompt"), raw["answers"]
    if not isinstance(prompt, str) or not prompt.strip():
        return "no prompt"
    if not isinstance(answers, list) or not all(isinstance(a, dict) for a in answers):
        return "answers is not a list of objects"
    if not all(isinstance(a.get("text"), str) and _is_number(a.get("score")) for a in answers):
        return "an answer without a text or a score that is a number"
    found: list[Told] = []
    for one, other in combinations(answers, 2):
        better, worse = (one, other) if one["score"] > other["score"] else (other, one)
        if one["text"] == other["text"]:
            read.equal += 1
        elif one["score"] == other["score"]:
            read.ties += 1
        else:
            found.append((better["text"], worse["text"], float(better["score"] - worse["score"])))
    return prompt, found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parts(pairs: Sequence[Pair], most: int) -> Iterator[list[Pair]]:
    """Every pair once, in parts of at most `most` answers, each begun with a pair that is left and grown by
    the answer that adds the most pairs. An answer may be in several parts."""
    left = list(pairs)
    while left:
        chosen = _grown(left, most)
        yield [pair for pair in left if chosen.issuperset(pair)]
        left = [pair for pair in left if not chosen.issuperset(pair)]


def _grown(left: Sequence[Pair], most: int) -> set[int]:
    chosen = set(left[0])
    while len(chosen) < most:
        gains = Counter(
            answer
            for pair in left
            for answer, other in (pair, pair[::-1])
            if other in chosen and answer not in chosen
        )
        apart = next((pair for pair in left if not chosen.intersection(pair)), None)
        if gains:
            chosen.add(gains.most_common(1)[0][0])
        elif apart and len(chosen) + 2 <= most:
            chosen.update(apart)
        else:
            break
    return chosen
