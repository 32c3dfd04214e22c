"""Comparisons as numbers: answers as tokens, and parts of prompts with their pairs.

tokens[starts[i]:starts[i+1]] are answer i's, after its prompt's. A part is what one forward takes: a
prompt with all its answers and pairs, or some of them where there are more than `--answers`. The split is
by prompt: all parts of a prompt are held out, or none.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from store.errors import PoolError, UsageError
from store.records import Instruction
from store.student import TextTokens
from trainers.comparisons import Group, Pair, Read, contradicted, parts, read_groups
from trainers.config import RewardRecipe
from trainers.encoding import Template, encode, prompt_length
from trainers.rows import digest_of, drawn

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """tokens: (T,) int32. starts: (answers + 1,). members: answers of parts, cut by member_starts (parts +
    1,). pairs: (P, 2) places among a part's members, the better first, cut by pair_starts (parts + 1,).
    shares: (parts,) pairs that the whole prompt has. held_out: parts, sorted. All but tokens int64."""

    tokens: npt.NDArray[np.int32]
    starts: Ints
    members: Ints
    member_starts: Ints
    pairs: Ints
    pair_starts: Ints
    shares: Ints
    held_out: Ints

    def __len__(self) -> int:
        return len(self.shares)

    def answers(self, part: int) -> list[npt.NDArray[np.int32]]:
        own = self.members[self.member_starts[part] : self.member_starts[part + 1]]
        return [self.tokens[self.starts[i] : self.starts[i + 1]] for i in own]

    def pairs_of(self, part: int) -> Ints:
        return self.pairs[self.pair_starts[part] : self.pair_starts[part + 1]]

    @property
    def lengths(self) -> Ints:
        """Tokens of all answers of each part."""
        return np.add.reduceat(np.diff(self.starts)[self.members], self.member_starts[:-1])

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """How much of a prompt each part is: its share of the pairs."""
        return np.diff(self.pair_starts) / self.shares

    @property
    def widest(self) -> int:
        """Most answers of a part."""
        return int(np.diff(self.member_starts).max())

    @property
    def trained(self) -> Ints:
        return np.setdiff1d(np.arange(len(self)), self.held_out)

    @property
    def digest(self) -> str:
        """The same for the same answers, pairs, template, tokenizer, limits and split."""
        return digest_of(self)


@dataclass
class RewardCounts:
    """What became of the answers. read: of the rows."""

    read: Read
    prompts: int = 0
    parts: int = 0
    pairs: int = 0
    answers: int = 0
    cut: int = 0  # lost their end
    prompt_cut: int = 0  # lost the beginning of their prompt
    dropped: int = 0
    alike: int = 0  # pairs whose answers are the same tokens, most often since both were cut
    both_ways: int = 0  # pairs that contradict each other once they are tokens
    control: int = 0  # answers with control tokens in their text or prompt
    controls: Counter[str] = field(default_factory=Counter)
    tokens: int = 0


@dataclass(frozen=True)
class Encoded:
    """An answer after its prompt. cut, prompt_cut: whether tokens are missing."""

    tokens: list[int]
    cut: bool
    prompt_cut: bool


def template_for(tokenizer: Any, told: Template | None) -> Template:
    """As said, else the tokenizer's own chat template, else Alpaca's."""
    if told == "chat" and not tokenizer.chat_template:
        raise UsageError("--template chat: this tokenizer has no chat template; alpaca needs none")
    return told or ("chat" if tokenizer.chat_template else "alpaca")


def encoded(prompt: str, answer: str, template: Template, texts: TextTokens, most: int) -> Encoded:
    """Prompt, answer and end of sequence within `most` tokens.

    Where they are too long each keeps half of the length, if it needs it: the prompt loses its beginning,
    the answer its end. The end of sequence stays: it is where the reward is read.
    """
    found = encode(Instruction("", prompt, "", answer), template, texts)
    if isinstance(found, str):
        raise UsageError(f"--template {template}: {found}; try --template alpaca")
    tokens, learn = found
    if len(tokens) <= most:
        return Encoded(tokens, False, False)
    before = prompt_length(learn)
    kept = min(len(tokens) - before, max(most // 2, most - before))
    after = tokens[before:]
    if len(after) > kept:
        after = after[: kept - 1] + after[-1:]
    front = tokens[before - min(before, most - kept) : before]
    return Encoded(front + after, len(tokens) - before > kept, len(front) < before)


def prepared(recipe: RewardRecipe, tokenizer: Any) -> tuple[Parts, RewardCounts, list[Group]]:
    """The recipe's file as parts, and the groups held out. Raises PoolError where nothing is left."""
    groups, read = read_groups(recipe.data, recipe.limit)
    counts, writer, texts = RewardCounts(read), Writer(), TextTokens(tokenizer)
    counts.controls = texts.seen
    template = template_for(tokenizer, recipe.template)
    kept = [group for group in groups if writer.add(group, template, texts, recipe, counts)]
    if len(kept) < 1 + bool(recipe.held_out):
        raise PoolError(
            f"{recipe.data}: {len(kept)} prompts have a pair of answers within --max-length "
            f"{recipe.max_length}; training needs one, and another to hold out (--held-out 0: none)"
            + "".join(f"; {number:,} {words}" for number, words in unlike(counts, recipe) if number)
        )
    held = drawn(len(kept), recipe.held_out, recipe.seed)
    return writer.parts(held), counts, [kept[i] for i in held.tolist()]


def _told_apart(
    pairs: Sequence[Pair], tokens: Sequence[tuple[int, ...]], group: Group, counts: RewardCounts
) -> list[Pair]:
    """Without pairs that teach nothing once they are tokens: both answers the same, or each better than the
    other in turn. Those are not measured on either."""
    alike = {pair for pair in pairs if tokens[pair[0]] == tokens[pair[1]]}
    apart = [pair for pair in pairs if pair not in alike]
    against = contradicted(apart, tokens)
    counts.alike += len(alike)
    counts.both_ways += len(against)
    for pair in alike | against:
        del group.pairs[pair]
    return [pair for pair in apart if pair not in against]


def unlike(counts: RewardCounts, recipe: RewardRecipe) -> list[tuple[int, str]]:
    """Pairs that were left out since they say nothing, with their number."""
    return [
        (counts.alike, f"pairs left out: both answers are the same within {recipe.max_length} tokens"),
        (counts.read.both_ways + counts.both_ways, "pairs left out: given both ways"),
        (counts.read.equal, "pairs of equal answers left out"),
        (counts.read.ties, "ties left out: equal scores"),
    ]


class Writer:
    """Parts as they grow, group by group."""

    def __init__(self) -> None:
        self._tokens, self._starts = array("i"), array("q", [0])
        self._members, self._member_starts = array("q"), array("q", [0])
        self._pairs, self._pair_starts = array("q"), array("q", [0])
        self._shares, self._prompts = array("q"), array("q")
        self._count = 0

    def add(
        self, group: Group, template: Template, texts: TextTokens, recipe: RewardRecipe, counts: RewardCounts
    ) -> bool:
        """Whether a pair of this group was left. The group keeps those that can be told apart."""
        found = []
        for answer in group.answers:
            seen = texts.seen.total()
            found.append(encoded(group.prompt, answer, template, texts, recipe.max_length))
            counts.control += texts.seen.total() > seen
        whole = [not (e.cut or e.prompt_cut) or recipe.too_long == "cut" for e in found]
        counts.dropped += whole.count(False)
        pairs = [pair for pair in group.pairs if whole[pair[0]] and whole[pair[1]]]
        pairs = _told_apart(pairs, [tuple(one.tokens) for one in found], group, counts)
        if not pairs:
            return False
        at: dict[int, int] = {}  # where among all answers each place of the group now is
        for place in sorted({place for pair in pairs for place in pair}):
            one = found[place]
            at[place] = len(self._starts) - 1
            self._tokens.extend(one.tokens)
            self._starts.append(len(self._tokens))
            counts.answers += 1
            counts.cut += one.cut
            counts.prompt_cut += one.prompt_cut
            counts.tokens += len(one.tokens)
        for part in parts(pairs, recipe.answers):
            members = sorted({place for pair in part for place in pair})
            place_of = {place: n for n, place in enumerate(members)}
            self._members.extend(at[place] for place in members)
            self._member_starts.append(len(self._members))
            self._pairs.extend(place_of[place] for pair in part for place in pair)
            self._pair_starts.append(len(self._pairs) // 2)
            self._shares.append(len(pairs))
            self._prompts.append(self._count)
        self._count += 1
        counts.prompts += 1
        counts.pairs += len(pairs)
        counts.parts = len(self._shares)
        return True

    def parts(self, held_prompts: Ints) -> Parts:
        def ints(values: "array[int]") -> Ints:
            return np.array(values, np.int64)

        return Parts(
            np.array(self._tokens, np.int32),
            ints(self._starts),
            ints(self._members),
            ints(self._member_starts),
            ints(self._pairs).reshape(-1, 2),
            ints(self._pair_starts),
            ints(self._shares),
            np.flatnonzero(np.isin(ints(self._prompts), held_prompts)),
        )
