"""Tables for people: an estimate, a recipe's plan and steps, the status of a run folder."""

import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.collect.settings import Settings
from engine.provider.pricing import LOCAL, Price
from engine.run.bills import bound_words, interval, spent_in_vain
from engine.run.build import StageJob
from engine.run.completion_tokens import Range
from engine.run.estimate import Estimate
from engine.terminal import dollars, duration, exact_dollars, percent, plain, tell
from store.step_records import StepResult

TAKEN_AS_FREE = "taken as free: a local server"


def grid() -> Table:
    """Labels and texts."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def tell_shown(shown: Table | Text) -> None:
    """On stderr, which may be gone."""
    console = Console(stderr=True, highlight=False, soft_wrap=isinstance(shown, Text))
    with console.capture() as captured:
        console.print(shown)
    tell(captured.get())


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
    bad = f", {told.bad_rows:,} bad rows" if told.bad_rows else ""
    tokens = told.completion_tokens
    count = "exact" if told.exact_tokens else "counted with o200k_base; this model's own differ"
    table = grid()
    for label, words in _asked(told, settings):
        table.add_row(label, Text(words))
    more = f"; {told.replies_per_request:.2f} paid replies each" if told.replies_per_request > 1 else ""
    table.add_row("requests", f"{told.requests:,}  ({told.rows:,} rows{done}{bad}{more})")
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
    online = f"{duration(s.expected)}  ({between}bound by {told.bound_by})"
    table.add_row("time", "up to a day for each batch" if batch else online)
    if to_stdout:
        Console(highlight=False).print(table)
    else:
        tell_shown(table)


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
    table = Table(box=None, pad_edge=False, header_style="dim")
    names = ("stage", "task", "teacher", "requests", "tokens in", "tokens out", "thinking", "cost", "time")
    for column in names:
        left = column in ("stage", "task", "teacher")
        table.add_column(column, justify="left" if left else "right", no_wrap=column == "stage")
    for name, (job, told) in planned.items():
        cost = told.cost_as_asked(job.settings.batch)
        table.add_row(
            Text(plain(name, 40)),
            job.settings.task,
            Text(plain(job.settings.teacher, 24)),
            f"{told.requests:,}",
            f"{told.prompt_tokens:,}",
            f"{told.completion_tokens.expected:,.0f}",
            f"{told.thinking_tokens.expected:,.0f}" if told.thinking_tokens else "-",
            "?" if cost is None else dollars(cost.expected),
            "a day a batch" if job.settings.batch else duration(told.seconds.expected),
        )
    asked = [told.cost_as_asked(job.settings.batch) for job, told in planned.values()]
    costs = [cost for cost in asked if cost]
    low, high = sum(c.low for c in costs), sum(c.high for c in costs)
    words = f"in all {dollars(sum(c.expected for c in costs))}  (95 %: {dollars(low)} to {dollars(high)})"
    unknown = asked.count(None)
    words += f", and {unknown} stages of unknown price" if unknown else ""
    words += f"; budget {dollars(budget)}" if budget is not None else ""
    free = dict.fromkeys(
        plain(j.settings.teacher, 24) for j, t in planned.values() if LOCAL in t.price_source
    )
    words += f"\n{TAKEN_AS_FREE}: {', '.join(free)}" if free else ""
    for name, (job, told) in planned.items():
        if told.effort or told.not_sent:
            said = "; ".join(f"{label}: {text}" for label, text in _asked(told, job.settings))
            words += f"\nstage {plain(name, 40)}: {said}"
    if any(job.after for job, _ in planned.values()):
        words += "\nstages after others are estimated from imagined answers of the usual length"
    if to_stdout:
        Console(highlight=False).print(table, Text(words))
    else:
        tell_shown(table)
        tell_shown(Text(words))


def print_planned_steps(steps: Mapping[str, Mapping[str, Any]]) -> None:
    """On stdout, behind the plan of the stages."""
    if not steps:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("step", "runs", "after", ""):
        table.add_column(column, no_wrap=column == "step")
    for name, step in steps.items():
        after = ", ".join(step["needs"]) or "all"
        table.add_row(
            Text(plain(name, 40)), step["run"], Text(plain(after, 80)), "done" if step["done"] else ""
        )
    Console(highlight=False).print(Text(), table)


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
        tell_shown(Text(f"{plain(name, 40)}: not begun: {plain(why, 600)}"))
    if waiting.keys() & incomplete.keys():
        tell_shown(Text("run the same command again: what is pending is asked first, then what waits for it"))


def used_words(utilisation: Mapping[str, Any]) -> list[str]:
    """How much of which limit was used."""
    shares = [(name, utilisation.get(name)) for name in ("requests", "tokens")]
    return [f"{name} {percent(share)}" for name, share in shares if share is not None]


def print_status(status: Mapping[str, Any]) -> None:
    """`status` for people, on stdout."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "done", "failed", "outcomes", "tokens in", "tokens out", "cost"):
        left = name in ("stage", "failed", "outcomes")
        table.add_column(name, justify="left" if left else "right", no_wrap=name == "stage")
    for name, s in status["stages"].items():
        total = "?" if s["total"] is None else f"{s['total']:,}"
        table.add_row(
            Text(plain(name, 40)),
            f"{s['done']:,} of {total}",
            ", ".join(f"{c} {n:,}" for c, n in s["failed"].items()) or "0",
            ", ".join(f"{o} {n:,}" for o, n in s["outcomes"].items()) or "-",
            f"{s['prompt_tokens']:,}",
            f"{s['completion_tokens']:,}",
            dollars(s["cost_usd"]),
        )
    console.print(table)
    for name, s in status["stages"].items():
        for words in spent_in_vain(s):
            console.print(Text(f"stage {plain(name, 40)}: {words}"))
    console.print(f"spent {dollars(status['spent_usd'])}", end="")
    used = used_words(status["utilisation"])
    console.print(f"; of the limit: {', '.join(used)}" if used else "")
    for url, e in status["endpoints"].items():
        if not (e["answered"] or e["cost_usd"]):
            continue
        limits = used_words(e["utilisation"])
        of_limit = f"; of its limit: {', '.join(limits)}" if limits else ""
        words = f"{plain(url, 100)}: {e['answered']:,} answers, {dollars(e['cost_usd'])}{of_limit}"
        console.print(Text(words))
    for b in status["batches"]:
        console.print(
            f"batch {b['batch']} of {plain(str(b['stage']), 40)}: {plain(str(b['status']), 40)}, "
            f"{b['read']:,} of {b['requests']:,} requests have their result"
        )
    for name, step in status["steps"].items():
        said = f"done in {duration(step['seconds'])}" if step["done"] else "not done"
        console.print(Text(f"step {plain(name, 40)}: {step['run']}, {said}"))
    if status["unanswered"]:
        console.print(
            f"{status['unanswered']:,} requests were sent and have no answer (in flight now, or lost when "
            "a process ended)"
        )
    if status["at_risk_usd"]:
        worst = dollars(status["at_risk_usd"])
        console.print(
            f"at most {worst} may have been billed for requests without an answer (distill settle lists them)"
        )
    for name, changes in status["changed"].items():
        console.print(
            Text(f"{plain(name, 40)}: keys differ from the run before: {plain('; '.join(changes), 400)}")
        )
    for name, count in status["other_settings"].items():
        words = f"{count:,} rows have an answer under other settings than the last run's"
        console.print(Text(f"{plain(name, 40)}: {words}; an export leaves them out"))
    for name, s in status["stages"].items():
        if s["damaged"]:
            words = f"{s['damaged']:,} answers are damaged (distill check tells more)"
            console.print(Text(f"{plain(name, 40)}: {words}"))
    if any(s["bad_rows"] for s in status["stages"].values()):
        bad = sum(s["bad_rows"] for s in status["stages"].values())
        console.print(f"{bad:,} pool rows could not be used")
