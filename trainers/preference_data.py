"""Preferences as numbers: answers as tokens, and pairs of them, the better first.

A row is a pair. All pairs of a prompt are learnt, and each prompt weighs the same, as for the reward model:
a pair weighs the inverse of the number of its prompt's pairs. The split is by prompt.
"""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from store.errors import PoolError, UsageError
from store.records import Instruction
from store.student import TextTokens
from trainers.comparisons import Group, Pair, Read, contradicted, read_groups
from trainers.encoding import encode, prompt_length
from trainers.reward_data import template_for
from trainers.rows import digest_of, drawn
from trainers.trl_config import DpoRecipe

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairRows:
    """tokens: (T,) int32. starts: (answers + 1,); tokens[starts[i]:starts[i+1]] are answer i's, after its
    prompt's. asked: (answers,) tokens of the prompt. pairs: (P, 2) answers, the better first. prompts: (P,)
    of which prompt each is, in order. held_out: pairs, sorted. All but tokens int64."""

    tokens: npt.NDArray[np.int32]
    starts: Ints
    asked: Ints
    pairs: Ints
    prompts: Ints
    held_out: Ints

    def __len__(self) -> int:
        return len(self.pairs)

    def answer(self, place: int) -> tuple[list[int], list[int]]:
        """(prompt, answer) as tokens."""
        found = self.tokens[self.starts[place] : self.starts[place + 1]].tolist()
        return found[: self.asked[place]], found[self.asked[place] :]

    @property
    def lengths(self) -> Ints:
        """Tokens of each pair, the prompt counted twice."""
        return np.diff(self.starts)[self.pairs].sum(1)

    @property
    def answered(self) -> Ints:
        """(answers,) tokens of each answer."""
        return np.diff(self.starts) - self.asked

    @property
    def trained(self) -> Ints:
        return np.setdiff1d(np.arange(len(self)), self.held_out)

    @property
    def weights(self) -> npt.NDArray[np.float32]:
        """(P,) what each pair weighs; 1 on average over the pairs that are learnt."""
        share = 1.0 / np.bincount(self.prompts)[self.prompts]
        return (share / share[self.trained].mean()).astype(np.float32)

    @property
    def digest(self) -> str:
        """The same for the same answers, pairs, template, tokenizer, limits and split."""
        return digest_of(self)


@dataclass
class PairCounts:
    """What became of the answers. read: of the rows."""

    read: Read
    prompts: int = 0
    held_prompts: int = 0
    answers: int = 0
    too_long: int = 0
    cut: int = 0  # lost their end
    no_room: int = 0  # their prompt alone fills the length
    alike: int = 0  # pairs whose answers are the same tokens
    both_ways: int = 0  # pairs that contradict each other once they are tokens
    tokens: int = 0
    template: str = ""
    controls: Counter[str] = field(default_factory=Counter)


def prepared(recipe: DpoRecipe, tokenizer: Any) -> tuple[PairRows, PairCounts, list[Group]]:
    """The recipe's file as pairs, and the groups held out, with the pairs that are left. Raises PoolError
    where nothing is left."""
    groups, read = read_groups(recipe.data, recipe.limit)
    counts, texts = PairCounts(read), TextTokens(tokenizer)
    counts.controls = texts.seen
    counts.template = template_for(tokenizer, recipe.template)
    tokens, starts, asked = array("i"), array("q", [0]), array("q")
    pairs, prompts = array("q"), array("q")
    kept: list[Group] = []
    for group in groups:
        found = [_encoded(group.prompt, answer, recipe, texts, counts) for answer in group.answers]
        left = _told_apart(group, found, counts)
        if not left:
            continue
        at: dict[int, int] = {}
        for place in sorted({place for pair in left for place in pair}):
            ids, before = found[place] or ([], 0)
            at[place] = len(asked)
            tokens.extend(ids)
            starts.append(len(tokens))
            asked.append(before)
        pairs.extend(at[place] for pair in left for place in pair)
        prompts.extend([len(kept)] * len(left))
        group.pairs = {pair: group.pairs[pair] for pair in left}
        kept.append(group)
    if len(kept) < 1 + bool(recipe.held_out):
        over = counts.too_long + counts.no_room
        raise PoolError(
            f"{recipe.data}: {len(kept)} prompts have a pair of answers within --max-length "
            f"{recipe.max_length}; training needs one, and another to hold out (--held-out 0: none)"
            + (f"; {over:,} answers are longer" if over else "")
        )
    counts.prompts, counts.answers, counts.tokens = len(kept), len(asked), len(tokens)
    held = drawn(len(kept), recipe.held_out, recipe.seed)
    counts.held_prompts = len(held)
    of = np.array(prompts, np.int64)
    rows = PairRows(
        np.array(tokens, np.int32),
        np.array(starts, np.int64),
        np.array(asked, np.int64),
        np.array(pairs, np.int64).reshape(-1, 2),
        of,
        np.flatnonzero(np.isin(of, held)),
    )
    return rows, counts, [kept[i] for i in held.tolist()]


def _encoded(
    prompt: str, answer: str, recipe: DpoRecipe, texts: TextTokens, counts: PairCounts
) -> tuple[list[int], int] | None:
    """(prompt and answer as tokens, tokens of the prompt); None where it is left out. Counted either way."""
    found = encode(Instruction("", prompt, "", answer), template_for(texts.tokenizer, recipe.template), texts)
    if isinstance(found, str):
        raise UsageError(f"--template {recipe.template or 'chat'}: {found}; try --template alpaca")
    tokens, learn = found
    before = prompt_length(learn)
    if len(tokens) <= recipe.max_length:
        return tokens, before
    if before >= recipe.max_length:
        counts.no_room += 1
        return None
    if recipe.too_long == "drop":
        counts.too_long += 1
        return None
    counts.cut += 1
    return tokens[: recipe.max_length], before


def _told_apart(group: Group, found: list[tuple[list[int], int] | None], counts: PairCounts) -> list[Pair]:
    """The pairs of which both answers are there, and that teach something once they are tokens."""
    tokens = [tuple(one[0]) if one else () for one in found]
    there = [pair for pair in group.pairs if tokens[pair[0]] and tokens[pair[1]]]
    apart = [pair for pair in there if tokens[pair[0]] != tokens[pair[1]]]
    against = contradicted(apart, tokens)
    counts.alike += len(there) - len(apart)
    counts.both_ways += len(against)
    return [pair for pair in apart if pair not in against]
