"""What evaluations of data sets say: words of an answer, root verbs with their nouns, duplicates, overlap
with tests, shares of what is cut, refused, or in which language."""

from collections.abc import Iterator
from typing import Any

from evaluators.report.blocks import Block, Drawing, Heading, Listing, Section, Words
from evaluators.report.charts import counted, height_for, sunburst
from evaluators.report.figures import FigureTable, figure, table
from evaluators.report.inputs import Evaluation, Inputs, Json, Tell, told
from evaluators.report.line_charts import distributions

SHARES = ("truncated", "content_filter", "refusal", "refused_in_words", "untranslated", "empty")
LANGUAGES = 6
FEWEST = 30  # texts with a verb and its noun, below which a chart shows chance


def section(found: Inputs) -> Section | str:
    kinds: dict[str, Tell] = {
        "lengths": _lengths, "verbs": _verbs, "shares": _shares,
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


def _lengths(evaluation: Evaluation, number: int) -> Iterator[Block]:
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
            f"{name}: the {len(data['verbs'])} most common root verbs (inner ring) and their direct "
            f"objects (outer ring); {data['with_pair']:,} of {data['texts']:,} texts have such a pair."
        )
        key = f"verbs-{number}-{place}"
        ring = table(key, ("verb", "noun", "count:count"), rows)
        yield Drawing(figure("Verbs and their nouns", caption, caption, ring, sunburst, 5.4, 4.0))
        pairs = [(f"{p['verb']} {p['noun']}", p["count"]) for p in data["pairs"] if p["count"] > 1]
        if not pairs:
            yield Words(f"{name}: no pair of a verb and its noun occurs twice.", True)
            continue
        caption = f"{name}: the {len(pairs)} most common pairs of a verb and its noun."
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
