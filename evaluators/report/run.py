"""What was asked: each stage with its teacher, its parameters, its pool, and its prompts in full.

And what it cost beside what was estimated: each run's estimate for what it answered, and its bill.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from engine.collect.plan import role, settings_of_stage
from engine.terminal import dollars, duration
from evaluators.report.charts import height_for, intervals
from evaluators.report.figures import (
    Block,
    Drawing,
    Facts,
    FigureTable,
    Heading,
    Headline,
    Listing,
    Quote,
    Sample,
    Samples,
    Section,
    Words,
    figure,
    table,
)
from evaluators.report.inputs import Inputs, StageInput, drawn
from store.errors import UsageError

VERBS = {
    "generate": "answer each instruction",
    "translate": "translate into another language",
    "score": "score the answers of several models, 1-10",
    "compare": "say which of two answers is better, in both orders",
    "judge": "score two models' answers against each other, 1-10",
}
ENDS = {0: "done", 1: "finished, with failures", 130: "interrupted"}  # by a process's exit code


def asked_section(found: Inputs) -> Section | str:
    if not found.stages:
        return "the ledger has no stage yet"
    rows: list[Any] = []
    for s in found.stages:
        failed, last = sum(s.counts["failed"].values()), s.runs[-1] if s.runs else None
        if last is None:
            state = "not started"
        elif last["ended"] is None:
            state = "not ended: killed, or still running"
        else:
            state = ENDS.get(last["exit_code"], "stopped early")
        counts = (s.counts["total"], s.counts["done"], failed, s.counts["bad_rows"], len(s.runs))
        rows.append((s.name, s.task, s.model, *counts, state))
    columns = ("stage", "task", "teacher", "rows:count", "done:count", "failed:count", "bad rows:count")
    overview = table("stages", (*columns, "runs:count", "state"), rows)
    blocks: list[Block] = [Listing(overview, "Rows are pool rows x samples.")]
    for stage in found.stages:
        blocks += [Heading(stage.name), Facts(list(_stage_facts(stage))), *_prompts(found, stage)]
    done = sum(s.counts["done"] for s in found.stages)
    totals = [s.counts["total"] for s in found.stages]
    known = sum(totals) if all(t is not None for t in totals) else None
    note = f"of {known:,} rows" if known is not None else "so far; how many rows there are is not known yet"
    weak = "not all rows have an answer" if known not in (None, done) else ""
    headline = Headline(f"{done:,}", "answers stored", note, weak)
    about = "Stages, teachers, parameters, and prompts in full."
    return Section("asked", "What was asked", about, blocks, [headline])


def _stage_facts(stage: StageInput) -> Iterator[tuple[str, str]]:
    settings = stage.settings
    yield "task", f"{stage.task}: {VERBS.get(stage.task, '')}".rstrip(": ")
    yield "teacher", stage.model
    yield "address", ", ".join(hosts(settings)) or "?"
    for name, value in (settings.get("params") or {}).items():
        yield str(name), str(value)
    for name in ("to", "field", "language", "samples", "seed", "both_orders", "structured", "limit"):
        if settings.get(name) not in (None, False, (), [], 0, 1):
            yield name.replace("_", " "), str(settings[name])
    for name in ("rpm", "tpm", "rpd", "tpd"):
        if settings.get(name):
            yield (
                {"rp": "requests", "tp": "tokens"}[name[:2]] + (" a minute" if name[2] == "m" else " a day"),
                (f"{settings[name]:,.0f}"),
            )
    if settings.get("pool"):
        yield "pool", str(settings["pool"]).rsplit("/", 1)[-1]
    if settings.get("batch"):
        yield "sent as", "batches"


def hosts(settings: dict[str, Any]) -> Iterator[str]:
    """Addresses without what may be secret in them."""
    servers = [settings, *(settings.get("others") or [])]
    for server in servers:
        parts = urlsplit(str(server.get("base_url") or ""))
        if parts.hostname:
            yield f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _prompts(found: Inputs, stage: StageInput) -> list[Block]:
    """The first row's request as it was sent, made again from what the ledger knows."""
    first = drawn(found, stage, 1, "prompt")
    if not first:
        return []
    try:
        task = role(settings_of_stage(found.reader, stage.number))
        messages = task.build(task.decode(first[0].item))
    except (KeyError, TypeError, ValueError, UsageError):  # settings of another version
        return []
    quotes = [Quote(str(m["role"]), str(m["content"])) for m in messages]
    quotes.append(Quote("reply", first[0].text))
    sample = Sample(f"row {first[0].position:,}", f"{first[0].model}, {first[0].outcome}", quotes)
    return [Samples("The prompt in full, as it was sent for one row", [sample])]


COSTS = """
SELECT t.run, count(*), sum(p.prompt_tokens), sum(p.completion_tokens), sum(p.cost_micro),
  sum(ifnull(r.answer = p.id, 0)), sum(p.reasoning_tokens)
FROM responses p JOIN attempts t ON t.id = p.attempt JOIN requests r ON r.id = p.request GROUP BY 1"""
DRAWN = 16  # runs, at most: the ones that asked most


def cost_section(found: Inputs) -> Section | str:
    bills = {row[0]: row[1:] for row in found.reader.execute(COSTS)}
    if not bills:
        return "nothing was answered yet, so nothing is billed"
    # runs that had an estimate and answered something; the estimate is for as many answers as came
    runs: list[dict[str, Any]] = []
    for stage in found.stages:
        for number, run in enumerate(stage.runs, 1):
            told, bill = run["estimate"] or {}, bills.get(run["id"])
            if not (bill and told.get("requests") and bill[4]):
                continue
            part = bill[4] / told["requests"]
            called = stage.name if len(stage.runs) == 1 else f"{stage.name}, run {number}"
            took = (run["ended"] or run["started"]) - run["started"]
            cost = told.get("batch_cost_usd" if run["settings"].get("batch") else "cost_usd")
            runs.append(
                {"name": called, "told": told, "cost": cost, "bill": bill, "share": part, "took": took}
            )
    runs.sort(key=lambda run: -run["bill"][4])
    spent = sum(s.counts["cost_usd"] for s in found.stages)
    risk = sum(s.counts["at_risk_usd"] for s in found.stages)
    rows: list[Any] = [
        (s.name, s.model, s.counts["prompt_tokens"], s.counts["completion_tokens"], s.counts["cost_usd"])
        for s in found.stages
    ]
    columns = ("stage", "teacher", "prompt tokens:count", "completion tokens:count", "cost:usd")
    blocks: list[Block] = [
        Facts(_cost_facts(found, spent, risk)),
        Listing(table("bill", columns, rows), "As billed, where it was paid: all replies, answers or not."),
    ]
    in_vain = [
        (s.name, outcome, replies, s.counts["outcomes"].get(outcome, 0))
        for s in found.stages
        for kind in ("unusable", "unread")
        for outcome, replies in s.counts[kind]["outcomes"].items()
    ]
    if any(s.counts["unusable"]["replies"] or s.counts["unread"]["replies"] for s in found.stages):
        words = "Paid replies that hold no answer, or could not be read; rows were asked again a few times."
        heads = ("stage", "outcome", "replies:count", "rows left without an answer:count")
        blocks.append(Listing(table("in-vain", heads, in_vain), words))
    blocks += _beside(runs, bool(spent))
    known = [r["cost"]["expected"] * r["share"] for r in runs if r["cost"]]
    note = f"estimated {dollars(sum(known))}" if known and sum(known) else "a local model, or a price of zero"
    weak = f"at most {dollars(risk)} more for requests without an answer" if risk else ""
    headline = Headline(dollars(spent), "spent", note, weak)
    return Section("cost", "What it cost", "The bill beside the estimate.", blocks, [headline])


def _cost_facts(found: Inputs, spent: float, risk: float) -> list[tuple[str, str]]:
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
        facts.append(("replies whose tokens distill counted", f"{counted:,}: the server did not report them"))
    unanswered = sum(s.counts["unanswered"] for s in found.stages)
    if unanswered:
        facts.append(("requests sent that have no answer", f"{unanswered:,}"))
    return facts


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
        "estimate", [*columns, *(f"{c}:{unit}" for c in ("expected", "low", "high", "actual"))], rows
    )
    drawable = replace(numbers, rows=tuple(r for r in numbers.rows if r[3] is not None)[:DRAWN])
    tokens = Listing(_tokens(runs), "Completion tokens of all replies, with the thinking in them.")
    if not drawable.rows:
        return [Listing(numbers, "No price was known, so no cost was estimated."), tokens]
    inside = sum(r[4] <= r[6] <= r[5] for r in drawable.rows)
    verb = "is" if inside == 1 else "are"
    name = "Cost in dollars" if paid else "Completion tokens (the price is nothing)"
    caption = (
        f"{name}: the estimate made before each run, scaled to what it answered, and the actual figure. "
        f"{inside} of {len(drawable.rows)} {verb} within the interval."
    )
    drawn = figure(
        "Estimate and bill", caption, caption, drawable, intervals, height_for(len(drawable.rows), 0.42) + 0.2
    )
    times = [
        (
            run["name"],
            duration(run["told"]["seconds"]["expected"]) if run["told"].get("seconds") else None,
            str(run["told"].get("bound_by") or ""),
            duration(run["took"]) if run["took"] else "not ended",
            run["bill"][4],
        )
        for run in runs
    ]
    heads = ("run", "time expected", "limited by", "took", "answered:count")
    words = "Seconds are of the whole run, with pauses."
    return [Drawing(drawn), tokens, Listing(table("times", heads, times), words)]


def _tokens(runs: list[dict[str, Any]]) -> FigureTable:
    rows = []
    for run in runs:
        told, thought = run["told"].get("completion_tokens") or {}, run["told"].get("thinking_tokens") or {}
        spread = [told[k] * run["share"] if told else None for k in ("expected", "low", "high")]
        thinking = thought["expected"] * run["share"] if thought else None
        rows.append((run["name"], *spread, run["bill"][2], thinking, run["bill"][5]))
    columns = ("expected", "low", "high", "actual", "thinking expected", "actual thinking")
    return table("estimated-tokens", ("run", *(f"{name}:count" for name in columns)), rows)
