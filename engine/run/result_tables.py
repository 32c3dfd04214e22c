"""Tables for people: how a run or a recipe's stages ended, with estimate and bill side by side."""

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from engine.run.bills import bill, counts, failed_rows, in_vain, own_counts, said_of
from engine.run.build import StageResult
from engine.run.tables import grid, tell_shown, used_words
from engine.terminal import dollars, duration, plain


def print_result(result: StageResult, run: Path) -> None:
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
        tell_shown(
            Text(f"see them: bin/distill status --run {run}; ask again: bin/distill retry --run {run}")
        )


def print_results(results: Mapping[str, StageResult], run: Path) -> None:
    """The end of a recipe: a line for each stage, with estimate and bill side by side."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    names = ("stage", "done", "failed", "outcomes", "tokens out", "estimated", "cost", "est. cost", "took")
    for column in names:
        table.add_column(column, justify="left" if column in ("stage", "failed", "outcomes") else "right")
    for name, result in results.items():
        state, told = result.state, said_of(result)
        total = "?" if state.total is None else f"{state.total:,}"
        cost = told.cost_as_asked(result.is_batch) if told else None
        table.add_row(
            Text(plain(name, 40)),
            f"{state.done:,} of {total}",
            counts(failed_rows(state)) or "0",
            counts(state.outcomes) or "-",
            f"{state.billed_completion:,}",
            f"{told.completion_tokens.expected:,.0f}" if told else "-",
            dollars(state.cost_micro / 1e6),
            dollars(cost.expected) if cost else "-",
            duration(result.seconds),
        )
    tell_shown(table)
    for name, result in results.items():
        for label, words in in_vain(result.state):
            tell_shown(Text(f"stage {plain(name, 40)}: {label}: {words}"))
        if result.state.estimated:
            tell_shown(Text(f"stage {plain(name, 40)}: {own_counts(result.state.estimated)}"))
        if result.stopped:
            tell_shown(Text(f"distill: {plain(name, 40)}: {plain(str(result.stopped), 600)}", style="bold"))
    if any(result.state.failed.total() for result in results.values()):
        tell_shown(
            Text(f"see them: bin/distill status --run {run}; ask again: bin/distill retry --run {run}")
        )


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
