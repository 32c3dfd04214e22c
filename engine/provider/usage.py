"""What a reply says it cost: tokens under anybody's names, and whether they can be believed.

Pure. A claim is data of the server's: a part that is missing, negative or no number is None, and one
that cannot be (no tokens for a long text, more than any model writes) is not believed. What is then
counted by ourselves is marked as an estimate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from engine.provider.pricing import COST_NAMES, told_cost
from store.records import Usage

MOST_TOKENS = 10**9  # a count beyond this is not a count
MOST_THINKING = 200_000  # tokens beyond the bound on a reply that a server may still claim
LONGEST_TOKEN = 32  # characters of text for each token that is told: beyond it, we count for ourselves
FEWEST_TOKENS = 0.25  # of our own count is what a server may tell
SPARE_PROMPT = 20_000  # tokens that a provider may add to a prompt of its own (templates, system prompts)


Places = tuple[tuple[str, str], ...]


def _places(*paths: str) -> Places:
    """(name, name inside it or nothing) of each dotted path."""
    return tuple((outer, inner) for outer, _, inner in (path.partition(".") for path in paths))


_PROMPT = _places("prompt_tokens", "input_tokens", "promptTokenCount", "prompt_eval_count")
_COMPLETION = _places("completion_tokens", "output_tokens", "candidatesTokenCount", "eval_count")
_TOTAL = _places("total_tokens", "totalTokenCount")
_CACHED = _places(
    "prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens", "cache_read_input_tokens",
    "prompt_cache_hit_tokens", "cachedContentTokenCount", "cached_tokens",
)  # fmt: skip
_WRITTEN = _places(
    "cache_creation_input_tokens", "prompt_tokens_details.cache_creation_tokens",
    "prompt_tokens_details.cache_write_tokens", "prompt_tokens_details.cache_creation_input_tokens",
)  # fmt: skip
_REASONING = _places(
    "completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens",
    "reasoning_tokens", "thoughtsTokenCount",
)  # fmt: skip

_TOLD = frozenset(("cost", *COST_NAMES, "cost_in_usd_ticks"))
_WHOLES = (_PROMPT, _COMPLETION, _TOTAL)
_PARTS = (_CACHED, _WRITTEN, _REASONING)
_PART_NAMES = frozenset(name for places in _PARTS for name, _ in places)


class Claim(NamedTuple):
    """What a reply says of its own cost; None where it says nothing that can be read. cost_micro: in
    micro-dollars, of providers that tell their price."""

    prompt: int | None = None
    completion: int | None = None
    cached: int = 0
    written: int = 0
    reasoning: int = 0
    cost_micro: int | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.prompt or self.completion) and self.cost_micro is None


NO_CLAIM = Claim()


def read_claim(given: object) -> Claim:
    """The `usage` of a body, whoever sent it.

    Output tokens are at least the total less the prompt: thinking is billed, and some servers tell it in
    the total alone. Where the prompt is told without what was read from a cache or written to one
    (Anthropic's names), these are added, since they are billed as well.
    """
    if not isinstance(given, dict):
        return NO_CLAIM
    prompt, completion, total = _counts(given, _WHOLES)
    cached = written = reasoning = 0
    if not _PART_NAMES.isdisjoint(given):
        cached, written, reasoning = (count or 0 for count in _counts(given, _PARTS))
    if "prompt_tokens" not in given and "input_tokens" in given and "input_tokens_details" not in given:
        prompt = None if prompt is None else prompt + cached + written
    if total is not None and prompt is not None and total > prompt:
        completion = max(completion or 0, total - prompt)
    elif total is None and completion is not None and reasoning > completion:
        completion += reasoning  # thinking that stands beside the answer
    most = MOST_TOKENS if prompt is None else prompt
    told = None if _TOLD.isdisjoint(given) else told_cost(given)
    cached = min(cached, most)
    return Claim(prompt, completion, cached, min(written, most - cached), reasoning, told)


def _counts(given: Mapping[str, Any], kinds: Sequence[Places]) -> list[int | None]:
    """Of each kind of tokens, the count at the first of its places that holds one."""
    counts: list[int | None] = []
    for places in kinds:
        count = None
        for name, inner in places:
            value = given.get(name)
            if inner and value is not None:
                value = value.get(inner) if isinstance(value, dict) else None
            if type(value) is int and 0 <= value < MOST_TOKENS:
                count = value
                break
            if value is not None and (count := _count(value)) is not None:
                break
        counts.append(count)
    return counts


def _count(value: object) -> int | None:
    """A number of tokens: not negative, not infinite, not a truth value. Digits in a text are read."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value.strip()[:12])
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return math.ceil(value) if 0 <= value < MOST_TOKENS else None


def believed(
    claim: Claim,
    prompt_tokens: int,
    body_bytes: int,
    max_tokens: int,
    count: Callable[[], int],
    characters: int = 0,
) -> tuple[Usage, bool]:
    """(usage, estimated): what a reply is booked with, and whether a part of it is our own count.

    prompt_tokens: our count of the request; body_bytes: its size, which no tokenizer exceeds in tokens;
    max_tokens: the bound on the reply, 0 for none; count: our count of what the reply holds; characters:
    its length.
    """
    prompt, completion = claim.prompt, claim.completion
    if not prompt or prompt > body_bytes + SPARE_PROMPT:
        prompt = None
    if completion is not None and completion > (max_tokens or MOST_THINKING) + MOST_THINKING:
        completion = None
    if completion and characters > LONGEST_TOKEN * completion and completion < FEWEST_TOKENS * count():
        completion = None
    if not completion:  # zero is not believed where there is text
        written = count()
        completion = 0 if completion == 0 and not written else None
    estimated = prompt is None or completion is None
    if completion is None:
        completion = count() + claim.reasoning
    if prompt is None:
        prompt = prompt_tokens
    cached = min(claim.cached, prompt)
    return Usage(
        prompt, completion, cached, min(claim.reasoning, completion), min(claim.written, prompt - cached)
    ), estimated
