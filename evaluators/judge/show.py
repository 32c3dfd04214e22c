"""The figures for people: '609 : 666 = 91 % [88, 94]', best first, a table for each opponent and judge.

Names come from files and are hostile until made plain. Fits a terminal of 80 columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from engine.terminal import console_of, plain

NAME = 30  # letters of a model's name
COLUMNS = 4  # models side by side, by category
WIDTH = 52  # for their names
SHOWN = 3  # of things that are only counted after that
Figures = Mapping[str, Any]


def print_judged(report: Figures) -> None:
    """`evaluate judge`, on stdout."""
    console = console_of()
    groups: dict[tuple[str, str], list[Figures]] = {}
    for pair in report["pairs"]:
        groups.setdefault((pair["b"], pair["judge"]), []).append(pair)
    for (opponent, judge), pairs in groups.items():
        pairs.sort(key=_strength, reverse=True)
        console.print(Text(_heading(opponent, judge), style="bold"))
        # with scores the paper's sums, else the win rate; the length-controlled one where it is known
        controlled = any(pair["length_controlled"] for pair in pairs)
        measure = "score : opponent's" if any(pair["relative"] is not None for pair in pairs) else "win rate"
        table = _table("model", measure, "won", "tied", "lost", *(["same length"] if controlled else []))
        for pair in pairs:
            found = pair["length_controlled"]
            same = span(found["win_rate"], found["low"], found["high"]) if found else "-"
            table.add_row(_name(pair["a"]), *_scored(pair), *([same] if controlled else []))
        console.print(table)
        for table in _by_category(pairs):
            console.print(table)
        for pair in pairs:
            for line in _beside(pair):
                console.print(Text(f"  {plain(pair['a'], NAME)}: {line}"))
        console.print()
    for found in report["judges"]["agreement"]:
        who = " and ".join(plain(name, NAME) for name in found["judges"])
        winners = "-" if found["same_winner"] is None else f"{found['same_winner']:.0%}"
        alphas = (f"{_number(found[f'alpha_{level}'])} ({level})" for level in ("interval", "ordinal"))
        line = (
            f"{who} agree on {winners} of the winners of {found['questions']:,} questions; "
            f"alpha {', '.join(alphas)}, {_number(found['alpha_winner'])} (winners); "
            f"Spearman {_number(found['spearman'])}"
        )
        console.print(Text(line))
    for line in notes(report):
        console.print(Text(line))


def print_ranking(report: Figures) -> None:
    """`evaluate ranking`, on stdout."""
    console = console_of()
    console.print(Text(_heading(report["opponent"], report["judge"]), style="bold"))
    table = _table("rank", "answers", "score : opponent's", "wins", "ties", "losses")
    for group in report["groups"]:
        table.add_row(str(group["rank"]), _name(group["name"]), *_scored(group))
    for group in report["baselines"]:
        table.add_row("", _name(group["name"]), *_scored(group))
    console.print(table)
    gap = report["first_over_last"]
    low, high = gap["low"], gap["high"]
    between = "" if low is None else f" [{low * 100:+.1f}, {high * 100:+.1f}]"
    falls = "never rises" if report["monotone"] else f"rises (by {report['violation'] * 100:.1f} points)"
    trend = (
        f"rank 1 over the last: {gap['difference'] * 100:+.1f} points{between}; "
        f"better in {gap['probability']:.1%} of resamples",
        f"the score {falls} from rank to rank; it never does in {report['monotone_share']:.0%} of resamples; "
        f"Spearman {_number(report['spearman'])}",
    )
    for line in (*trend, *notes(report)):
        console.print(Text(line))


def notes(report: Figures) -> Iterator[str]:
    """What was left out, and where a file's scores are not those of its text."""
    differ, word = report["disagreements"], report["settings"]["scores"]
    for one in differ[:SHOWN]:
        text = "cannot be read" if one["text"] is None else f"says {_two(one['text'])}"
        yield (
            f"{plain(one['source'], NAME)}, question {plain(one['question'], NAME)}: "
            f"score is {_two(one['file'])}, but the text {text}; the {word} counts"
        )
    if len(differ) > SHOWN:
        yield f"and {len(differ) - SHOWN:,} more reviews whose score differs from their text"
    for source in report["sources"]:
        if source["bad_rows"]:
            told = "; ".join(plain(words, 100) for words in source["bad_shown"])
            yield f"{plain(source['name'], NAME)}: unusable and left out {source['bad_rows']:,}: {told}"
        if source["unanswered"]:
            yield f"{plain(source['name'], NAME)}: {source['unanswered']:,} contests have no verdict (yet)"


def _heading(opponent: str, judge: str) -> str:
    by = f", judged by {plain(judge, NAME)}" if judge else ""
    return f"against {plain(opponent, NAME)}{by}"


def _strength(pair: Figures) -> float:
    measure = pair["relative"] if pair["relative"] is not None else pair["win_rate"]
    return -1.0 if measure is None else float(measure)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    for column in columns:
        left = column in ("model", "answers", "category")
        table.add_column(
            Text(column), justify="left" if left else "right", overflow="fold" if left else "ellipsis"
        )
    return table


def _name(name: str) -> Text:
    return Text(plain(name, NAME))


def _scored(figures: Figures) -> list[str]:
    counts = [f"{figures[name]:,}" if name in figures else "" for name in ("wins", "ties", "losses")]
    return [sums(figures), *counts]


def sums(figures: Figures) -> str:
    """609 : 666 = 91 % [88, 94]"""
    if figures["sum_a"] is None:
        return span(figures["win_rate"], figures["win_rate_low"], figures["win_rate_high"])
    ratio = span(figures["relative"], figures["low"], figures["high"])
    return f"{_points(figures['sum_a'])} : {_points(figures['sum_b'])} = {ratio}"


def _points(total: float) -> str:
    """655.5, and 664 for 664.0"""
    return f"{total:,.1f}".removesuffix(".0")


def span(share: float | None, low: float | None, high: float | None) -> str:
    if share is None:
        return "unknown"
    return (
        f"{share:.0%}" if low is None or high is None else f"{share:.0%} [{low * 100:.0f}, {high * 100:.0f}]"
    )


def _by_category(pairs: Sequence[Figures]) -> Iterator[Table]:
    """Relative scores (or win rates), some models side by side; not for a whole leaderboard."""
    names = list(dict.fromkeys(one["category"] for pair in pairs for one in pair["by_category"]))
    for start in range(0, len(pairs) if names and len(pairs) <= 2 * COLUMNS else 0, COLUMNS):
        some = pairs[start : start + COLUMNS]
        table = _table("category", *(plain(pair["a"], WIDTH // len(some)) for pair in some))
        for name in names:
            cells = []
            for pair in some:
                found = next((one for one in pair["by_category"] if one["category"] == name), None)
                measure = found and found["relative" if found["sum_a"] is not None else "win_rate"]
                cells.append("-" if measure is None else f"{measure:.0%}")
            table.add_row(_name(name), *cells)
        yield table


def _beside(pair: Figures) -> Iterator[str]:
    """What needs words: replies that could not be read, the first place's worth."""
    if pair["unparsed"]:
        yield (
            f"{pair['unparsed']:,} of {pair['replies']:,} replies could not be read "
            "and are left out of both sums"
        )
    if bias := pair["position_bias"]:
        yield (
            f"in both orders {bias['questions']:,} questions; the first place wins {bias['first']:.0%} of "
            f"replies, the second {bias['second']:.0%}"
        )
        yield (
            f"same winner in both orders {bias['consistent']:.0%}, the other {bias['flips']:.0%}; being "
            f"first is worth {bias['advantage']:+.2f} [{bias['low']:+.2f}, {bias['high']:+.2f}], "
            f"p = {bias['p']:.2g}"
        )
        if pair["balanced"].get("sum_a") is not None:
            yield f"balanced over orders {sums(pair['balanced'])}"


def _two(scores: Sequence[float]) -> str:
    return " ".join(f"{score:g}" for score in scores)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
