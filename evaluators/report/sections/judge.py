"""Judge scores, as the paper's Figures 4 and 5: models against an opponent, the sums on the bars."""

from collections.abc import Sequence
from typing import Any

from engine.answers import clean
from evaluators.report.blocks import (
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
)
from evaluators.report.charts import height_for, relative, shares, stacked
from evaluators.report.figures import FigureTable, figure, table
from evaluators.report.inputs import Evaluation, Inputs, Json, told
from evaluators.report.queries import drawn
from evaluators.report.sections.judge_details import aside, name_of
from evaluators.report.sections.reward import percent

FEW, SAMPLED, DRAWN = 30, 3, 16


def section(found: Inputs) -> Section | str:
    heads: list[Headline] = []

    def tell(evaluation: Evaluation, number: int) -> list[Block]:
        blocks = _told(evaluation, number)
        heads.extend(_headlines(evaluation.data["pairs"]))
        return blocks

    heard = told(found, ["judge"], tell)
    blocks = [block for _, some in heard for block in some]
    blocks += _sampled(found)
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
        (even, f"No difference is shown, the interval holds equality: {even}.", True),
        (few, f"Few questions: {few}.", True),
        (unread, f"Replies that could not be read, and are in neither sum: {unread}.", False),
    ]
    return [Words(words, weak) for found, words, weak in said if found]


def _weakness(pair: Json) -> str:
    if is_even(pair):
        return "no difference is shown"
    return "few questions" if pair["questions"] < FEW else ""


def _headlines(pairs: Sequence[Json]) -> list[Headline]:
    heads = []
    for pair in pairs[:2]:
        weak = _weakness(pair)
        if pair.get("relative") is not None:
            both = f"{pair['sum_a']:g} : {pair['sum_b']:g}"
            note = f"{both} over {pair['questions']:,} questions, 95 % {_span(pair)}"
            heads.append(Headline(f"{pair['relative']:.0%}", f"{pair['a']} against {pair['b']}", note, weak))
        elif pair.get("win_rate") is not None:
            note = f"win rate over {pair['questions']:,} questions"
            heads.append(Headline(f"{pair['win_rate']:.0%}", f"{pair['a']} against {pair['b']}", note, weak))
    return heads


def _span(pair: Json) -> str:
    return f"{pair['low']:.0%} to {pair['high']:.0%}" if pair.get("low") is not None else "unknown"


def _told(evaluation: Evaluation, number: int) -> list[Block]:
    pairs: list[Json] = evaluation.data["pairs"]
    blocks: list[Block] = [Heading(evaluation.name)]
    scored = [p for p in pairs if p.get("relative") is not None]
    for opponent in dict.fromkeys(p["b"] for p in scored):
        mine = [p for p in scored if p["b"] == opponent][:DRAWN]
        blocks.append(Drawing(bars(mine, f"judge-{number}-{slug(opponent)}", f"against {opponent}")))
    if not scored:
        blocks.append(Drawing(_win_rates(pairs[:DRAWN], f"judge-{number}-win-rates")))
    blocks += [
        Listing(_table(pairs, f"judge-{number}"), "The sums leave out replies that could not be read.")
    ]
    blocks += caveats(pairs)
    blocks.append(Drawing(_wins(pairs[:DRAWN], f"judge-{number}-wins")))
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
    caption = f"Relative scores {title}, by sums over n = {n} questions, with bootstrap 95 % intervals; "
    caption += "the dashed line is 100 %, where both are equal."
    return figure(
        f"Relative scores {title}", caption, caption, numbers, relative, height_for(len(rows), 0.42)
    )


def _win_rates(pairs: Sequence[Json], name: str) -> Any:
    rows = [
        (name_of(p), p["win_rate"], p.get("win_rate_low"), p.get("win_rate_high"), percent(p["win_rate"]))
        for p in pairs
    ]
    columns = ("pair", "win rate:share", "low:share", "high:share", "words")
    caption = "Win rates (ties count a half) with 95 % intervals; the dashed line is 50 %."
    height = height_for(len(rows), 0.42)
    return figure("Win rates", caption, caption, table(name, columns, rows), shares, height)


def _wins(pairs: Sequence[Json], name: str) -> Any:
    rows = []
    for pair in pairs:
        total = (pair["wins"] + pair["ties"] + pair["losses"]) or 1
        rows.append((name_of(pair), *(pair[k] / total for k in ("wins", "ties", "losses"))))
    caption = "Questions won, tied and lost by the first of each pair. n: "
    caption += ", ".join(f"{name_of(p)} {p['questions']:,}" for p in pairs) + "."
    columns = ("pair", "win:share", "tie:share", "loss:share")
    height = height_for(len(rows)) + 0.2
    return figure("Wins, ties, losses", caption, caption, table(name, columns, rows), stacked, height)


def _table(pairs: Sequence[Json], name: str) -> FigureTable:
    judges = {p.get("judge") for p in pairs}
    heads = [
        "pair",
        "questions:count",
        "sums",
        "relative:share",
        "low:share",
        "high:share",
        "won, tied, lost",
    ]
    rows = []
    for p in pairs:
        called = name_of(p) + (f", by {p['judge']}" if len(judges) > 1 else "")
        both = f"{p['sum_a']:g} : {p['sum_b']:g}" if p.get("sum_a") is not None else "–"
        spread = [p.get(key) for key in ("relative", "low", "high")]
        rows.append([called, p["questions"], both, *spread, f"{p['wins']}, {p['ties']}, {p['losses']}"])
    return table(name, heads, rows)


def _sampled(found: Inputs) -> list[Block]:
    """Judgements as they were said, with the question and both answers."""
    blocks: list[Block] = []
    for stage in found.of_task("judge", "compare"):
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
    return blocks
