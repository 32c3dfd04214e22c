"""Scores that the teacher gave, as the paper's Figure 2: how they spread over 1-10, for each model."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from engine.tasks import parse_scores as reading
from evaluators.report.blocks import Block, Drawing, Heading, Listing, Quote, Sample, Samples, Section, Words
from evaluators.report.charts import grouped, percents
from evaluators.report.figures import FigureTable, figure, table
from evaluators.report.inputs import Evaluation, Inputs, StageInput, told
from evaluators.report.queries import answered, drawn

MOST_READ = 20_000  # replies; of more, so many are drawn
GRADES, SAMPLED = range(1, 11), 3
Spread = Mapping[str, Counter[float]]  # model -> score -> answers


def section(found: Inputs) -> Section | str:
    blocks: list[Block] = []
    for number, stage in enumerate(found.of_task("score"), 1):
        blocks += [Heading(stage.name), *_stage(found, stage, number)]
    blocks += [block for _, some in told(found, ["scores"], _told) for block in some]
    if not blocks:
        return "no stage has scores, and there is no `evaluate scores --json`"
    return Section("scores", "Scores", "What the teacher gave to each model's answers, 1 to 10.", blocks)


def _stage(found: Inputs, stage: StageInput, number: int) -> list[Block]:
    spread: dict[str, Counter[float]] = {}
    replies = 0
    for row in answered(found, stage, MOST_READ, "scores"):
        replies += 1
        scores = reading.scores(row.text, len(row.item["models"]))
        for model, score in zip(row.item["models"], scores or (), strict=False):
            spread.setdefault(model, Counter())[score] += 1
    if not spread:
        return [Words("No reply could be read.", True)]
    whole = stage.counts["done"]
    words = (
        "" if replies == whole else f" {replies:,} of {whole:,} replies, drawn at random (seed {found.seed})."
    )
    samples = []
    for row in drawn(found, stage, SAMPLED, "scored"):
        shown = zip(row.item.get("models", ()), row.item.get("answers", ()), strict=False)
        quotes = [Quote("instruction", str(row.item.get("instruction", "")))]
        quotes += [Quote(f"shown {place}: {m}", str(text)) for place, (m, text) in enumerate(shown, 1)]
        samples.append(
            Sample(f"row {row.position:,}", row.outcome, [*quotes, Quote("the teacher", row.text)])
        )
    told = f"{len(samples)} scored rows, drawn at random (seed {found.seed})"
    return [*_spread(spread, f"scores-{number}", words), Samples(told, samples)]


def _told(evaluation: Evaluation, number: int) -> list[Block]:
    spread: dict[str, Counter[float]] = {}
    for model, found in evaluation.data["data"].items():
        spread[model] = Counter({float(k): round(v * found["n"]) for k, v in found["shares"].items()})
    return [Heading(evaluation.name), *_spread(spread, f"scores-file-{number}", "")]


def _spread(spread: Spread, name: str, words: str) -> list[Block]:
    numbers = table(name, ("score", *(f"{m}:share" for m in spread)), list(_shares(spread)))
    n = ", ".join(f"{m} {c.total():,}" for m, c in spread.items())
    caption = f"Scores of each model's answers; halves go to the score below. n: {n}.{words}"
    drawing = figure("Scores", caption, caption, numbers, _bars, 3.0)
    return [Drawing(drawing), Listing(_means(spread, name), "Means of the scores, with 95 % intervals.")]


def _shares(spread: Spread) -> Any:
    for grade in GRADES:
        counts = [sum(n for s, n in c.items() if grade <= s < grade + 1) / c.total() for c in spread.values()]
        yield (str(grade), *counts)


def _bars(canvas: Any, numbers: FigureTable, wide: bool) -> None:
    grouped(canvas, numbers, wide)
    (axes,) = canvas.axes
    axes.set(xlabel="score", ylabel="share of answers")
    percents(axes, "y")


def _means(spread: Spread, name: str) -> FigureTable:
    rows = []
    for model, counts in spread.items():
        n = counts.total()
        mean = sum(s * c for s, c in counts.items()) / n
        variance = sum((s - mean) ** 2 * c for s, c in counts.items()) / max(n - 1, 1)
        reach = 1.96 * (variance / n) ** 0.5
        rows.append((model, n, mean, mean - reach, mean + reach, variance**0.5))
    heads = ("model", "answers:count", "mean:number", "low:number", "high:number", "deviation:number")
    return table(f"{name}-means", heads, rows)
