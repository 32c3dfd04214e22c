"""Files of comparisons as groups: a prompt, its answers, and which of two is the better. No torch.

Shapes, also mixed: {"prompt", "answers": [{"model", "text", "score"}]}, as `export --format scores` writes
it; GPT-4-LLM's {"user_input", "completion_a", "completion_b"} (a is the better); {"prompt", "chosen",
"rejected"} as texts or messages; two transcripts, as hh-rlhf has them. Rows of one prompt make one group,
wherever they stand, so that a prompt lies on one side of a split. Ties, equal texts and pairs that are given
both ways teach nothing and are left out; scores of different rows are not compared with each other.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from store.errors import PoolError
from store.pool import Pool
from store.records import BadRow, content_of, text_of

BAD_SHOWN = 3
PUBLISHED = ("user_input", "completion_a", "completion_b")  # a is the better
NO_SHAPE = (
    "not a comparison: expected prompt with answers, or prompt with chosen and rejected, or user_input with "
    "completion_a and completion_b"
)
ONE_QUESTION = "several turns or a system message: only one question and its two answers can be read"
TWO_PROMPTS = "chosen and rejected answer different prompts"
HUMAN, ASSISTANT = "Human:", "Assistant:"
Three = tuple[str, str, str]  # prompt, better, worse
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
    both_ways: int = 0  # or each better than the other, in different rows
    reasons: set[str] = field(default_factory=set)  # those that are shown
    bad_shown: list[str] = field(default_factory=list)

    def refuse(self, line: int, reason: str) -> None:
        self.bad += 1
        if reason not in self.reasons and len(self.reasons) < BAD_SHOWN:
            self.reasons.add(reason)
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
        prompt, told = found
        for one in told:
            groups.setdefault(prompt, Group(prompt)).add(*one)
    left = []
    for group in groups.values():
        against = contradicted(group.pairs, group.answers)
        read.both_ways += len(against)
        for pair in against:
            del group.pairs[pair]
        if group.pairs:
            left.append(group)
    if not left:
        why = "; ".join(read.bad_shown) or (
            "all are ties, equal answers or have one answer only" if read.rows else "it is empty"
        )
        if read.both_ways:
            why = f"{read.both_ways:,} pairs are given both ways, each answer better than the other"
        raise PoolError(f"no comparison in {path}: {why}")
    return left, read


def contradicted(pairs: Iterable[Pair], held: Sequence[object]) -> set[Pair]:
    """The pairs whose opposite is there as well. held: what stands at each place."""
    pairs = list(pairs)
    said = {(held[better], held[worse]) for better, worse in pairs}
    return {(better, worse) for better, worse in pairs if (held[worse], held[better]) in said}


def as_pairs(raw: dict[str, Any], read: Read) -> tuple[str, list[Told]] | str:
    """(prompt, pairs) of a row, or what is wrong with it."""
    if "answers" in raw:
        return _ranked(raw, read)
    chosen, rejected = raw.get("chosen"), raw.get("rejected")
    if not raw.keys() >= {"chosen", "rejected"}:
        found = _of_three(raw, *PUBLISHED)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        found = _of_messages(raw.get("prompt"), chosen, rejected)
    elif raw.get("prompt") is None and isinstance(chosen, str) and isinstance(rejected, str):
        found = _of_transcripts(chosen, rejected)
    else:
        found = _of_three(raw, "prompt", "chosen", "rejected")
    if isinstance(found, str):
        return found
    prompt, better, worse = found
    if not prompt.strip():
        return "no prompt"
    margin: Any = raw.get("margin")
    if better == worse:
        read.equal += 1
        return prompt, []
    return prompt, [(better, worse, float(margin) if _is_number(margin) else None)]


def _of_three(raw: dict[str, Any], *names: str) -> Three | str:
    """Prompt and answers that are texts, in fields of these names."""
    prompt, better, worse = (text_of(raw.get(name)) for name in names)
    if not raw.keys() >= set(names):
        held = ", ".join(map(str, raw)) or "nothing"
        return f"{NO_SHAPE}; it has {held:.80}"
    if prompt is None or better is None or worse is None:
        wrong = next(name for name in names if text_of(raw[name]) is None)
        return f"{wrong} is not text: {raw[wrong]!r:.60}"
    return prompt, better, worse


def _of_messages(before: object, chosen: list[Any], rejected: list[Any]) -> Three | str:
    """before: a list of messages that both answers follow; else each list has them itself."""
    talks = [[*before, *talk] if isinstance(before, list) else talk for talk in (chosen, rejected)]
    contents = [[content_of(message) for message in talk] for talk in talks]
    roles = [[message.get("role") for message in talk if isinstance(message, dict)] for talk in talks]
    if any(None in texts for texts in contents):
        return "a message of chosen or rejected has no text"
    if roles != [["user", "assistant"]] * 2:
        return ONE_QUESTION
    (question, better), (other, worse) = contents
    return (str(question), str(better), str(worse)) if question == other else TWO_PROMPTS


def _of_transcripts(chosen: str, rejected: str) -> Three | str:
    """Anthropic's: "\n\nHuman: …\n\nAssistant: …" twice, with the same question.
    https://huggingface.co/datasets/Anthropic/hh-rlhf"""
    talks = [talk.strip().split(f"\n\n{ASSISTANT}") for talk in (chosen, rejected)]
    if not all(head.startswith(HUMAN) for head, *_ in talks):
        return "chosen and rejected without a prompt"
    if any(len(talk) != 2 or f"\n\n{HUMAN}" in "".join(talk) for talk in talks):
        return ONE_QUESTION
    (question, better), (other, worse) = [[part.strip() for part in talk] for talk in talks]
    return (question.removeprefix(HUMAN).strip(), better, worse) if question == other else TWO_PROMPTS


def _ranked(raw: dict[str, Any], read: Read) -> tuple[str, list[Told]] | str:
    prompt, answers = raw.get("prompt"), raw["answers"]
    if not isinstance(prompt, str) or not prompt.strip():
        return "no prompt"
    if not isinstance(answers, list) or not all(isinstance(a, dict) for a in answers):
        return "answers is not a list of objects"
    texts = [text_of(answer.get("text")) for answer in answers]
    if None in texts or not all(_is_number(answer.get("score")) for answer in answers):
        return "an answer has no text, or its score is not a number"
    scored = [(str(text), float(answer["score"])) for text, answer in zip(texts, answers, strict=True)]
    found: list[Told] = []
    for one, other in combinations(scored, 2):
        (better, most), (worse, least) = (one, other) if one[1] > other[1] else (other, one)
        if better == worse:
            read.equal += 1
        elif most == least:
            read.ties += 1
        else:
            found.append((better, worse, most - least))
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
