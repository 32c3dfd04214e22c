"""How a run or a recipe's stages ended, with estimate and bill side by side: tokens and money of all
attempts, answered or not. For people as tables, for programs as JSON.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from engine.collect.stats import RunState
from engine.run.completion_tokens import Range
from engine.run.estimate import Estimate
from engine.run.job import StageResult
from engine.run.tables import done_of, failed_words, grid, interval, tell_shown, used_words
from engine.terminal import Cell, Column, dollars, duration, plain, print_columns
from store.errors import DistillError
from store.queries import connect_reader, stages
from store.records import UNUSABLE
from store.stage_rows import alike, failures

Line = tuple[str, str]


def counts(found: Mapping[str, int]) -> str:
    """`empty 12, other 1`."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted(found.items()) if count)


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
        return "the tokens of 1 reply were counted by distill: the server did not report them"
    return f"the tokens of {replies:,} replies were counted by distill: the server did not report them"


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
            yield "thinking tokens", f"estimated {expected:,.0f}; the server does not report them apart"
        elif billed[2]:
            yield "thinking tokens", f"none estimated, billed {billed[2]:,}"
    else:
        thinking = f" (thinking: {billed[2]:,})" if billed[2] else ""
        yield "billed", f"{billed[0]:,} tokens in, {billed[1]:,} out{thinking}"
    cost = told.cost_as_asked(result.is_batch) if told else None
    if cost and cost.high:
        spent = state.cost_micro / 1e6
        ratio = f"  ({spent / cost.expected:.2f} of it)" if cost.expected else ""
        between = f"95 %: {dollars(cost.low)} to {dollars(cost.high)}"
        yield "cost", f"estimated {dollars(cost.expected)}  ({between}), billed {dollars(spent)}{ratio}"
    elif state.cost_micro:
        yield "cost", f"billed {dollars(state.cost_micro / 1e6)}"
    if state.estimated:
        yield "", own_counts(state.estimated)
    if state.at_risk_micro:
        yield (
            "",
            f"at most {dollars(state.at_risk_micro / 1e6)} more for attempts that came back without a reply",
        )


def _tokens(told: Range, billed: int) -> str:
    return f"estimated {told.expected:,.0f}  ({interval(told)}), billed {billed:,}"


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


def print_result(name: str, result: StageResult, run: Path) -> None:
    """The end of a run, with estimate and bill side by side."""
    state = result.state
    table = grid()
    total = "?" if state.total is None else f"{state.total:,}"
    before = f"  ({state.known:,} from before)" if state.known else ""
    table.add_row("done", f"{state.done:,} of {total}{before}")
    if failed := counts(failed_rows(state)):
        table.add_row("failed", failed)
    if state.outcomes:
        table.add_row("outcomes", counts(state.outcomes))
    for label, words in in_vain(state):
        table.add_row(label, words)
    if state.bad_rows:
        table.add_row("bad rows", f"{state.bad_rows:,} left out")
        for bad in state.bad_shown:
            table.add_row("", Text(f"line {bad.line}: {plain(bad.reason, 100)}"))
    if state.answered:
        speed = state.answered / max(result.seconds, 1e-9)
        table.add_row(
            "asked", f"{state.asked:,} in {duration(result.seconds)} ({speed:.1f} answers a second)"
        )
        used = used_words(result.utilisation)
        if used:
            table.add_row("of the limit", ", ".join(used) + f"; {state.limited:,} x 429")
        ratio = state.billed_ratio
        if ratio and abs(ratio - 1) > 0.005:
            table.add_row("tokens", f"billed prompt tokens are {ratio:.2f} of what was counted")
    if state.asked:
        for label, words in bill(result):
            table.add_row(label, words)
    tell_shown(table)
    if result.stopped:
        tell_shown(Text(f"distill: {plain(str(result.stopped), 600)}", style="bold"))
    elif state.failed.total():
        tell_failed(run, [name])


def print_results(results: Mapping[str, StageResult], run: Path) -> None:
    """The end of a recipe: a line for each stage, with estimate and bill side by side."""
    rows: list[list[Cell]] = []
    for name, result in results.items():
        state, told = result.state, said_of(result)
        cost = told.cost_as_asked(result.is_batch) if told else None
        rows.append([
            plain(name, 40),
            done_of(state.done, state.total),
            counts(failed_rows(state)) or "0",
            counts(state.outcomes) or "-",
            state.billed_completion,
            told.completion_tokens.expected if told else "-",
            dollars(state.cost_micro / 1e6),
            dollars(cost.expected) if cost else "-",
            duration(result.seconds),
        ])  # fmt: skip
    columns = [
        Column("stage", is_text=True), Column("done"), Column("failed", is_text=True, wraps=True),
        Column("outcomes", is_text=True, wraps=True), Column("tokens out"),
        Column("estimated", is_spare=True), Column("cost"), Column("est. cost", is_spare=True),
        Column("took"),
    ]  # fmt: skip
    print_columns(columns, rows, stderr=True)
    for name, result in results.items():
        for label, words in in_vain(result.state):
            tell_shown(Text(f"stage {plain(name, 40)}: {label}: {words}"))
        if result.state.estimated:
            tell_shown(Text(f"stage {plain(name, 40)}: {own_counts(result.state.estimated)}"))
    # those that were stopped for the same reason together, whatever their next request costs
    alike_stopped: dict[str, list[str]] = {}
    for name, result in results.items():
        if result.stopped:
            why = re.sub(r"could cost \$[\d.,]+", "", str(result.stopped))
            alike_stopped.setdefault(why, []).append(name)
    for names in alike_stopped.values():
        who = "" if len(names) == len(results) else f"{', '.join(plain(name, 40) for name in names)}: "
        reason = str(results[names[0]].stopped)
        tell_shown(Text(f"distill: {who}{plain(reason, 600)}", style="bold"))
    if any(result.state.failed.total() for result in results.values()):
        tell_failed(run, list(results))


def tell_failed(run: Path, names: Collection[str]) -> None:
    """What the server said of the rows that failed in these stages, and how to see and ask them again."""
    with contextlib.suppress(DistillError), contextlib.closing(connect_reader(run)) as reader:
        for number, name in stages(reader):
            if name in names:
                who = "failed" if len(names) == 1 else f"stage {plain(name, 40)}: failed"
                for line in failed_words(who, alike(failures(reader, number))):
                    tell_shown(Text(line))
    tell_shown(Text(f"all of them: distill failures --run {run}; send them again: distill retry --run {run}"))


def print_bad_rows(results: Mapping[str, StageResult]) -> None:
    """The last line of a command that asks, also with --quiet: rows that were left out are never lost
    among other lines."""
    bad = {name: result.state for name, result in results.items() if result.state.bad_rows}
    if not bad:
        return
    count = sum(state.bad_rows for state in bad.values())
    where = (
        f" ({', '.join(f'{plain(n, 40)} {s.bad_rows:,}' for n, s in bad.items())})" if len(bad) > 1 else ""
    )
    first = next(iter(bad.values())).bad_shown[0]
    said = "row" if count == 1 else "rows"
    words = (
        f"{count:,} bad {said} left out{where}; the first is line {first.line}: {plain(first.reason, 200)}"
    )
    tell_shown(Text(words))
