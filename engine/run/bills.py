"""A run's bill in words, beside what was estimated: tokens and money of all attempts, answered or not.

Pure: makes labels and texts of what was counted; who shows them is elsewhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.collect.stats import RunState
from engine.run.build import StageResult
from engine.run.completion_tokens import Range
from engine.run.estimate import Bound, Estimate
from engine.terminal import dollars
from store.records import UNUSABLE

Line = tuple[str, str]


def counts(found: Mapping[str, int]) -> str:
    """`empty 12, other 1`."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted(found.items()) if count)


def interval(found: Range, as_text: str = "{:,.0f}") -> str:
    return f"95 %: {as_text.format(found.low)} to {as_text.format(found.high)}"


def bound_words(bound: Bound, is_inside: bool) -> str:
    """How the bound on a reply is made up."""
    if bound.answer is None:
        return "none"
    if not bound.thinking:
        return f"{bound.answer:,} tokens"
    if is_inside:
        return f"{bound.answer:,} for the answer + {bound.thinking:,} to think"
    return f"{bound.answer:,} for the answer; this model thinks beside it, up to {bound.thinking:,} assumed"


def no_answer(rows: Mapping[str, int], replies: Mapping[str, int], usd: float) -> str:
    """What was paid for and holds no answer. rows: that have none because of it, by outcome; replies: all
    of that kind, those after which another was bought too."""
    count = sum(replies.values())
    paid = f"{count:,} {'reply' if count == 1 else 'replies'}, {dollars(usd)}"
    if any(rows.values()):
        return f"{counts(rows)} ({paid})"
    return f"in {paid}: {counts(replies)}; their rows were asked again"


def unread_words(replies: Mapping[str, int], usd: float) -> str:
    count = sum(replies.values())
    return f"{counts(replies)} ({count:,} {'reply' if count == 1 else 'replies'}, {dollars(usd)})"


def own_counts(replies: int) -> str:
    """Of replies whose tokens the server does not tell."""
    if replies == 1:
        return "the tokens of 1 reply were counted by distill: the server did not tell them"
    return f"the tokens of {replies:,} replies were counted by distill: the server did not tell them"


def failed_rows(state: RunState) -> dict[str, int]:
    """Rows that failed, by cause, without those whose replies hold no answer."""
    return {cause: count for cause, count in state.failed.items() if cause not in UNUSABLE}


def in_vain(state: RunState) -> Iterator[Line]:
    """Replies of a run that were paid for in vain."""
    if state.unusable:
        rows: dict[str, int] = {outcome: state.failed[outcome] for outcome in UNUSABLE}
        yield "no answer", no_answer(rows, state.unusable, state.unusable_micro / 1e6)
    if state.unread:
        yield "unreadable", unread_words(state.unread, state.unread_micro / 1e6)


def said_of(result: StageResult) -> Estimate | None:
    """What was estimated of the requests that have ended; None where there was no estimate of them."""
    told = result.estimate
    return told.of(result.state.ended) if told and told.requests and result.state.ended else None


def bill(result: StageResult) -> Iterator[Line]:
    """The end of a run: what was estimated of the requests that ended, and what all attempts came to."""
    state, told = result.state, said_of(result)
    billed = (state.billed_prompt, state.billed_completion, state.reasoning_tokens)
    if told:
        yield "prompt tokens", f"estimated {told.billed_prompt_tokens:,}, billed {billed[0]:,}"
        yield "completion tokens", _tokens(told.completion_tokens, billed[1])
        if told.thinking_tokens and billed[2]:
            yield "thinking tokens", _tokens(told.thinking_tokens, billed[2])
        elif told.thinking_tokens:
            expected = told.thinking_tokens.expected
            yield "thinking tokens", f"estimated {expected:,.0f}; the server does not tell them apart"
        elif billed[2]:
            yield "thinking tokens", f"none estimated, billed {billed[2]:,}"
    else:
        thinking = f" (thinking: {billed[2]:,})" if billed[2] else ""
        yield "billed", f"{billed[0]:,} tokens in, {billed[1]:,} out{thinking}"
    cost = told.cost_as_asked(result.is_batch) if told else None
    if state.cost_micro or (cost and cost.high):
        yield "cost", _cost(cost, state.cost_micro / 1e6)
    if state.estimated:
        yield "", own_counts(state.estimated)
    if state.at_risk_micro:
        yield (
            "",
            f"at most {dollars(state.at_risk_micro / 1e6)} more for attempts that came back without a reply",
        )


def _tokens(told: Range, billed: int) -> str:
    return f"estimated {told.expected:,.0f}  ({interval(told)}), billed {billed:,}"


def _cost(told: Range | None, billed: float) -> str:
    if told is None or not told.high:
        return f"billed {dollars(billed)}"
    ratio = f"  ({billed / told.expected:.2f} of it)" if told.expected else ""
    between = f"95 %: {dollars(told.low)} to {dollars(told.high)}"
    return f"estimated {dollars(told.expected)}  ({between}), billed {dollars(billed)}{ratio}"


def bill_json(result: StageResult) -> dict[str, Any]:
    """The same for programs; null where nothing was estimated."""
    state, told = result.state, said_of(result)
    cost = told.cost_as_asked(result.is_batch) if told else None
    return {
        "billed": {
            "prompt_tokens": state.billed_prompt,
            "completion_tokens": state.billed_completion,
            "reasoning_tokens": state.reasoning_tokens,
            "cost_usd": state.cost_micro / 1e6,
            "estimated_replies": state.estimated,
        },
        "estimated": told and {
            "completion_tokens": told.completion_tokens,
            "thinking_tokens": told.thinking_tokens,
            "cost_usd": cost,
        },
        "unusable": {
            "replies": state.unusable.total(),
            "cost_usd": state.unusable_micro / 1e6,
            "outcomes": dict(state.unusable),
        },
        "at_risk_usd": state.at_risk_micro / 1e6,
    }  # fmt: skip


def spent_in_vain(stage: Mapping[str, Any]) -> Sequence[str]:
    """What `status` says of a stage's replies beside its counts."""
    said = []
    unusable, unread, billed = stage["unusable"], stage["unread"], stage["billed"]
    if unusable["replies"]:
        rows: dict[str, int] = {outcome: stage["outcomes"].get(outcome, 0) for outcome in UNUSABLE}
        said.append(f"no answer: {no_answer(rows, unusable['outcomes'], unusable['cost_usd'])}")
    if unread["replies"]:
        said.append(f"unreadable: {unread_words(unread['outcomes'], unread['cost_usd'])}")
    if billed["reasoning_tokens"]:
        said.append(f"{billed['reasoning_tokens']:,} of the tokens out were thinking")
    if billed["estimated_replies"]:
        said.append(own_counts(billed["estimated_replies"]))
    return said
