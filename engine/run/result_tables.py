"""Tables for people: how a run or a recipe's stages ended, with estimate and bill side by side."""

import contextlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from rich.text import Text

from engine.run.bills import bill, counts, failed_rows, in_vain, own_counts, said_of
from engine.run.build import StageResult
from engine.run.tables import done_of, failed_words, grid, tell_shown, used_words
from engine.terminal import Cell, Column, dollars, duration, plain, print_columns
from store.errors import DistillError
from store.failures import alike, failures
from store.queries import connect_reader, stages


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
    for names in _stopped_alike(results):
        who = "" if len(names) == len(results) else f"{', '.join(plain(name, 40) for name in names)}: "
        reason = str(results[names[0]].stopped)
        tell_shown(Text(f"distill: {who}{plain(reason, 600)}", style="bold"))
    if any(result.state.failed.total() for result in results.values()):
        tell_failed(run, list(results))


def _stopped_alike(results: Mapping[str, StageResult]) -> Collection[list[str]]:
    """The stages that were stopped, those for the same reason together, whatever their next request costs."""
    found: dict[str, list[str]] = {}
    for name, result in results.items():
        if result.stopped:
            found.setdefault(re.sub(r"could cost \$[\d.,]+", "", str(result.stopped)), []).append(name)
    return found.values()


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
