"""Judge scores, as the paper's Figures 4 and 5: models against an opponent, the sums on the bars.

What only some judgements have beside sums: categories, both orders, answers' lengths, several judges. And
the ranking study, the paper's Figure 4a, b: answers ranked by the reward model, each rank judged.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from engine.answers import clean
from evaluators.report.charts import height_for, relative, shares, stacked
from evaluators.report.figures import (
    Block,
    Drawing,
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
from evaluators.report.inputs import Evaluation, Inputs, Json, drawn, told
from evaluators.report.training import percent

FEW, SAMPLED, DRAWN = 30, 3, 16


def judge_section(found: Inputs) -> Section | str:
    heads: list[Headline] = []

    def tell(evaluation: Evaluation, number: int) -> list[Block]:
        blocks = _told(evaluation, number)
        heads.extend(_headlines(evaluation.data["pairs"]))
        return blocks

    heard = told(found, ["judge"], tell)
    blocks = [block for _, some in heard for block in some]
    for stage in found.of_task("judge", "compare"):  # as they were said, with the question and both answers
        samples = []
        for row in drawn(found, stage, SAMPLED, "judge"):
            item = row.item
            shown = zip(item.get("models", ()), item.get("answers", ()), strict=False)
            quotes = [Quote("question", str(item.get("instruction", "")))]
            quotes += [Quote(f"shown {place}: {m}", str(text)) for place, (m, text) in enumerate(shown, 1)]
            quotes.append(Quote(f"the judge ({row.model})", clean(row.text)))
            samples.append(Sample(f"row {row.position:,}", row.outcome, quotes))
        words = f"{stage.name}: {len(samples)} judgements, drawn at random (seed {found.seed})"
        blocks.append(Samples(words, samples))
    if not blocks:
        return "no stage has judgements, and there is no `evaluate judge --json`"
    about = "A judge scores two answers to each question from 1 to 10; the relative score is sum : sum."
    return Section("judge", "Judged against each other", about, blocks, heads[:2])


def sums(pair: Json) -> str:
    """As the paper writes them: 609 : 666 = 91 %."""
    return f"{pair['sum_a']:g} : {pair['sum_b']:g} = {pair['relative']:.0%}"


def is_even(pair: Json) -> bool:
    """Whether the interval holds what no difference would give."""
    scored = pair.get("relative") is not None
    low, high = (pair["low"], pair["high"]) if scored else (pair["win_rate_low"], pair["win_rate_high"])
    return low is not None and low <= (1 if scored else 0.5) <= high


def caveats(pairs: Sequence[Json]) -> list[Words]:
    """What a reader must know before believing these numbers."""
    even = ", ".join(name_of(p) for p in pairs if is_even(p))
    few = ", ".join(f"{name_of(p)} ({p['questions']:,})" for p in pairs if p["questions"] < FEW)
    unread = ", ".join(f"{name_of(p)} {p['unparsed']:,}" for p in pairs if p.get("unparsed"))
    said = [
        (even, f"No difference is shown, the interval includes equality: {even}.", True),
        (few, f"Few questions: {few}.", True),
        (unread, f"Replies that could not be read, and are in neither sum: {unread}.", False),
    ]
    return [Words(words, weak) for found, words, weak in said if found]


def _headlines(pairs: Sequence[Json]) -> list[Headline]:
    heads = []
    for pair in pairs[:2]:
        weak = "no difference is shown" if is_even(pair) else ""
        if not weak and pair["questions"] < FEW:
            weak = "few questions"
        measure, questions = pair.get("relative"), f"over {pair['questions']:,} questions"
        if measure is not None:
            known = pair.get("low") is not None
            span = f"{pair['low']:.0%} to {pair['high']:.0%}" if known else "unknown"
            note = f"{pair['sum_a']:g} : {pair['sum_b']:g} {questions}, 95 % interval {span}"
        else:
            measure, note = pair.get("win_rate"), f"win rate {questions}"
        if measure is not None:
            heads.append(Headline(f"{measure:.0%}", f"{pair['a']} against {pair['b']}", note, weak))
    return heads


def _told(evaluation: Evaluation, number: int) -> list[Block]:
    pairs: list[Json] = evaluation.data["pairs"]
    blocks: list[Block] = [Heading(evaluation.name)]
    scored = [p for p in pairs if p.get("relative") is not None]
    for opponent in dict.fromkeys(p["b"] for p in scored):
        mine = [p for p in scored if p["b"] == opponent][:DRAWN]
        blocks.append(Drawing(bars(mine, f"judge-{number}-{slug(opponent)}", f"against {opponent}")))
    if not scored:
        rates = [
            (name_of(p), p["win_rate"], p.get("win_rate_low"), p.get("win_rate_high"), percent(p["win_rate"]))
            for p in pairs[:DRAWN]
        ]
        columns = ("pair", "win rate:share", "low:share", "high:share", "words")
        caption = "Win rates (ties count a half) with 95 % intervals; the dashed line is 50 %."
        numbers, height = table(f"judge-{number}-win-rates", columns, rates), height_for(len(rates), 0.42)
        blocks.append(Drawing(figure("Win rates", caption, caption, numbers, shares, height)))
    several = len({p.get("judge") for p in pairs}) > 1
    rows: list[Sequence[Any]] = []
    for p in pairs:
        called = name_of(p) + (f", by {p['judge']}" if several else "")
        both = f"{p['sum_a']:g} : {p['sum_b']:g}" if p.get("sum_a") is not None else "–"
        spread = [p.get(key) for key in ("relative", "low", "high")]
        rows.append([called, p["questions"], both, *spread, f"{p['wins']}, {p['ties']}, {p['losses']}"])
    heads = ("pair", "questions:count", "sums", *SPREAD[1:], "won, tied, lost")
    words = "The sums leave out replies that could not be read."
    blocks += [Listing(table(f"judge-{number}", heads, rows), words), *caveats(pairs)]
    won = []
    for pair in pairs[:DRAWN]:
        total = (pair["wins"] + pair["ties"] + pair["losses"]) or 1
        won.append((name_of(pair), *(pair[k] / total for k in ("wins", "ties", "losses"))))
    caption = "Questions won, tied and lost by the first of each pair. n: "
    caption += ", ".join(f"{name_of(p)} {p['questions']:,}" for p in pairs[:DRAWN]) + "."
    numbers = table(f"judge-{number}-wins", ("pair", "win:share", "tie:share", "loss:share"), won)
    height = height_for(len(won)) + 0.2
    blocks.append(Drawing(figure("Wins, ties, losses", caption, caption, numbers, stacked, height)))
    return [*blocks, *aside(evaluation.data, number)]


def slug(name: str) -> str:
    """A name that a file may have."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in str(name).lower())
    return "-".join(part for part in kept.split("-") if part)[:40] or "unnamed"


def bars(pairs: Sequence[Json], name: str, title: str) -> Any:
    """Relative scores with the sums written on them, and a line where both are equal."""
    several = len({p.get("judge") for p in pairs}) > 1
    rows = [
        (
            f"{p['a']} ({p['judge']})" if several else p["a"],
            p["relative"], p.get("low"), p.get("high"), sums(p),
        )
        for p in pairs
    ]  # fmt: skip
    numbers = table(name, ("model", "relative score:share", "low:share", "high:share", "words"), rows)
    least, most = min(p["questions"] for p in pairs), max(p["questions"] for p in pairs)
    n = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    caption = f"Sums over n = {n} questions, with bootstrap 95 % intervals; "
    caption += "the dashed line is 100 %, where both are equal."
    title = f"Relative scores {title}"
    return figure(title, f"{title}. {caption}", caption, numbers, relative, height_for(len(rows), 0.42))


def name_of(pair: Json) -> str:
    return f"{pair['a']} vs {pair['b']}"


SPREAD = ("questions:count", "relative:share", "low:share", "high:share")
ASIDES: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], str], ...] = (
    # name of the table, key of a pair, columns, what stands at the key, caption
    (
        "position",
        "position_bias",
        (
            "pair", "questions:count", "first wins:share", "ties:share", "second wins:share",
            "winner changes:share", "the first place is worth:number", "low:number", "high:number",
        ),
        ("questions", "first", "ties", "second", "flips", "advantage", "low", "high"),
        "Asked in both orders: how often who is shown first wins, and how often the winner changes with it.",
    ),
    (
        "balanced",
        "balanced",
        ("pair", *SPREAD),
        ("questions", "relative", "low", "high"),
        "Balanced over both orders.",
    ),
    (
        "length-controlled",
        "length_controlled",
        (
            "pair", "win rate:share", "length-controlled:share", "low:share", "high:share",
            "length ratio:number",
        ),
        ("plain", "win_rate", "low", "high", "length_ratio"),
        "Win rates as they are, and as they would be at equal length (in AlpacaEval 2's manner).",
    ),
)  # fmt: skip


def aside(data: Json, number: int) -> Iterator[Block]:
    """Tables of what there is beside sums, of one evaluation."""
    pairs: list[Json] = data["pairs"]
    yield from _by_category(pairs, f"judge-{number}")
    for name, key, heads, keys, words in ASIDES:
        there = [(name_of(p), p[key]) for p in pairs if p.get(key)]
        if rows := [(called, *(found.get(k) for k in keys)) for called, found in there]:
            yield Listing(table(f"judge-{number}-{name}", heads, rows), words)
    keys = ("questions", "alpha_interval", "alpha_ordinal", "spearman", "same_winner")
    agreed = (data.get("judges") or {}).get("agreement") or []
    if rows := [(" and ".join(map(str, a["judges"])), *(a.get(key) for key in keys)) for a in agreed]:
        heads = (
            "judges", "questions:count", "alpha, interval:number", "alpha, ordinal:number", "Spearman:number",
            "same winner:share",
        )  # fmt: skip
        words = "How far judges agree (Krippendorff's alpha: 1 is agreement, 0 is chance)."
        yield Listing(table(f"judge-{number}-agreement", heads, rows), words)


CATEGORIES = "By category. Few questions in each, so that most differences are chance."
SIDE_BY_SIDE = 6  # pairs, in columns


def _by_category(pairs: Sequence[Json], name: str) -> Iterator[Block]:
    """Pairs side by side, where there are several; then each with its interval."""
    rows = [
        (name_of(p), c["category"], c["questions"], c.get("relative"), c.get("low"), c.get("high"))
        for p in pairs
        for c in p.get("by_category") or []
    ]
    if not rows:
        return
    whole = table(f"{name}-categories", ("pair", "category", *SPREAD), rows)
    told = [p for p in pairs if p.get("by_category")]
    if not 1 < len(told) <= SIDE_BY_SIDE:
        yield Listing(whole, CATEGORIES, "By category" if len(told) > 1 else "")
        return
    alike = len({(p["b"], p.get("judge")) for p in told}) == 1
    heads = [f"{p['a'] if alike else name_of(p)}:share" for p in told]
    found = [{c["category"]: c.get("relative") for c in p["by_category"]} for p in told]
    names = dict.fromkeys(category for one in found for category in one)
    beside = [(category, *(one.get(category) for one in found)) for category in names]
    against = f" Relative scores against {told[0]['b']}." if alike else " Relative scores."
    yield Listing(table(f"{name}-side-by-side", ("category", *heads), beside), CATEGORIES + against)
    yield Listing(whole, CATEGORIES, "Each with its interval")


def ranking_section(found: Inputs) -> Section | str:
    blocks = [block for _, some in told(found, ["ranking"], _ranked) for block in some]
    if not blocks:
        return "there is no `evaluate ranking --json`"
    about = "Samples of a student for each question, put in order by the reward model; each rank is judged."
    return Section("ranking", "Does the reward model rank?", about, blocks)


def _ranked(evaluation: Evaluation, number: int) -> list[Block]:
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
            Words("The first rank is NOT shown to be better than the last: the interval includes 0.", True)
        )
    return blocks
