"""What failed and why, with the server's words: rows without an answer, and asks that went wrong."""

from typing import Any

from engine.terminal import plain
from evaluators.report.blocks import Block, Drawing, Headline, Listing, Quote, Sample, Samples, Section, Words
from evaluators.report.charts import counted, height_for
from evaluators.report.figures import figure, table
from evaluators.report.inputs import Inputs
from evaluators.report.queries import ERRORS, WORDS, failed

SAMPLED, MESSAGES, MESSAGE = 6, 3, 300


def section(found: Inputs) -> Section | str:
    errors = found.reader.execute(ERRORS).fetchall()
    rows = {s.name: s.counts["failed"] for s in found.stages if s.counts["failed"]}
    total = sum(sum(causes.values()) for causes in rows.values())
    done = sum(s.counts["done"] for s in found.stages)
    if not errors and not total:
        return "nothing failed, and no ask went wrong"
    blocks: list[Block] = [Words(_words(total, done, errors)), *_by_cause(errors), *_messages(found, errors)]
    blocks += _sampled(found)
    share = total / (total + done) if total + done else 0.0
    headline = Headline(f"{total:,}", "rows failed", f"{share:.1%} of those that have ended")
    return Section("failures", "What failed", "By cause, with the server's words.", blocks, [headline])


def _words(total: int, done: int, errors: list[Any]) -> str:
    asks = sum(e[3] for e in errors)
    return (
        f"{total:,} rows have failed for good and {done:,} have an answer. On the way {asks:,} asks "
        "went wrong; those of a passing cause were asked again."
    )


def _by_cause(errors: list[Any]) -> list[Block]:
    causes: dict[str, int] = {}
    for _, cause, _, asks, *_ in errors:
        causes[cause] = causes.get(cause, 0) + asks
    numbers = table(
        "asks-by-cause", ("cause", "asks:count"), sorted(causes.items(), key=lambda c: (-c[1], c[0]))
    )
    caption = "Asks that went wrong, by cause. A rate limit costs no attempt; passing causes are asked again."
    drawn = figure("Asks that went wrong", caption, caption, numbers, counted, height_for(len(causes)))
    columns = ("stage", "cause", "HTTP status:text", "asks:count", "requests:count", "failed for good:count")
    listing = table("errors", columns, [(*e[:2], "" if e[2] is None else str(e[2]), *e[3:]) for e in errors])
    return [Drawing(drawn), Listing(listing, "Every kind of error. Equal rows share a request.")]


def _messages(found: Inputs, errors: list[Any]) -> list[Block]:
    """The commonest messages of each cause; of a cause with very many errors, among the first."""
    rows = []
    for cause in dict.fromkeys(e[1] for e in errors):
        for message, asks in found.reader.execute(WORDS, (cause, MESSAGES)):
            rows.append((cause, plain(message, MESSAGE), asks))
    return [
        Listing(
            table("messages", ("cause", "the server's words", "asks:count"), rows), "The commonest words."
        )
    ]


def _sampled(found: Inputs) -> list[Block]:
    samples = []
    for _, stage, cause, status, message, item in failed(found.reader, SAMPLED, f"{found.seed} failures"):
        import orjson

        row = orjson.loads(item) if item else {}
        quotes = [Quote("instruction", str(row.get("instruction", ""))), Quote("the server's words", message)]
        samples.append(Sample(f"{stage}: {cause}", f"status {status}" if status else "", quotes))
    return (
        [Samples(f"{len(samples)} failed rows, drawn at random (seed {found.seed})", samples)]
        if samples
        else []
    )
