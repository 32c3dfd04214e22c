"""What it cost beside what was estimated: each run's estimate for what it answered, and its bill."""

from typing import Any

from engine.terminal import dollars, duration
from evaluators.report.blocks import Block, Drawing, Facts, Headline, Listing, Section, Words
from evaluators.report.charts import height_for
from evaluators.report.figures import FigureTable, figure, table
from evaluators.report.inputs import Inputs
from evaluators.report.line_charts import intervals
from evaluators.report.queries import COSTS

DRAWN = 16  # runs, at most: the ones that asked most


def section(found: Inputs) -> Section | str:
    bills = {row[0]: row[1:] for row in found.reader.execute(COSTS)}
    if not bills:
        return "nothing was answered yet, so nothing is billed"
    runs = _runs(found, bills)
    spent = sum(s.counts["cost_usd"] for s in found.stages)
    risk = sum(s.counts["at_risk_usd"] for s in found.stages)
    blocks: list[Block] = [
        Facts(_facts(found, spent, risk)),
        Listing(_bills(found), "As billed, where it was paid: all replies, answers or not."),
    ]
    if any(s.counts["unusable"]["replies"] or s.counts["unread"]["replies"] for s in found.stages):
        words = "Paid replies that hold no answer, or could not be read; rows were asked again a few times."
        blocks.append(Listing(_in_vain(found), words))
    blocks += _beside(runs, bool(spent))
    return Section(
        "cost", "What it cost", "The bill beside the estimate.", blocks, [_headline(runs, spent, risk)]
    )


def _facts(found: Inputs, spent: float, risk: float) -> list[tuple[str, str]]:
    facts = [("spent", dollars(spent))]
    if risk:
        facts.append(("at most, for requests without an answer", dollars(risk)))
    done = sum(s.counts["done"] for s in found.stages)
    if spent and done:
        facts.append(("an answer", dollars(spent / done)))
    thinking = sum(s.counts["billed"]["reasoning_tokens"] for s in found.stages)
    if thinking:
        out = sum(s.counts["completion_tokens"] for s in found.stages)
        facts.append(("thinking", f"{thinking:,} tokens, {thinking / max(1, out):.0%} of the completions"))
    if vain := sum(s.counts["unusable"]["replies"] for s in found.stages):
        usd = sum(s.counts["unusable"]["cost_usd"] for s in found.stages)
        facts.append(("replies without an answer", f"{vain:,}, {dollars(usd)}"))
    if counted := sum(s.counts["billed"]["estimated_replies"] for s in found.stages):
        facts.append(("replies whose tokens distill counted", f"{counted:,}: the server did not tell them"))
    unanswered = sum(s.counts["unanswered"] for s in found.stages)
    if unanswered:
        facts.append(("requests sent that have no answer", f"{unanswered:,}"))
    return facts


def _bills(found: Inputs) -> FigureTable:
    rows = [
        (s.name, s.model, s.counts["prompt_tokens"], s.counts["completion_tokens"], s.counts["cost_usd"])
        for s in found.stages
    ]
    columns = ("stage", "teacher", "prompt tokens:count", "completion tokens:count", "cost:usd")
    return table("bill", columns, rows)


def _in_vain(found: Inputs) -> FigureTable:
    rows = [
        (s.name, outcome, replies, s.counts["outcomes"].get(outcome, 0))
        for s in found.stages
        for kind in ("unusable", "unread")
        for outcome, replies in s.counts[kind]["outcomes"].items()
    ]
    return table("in-vain", ("stage", "outcome", "replies:count", "rows left without an answer:count"), rows)


def _runs(found: Inputs, bills: dict[int, Any]) -> list[dict[str, Any]]:
    """Runs that had an estimate and answered something; the estimate is for as many answers as came."""
    runs = []
    for stage in found.stages:
        for number, run in enumerate(stage.runs, 1):
            told, bill = run["estimate"] or {}, bills.get(run["id"])
            if not (bill and told.get("requests") and bill[4]):
                continue
            share = bill[4] / told["requests"]
            name = stage.name if len(stage.runs) == 1 else f"{stage.name}, run {number}"
            took = (run["ended"] or run["started"]) - run["started"]
            cost = told.get("batch_cost_usd" if run["settings"].get("batch") else "cost_usd")
            runs.append(
                {"name": name, "told": told, "cost": cost, "bill": bill, "share": share, "took": took}
            )
    return sorted(runs, key=lambda run: -run["bill"][4])


def _beside(runs: list[dict[str, Any]], paid: bool) -> list[Block]:
    if not runs:
        return [Words("No run had an estimate (a pool from standard input, or --quiet --yes).")]
    unit = "usd" if paid else "count"
    rows = []
    for run in runs:
        told = run["cost"] if paid else run["told"].get("completion_tokens")
        came = run["bill"][3] / 1e6 if paid else run["bill"][2]
        spread = [None if told is None else told[k] * run["share"] for k in ("expected", "low", "high")]
        rows.append((run["name"], run["told"]["requests"], run["bill"][4], *spread, came))
    columns = ["run", "requests estimated:count", "answered:count"]
    numbers = table(
        "estimate", [*columns, *(f"{c}:{unit}" for c in ("expected", "low", "high", "came"))], rows
    )
    drawable = table("estimate", numbers_head(numbers), [r for r in numbers.rows if r[3] is not None][:DRAWN])
    tokens = Listing(_tokens(runs), "Completion tokens of all replies, with the thinking in them.")
    if not drawable.rows:
        return [Listing(numbers, "No price was known, so no cost was estimated."), tokens]
    inside = sum(r[4] <= r[6] <= r[5] for r in drawable.rows)
    name = "Cost in dollars" if paid else "Completion tokens (the price is nothing)"
    caption = (
        f"{name}: the estimate made before each run, scaled to what it answered, and what came. "
        f"{inside} of {len(drawable.rows)} came within the interval."
    )
    drawn = figure(
        "Estimate and bill", caption, caption, drawable, intervals, height_for(len(drawable.rows), 0.42) + 0.2
    )
    return [Drawing(drawn), tokens, Listing(_times(runs), "Seconds are of the whole run, with pauses.")]


def _tokens(runs: list[dict[str, Any]]) -> FigureTable:
    rows = []
    for run in runs:
        told, thought = run["told"].get("completion_tokens") or {}, run["told"].get("thinking_tokens") or {}
        spread = [told[k] * run["share"] if told else None for k in ("expected", "low", "high")]
        thinking = thought["expected"] * run["share"] if thought else None
        rows.append((run["name"], *spread, run["bill"][2], thinking, run["bill"][5]))
    columns = ("expected", "low", "high", "came", "thinking expected", "thinking came")
    return table("estimated-tokens", ("run", *(f"{name}:count" for name in columns)), rows)


def numbers_head(numbers: FigureTable) -> list[str]:
    return [f"{name}:{kind}" for name, kind in zip(numbers.columns, numbers.kinds, strict=True)]


def _times(runs: list[dict[str, Any]]) -> FigureTable:
    rows = [
        (
            run["name"],
            duration(run["told"]["seconds"]["expected"]) if run["told"].get("seconds") else None,
            str(run["told"].get("bound_by") or ""),
            duration(run["took"]) if run["took"] else "not ended",
            run["bill"][4],
        )
        for run in runs
    ]
    return table("times", ("run", "time expected", "bound by", "took", "answered:count"), rows)


def _headline(runs: list[dict[str, Any]], spent: float, risk: float) -> Headline:
    costs = [(r["cost"], r["share"]) for r in runs]
    known = [told["expected"] * share for told, share in costs if told]
    note = f"estimated {dollars(sum(known))}" if known and sum(known) else "a local model, or a price of zero"
    weak = f"at most {dollars(risk)} more for requests without an answer" if risk else ""
    return Headline(dollars(spent), "spent", note, weak)
