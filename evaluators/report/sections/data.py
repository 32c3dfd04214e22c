"""The data that came: how long answers are, how they ended, which prompts share an answer, and rows of it."""

from typing import Any

from evaluators.report.blocks import Block, Drawing, Headline, Listing, Quote, Sample, Samples, Section, Words
from evaluators.report.charts import height_for, stacked
from evaluators.report.figures import FigureTable, figure, table
from evaluators.report.inputs import Inputs, StageInput
from evaluators.report.line_charts import distributions
from evaluators.report.queries import SHARED, TOKENS, SampleRow, drawn
from store.records import OUTCOMES

BINS, STAGES, SAMPLED = 40, 6, 4
FEW = 100
WIDTHS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
Counts = list[tuple[int, int]]  # (tokens, answers), by tokens


def section(found: Inputs) -> Section | str:
    stages = found.of_task("generate", "translate")
    if not stages:
        return "no stage has answers or translations"
    counts = {s.name: found.reader.execute(TOKENS, (s.number,)).fetchall() for s in stages}
    blocks: list[Block] = [*_lengths(stages, counts), *_outcomes(stages), *_shared(found, stages)]
    for stage in stages:
        blocks.append(_sampled(found, stage))
    longest = max(stages, key=lambda s: s.counts["done"])
    median = quantile(counts[longest.name], 0.5)
    headline = Headline(f"{median:,.0f}", "tokens in the median answer", f"stage {longest.name}")
    return Section("data", "The data", "What the teacher wrote.", blocks, [headline])


def quantile(counts: Counts, share: float) -> float:
    """The least number of tokens that so many of the answers do not exceed."""
    wanted, seen = share * sum(n for _, n in counts), 0
    for tokens, n in counts:
        seen += n
        if seen >= wanted:
            return tokens
    return 0.0


def _lengths(stages: list[StageInput], counts: dict[str, Counts]) -> list[Block]:
    rows = []
    for stage in stages:
        mine = counts[stage.name]
        n = sum(c for _, c in mine)
        mean = sum(t * c for t, c in mine) / n
        rows.append((stage.name, stage.model, n, mean, *(quantile(mine, q) for q in QUANTILES), mine[-1][0]))
    columns = ["stage", "teacher", "answers:count", "mean:number"]
    columns += [f"{q:.0%}:count" for q in QUANTILES] + ["longest:count"]
    shown = sorted(stages, key=lambda s: -s.counts["done"])[:STAGES]
    numbers = binned([s.name for s in shown], counts)
    total = sum(sum(c for _, c in counts[s.name]) for s in shown)
    caption = (
        f"How long the answers are, in completion tokens as billed ({total:,} answers). The last point holds "
        "all that are longer."
    )
    drawing = figure("Length of answers", caption, caption, numbers, distributions, 3.0)
    blocks: list[Block] = [
        Drawing(drawing),
        Listing(table("lengths", columns, rows), "Completion tokens of an answer."),
    ]
    few = [s.name for s in shown if s.counts["done"] < FEW]
    if few:
        blocks.append(
            Words(f"Fewer than {FEW} answers, so that the shape is mostly chance: {', '.join(few)}.", True)
        )
    return blocks


def binned(names: list[str], counts: dict[str, Counts]) -> FigureTable:
    """Shares of each stage's answers in bins of equal width; the last is open."""
    top = max(quantile(counts[name], 0.99) for name in names)
    width = next((w for w in WIDTHS if top / w <= BINS), WIDTHS[-1])
    last = int(top // width) + 1
    columns = []
    for name in names:
        bins = [0] * (last + 1)
        for tokens, n in counts[name]:
            bins[min(tokens // width, last)] += n
        columns.append([b / sum(bins) for b in bins])
    rows = [(place * width, *(column[place] for column in columns)) for place in range(last + 1)]
    return table("length-of-answers", ("completion tokens:count", *(f"{n}:share" for n in names)), rows)


def _outcomes(stages: list[StageInput]) -> list[Block]:
    kinds = [o for o in OUTCOMES if any(s.counts["outcomes"].get(o) for s in stages)]
    ended = {s.name: sum(s.counts["outcomes"].values()) for s in stages}
    rows = [(s.name, *(s.counts["outcomes"].get(o, 0) / ended[s.name] for o in kinds)) for s in stages]
    numbers = table("outcomes", ("stage", *(f"{o}:share" for o in kinds)), rows)
    caption = (
        "How answers ended: stop is a complete answer, length one that ran into the bound on tokens; "
        "content_filter and refusal are the provider's own words for it; empty, other and tool_calls hold no "
        "answer. n: " + ", ".join(f"{name} {count:,}" for name, count in ended.items()) + "."
    )  # fmt: skip
    drawing = figure("How answers ended", caption, caption, numbers, stacked, height_for(len(stages)) + 0.2)
    return [Drawing(drawing)]


def _shared(found: Inputs, stages: list[StageInput]) -> list[Block]:
    rows: list[Any] = []
    for stage in stages:
        placed, requests = found.reader.execute(SHARED, (stage.number,)).fetchone()
        rows.append((stage.name, placed, requests, (placed - requests) / placed if placed else None))
    columns = ("stage", "rows:count", "requests:count", "shared:share")
    words = "Equal rows share one request and one answer: 'shared' is the share that cost nothing."
    return [Listing(table("shared", columns, rows), words)]


def _sampled(found: Inputs, stage: StageInput) -> Samples:
    rows = drawn(found, stage, SAMPLED, "data")
    samples = [_sample(stage, row) for row in rows]
    return Samples(f"{stage.name}: {len(rows)} answers, drawn at random (seed {found.seed})", samples)


def _sample(stage: StageInput, row: SampleRow) -> Sample:
    item = row.item
    quotes = [Quote("instruction", str(item.get("instruction", "")))]
    if item.get("input"):
        quotes.append(Quote("input", str(item["input"])))
    quotes.append(Quote("answer" if stage.task == "generate" else "translation", row.text))
    return Sample(f"row {row.position:,}", f"{row.outcome}, {row.tokens:,} tokens, {row.model}", quotes)
