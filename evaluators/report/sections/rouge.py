"""ROUGE-L by the reference's length, and differences against one model, as the paper's Figure 6."""

from typing import Any

from evaluators.report.blocks import Block, Drawing, Heading, Headline, Listing, Section, Words
from evaluators.report.charts import WHISKER, grouped
from evaluators.report.figures import QUIET, FigureTable, figure, table
from evaluators.report.inputs import Evaluation, Inputs, Json, told

GROUPS = ("all", "0-2", "3-5", "6-10", ">10")
FEW = 30


def section(found: Inputs) -> Section | str:
    heard = told(found, ["rouge"], _told)
    blocks = [block for _, some in heard for block in some]
    if not blocks:
        return "there is no `evaluate rouge --json`"
    heads = [head for evaluation, _ in heard for head in _headlines(evaluation.data)]
    about = "ROUGE-L (F) against the references, by how many words the reference has."
    return Section("rouge", "ROUGE-L by reference length", about, blocks, heads[:1])


def _headlines(data: Json) -> list[Headline]:
    models = {name: groups["all"]["rougeL"] for name, groups in data["models"].items() if groups["all"]["n"]}
    if not models:
        return []
    best = max(models, key=lambda name: models[name])
    others = ", ".join(f"{name} {value:.3f}" for name, value in models.items() if name != best)
    return [Headline(f"{models[best]:.3f}", f"ROUGE-L of {best}", others)]


def _told(evaluation: Evaluation, number: int) -> list[Block]:
    data = evaluation.data
    models: Json = data["models"]
    groups = [g for g in GROUPS if any(m.get(g, {}).get("n") for m in models.values())]
    sizes = {g: max(m.get(g, {}).get("n") or 0 for m in models.values()) for g in groups}
    labels = {g: f"{g}\nn {sizes[g]:,}" for g in groups}
    rows = [
        (labels[g].replace("\n", ", "), *(m.get(g, {}).get("rougeL") for m in models.values()))
        for g in groups
    ]
    numbers = table(f"rouge-{number}", ("words of the reference", *(f"{m}:score" for m in models)), rows)
    caption = "ROUGE-L by the number of words of the reference, with the rows in each group."
    drawing = figure("ROUGE-L", caption, caption, numbers, _levels, 3.0)
    blocks: list[Block] = [
        Heading(evaluation.name),
        Drawing(drawing),
        Listing(_all(models, number), "All measures."),
    ]
    few = [g for g in groups if sizes[g] < FEW]
    if few:
        blocks.append(Words(f"Fewer than {FEW} rows, which prove little: {', '.join(few)}.", True))
    return [*blocks, *_differences(data, groups, number)]


def _levels(canvas: Any, numbers: FigureTable, wide: bool) -> None:
    grouped(canvas, numbers, wide)
    (axes,) = canvas.axes
    labels = [name.replace(", ", "\n") for name in numbers.names(numbers.columns[0])]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("ROUGE-L")
    axes.set_xlabel("words of the reference")


def _all(models: Json, number: int) -> FigureTable:
    rows = [
        (name, g, found["n"], found.get("rouge1"), found.get("rouge2"), found.get("rougeL"))
        for name, groups in models.items()
        for g in GROUPS
        if (found := groups.get(g)) and found["n"]
    ]
    heads = (
        "model",
        "words of the reference",
        "rows:count",
        "ROUGE-1:score",
        "ROUGE-2:score",
        "ROUGE-L:score",
    )
    return table(f"rouge-{number}-all", heads, rows)


def _differences(data: Json, groups: list[str], number: int) -> list[Block]:
    against, found = data.get("against"), data.get("differences") or {}
    if not (against and found):
        return []
    rows = []
    for name, by_group in found.items():
        for g in groups:
            if by_group.get(g, {}).get("n"):
                d = by_group[g]["rougeL"]
                rows.append((g, name, d["difference"], d.get("low"), d.get("high"), by_group[g]["n"]))
    heads = (
        "words of the reference",
        "model",
        "difference:score",
        "low:score",
        "high:score",
        "rows:count",
    )
    numbers = table(f"rouge-{number}-differences", heads, rows)
    caption = (
        f"ROUGE-L less that of {against} on the same rows, with paired 95 % intervals; above 0 is better."
    )
    drawing = figure(f"Against {against}", caption, caption, numbers, _beside, 3.0)
    unsure = [f"{r[1]} at {r[0]}" for r in rows if r[3] is not None and r[3] <= 0 <= r[4]]
    blocks: list[Block] = [Drawing(drawing)]
    if unsure:
        blocks.append(Words(f"No difference is shown (the interval holds 0): {', '.join(unsure)}.", True))
    return blocks


def _beside(canvas: Any, numbers: FigureTable, wide: bool) -> None:
    """Columns: group, model, difference, low, high, rows; drawn as groups of bars with whiskers."""
    groups = list(dict.fromkeys(numbers.names("words of the reference")))
    models = list(dict.fromkeys(numbers.names("model")))
    cells = {(row[0], row[1]): row[2:5] for row in numbers.rows}
    columns = [[cells.get((g, m), (None,))[0] for m in models] for g in groups]
    level = table(
        numbers.name,
        ("group", *(f"{m}:score" for m in models)),
        [(g, *c) for g, c in zip(groups, columns, strict=True)],
    )
    grouped(canvas, level, wide)
    (axes,) = canvas.axes
    width = 0.8 / len(models)
    for x, g in enumerate(groups):
        for n, m in enumerate(models):
            value, low, high = cells.get((g, m), (None, None, None))
            if low is not None and high is not None and value is not None:
                place = x - 0.4 + width * (n + 0.5)
                axes.errorbar(place, value, yerr=[[max(0, value - low)], [max(0, high - value)]], **WHISKER)
    axes.axhline(0, color=QUIET, linewidth=1)
    axes.set(ylabel="difference in ROUGE-L", xlabel="words of the reference")
