"""What only some judgements have beside sums: categories, both orders, answers' lengths, several judges."""

from collections.abc import Iterator, Sequence
from typing import Any

from evaluators.report.blocks import Block, Listing
from evaluators.report.figures import table
from evaluators.report.inputs import Json

SPREAD = ("questions:count", "relative:share", "low:share", "high:share")
Rows = list[Sequence[Any]]


def name_of(pair: Json) -> str:
    return f"{pair['a']} vs {pair['b']}"


def aside(data: Json, number: int) -> Iterator[Block]:
    """Tables of what there is, of one evaluation."""
    pairs: list[Json] = data["pairs"]
    yield from _by_category(pairs, f"judge-{number}")
    for name, heads, rows, words in (
        ("position", POSITION_HEADS, _position(pairs), POSITION),
        ("balanced", ("pair", *SPREAD), _balanced(pairs), "Balanced over both orders."),
        ("length-controlled", CONTROLLED_HEADS, _controlled(pairs), CONTROLLED),
        ("agreement", AGREEMENT_HEADS, _agreement(data), AGREEMENT),
    ):
        if rows:
            yield Listing(table(f"judge-{number}-{name}", heads, rows), words)


CATEGORIES = "By category. Few questions in each, so that most differences are chance."
SIDE_BY_SIDE = 6  # pairs, in columns


def _by_category(pairs: Sequence[Json], name: str) -> Iterator[Block]:
    """Pairs side by side, where there are several; then each with its interval."""
    rows = _categories(pairs)
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


def _categories(pairs: Sequence[Json]) -> Rows:
    return [
        (name_of(p), c["category"], c["questions"], c.get("relative"), c.get("low"), c.get("high"))
        for p in pairs
        for c in p.get("by_category") or []
    ]


POSITION = (
    "Asked in both orders: how often who is shown first wins, and how often the winner changes with it."
)
POSITION_HEADS = (
    "pair", "questions:count", "first wins:share", "ties:share", "second wins:share", "winner changes:share",
    "the first place is worth:number", "low:number", "high:number",
)  # fmt: skip


def _position(pairs: Sequence[Json]) -> Rows:
    keys = ("questions", "first", "ties", "second", "flips", "advantage", "low", "high")
    found = [(name_of(p), p["position_bias"]) for p in pairs if p.get("position_bias")]
    return [(name, *(bias.get(key) for key in keys)) for name, bias in found]


def _balanced(pairs: Sequence[Json]) -> Rows:
    found = [(name_of(p), p["balanced"]) for p in pairs if p.get("balanced")]
    return [(name, b["questions"], b.get("relative"), b.get("low"), b.get("high")) for name, b in found]


CONTROLLED = "Win rates as they are, and as they would be at equal length (in AlpacaEval 2's manner)."
CONTROLLED_HEADS = (
    "pair", "win rate:share", "length-controlled:share", "low:share", "high:share", "length ratio:number",
)  # fmt: skip


def _controlled(pairs: Sequence[Json]) -> Rows:
    keys = ("plain", "win_rate", "low", "high", "length_ratio")
    found = [(name_of(p), p["length_controlled"]) for p in pairs if p.get("length_controlled")]
    return [(name, *(c.get(key) for key in keys)) for name, c in found]


AGREEMENT = "How far judges agree (Krippendorff's alpha: 1 is agreement, 0 is chance)."
AGREEMENT_HEADS = (
    "judges", "questions:count", "alpha, interval:number", "alpha, ordinal:number", "Spearman:number",
    "same winner:share",
)  # fmt: skip


def _agreement(data: Json) -> Rows:
    keys = ("questions", "alpha_interval", "alpha_ordinal", "spearman", "same_winner")
    agreed = (data.get("judges") or {}).get("agreement") or []
    return [(" and ".join(map(str, a["judges"])), *(a.get(key) for key in keys)) for a in agreed]
