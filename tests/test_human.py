"""Votes as figures: the shares, intervals, agreement and times that are reported are those of the votes."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

pytest.importorskip("numpy", reason="the extra `evaluate` is not installed")
pytest.importorskip("krippendorff", reason="the extra `evaluate` is not installed")

from evaluators.human import figures, figures_of, run_human
from store.errors import RunFolderError
from store.votes_schema import Ballot, Poll, Study, Vote
from tests.support.annotating import human, opened

STUDY = Study("one", "other", 2, 0, "")


def vote(pair: int, who: str, helpful: str, left: str = "a", seconds: float = 10.0) -> Vote:
    return Vote(pair, f"q{pair}", who, helpful, "tie", "a", "", left, seconds, 0.0)  # type: ignore[arg-type]


def poll(votes: Sequence[Vote]) -> Poll:
    return Poll(STUDY, 9, 0, 0, 0, tuple(sorted(votes, key=lambda v: v.pair)))


def test_shares_are_of_votes_and_lie_in_their_intervals() -> None:
    votes = [vote(n, who, "a" if n < 6 else "b" if n < 8 else "tie") for n in range(10) for who in "xy"]
    found = figures_of(poll(votes))
    helpful = found["criteria"]["helpful"]
    assert [helpful[name]["share"] for name in ("win", "tie", "loss")] == [0.6, 0.2, 0.2]
    assert [helpful[name]["votes"] for name in ("win", "tie", "loss")] == [12, 4, 4]
    assert math.isclose(helpful["net"]["share"], 0.4)
    for name in ("win", "tie", "loss", "net"):
        assert helpful[name]["low"] < helpful[name]["share"] < helpful[name]["high"]
    assert found["criteria"]["honest"]["tie"] == {"share": 1.0, "low": 1.0, "high": 1.0, "votes": 20}
    assert found == figures_of(poll(votes))  # the same votes, the same figures


def test_several_votes_on_one_pair_are_no_independent_draws() -> None:
    """Ten people who say the same of each pair know no more than one of them."""
    one = [vote(n, "x", "a" if n % 3 else "b") for n in range(30)]
    ten = [vote(n, who, "a" if n % 3 else "b") for n in range(30) for who in "abcdefghij"]
    alone, crowd = (figures_of(poll(votes))["criteria"]["helpful"]["win"] for votes in (one, ten))
    assert alone["share"] == crowd["share"]
    assert math.isclose(alone["low"], crowd["low"])
    p, n = 2 / 3, 30  # the normal approximation
    assert abs((crowd["high"] - crowd["low"]) - 2 * 1.96 * math.sqrt(p * (1 - p) / n)) < 0.05


def test_alpha_is_one_less_observed_by_expected_disagreement() -> None:
    first = ["a", "a", "b", "b", "tie", "tie", "tie", "a", "tie", "b"]
    second = ["b", "a", "b", "b", "tie", "b", "tie", "a", "tie", "b"]
    votes = [vote(n, who, said[n]) for n in range(10) for who, said in (("x", first), ("y", second))]
    agreement = figures_of(poll(votes))["criteria"]["helpful"]["agreement"]
    totals = {c: (first + second).count(c) for c in ("a", "b", "tie")}
    observed = 2 / 10
    expected = 1 - sum(n * (n - 1) for n in totals.values()) / (20 * 19)
    assert math.isclose(agreement["alpha"], 1 - observed / expected)
    assert (agreement["share"], agreement["pairs"], agreement["items"]) == (0.8, 10, 10)
    assert agreement["low"] < agreement["alpha"] <= agreement["high"]


def test_what_is_not_known_is_null() -> None:
    found = figures_of(poll([]))
    assert found["criteria"]["helpful"]["win"] == {"share": None, "low": None, "high": None, "votes": 0}
    assert found["seconds"]["median"] is None
    assert found["left"]["share"] is None
    alone = figures_of(poll([vote(1, "x", "a")]))
    assert alone["criteria"]["helpful"]["agreement"] == {
        "alpha": None, "low": None, "high": None, "share": None, "pairs": 0, "items": 0
    }  # fmt: skip
    same = figures_of(poll([vote(1, "x", "a"), vote(1, "y", "a")]))["criteria"]["helpful"]["agreement"]
    assert (same["alpha"], same["share"]) == (None, 1.0)


def test_the_preference_for_a_side_is_seen() -> None:
    """Somebody who always takes the left answer, whoever wrote it."""
    votes = [vote(n, "x", "ab"[n % 2], left="ab"[n % 2]) for n in range(8)]
    found = figures_of(poll(votes))
    assert found["criteria"]["helpful"]["left"]["share"] == 1.0
    assert found["criteria"]["helpful"]["win"]["share"] == 0.5
    assert found["annotators"][0]["left"] == 12 / 16  # harmless was always a's
    assert found["left"]["votes"] == 12


def test_a_long_pause_does_not_move_the_time_of_a_vote() -> None:
    votes = [vote(n, "x", "a", seconds=20.0 + n) for n in range(9)] + [vote(9, "x", "a", seconds=50_000.0)]
    seconds = figures_of(poll(votes))["seconds"]
    assert (seconds["median"], seconds["votes"]) == (24.5, 10)
    assert seconds["three_quarters"] < 28


def fill(run: Path) -> None:
    with opened(run, count=3, wanted=2) as votes:
        for name, choice in (("Ann", "a"), ("=cmd()", "b")):
            me = votes.join(name)
            for _ in range(3):
                pair = votes.next_pair(me)
                assert pair
                votes.open(me, pair)
                votes.cast(me, pair, Ballot(choice, "tie", choice, "=1+1"), 5.0)  # type: ignore[arg-type]


async def test_the_command_prints_one_json_object(tmp_path: Path) -> None:
    fill(tmp_path / "run")
    ended = await human(tmp_path / "run", "--json")
    assert ended.code == 0, ended.err
    assert orjson.loads(ended.out) == figures(tmp_path / "run")
    found = orjson.loads(ended.out)
    assert (found["items"], found["voted"], found["complete"], found["votes"]) == (3, 3, 3, 6)
    assert found["criteria"]["helpful"]["win"]["share"] == 0.5
    assert [row["agreement"] for row in found["annotators"]] == [1 / 3, 1 / 3]


def test_tables_hold_the_same_figures_and_no_formulas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "run")
    table, votes = tmp_path / "figure.csv", tmp_path / "votes.csv"
    run_human(tmp_path / "run", False, table, votes)
    said = capsys.readouterr().out
    assert "6 votes on 3 of 3 pairs" in said
    assert "50.0%" in said
    assert " 100.0% (100.0-100.0%) " in said  # honest: all are ties; columns stand apart
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert [float(row["share"]) for row in rows[:3]] == [0.5, 0.0, 0.5]
    with votes.open(encoding="utf-8", newline="") as file:
        cast = list(csv.DictReader(file))
    assert {row["helpful"] for row in cast} == {"secretmodel-a", "secretmodel-b"}
    assert {row["note"] for row in cast} == {"'=1+1"}
    assert {row["annotator"] for row in cast} == {"Ann", "'=cmd()"}


def test_a_folder_without_votes_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no votes in"):
        run_human(tmp_path, True, None, None)
