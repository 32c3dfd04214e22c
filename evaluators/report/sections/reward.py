"""The reward model: how often it prefers the better answer, beside the longer answer's and chance's."""

from typing import Any

from evaluators.report.blocks import Block, Drawing, Heading, Headline, Listing, Section, Words
from evaluators.report.charts import grouped, height_for, shares
from evaluators.report.figures import FigureTable, figure, table
from evaluators.report.inputs import Inputs, Json
from evaluators.report.line_charts import calibration
from evaluators.report.sections.training import is_reward, told

FEW = 100  # pairs, below which an accuracy has a wide interval


def section(found: Inputs) -> Section | str:
    trained = [t for t in found.trainings if is_reward(t)]
    measures = [(f"{t.name}, held out", t.quality) for t in trained if t.quality]
    measures += [(e.name, e.data) for e in found.evaluated("reward")]
    if not trained and not measures:
        return "no training of a reward model was found, and no `evaluate reward --json`"
    blocks: list[Block] = []
    for number, training in enumerate(trained, 1):
        blocks += [Heading(training.name), *told(training, f"reward-training-{number}")]
    heads = []
    for number, (name, data) in enumerate(measures, 1):
        blocks += [Heading(name), *_measure(data, number)]
        heads.append(_headline(name, data))
    return Section(
        "reward",
        "The reward model",
        "It learns which of two answers the teacher scored higher.",
        blocks,
        heads,
    )


def percent(value: float) -> str:
    return f"{value:.1%}"


def _headline(name: str, data: Json) -> Headline:
    note = f"of {data['pairs']:,} pairs; the longer answer wins {percent(data['length_baseline'])}"
    return Headline(
        percent(data["accuracy"]), "reward model prefers the better answer", note, _weakness(data)
    )


def _weakness(data: Json) -> str:
    """Why the number proves little; empty where it does prove something."""
    if data["low"] <= 0.5:
        return "not shown to be better than chance"
    over = data.get("over_length")
    if over and over["high"] < 0:
        return "does not beat length"
    if (over and over["low"] <= 0) or (not over and data["low"] <= data["length_baseline"]):
        return "not shown to beat length"
    return "few pairs" if data["pairs"] < FEW else ""


def _measure(data: Json, number: int) -> list[Block]:
    summary = _beside(data, number)
    weak = _weakness(data)
    caption = (
        f"Right on {percent(data['accuracy'])} of {data['pairs']:,} pairs "
        f"({percent(data['low'])} to {percent(data['high'])}, 95 %), beside two ways to guess."
    )
    blocks: list[Block] = [
        Drawing(figure("Accuracy", caption, caption, summary, shares, height_for(3))),
    ]
    if weak:
        blocks.append(Words(f"What this proves is weak: {weak}.", True))
    for key, title in (("by_margin", "By margin of the scores"), ("by_length", "By length")):
        blocks += _buckets(data, key, title, number)
    return [*blocks, *_calibrated(data, number)]


def _beside(data: Json, number: int) -> FigureTable:
    span = f"{percent(data['low'])} to {percent(data['high'])}"
    rows = [
        (
            "the reward model",
            data["accuracy"],
            data["low"],
            data["high"],
            f"{percent(data['accuracy'])} ({span})",
        ),
        ("the longer answer", data["length_baseline"], None, None, percent(data["length_baseline"])),
        ("a coin", data.get("chance", 0.5), None, None, "50.0%"),
    ]
    columns = ("who says", "share of pairs that are right:share", "low:share", "high:share", "words")
    return table(f"reward-{number}", columns, rows)


def _buckets(data: Json, key: str, title: str, number: int) -> list[Block]:
    filled: list[Any] = [b for b in data.get(key) or [] if b.get("pairs")]
    if len(filled) < 2:
        return []
    name = f"reward-{number}-{key.replace('_', '-')}"
    rows = [(f"{b['of']} (n {b['pairs']:,})", b["accuracy"], b["length_baseline"]) for b in filled]
    columns = (title.lower(), "reward model:share", "longer answer:share")
    caption = (
        f"{title}: accuracy of the reward model and of 'the longer answer wins', with the pairs in each."
    )
    drawing = figure(title, caption, caption, table(name, columns, rows), _side_by_side, 3.2, 4.2)
    spans = [(b["of"], b["pairs"], b["accuracy"], b["low"], b["high"], b["length_baseline"]) for b in filled]
    heads = (title.lower(), "pairs:count", "accuracy:share", "low:share", "high:share", "longer answer:share")
    few = [b["of"] for b in filled if b["pairs"] < 30]
    blocks: list[Block] = [
        Drawing(drawing),
        Listing(table(f"{name}-intervals", heads, spans), f"{title}, with 95 % intervals."),
    ]
    if few:
        blocks.append(Words(f"Fewer than 30 pairs, which prove little: {'; '.join(few)}.", True))
    return blocks


def _side_by_side(canvas: Any, numbers: FigureTable, wide: bool) -> None:
    import textwrap

    from evaluators.report.charts import percents

    grouped(canvas, numbers, wide)
    (axes,) = canvas.axes
    labels = [textwrap.fill(name, 15 if wide else 9) for name in numbers.names(numbers.columns[0])]
    axes.set_xticks(range(len(labels)), labels, fontsize=8.5 if wide else 7.5)
    axes.axhline(0.5, color="#5d6a77", linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1)
    percents(axes, "y")


def _calibrated(data: Json, number: int) -> list[Block]:
    found = data.get("calibration") or {}
    bins = [b for b in found.get("bins", []) if b.get("pairs")]
    if not bins:
        return []
    rows = [(b["confidence"], b["accuracy"], b["pairs"]) for b in bins]
    numbers = table(
        f"reward-{number}-calibration", ("confidence:share", "accuracy:share", "pairs:count"), rows
    )
    caption = (
        "How sure σ(Δr) is of its choice, and how often it is right, with the pairs at each point: Brier "
        f"score {found['brier']:.3f} (0.25: no idea), expected calibration error {found['ece']:.3f}."
    )
    return [Drawing(figure("Calibration", caption, caption, numbers, calibration, 3.0))]
