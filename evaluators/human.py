"""`distill evaluate human`: votes as the paper's Figure 3, with win, tie and loss for each criterion.

Shares are of votes. Several people vote on one pair, so votes are not independent: intervals are 95 %
percentile bootstrap over pairs, each with all its votes. Agreement is Krippendorff's nominal alpha (his
book, 2019, chapter 12) and the raw share of equal votes. Times are medians and quartiles, which one long
break does not move.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from itertools import groupby
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeAlias

import orjson

from engine.terminal import percent, plain
from evaluators.tables import write_csv
from store.errors import UsageError
from store.votes_queries import Poll, Vote, read_poll
from store.votes_schema import CRITERIA

ALPHA_RESAMPLES = 500
CHOICES = ("a", "tie", "b")
OUTCOMES = ("win", "tie", "loss")

Array: TypeAlias = Any  # numpy's, which is not everywhere
Figures = dict[str, Any]


def figures(run: Path) -> Figures:
    """What `evaluate human --json` prints; shares are 0-1, unknown is None. Raises RunFolderError."""
    return figures_of(read_poll(run))


def figures_of(poll: Poll) -> Figures:
    by_pair = [list(group) for _, group in groupby(poll.votes, key=lambda vote: vote.pair)]
    places = dict(zip(poll.criteria, CRITERIA, strict=False))  # a criterion's name -> its place in a vote
    counts = {name: _counts(by_pair, place) for name, place in places.items()}
    lefts = {name: _lefts(by_pair, place) for name, place in places.items()}
    return {
        "a": poll.study.a,
        "b": poll.study.b,
        "items": poll.pairs,
        "voted": len(by_pair),
        "complete": poll.complete,
        "votes_wanted": poll.study.wanted,
        "votes": len(poll.votes),
        "changed": poll.replaced,
        "skipped": poll.skipped,
        "criteria": {
            name: _criterion(counts[name]) | {"left": _share(lefts[name][:, :1], lefts[name][:, 1:])}
            for name in places
        },
        "left": _share(
            sum(found[:, :1] for found in lefts.values()), sum(found[:, 1:] for found in lefts.values())
        ),
        "seconds": _seconds(poll.votes),
        "annotators": _annotators(poll.votes, by_pair, list(places.values())),
    }


def _counts(by_pair: Sequence[Sequence[Vote]], name: str) -> Array:
    """Pairs × (a, tie, b): how many chose it."""
    import numpy as np

    rows = [[sum(getattr(v, name) == choice for v in votes) for choice in CHOICES] for votes in by_pair]
    return np.array(rows, dtype=np.int64).reshape(-1, len(CHOICES))


def _lefts(by_pair: Sequence[Sequence[Vote]], name: str) -> Array:
    """Pairs × (votes for the side on the left, for the other)."""
    import numpy as np

    decided = [[(getattr(v, name), v.left) for v in votes if getattr(v, name) != "tie"] for votes in by_pair]
    rows = [[sum(c == left for c, left in said), sum(c != left for c, left in said)] for said in decided]
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def _criterion(counts: Array) -> Figures:
    shares = {
        outcome: _share(counts[:, [place]], counts[:, [p for p in range(3) if p != place]])
        for place, outcome in enumerate(OUTCOMES)
    }
    return {"votes": int(counts.sum()), **shares, "net": _net(counts), "agreement": _agreement(counts)}


def _share(yes: Array, no: Array) -> Figures:
    """The share of votes that say yes, of pairs × 1 and pairs × n."""
    import numpy as np

    table = np.column_stack((yes.sum(axis=1), no.sum(axis=1)))
    share, low, high = _interval(table, lambda sums: sums[..., 0] / sums.sum(axis=-1))
    return {"share": share, "low": low, "high": high, "votes": int(table[:, 0].sum())}


def _net(counts: Array) -> Figures:
    """Wins less losses, -1 to 1."""
    share, low, high = _interval(counts, lambda sums: (sums[..., 0] - sums[..., 2]) / sums.sum(axis=-1))
    return {"share": share, "low": low, "high": high}


def _interval(
    table: Array, value: Callable[[Array], Array]
) -> tuple[float | None, float | None, float | None]:
    """A function of the columns' sums, with its bootstrap interval over rows. None without votes."""
    from evaluators.stats import middle, resampled

    table = table[table.sum(axis=1) > 0]  # e.g. a pair on which all said tie has no say about sides
    if not len(table):
        return None, None, None
    return (float(value(table.sum(axis=0))), *middle(value(resampled(table.T))))


def _agreement(counts: Array) -> Figures:
    """alpha: None where it is not defined: no pair with two votes, or all votes the same."""
    several = counts[counts.sum(axis=1) > 1]
    people = several.sum(axis=1)
    pairs = int((people * (people - 1) // 2).sum())
    equal = int((several * (several - 1) // 2).sum())
    alpha = _alpha(several)
    low, high = (None, None) if alpha is None else _alpha_interval(several)
    return {
        "alpha": alpha,
        "low": low,
        "high": high,
        "share": equal / pairs if pairs else None,
        "pairs": pairs,
        "items": len(several),
    }


def _alpha(counts: Array) -> float | None:
    import krippendorff

    if (counts.sum(axis=0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def _alpha_interval(counts: Array) -> tuple[float | None, float | None]:
    """Over resampled pairs; resamples in which all votes are the same have no alpha."""
    import numpy as np

    from evaluators.stats import SEED, middle

    draw = np.random.default_rng(SEED).integers(len(counts), size=(ALPHA_RESAMPLES, len(counts)))
    found = (_alpha(counts[rows]) for rows in draw)
    return middle(np.array([alpha for alpha in found if alpha is not None]))


def _seconds(votes: Sequence[Vote]) -> Figures:
    times = [vote.seconds for vote in votes if vote.seconds > 0]
    quarter, _, rest = quantiles(times, n=4, method="inclusive") if len(times) > 1 else (None, None, None)
    return {
        "median": median(times) if times else None,
        "quarter": quarter,
        "three_quarters": rest,
        "votes": len(times),
    }


def _annotators(
    votes: Sequence[Vote], by_pair: Sequence[Sequence[Vote]], places: Sequence[str]
) -> list[Figures]:
    """Of each person, the most diligent first."""
    own: dict[str, list[Vote]] = {}
    for vote in votes:
        own.setdefault(vote.annotator, []).append(vote)
    agreed = _agreed(by_pair, places)
    rows = [_annotator(name, said, agreed.get(name, (0, 0)), places) for name, said in own.items()]
    return sorted(rows, key=lambda row: (-row["votes"], row["name"]))


def _annotator(name: str, votes: Sequence[Vote], agreed: tuple[int, int], places: Sequence[str]) -> Figures:
    said = [(getattr(vote, criterion), vote.left) for vote in votes for criterion in places]
    decided = [choice == left for choice, left in said if choice != "tie"]
    equal, compared = agreed
    return {
        "name": name,
        "votes": len(votes),
        "seconds": _seconds(votes)["median"],
        "left": sum(decided) / len(decided) if decided else None,
        "ties": (len(said) - len(decided)) / len(said),
        "agreement": equal / compared if compared else None,
    }


def _agreed(by_pair: Sequence[Sequence[Vote]], places: Sequence[str]) -> Mapping[str, tuple[int, int]]:
    """Name -> (votes of others on the same pairs that are equal, that there are)."""
    found: dict[str, tuple[int, int]] = {}
    for votes in by_pair:
        for vote in votes:
            others = [other for other in votes if other.annotator != vote.annotator]
            same = sum(getattr(vote, c) == getattr(other, c) for other in others for c in places)
            equal, compared = found.get(vote.annotator, (0, 0))
            found[vote.annotator] = (equal + same, compared + len(others) * len(places))
    return found


NEEDED = ("numpy", "krippendorff")


def run_human(run: Path, json: bool, table: Path | None, votes: Path | None) -> None:
    """Raises UsageError, RunFolderError."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UsageError(f"evaluate human needs {', '.join(missing)} (the extra `evaluate`)")
    poll = read_poll(run)
    found = figures_of(poll)
    if table is not None:
        write_csv(table, ("criterion", "outcome", "share", "low", "high", "votes"), _table(found))
    if votes is not None:
        write_csv(votes, *_votes(poll))
    if json:
        sys.stdout.write(orjson.dumps(found).decode() + "\n")
    else:
        print("\n".join(_words(found)))


def _table(found: Figures) -> list[list[object]]:
    shares = [
        (name, outcome, found["criteria"][name][outcome])
        for name in found["criteria"]
        for outcome in OUTCOMES
    ]
    return [[name, outcome, s["share"], s["low"], s["high"], s["votes"]] for name, outcome, s in shares]


def _votes(poll: Poll) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
    """A row for each vote; a choice by its model's name, `left` the model that stood there."""
    names = {"a": poll.study.a, "b": poll.study.b}
    places = [field.name for field in fields(Vote)]
    chosen = {places.index(name) for name in (*CRITERIA, "left")}
    kept = [n for n, name in enumerate(places) if name not in CRITERIA[len(poll.criteria) :]]
    rows = (
        [names.get(value, value) if at in chosen else value for at, value in enumerate(astuple(vote))]
        for vote in poll.votes
    )
    rows = ([row[n] for n in kept] for row in rows)
    own = dict(zip(CRITERIA, poll.criteria, strict=False))
    return [own.get(places[n], places[n]) for n in kept], rows


def _words(found: Figures) -> list[str]:
    a, b = plain(found["a"], 40), plain(found["b"], 40)
    width = max(10, *(len(name) + 2 for name in found["criteria"]))
    lines = [
        f"{a} against {b}: {_votes_told(found['votes'])} on {found['voted']:,} of {found['items']:,} pairs "
        f"({found['complete']:,} with all {found['votes_wanted']}), {_people(found['annotators'])}; "
        f"{found['changed']:,} changed, {found['skipped']:,} skipped",
        "",
        f"{'':{width}}{'win':>23}{'tie':>23}{'loss':>23}   agreement",
    ]
    lines += [_line(name.ljust(width), found["criteria"][name]) for name in found["criteria"]]
    seconds, left = found["seconds"], found["left"]
    if seconds["median"] is not None:
        lines += ["", f"time per vote: median {seconds['median']:.0f} s" + _quartiles(seconds)]
    if left["share"] is not None:
        lines.append(f"the left side was chosen in {_shown(left)} of the votes that are no tie")
    lines += [
        f"{plain(row['name'], 40)}: {_votes_told(row['votes'])}" + _habits(row) for row in found["annotators"]
    ]
    return lines


def _votes_told(count: int) -> str:
    return "1 vote" if count == 1 else f"{count:,} votes"


def _people(annotators: Sequence[Figures]) -> str:
    return "1 annotator" if len(annotators) == 1 else f"{len(annotators):,} annotators"


def _line(name: str, row: Figures) -> str:
    agreement = row["agreement"]
    alpha = "-" if agreement["alpha"] is None else f"{agreement['alpha']:.2f}"
    cells = "".join(f"{_shown(row[outcome]):>23}" for outcome in OUTCOMES)
    return f"{name}{cells}   alpha {alpha}, {percent(agreement['share'])} equal"


def _shown(found: Figures) -> str:
    if found["share"] is None:
        return "-"
    return f"{found['share']:.1%} ({found['low']:.1%}-{found['high']:.1%})".replace("%-", "-")


def _quartiles(seconds: Figures) -> str:
    if seconds["quarter"] is None:
        return ""
    return f" (half of them {seconds['quarter']:.0f}-{seconds['three_quarters']:.0f} s)"


def _habits(row: Figures) -> str:
    seconds = "" if row["seconds"] is None else f", median {row['seconds']:.0f} s"
    rest = f", ties {percent(row['ties'])}, left {percent(row['left'])}, agrees {percent(row['agreement'])}"
    return seconds + rest
