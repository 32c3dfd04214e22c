"""The data that came: how long answers are, how they ended, which prompts share an answer, and rows of it.

And what evaluations of data sets say: words of an answer, root verbs with their nouns, duplicates, overlap
with tests, shares of what is cut, refused, or in which language.
"""

from collections.abc import Iterator
from typing import Any

from evaluators.report.charts import counted, distributions, height_for, stacked, sunburst
from evaluators.report.figures import (
    Block,
    Drawing,
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
from evaluators.report.inputs import Evaluation, Inputs, Json, StageInput, Tell, drawn, told
from store.records import OUTCOMES

BINS, STAGES, SAMPLED = 40, 6, 4
FEW = 100
WIDTHS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
TOKENS = """
SELECT p.completion_tokens, count(*) FROM samples a JOIN requests r ON r.id = a.request
JOIN responses p ON p.id = r.answer WHERE a.stage = ? GROUP BY 1 ORDER BY 1"""
SHARED = "SELECT count(*), count(DISTINCT request) FROM samples WHERE stage = ?"
Counts = list[tuple[int, int]]  # (tokens, answers), by tokens


def data_section(found: Inputs) -> Section | str:
    stages = found.of_task("generate", "translate")
    if not stages:
        return "no stage has answers or translations"
    counts = {s.name: found.reader.execute(TOKENS, (s.number,)).fetchall() for s in stages}
    kinds = [o for o in OUTCOMES if any(s.counts["outcomes"].get(o) for s in stages)]
    ended = {s.name: sum(s.counts["outcomes"].values()) for s in stages}
    shares = [(s.name, *(s.counts["outcomes"].get(o, 0) / ended[s.name] for o in kinds)) for s in stages]
    numbers = table("outcomes", ("stage", *(f"{o}:share" for o in kinds)), shares)
    caption = (
        "stop is a complete answer, length one that ran into the bound on tokens; "
        "content_filter and refusal are the provider's own words for it; empty, other and tool_calls hold no "
        "answer. n: " + ", ".join(f"{name} {count:,}" for name, count in ended.items()) + "."
    )
    drawing = figure(
        "How answers ended",
        caption,
        f"How answers ended. {caption}",
        numbers,
        stacked,
        height_for(len(stages)) + 0.2,
    )
    rows: list[Any] = []
    for stage in stages:
        placed, requests = found.reader.execute(SHARED, (stage.number,)).fetchone()
        rows.append((stage.name, placed, requests, (placed - requests) / placed if placed else None))
    shared = table("shared", ("stage", "rows:count", "requests:count", "shared:share"), rows)
    words = "Equal rows share one request and one answer: 'shared' is the share that cost nothing."
    blocks: list[Block] = [*_lengths(stages, counts), Drawing(drawing), Listing(shared, words)]
    for stage in stages:
        samples = []
        for row in drawn(found, stage, SAMPLED, "data"):
            quotes = [Quote("instruction", str(row.item.get("instruction", "")))]
            if row.item.get("input"):
                quotes.append(Quote("input", str(row.item["input"])))
            quotes.append(Quote("answer" if stage.task == "generate" else "translation", row.text))
            about = f"{row.outcome}, {row.tokens:,} tokens, {row.model}"
            samples.append(Sample(f"row {row.position:,}", about, quotes))
        told = f"{stage.name}: {len(samples)} answers, drawn at random (seed {found.seed})"
        blocks.append(Samples(told, samples))
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


SHARES = ("truncated", "content_filter", "refusal", "refused_in_words", "untranslated", "empty")
LANGUAGES = 6
FEWEST = 30  # texts with a verb and its noun, below which a chart shows chance


def statistics_section(found: Inputs) -> Section | str:
    kinds: dict[str, Tell] = {
        "lengths": _words, "verbs": _verbs, "shares": _shares,
        "duplicates": _duplicates, "overlap": _overlap,
    }  # fmt: skip
    blocks: list[Block] = []
    for kind, tell in kinds.items():
        for evaluation, some in told(found, [kind], tell):
            blocks += [Heading(evaluation.name), *some]
    if not blocks:
        return "there is no `evaluate lengths`, `verbs`, `shares`, `duplicates` or `overlap --json`"
    about = "Words, verbs and their nouns, repetitions, and what a test might share with the training data."
    return Section("statistics", "Statistics of the data", about, blocks)


def _words(evaluation: Evaluation, number: int) -> Iterator[Block]:
    data: Json = evaluation.data["data"]
    edges = evaluation.data["units"]["words"]["edges"]
    shares = [
        [c / max(sum(d["words"]["histogram"]), 1) for c in d["words"]["histogram"]] for d in data.values()
    ]
    rows = list(zip(edges, *shares, strict=True))
    n = ", ".join(f"{name} {d['rows']:,}" for name, d in data.items())
    caption = (
        f"How long the {evaluation.data['field']}s are, in words. n: {n}. The last point holds the longer."
    )
    numbers = table(f"words-{number}", ("words:count", *(f"{name}:share" for name in data)), rows)
    yield Drawing(figure("Length in words", caption, caption, numbers, distributions, 3.0))
    yield Listing(_quantiles(f"words-{number}-quantiles", data), "Words of a text.")
    if thinking := evaluation.data.get("reasoning"):
        words = "Words of the thinking before an answer, of the rows that have it."
        yield Listing(_quantiles(f"words-{number}-thinking", thinking["data"]), words)


def _quantiles(name: str, data: Json) -> FigureTable:
    keys = ("5", "25", "50", "75", "95", "99")
    listed = [
        (one, d["rows"], d["words"]["mean"], *(d["words"]["quantiles"][k] for k in keys), d["words"]["max"])
        for one, d in data.items()
    ]
    heads = ("data set", "rows:count", "mean:number", *(f"{k} %:count" for k in keys), "longest:count")
    return table(name, heads, listed)


def _verbs(evaluation: Evaluation, number: int) -> Iterator[Block]:
    for place, (name, data) in enumerate(evaluation.data["data"].items(), 1):
        rows = [(v["verb"], n["noun"], n["count"]) for v in data["verbs"] for n in v["nouns"]]
        if data["with_pair"] < FEWEST or not rows:
            few = f"{name}: only {data['with_pair']:,} texts have a verb with an object; no chart of so few."
            yield Words(few, True)
            continue
        caption = (
            f"{name}: the most common root verbs (inner ring, {len(data['verbs'])}) and their direct "
            f"objects (outer ring); {data['with_pair']:,} of {data['texts']:,} texts have such a pair."
        )
        key = f"verbs-{number}-{place}"
        ring = table(key, ("verb", "noun", "count:count"), rows)
        yield Drawing(figure("Verbs and their nouns", caption, caption, ring, sunburst, 5.4, 4.0))
        pairs = [(f"{p['verb']} {p['noun']}", p["count"]) for p in data["pairs"] if p["count"] > 1]
        if not pairs:
            yield Words(f"{name}: no pair of a verb and its noun occurs twice.", True)
            continue
        caption = f"{name}: the most common pairs of a verb and its noun ({len(pairs)})."
        listed = table(f"{key}-pairs", ("verb and noun", "texts:count"), pairs)
        yield Drawing(
            figure("Most common pairs", caption, caption, listed, counted, height_for(len(pairs), 0.24))
        )


def _shares(evaluation: Evaluation, number: int) -> Iterator[Block]:
    data: Json = evaluation.data["data"]
    kinds = [k for k in SHARES if any(d.get(k) for d in data.values())]
    if any((d.get("reasoning") or {}).get("n") for d in data.values()):
        kinds.append("reasoning")
    rows = [(name, d["rows"], *((d.get(k) or {}).get("share") for k in kinds)) for name, d in data.items()]
    heads = ("data set", "rows:count", *(f"{k.replace('_', ' ')}:share" for k in kinds))
    words = f"Shares of the rows. {evaluation.data.get('heuristic') or ''}"
    yield Listing(table(f"shares-{number}", heads, rows), words)
    tongues = [
        (name, language, found["n"], found["share"])
        for name, d in data.items()
        for language, found in sorted(d["languages"].items(), key=lambda x: -x[1]["n"])[:LANGUAGES]
    ]
    heads = ("data set", "language", "rows:count", "share:share")
    yield Listing(
        table(f"languages-{number}", heads, tongues), "Languages; unknown is too little prose to tell."
    )


def _duplicates(evaluation: Evaluation, number: int) -> Iterator[Block]:
    data = evaluation.data
    rows = [
        (level, data[level]["clusters"], data[level]["rows"], data[level]["extra"], data[level]["share"])
        for level in ("exact", "normalised", "near")
    ]
    heads = ("level", "groups:count", "rows in them:count", "beyond the first:count", "share of all:share")
    words = f"Equal {data['field']}s among {data['rows']:,} rows (near: similarity {data['threshold']})."
    yield Listing(table(f"duplicates-{number}", heads, rows), words)


def _overlap(evaluation: Evaluation, number: int) -> Iterator[Block]:
    tests: Json = evaluation.data["tests"]
    rows: list[Any] = [
        (name, t["rows"], t["contained"], t["share"], t["mostly"], t["whole"], t["too_short"])
        for name, t in tests.items()
    ]
    heads = (
        "test set", "rows:count", "share an n-gram:count", "of all:share", "mostly:count", "wholly:count",
        "too short to tell:count",
    )  # fmt: skip
    words = f"Test rows that share a sequence of {evaluation.data['n']} words with the training data."
    yield Listing(table(f"overlap-{number}", heads, rows), words)
    whole = [name for name, t in tests.items() if t["whole"]]
    if whole:
        yield Words(
            f"Some test rows are completely contained in the training data: {', '.join(whole)}.", True
        )
