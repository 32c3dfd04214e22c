"""Human votes, as the paper's Figure 3: win, tie and loss by criterion."""

from evaluators.report.blocks import Block, Drawing, Facts, Heading, Headline, Listing, Section, Words
from evaluators.report.charts import height_for, stacked
from evaluators.report.figures import FigureTable, figure, table
from evaluators.report.inputs import Evaluation, Inputs, Json, told

FEW, PARTS = 100, ("win", "tie", "loss")


def section(found: Inputs) -> Section | str:
    heard = told(found, ["human"], _told)
    blocks = [block for _, some in heard for block in some]
    if not blocks:
        return "there are no human votes, and no `evaluate human --json`"
    heads = [head for evaluation, _ in heard for head in _headlines(evaluation.data)]
    about = "People read an instruction and two answers whose models are hidden, and vote."
    return Section("human", "Human votes", about, blocks, heads[:1])


def _headlines(data: Json) -> list[Headline]:
    name, first = next(iter(data["criteria"].items()))
    if not first["votes"]:
        return []
    note = f"of {first['votes']:,} votes; {first['loss']['share']:.0%} for {data['b']}"
    weak = "no difference is shown" if first["net"]["low"] <= 0 <= first["net"]["high"] else ""
    return [Headline(f"{first['win']['share']:.0%}", f"find {data['a']} more {name}", note, weak)]


def _told(evaluation: Evaluation, number: int) -> list[Block]:
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
    blocks.append(
        Listing(_intervals(voted, number), "Intervals are 95 %, over items; alpha is Krippendorff's.")
    )
    return blocks + [Words(words, True) for words in _caveats(data, voted)]


def _intervals(voted: Json, number: int) -> FigureTable:
    rows = []
    for name, c in voted.items():
        for part in PARTS:
            agreed = (c.get("agreement") or {}).get("alpha") if part == "win" else None
            rows.append(
                (name, part, c[part]["votes"], c[part]["share"], c[part]["low"], c[part]["high"], agreed)
            )
    heads = ("criterion", "outcome", "votes:count", "share:share", "low:share", "high:share", "alpha:number")
    return table(f"human-{number}-intervals", heads, rows)


def _caveats(data: Json, voted: Json) -> list[str]:
    said = [f"Only {data['votes']:,} votes."] if data["votes"] < FEW else []
    for name, c in voted.items():
        if c["net"]["low"] is not None and c["net"]["low"] <= 0 <= c["net"]["high"]:
            said.append(f"{name}: no difference is shown, the interval of wins less losses holds 0.")
    if len(data.get("annotators") or []) < 2:
        said.append("One annotator: whether others would agree is not known.")
    return said
