"""Scores, ROUGE and votes: what was measured of answers, by the teacher, by references and by people.

Scores that the teacher gave, as the paper's Figure 2: how they spread over 1-10, for each model. ROUGE-L by
the reference's length, and differences against one model, as Figure 6. Human votes, as Figure 3: win, tie and
loss by criterion.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from engine.tasks import parse_scores as reading
from evaluators.report.charts import WHISKER, grouped, height_for, percents, stacked
from evaluators.report.figures import (
    QUIET,
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
from evaluators.report.inputs import Evaluation, Inputs, Json, StageInput, answered, drawn, told

MOST_READ = 20_000  # replies; of more, so many are drawn
GRADES, SAMPLED = range(1, 11), 3
Spread = Mapping[str, Counter[float]]  # model -> score -> answers


def scores_section(found: Inputs) -> Section | str:
    blocks: list[Block] = []
    for number, stage in enumerate(found.of_task("score"), 1):
        blocks += [Heading(stage.name), *_stage(found, stage, number)]
    blocks += [block for _, some in told(found, ["scores"], _from_file) for block in some]
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


def _from_file(evaluation: Evaluation, number: int) -> list[Block]:
    spread: dict[str, Counter[float]] = {}
    for model, found in evaluation.data["data"].items():
        spread[model] = Counter({float(k): round(v * found["n"]) for k, v in found["shares"].items()})
    return [Heading(evaluation.name), *_spread(spread, f"scores-file-{number}", "")]


def _spread(spread: Spread, name: str, words: str) -> list[Block]:
    shares = []
    for grade in GRADES:
        row = [sum(n for s, n in c.items() if grade <= s < grade + 1) / c.total() for c in spread.values()]
        shares.append((str(grade), *row))
    numbers = table(name, ("score", *(f"{m}:share" for m in spread)), shares)
    n = ", ".join(f"{m} {c.total():,}" for m, c in spread.items())
    caption = f"By model; halves go to the score below. n: {n}.{words}"
    drawing = figure("Scores", f"Scores. {caption}", caption, numbers, _bars, 3.0)
    means = []
    for model, counts in spread.items():
        total = counts.total()
        mean = sum(s * c for s, c in counts.items()) / total
        variance = sum((s - mean) ** 2 * c for s, c in counts.items()) / max(total - 1, 1)
        reach = 1.96 * (variance / total) ** 0.5
        means.append((model, total, mean, mean - reach, mean + reach, variance**0.5))
    heads = ("model", "answers:count", "mean:number", "low:number", "high:number", "deviation:number")
    listed = table(f"{name}-means", heads, means)
    return [Drawing(drawing), Listing(listed, "Means of the scores, with 95 % intervals.")]


def _bars(canvas: Any, numbers: FigureTable, wide: bool) -> None:
    grouped(canvas, numbers, wide)
    (axes,) = canvas.axes
    axes.set(xlabel="score", ylabel="share of answers")
    percents(axes, "y")


GROUPS = ("all", "0-2", "3-5", "6-10", ">10")
FEW_ROWS = 30


def rouge_section(found: Inputs) -> Section | str:
    heard = told(found, ["rouge"], _rouge)
    blocks = [block for _, some in heard for block in some]
    if not blocks:
        return "there is no `evaluate rouge --json`"
    heads = []
    for evaluation, _ in heard:
        whole = {name: groups["all"] for name, groups in evaluation.data["models"].items()}
        models = {name: found["rougeL"] for name, found in whole.items() if found["n"]}
        if models:
            best = max(models, key=lambda name: models[name])
            others = ", ".join(f"{name} {value:.3f}" for name, value in models.items() if name != best)
            heads.append(Headline(f"{models[best]:.3f}", f"ROUGE-L of {best}", others))
    about = "ROUGE-L (F) against the references, by how many words the reference has."
    return Section("rouge", "ROUGE-L by reference length", about, blocks, heads[:1])


def _rouge(evaluation: Evaluation, number: int) -> list[Block]:
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
    measures = [
        (name, g, found["n"], found.get("rouge1"), found.get("rouge2"), found.get("rougeL"))
        for name, of in models.items()
        for g in GROUPS
        if (found := of.get(g)) and found["n"]
    ]
    scores = ("ROUGE-1:score", "ROUGE-2:score", "ROUGE-L:score")
    heads = ("model", "words of the reference", "rows:count", *scores)
    every = Listing(table(f"rouge-{number}-all", heads, measures), "All measures.")
    blocks: list[Block] = [Heading(evaluation.name), Drawing(drawing), every]
    few = [g for g in groups if sizes[g] < FEW_ROWS]
    if few:
        blocks.append(Words(f"Fewer than {FEW_ROWS} rows, which prove little: {', '.join(few)}.", True))
    return [*blocks, *_differences(data, groups, number)]


def _levels(canvas: Any, numbers: FigureTable, wide: bool) -> None:
    grouped(canvas, numbers, wide)
    (axes,) = canvas.axes
    labels = [name.replace(", ", "\n") for name in numbers.names(numbers.columns[0])]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("ROUGE-L")
    axes.set_xlabel("words of the reference")


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
        "words of the reference", "model", "difference:score", "low:score", "high:score", "rows:count",
    )  # fmt: skip
    numbers = table(f"rouge-{number}-differences", heads, rows)
    caption = (
        f"ROUGE-L less that of {against} on the same rows, with paired 95 % intervals; above 0 is better."
    )
    drawing = figure(f"Against {against}", caption, caption, numbers, _beside, 3.0)
    unsure = [f"{r[1]} at {r[0]}" for r in rows if r[3] is not None and r[3] <= 0 <= r[4]]
    blocks: list[Block] = [Drawing(drawing)]
    if unsure:
        blocks.append(Words(f"No difference is shown (the interval includes 0): {', '.join(unsure)}.", True))
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


FEW_VOTES, PARTS = 100, ("win", "tie", "loss")


def human_section(found: Inputs) -> Section | str:
    heard = told(found, ["human"], _votes)
    blocks = [block for _, some in heard for block in some]
    if not blocks:
        return "there are no human votes, and no `evaluate human --json`"
    heads = []
    for evaluation, _ in heard:
        data = evaluation.data
        name, first = next(iter(data["criteria"].items()))
        if first["votes"]:
            note = f"of {first['votes']:,} votes; {first['loss']['share']:.0%} for {data['b']}"
            weak = "no difference is shown" if first["net"]["low"] <= 0 <= first["net"]["high"] else ""
            label = f"find {data['a']} more {name}"
            heads.append(Headline(f"{first['win']['share']:.0%}", label, note, weak))
    about = "People read an instruction and two answers whose models are hidden, and vote."
    return Section("human", "Human votes", about, blocks, heads[:1])


def _votes(evaluation: Evaluation, number: int) -> list[Block]:
    data = evaluation.data
    voted: Json = {name: c for name, c in data["criteria"].items() if c["votes"]}
    pairs = [
        ("models", f"{data['a']} against {data['b']}"),
        ("items with a vote", f"{data['voted']:,} of {data['items']:,}"),
        ("votes", f"{data['votes']:,}"),
        ("annotators", f"{len(data.get('annotators') or []):,}"),
    ]
    blocks: list[Block] = [Heading(evaluation.name), Facts(pairs)]
    if not voted:
        return [*blocks, Words("Nobody has voted yet.", True)]
    rows = [(name, *(c[part]["share"] for part in PARTS)) for name, c in voted.items()]
    columns = ("criterion", f"{data['a']} wins:share", "tie:share", f"{data['b']} wins:share")
    caption = (
        f"Votes by criterion, {data['a']} against {data['b']}; n = {data['votes']:,} votes on "
        f"{data['voted']:,} items. Sides were drawn at random and the models hidden."
    )
    numbers = table(f"human-{number}", columns, rows)
    blocks.append(
        Drawing(figure("Human votes", caption, caption, numbers, stacked, height_for(len(rows), 0.42) + 0.2))
    )
    intervals = []
    for name, c in voted.items():
        for part in PARTS:
            agreed = (c.get("agreement") or {}).get("alpha") if part == "win" else None
            share = c[part]
            intervals.append(
                (name, part, share["votes"], share["share"], share["low"], share["high"], agreed)
            )
    heads = ("criterion", "outcome", "votes:count", "share:share", "low:share", "high:share", "alpha:number")
    listed = table(f"human-{number}-intervals", heads, intervals)
    blocks.append(Listing(listed, "Intervals are 95 %, over items; alpha is Krippendorff's."))
    if data["votes"] < FEW_VOTES:
        blocks.append(Words(f"Only {data['votes']:,} votes.", True))
    for name, c in voted.items():
        if c["net"]["low"] is not None and c["net"]["low"] <= 0 <= c["net"]["high"]:
            even = f"{name}: no difference is shown, the interval of wins less losses includes 0."
            blocks.append(Words(even, True))
    if len(data.get("annotators") or []) < 2:
        blocks.append(Words("One annotator: whether others would agree is not known.", True))
    return blocks
