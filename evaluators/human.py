"""`distill evaluate human`: votes as the paper's Figure 3, with win, tie and loss for each criterion.

Shares are of votes. Several people vote on one pair, so votes are not independent: intervals are 95 %
percentile bootstrap over pairs, each with all its votes. Agreement is Krippendorff's nominal alpha (his
book, 2019, chapter 12) and the raw share of equal votes. Times are medians and quartiles, which one long
break does not move.
"""

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from itertools import groupby
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeAlias

import orjson

from engine.terminal import percent, plain
from evaluators.tables import write_csv
from store.errors import UsageError
from store.votes_schema import CRITERIA, Poll, Vote, read_poll

ALPHA_RESAMPLES = 500
CHOICES = ("a", "tie", "b")
OUTCOMES = ("win", "tie", "loss")

Array: TypeAlias = Any  # numpy's, which is not everywhere
Figures = dict[str, Any]


def figures(run: Path) -> Figures:
    """What `evaluate human --json` prints; shares are 0-1, unknown is None. Raises RunFolderError."""
    return figures_of(read_poll(run))


def figures_of(poll: Poll) -> Figures:
    import numpy as np

    by_pair = [list(group) for _, group in groupby(poll.votes, key=lambda vote: vote.pair)]
    places = dict(zip(poll.criteria, CRITERIA, strict=False))  # a criterion's name -> its place in a vote
    criteria: dict[str, Figures] = {}
    all_lefts: list[Array] = []
    for name, place in places.items():
        said = [[(getattr(vote, place), vote.left) for vote in votes] for votes in by_pair]
        # pairs × (a, tie, b): how many chose it
        rows = [[sum(choice == one for choice, _ in votes) for one in CHOICES] for votes in said]
        counts = np.array(rows, dtype=np.int64).reshape(-1, len(CHOICES))
        # pairs × (votes for the side on the left, for the other)
        sides = [[choice == left for choice, left in votes if choice != "tie"] for votes in said]
        rows = [[sum(one), len(one) - sum(one)] for one in sides]
        lefts = np.array(rows, dtype=np.int64).reshape(-1, 2)
        criteria[name] = _criterion(counts) | {"left": _share(lefts[:, :1], lefts[:, 1:])}
        all_lefts.append(lefts)
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
        "criteria": criteria,
        "left": _share(sum(found[:, :1] for found in all_lefts), sum(found[:, 1:] for found in all_lefts)),
        "seconds": _seconds(poll.votes),
        "annotators": _annotators(poll.votes, by_pair, list(places.values())),
    }


def _criterion(counts: Array) -> Figures:
    import numpy as np

    from evaluators.stats import SEED, middle

    shares = {
        outcome: _share(counts[:, [place]], counts[:, [p for p in range(3) if p != place]])
        for place, outcome in enumerate(OUTCOMES)
    }
    net, low, high = _interval(counts, lambda sums: (sums[..., 0] - sums[..., 2]) / sums.sum(axis=-1))
    # alpha: None where it is not defined: no pair with two votes, or all votes the same. Its interval is
    # over resampled pairs, without resamples in which all votes are the same.
    several = counts[counts.sum(axis=1) > 1]
    people = several.sum(axis=1)
    pairs = int((people * (people - 1) // 2).sum())
    equal = int((several * (several - 1) // 2).sum())
    alpha, least, most = _alpha(several), None, None
    if alpha is not None:
        draw = np.random.default_rng(SEED).integers(len(several), size=(ALPHA_RESAMPLES, len(several)))
        drawn = (_alpha(several[rows]) for rows in draw)
        least, most = middle(np.array([one for one in drawn if one is not None]))
    return {
        "votes": int(counts.sum()),
        **shares,
        "net": {"share": net, "low": low, "high": high},  # wins less losses, -1 to 1
        "agreement": {
            "alpha": alpha,
            "low": least,
            "high": most,
            "share": equal / pairs if pairs else None,
            "pairs": pairs,
            "items": len(several),
        },
    }


def _share(yes: Array, no: Array) -> Figures:
    """The share of votes that say yes, of pairs × 1 and pairs × n."""
    import numpy as np

    table = np.column_stack((yes.sum(axis=1), no.sum(axis=1)))
    share, low, high = _interval(table, lambda sums: sums[..., 0] / sums.sum(axis=-1))
    return {"share": share, "low": low, "high": high, "votes": int(table[:, 0].sum())}


def _interval(
    table: Array, value: Callable[[Array], Array]
) -> tuple[float | None, float | None, float | None]:
    """A function of the columns' sums, with its bootstrap interval over rows. None without votes."""
    from evaluators.stats import middle, resampled

    table = table[table.sum(axis=1) > 0]  # e.g. a pair on which all said tie has no say about sides
    if not len(table):
        return None, None, None
    return (float(value(table.sum(axis=0))), *middle(value(resampled(table.T))))


def _alpha(counts: Array) -> float | None:
    import krippendorff

    if (counts.sum(axis=0) > 0).sum() < 2:
        return None
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


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
    # of each: how many votes of others on the same pairs are equal, and how many there are
    equal, compared = Counter[str](), Counter[str]()
    for on_pair in by_pair:
        for vote in on_pair:
            others = [other for other in on_pair if other.annotator != vote.annotator]
            equal[vote.annotator] += sum(getattr(vote, c) == getattr(o, c) for o in others for c in places)
            compared[vote.annotator] += len(others) * len(places)
    rows = []
    for name, cast in own.items():
        said = [(getattr(vote, criterion), vote.left) for vote in cast for criterion in places]
        decided = [choice == left for choice, left in said if choice != "tie"]
        rows.append(
            {
                "name": name,
                "votes": len(cast),
                "seconds": _seconds(cast)["median"],
                "left": sum(decided) / len(decided) if decided else None,
                "ties": (len(said) - len(decided)) / len(said),
                "agreement": equal[name] / compared[name] if compared[name] else None,
            }
        )
    return sorted(rows, key=lambda row: (-row["votes"], row["name"]))


NEEDED = ("numpy", "krippendorff")


def run_human(run: Path, json: bool, table: Path | None, votes: Path | None) -> None:
    """Raises UsageError, RunFolderError."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UsageError(f"evaluate human needs {', '.join(missing)} (the extra `evaluate`)")
    poll = read_poll(run)
    found = figures_of(poll)
    if table is not None:
        shares = ((n, o, found["criteria"][n][o]) for n in found["criteria"] for o in OUTCOMES)
        rows = [[n, o, s["share"], s["low"], s["high"], s["votes"]] for n, o, s in shares]
        write_csv(table, ("criterion", "outcome", "share", "low", "high", "votes"), rows)
    if votes is not None:
        # a row for each vote; a choice by its model's name, `left` the model that stood there
        names = {"a": poll.study.a, "b": poll.study.b}
        places = [field.name for field in fields(Vote)]
        chosen = {places.index(name) for name in (*CRITERIA, "left")}
        kept = [n for n, name in enumerate(places) if name not in CRITERIA[len(poll.criteria) :]]
        values = ([*enumerate(astuple(vote))] for vote in poll.votes)
        lines = (
            [names.get(value, value) if at in chosen else value for at, value in row if at in kept]
            for row in values
        )
        own = dict(zip(CRITERIA, poll.criteria, strict=False))
        write_csv(votes, [own.get(places[n], places[n]) for n in kept], lines)
    if json:
        sys.stdout.write(orjson.dumps(found).decode() + "\n")
    else:
        print("\n".join(_words(found)))


def _words(found: Figures) -> list[str]:
    a, b = plain(found["a"], 40), plain(found["b"], 40)
    width = max(10, *(len(name) + 2 for name in found["criteria"]))
    people = len(found["annotators"])
    lines = [
        f"{a} against {b}: {_votes_told(found['votes'])} on {found['voted']:,} of {found['items']:,} pairs "
        f"({found['complete']:,} with all {found['votes_wanted']}), "
        f"{people:,} annotator{'s' * (people != 1)}; "
        f"{found['changed']:,} changed, {found['skipped']:,} skipped",
        "",
        f"{'':{width}}{'win':>23}{'tie':>23}{'loss':>23}   agreement",
    ]
    for name, row in found["criteria"].items():
        agreement = row["agreement"]
        alpha = "-" if agreement["alpha"] is None else f"{agreement['alpha']:.2f}"
        cells = "".join(f"{_shown(row[outcome]):>23}" for outcome in OUTCOMES)
        lines.append(f"{name:{width}}{cells}   alpha {alpha}, {percent(agreement['share'])} equal")
    seconds, left = found["seconds"], found["left"]
    if seconds["median"] is not None:
        lines += ["", f"time per vote: median {seconds['median']:.0f} s"]
    if seconds["quarter"] is not None:
        lines[-1] += f" (half of them {seconds['quarter']:.0f}-{seconds['three_quarters']:.0f} s)"
    if left["share"] is not None:
        lines.append(f"the left side was chosen in {_shown(left)} of the votes that are not ties")
    for row in found["annotators"]:
        took = "" if row["seconds"] is None else f", median {row['seconds']:.0f} s"
        lines.append(
            f"{plain(row['name'], 40)}: {_votes_told(row['votes'])}{took}, ties {percent(row['ties'])}, "
            f"left {percent(row['left'])}, agrees {percent(row['agreement'])}"
        )
    return lines


def _votes_told(count: int) -> str:
    return "1 vote" if count == 1 else f"{count:,} votes"


def _shown(found: Figures) -> str:
    if found["share"] is None:
        return "-"
    return f"{found['share']:.1%} ({found['low']:.1%}-{found['high']:.1%})".replace("%-", "-")
