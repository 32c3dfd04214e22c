"""What was asked: each stage with its teacher, its parameters, its pool, and its prompts in full."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from engine.collect.plan import role, settings_of_stage
from evaluators.report.blocks import Block, Facts, Heading, Headline, Listing, Quote, Sample, Samples, Section
from evaluators.report.figures import table
from evaluators.report.inputs import Inputs, StageInput
from evaluators.report.queries import drawn
from store.errors import UsageError

VERBS = {
    "generate": "answer each instruction",
    "translate": "put into another language",
    "score": "score the answers of several models, 1-10",
    "compare": "say which of two answers is better, in both orders",
    "judge": "score two models' answers against each other, 1-10",
}


def section(found: Inputs) -> Section | str:
    if not found.stages:
        return "the ledger has no stage yet"
    blocks: list[Block] = [Listing(_overview(found), "Rows are pool rows x samples.")]
    for stage in found.stages:
        blocks += [Heading(stage.name), Facts(list(_facts(stage))), *_prompts(found, stage)]
    return Section(
        "asked",
        "What was asked",
        "Stages, teachers, parameters, and prompts in full.",
        blocks,
        [_headline(found)],
    )


def _headline(found: Inputs) -> Headline:
    done = sum(s.counts["done"] for s in found.stages)
    totals = [s.counts["total"] for s in found.stages]
    known = sum(totals) if all(t is not None for t in totals) else None
    note = f"of {known:,} rows" if known is not None else "so far; how many rows there are is not known yet"
    weak = "" if known == done else "not all rows have an answer"
    return Headline(f"{done:,}", "answers stored", note, weak if known is not None else "")


def _overview(found: Inputs) -> Any:
    rows = [
        (
            s.name, s.task, s.model, s.counts["total"], s.counts["done"],
            sum(s.counts["failed"].values()), s.counts["bad_rows"], len(s.runs), _state(s),
        )
        for s in found.stages
    ]  # fmt: skip
    columns = ("stage", "task", "teacher", "rows:count", "done:count", "failed:count", "bad rows:count")
    return table("stages", (*columns, "runs:count", "state"), rows)


def _state(stage: StageInput) -> str:
    if not stage.runs:
        return "not begun"
    last = stage.runs[-1]
    if last["ended"] is None:
        return "not ended: killed, or still going"
    return {0: "done", 1: "finished, with failures", 130: "interrupted"}.get(
        last["exit_code"], "stopped early"
    )


def _facts(stage: StageInput) -> Iterator[tuple[str, str]]:
    settings = stage.settings
    yield "task", f"{stage.task}: {VERBS.get(stage.task, '')}".rstrip(": ")
    yield "teacher", stage.model
    yield "asked at", ", ".join(hosts(settings)) or "?"
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
