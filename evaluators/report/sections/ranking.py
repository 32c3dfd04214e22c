"""The ranking study, as the paper's Figure 4a, b: answers ranked by the reward model, each rank judged."""

from evaluators.report.blocks import Block, Drawing, Heading, Listing, Section, Words
from evaluators.report.figures import table
from evaluators.report.inputs import Evaluation, Inputs, told
from evaluators.report.sections.judge import bars


def section(found: Inputs) -> Section | str:
    blocks = [block for _, some in told(found, ["ranking"], _told) for block in some]
    if not blocks:
        return "there is no `evaluate ranking --json`"
    about = "Samples of a student for each question, put in order by the reward model; each rank is judged."
    return Section("ranking", "Does the reward model rank?", about, blocks)


def _told(evaluation: Evaluation, number: int) -> list[Block]:
    data = evaluation.data
    named = [{**g, "a": f"rank {g['rank']}"} for g in data["groups"]]
    named += [{**b, "a": b["name"]} for b in data.get("baselines") or []]
    scored = [g for g in named if g.get("relative") is not None]
    title = f"against {data['opponent']}"
    blocks: list[Block] = [Heading(evaluation.name), Drawing(bars(scored, f"ranking-{number}", title))]
    keys = ("spearman", "spearman_low", "spearman_high", "monotone_share", "violation")
    heads = (
        "Spearman of rank and score:number",
        "low:number",
        "high:number",
        "monotone in resamples:share",
        "violation:number",
    )
    rows = [[data.get(key) for key in keys]]
    words = "Spearman's rho is -1 where a better rank always has the better score."
    blocks.append(Listing(table(f"ranking-{number}-order", heads, rows), words))
    if not data["monotone"]:
        blocks.append(Words("The scores do NOT fall from rank to rank all the way.", True))
    ends = data.get("first_over_last") or {}
    if ends and ends["low"] <= 0:
        blocks.append(
            Words("The first rank is NOT shown to be better than the last: the interval holds 0.", True)
        )
    return blocks
