"""Tables for people: an estimate, a recipe's plan and steps; and the words that others share."""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from rich.table import Table
from rich.text import Text

from engine.collect.settings import Settings
from engine.provider.pricing import LOCAL, Price
from engine.run.completion_tokens import Range
from engine.run.estimate import Bound, Estimate
from engine.run.job import StageJob
from engine.terminal import (
    Cell,
    Column,
    counted,
    dollars,
    duration,
    exact_dollars,
    percent,
    plain,
    print_columns,
    show,
)
from store.run_folder import StepResult
from store.stage_rows import Alike

TAKEN_AS_FREE = "taken as free: a local server"
MESSAGES_SHOWN = 5  # of one stage


def grid() -> Table:
    """Labels and texts."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def tell_shown(shown: Table | Text) -> None:
    """On stderr, which may be gone. Texts are for the terminal to wrap."""
    show(shown, stderr=True)


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


def _price(price: Price, source: str) -> str:
    """What a million tokens cost, and where that is from."""
    if price.free:
        return TAKEN_AS_FREE if source == LOCAL else f"zero  ({source})"
    words = f"{_rate(price.prompt)} in, {_rate(price.completion)} out a million tokens"
    words += f", {dollars(price.request / 10**6)} a request" if price.request else ""
    for above, step in price.steps:
        words += f", {_rate(step.prompt)} and {_rate(step.completion)} for prompts over {above:,} tokens"
    return f"{words}  ({source})"


def _rate(amount: Decimal) -> str:
    return exact_dollars(round(amount * 10**6))


def _money(cost: Range | None) -> str:
    if cost is None:
        return "unknown: give --price-in and --price-out, or --price-as"
    if not cost.high:
        return "nothing"
    return f"{dollars(cost.expected)}  (95 %: {dollars(cost.low)} to {dollars(cost.high)})"


def print_estimate(told: Estimate, settings: Settings, to_stdout: bool = False, batch: bool = False) -> None:
    """The estimate as a table, on stderr (before a run) or stdout (`estimate`). `batch`: the price
    of the Batch API first."""
    done = f", {told.already_answered:,} stored already" if told.already_answered else ""
    bad = f", {counted(told.bad_rows, 'bad row')}" if told.bad_rows else ""
    tokens = told.completion_tokens
    count = "exact" if told.exact_tokens else "counted with o200k_base; this model counts differently"
    table = grid()
    for label, words in _asked(told, settings):
        table.add_row(label, Text(words))
    more = f"; {told.replies_per_request:.2f} paid replies each" if told.replies_per_request > 1 else ""
    table.add_row("requests", f"{told.requests:,}  ({counted(told.rows, 'row')}{done}{bad}{more})")
    differs = abs(told.billed_prompt_tokens - told.prompt_tokens) > 0.005 * told.prompt_tokens
    billed = f"; {told.billed_prompt_tokens:,} as replies so far were billed" if differs else ""
    table.add_row("prompt tokens", f"{told.prompt_tokens:,}  ({count}{billed})")
    table.add_row("completion tokens", f"{tokens.expected:,.0f}  ({interval(tokens)})")
    if thinking := told.thinking_tokens:
        table.add_row("thinking tokens", f"{thinking.expected:,.0f} of these  ({interval(thinking)})")
    table.add_row("based on", Text(told.completion_from))
    if price := settings.price(batch):
        table.add_row("price", _price(price, told.price_source))
    prices = [("cost", told.cost_usd), ("as a batch", told.batch_cost_usd)]
    for label, cost in reversed(prices) if batch else prices:
        if label == "cost" or batch or (cost and cost.high):
            table.add_row(label, _money(cost))
    s = told.seconds
    between = f"{duration(s.low)} to {duration(s.high)}; " if s.high > s.low else ""
    online = f"{duration(s.expected)}  ({between}limited by {told.bound_by})"
    table.add_row("time", "up to a day for each batch" if batch else online)
    show(table, stderr=not to_stdout)


def _asked(told: Estimate, settings: Settings) -> Iterator[tuple[str, str]]:
    """The model, how hard it thinks, and what of the settings reaches it."""
    thinks = f", thinking at effort {plain(told.effort, 40)}" if told.effort else ""
    yield "model", f"{plain(settings.model, 80)}{thinks}"
    if told.bound:
        yield "bound on a reply", bound_words(told.bound, settings.traits.inside)
    if told.not_sent:
        names = ", ".join(f"{name} {value:g}" for name, value in told.not_sent.items())
        yield "not sent", f"{names}: this model refuses it"


def print_plan(
    planned: Mapping[str, tuple[StageJob, Estimate]], budget: float | None, to_stdout: bool = False
) -> None:
    """A recipe's stages with the estimate of each and the sum."""
    rows: list[list[Cell]] = []
    for name, (job, told) in planned.items():
        cost = told.cost_as_asked(job.settings.batch)
        rows.append([
            plain(name, 40),
            job.settings.task,
            plain(job.settings.teacher, 24),
            told.requests,
            told.prompt_tokens,
            told.completion_tokens.expected,
            told.thinking_tokens.expected if told.thinking_tokens else "-",
            "?" if cost is None else dollars(cost.expected),
            "a day a batch" if job.settings.batch else duration(told.seconds.expected),
        ])  # fmt: skip
    thinks = any(told.thinking_tokens for _, told in planned.values())
    columns = [
        Column("stage", is_text=True), Column("task", is_text=True, is_spare=True),
        Column("teacher", is_text=True, is_spare=thinks), Column("requests"), Column("tokens in"),
        Column("tokens out"), Column("thinking", is_spare=not thinks), Column("cost"), Column("time"),
    ]  # fmt: skip
    print_columns(columns, rows, stderr=not to_stdout)
    asked = [told.cost_as_asked(job.settings.batch) for job, told in planned.values()]
    costs = [cost for cost in asked if cost]
    low, high = sum(c.low for c in costs), sum(c.high for c in costs)
    words = f"in all {dollars(sum(c.expected for c in costs))}  (95 %: {dollars(low)} to {dollars(high)})"
    unknown = asked.count(None)
    words += f", and {unknown} stages of unknown price" if unknown else ""
    words += f"; budget {exact_dollars(round(budget * 1e6))}" if budget is not None else ""
    free = dict.fromkeys(
        plain(j.settings.teacher, 24) for j, t in planned.values() if LOCAL in t.price_source
    )
    words += f"\n{TAKEN_AS_FREE}: {', '.join(free)}" if free else ""
    for name, (job, told) in planned.items():
        if told.effort or told.not_sent:
            said = "; ".join(f"{label}: {text}" for label, text in _asked(told, job.settings))
            words += f"\nstage {plain(name, 40)}: {said}"
    if any(job.after for job, _ in planned.values()):
        words += "\nstages that read other stages are estimated with answers of the usual length"
    show(Text(words), stderr=not to_stdout)


def print_planned_steps(steps: Mapping[str, Mapping[str, Any]]) -> None:
    """On stdout, behind the plan of the stages."""
    if not steps:
        return
    rows = [
        [plain(name, 40), step["run"], plain(", ".join(step["needs"]) or "all"), "done" * step["done"]]
        for name, step in steps.items()
    ]
    show(Text())
    heads = (Column("step", is_text=True), Column("runs", is_text=True), Column("after", True, wraps=True))
    print_columns([*heads, Column("", is_text=True)], rows)


def print_steps(
    steps: Mapping[str, StepResult], waiting: Mapping[str, str], incomplete: Mapping[str, str]
) -> None:
    """The end of a recipe's steps, and what was not begun for want of others, or has rows to come."""
    for name, result in steps.items():
        words = {"known": "done before", "done": f"done in {duration(result.seconds)}"}.get(result.state)
        said = words or f"{result.state}: {plain(result.why, 600)}"
        tell_shown(Text(f"step {plain(name, 40)}: {said}", style="" if words else "bold"))
    for name, why in incomplete.items():
        if name not in waiting:
            tell_shown(Text(f"stage {plain(name, 40)} {plain(why, 600)}"))
    for name, why in waiting.items():
        tell_shown(Text(f"{plain(name, 40)}: not started: {plain(why, 600)}"))
    if waiting.keys() & incomplete.keys():
        tell_shown(Text("run the same command again: what is pending is asked first, then what waits for it"))


def used_words(utilisation: Mapping[str, Any]) -> list[str]:
    """How much of which limit was used."""
    shares = [(name, utilisation.get(name)) for name in ("requests", "tokens")]
    return [f"{name} {percent(share)}" for name, share in shares if share is not None]


def done_of(done: int, total: int | None) -> Cell:
    """`20,000 of 52,002`, or shorter."""
    return lambda count: f"{count(done)} of {'?' if total is None else count(total)}"


def failed_words(who: str, groups: Sequence[Alike]) -> Iterator[str]:
    """What was said of rows that failed, the most frequent first."""
    for group in groups[:MESSAGES_SHOWN]:
        ids = ", ".join(plain(one, 24) for one in group.ids)
        ids = f"{'row' if group.rows == 1 else 'rows'} {ids}"
        more = f" and {group.rows - len(group.ids):,} more" if group.rows > len(group.ids) else ""
        yield f"{who}: {group.cause} {group.rows:,}: {plain(group.message, 200)}  ({ids}{more})"
    if rest := groups[MESSAGES_SHOWN:]:
        yield f"{who}: {len(rest):,} more kinds of failures, {sum(one.rows for one in rest):,} rows"
