"""What judges said comes to the published sums, and to honest intervals, biases and agreement."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.judge.judgements import Judgement, agreement, alpha, grouped, told_apart, turned
from evaluators.judge.metrics import judge_report, sign_test, tables_of
from evaluators.judge.reviews import Naming, ReviewSource, Word, read_reviews
from evaluators.stats import mean_interval, ratio_interval, resampled
from store.errors import PoolError, UsageError
from tests.support.judging import Scores, review, said, written

DATA = Path(os.environ.get("DISTILL_DATA", "not set"))
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="DISTILL_DATA is not set")
Row = dict[str, Any]


def pair(judgements: Sequence[Judgement]) -> Row:
    (found,) = judge_report([ReviewSource("file", judgements)])["pairs"]
    return dict(found)


@real_data
@pytest.mark.parametrize(
    ("model", "sums"),
    [
        ("llama-13b", (513, 694)),
        ("alpaca-13b", (583, 704)),
        ("bard", (664, 655.5)),
        ("gpt35", (693, 638)),
    ],
)
def test_the_published_sums_come_out(model: str, sums: tuple[float, float]) -> None:
    path = DATA / "vicuna80" / "reviews_gpt4" / f"{model}_vs_vicuna-13b.jsonl"
    found = pair(read_reviews(path, Naming(), "file").judgements)
    assert (found["a"], found["b"], found["judge"]) == (model, "vicuna-13b", "gpt-4-0328")
    assert (found["questions"], found["unparsed"]) == (80, 0)
    assert (found["sum_a"], found["sum_b"]) == sums
    assert found["low"] < found["relative"] == sums[0] / sums[1] < found["high"]
    assert found["wins"] + found["ties"] + found["losses"] == 80


@real_data
def test_a_published_score_that_is_not_its_texts_is_told() -> None:
    path = DATA / "vicuna80" / "reviews_gpt4" / "bard_vs_vicuna-13b.jsonl"
    source = read_reviews(path, Naming(), "file")
    assert [(d.question, d.file, d.text) for d in source.differences] == [("70", (10, 2), (10, 4))]
    by_text = pair(read_reviews(path, Naming(), "text").judgements)
    assert (by_text["sum_a"], by_text["sum_b"]) == (664, 657.5)


def test_what_cannot_be_read_is_in_neither_sum() -> None:
    found = pair([said(1, (8, 9)), said(2, None), said(3, (7, 7)), said(4, (9, 2))])
    assert (found["questions"], found["replies"], found["unparsed"]) == (4, 4, 1)
    assert (found["sum_a"], found["sum_b"]) == (24, 18)
    assert (found["wins"], found["ties"], found["losses"]) == (1, 1, 1)
    assert found["win_rate"] == 0.5


def test_nothing_that_could_be_read_is_no_figure() -> None:
    found = pair([said(1, None), said(2, None)])
    assert (found["unparsed"], found["wins"]) == (2, 0)
    unknown = ("sum_a", "sum_b", "relative", "low", "high", "win_rate", "position_bias", "length_controlled")
    assert [found[name] for name in unknown] == [None] * len(unknown)


def test_an_opponent_without_a_point_has_no_ratio() -> None:
    found = pair([said(1, (5, 0)), said(2, (6, 0))])
    assert (found["sum_b"], found["relative"], found["low"]) == (0, None, None)


def test_categories_add_up_to_the_whole() -> None:
    found = pair(
        [said(1, (8, 4), category="math"), said(2, (3, 6), category="math"), said(3, (5, 5), category="x")]
    )
    assert [(c["category"], c["sum_a"], c["sum_b"], c["wins"]) for c in found["by_category"]] == [
        ("math", 11, 10, 1),
        ("x", 5, 5, 0),
    ]


def test_both_orders_tell_the_place_from_the_model() -> None:
    """Question 1: whoever is first wins by 2. Question 2: ours wins by 1 wherever it stands. Question 3 was
    read in one order only."""
    found = pair(
        [
            said(1, (9, 7)), said(1, (7, 9), a_first=False),
            said(2, (8, 7)), said(2, (8, 7), a_first=False),
            said(3, (2, 9)), said(3, None, a_first=False),
        ]
    )  # fmt: skip
    bias, balanced = found["position_bias"], found["balanced"]
    assert (bias["questions"], bias["first"], bias["second"]) == (2, 0.75, 0.25)
    assert (bias["consistent"], bias["flips"], bias["advantage"]) == (0.5, 0.5, 1.0)
    assert (bias["lean_first"], bias["lean_second"], bias["p"]) == (1, 0, 1.0)
    assert (balanced["questions"], balanced["sum_a"], balanced["sum_b"]) == (2, 16, 15)
    assert (balanced["wins"], balanced["ties"], balanced["losses"]) == (1, 1, 0)
    assert (found["sum_a"], found["sum_b"], found["unparsed"]) == (34, 39, 1)


def test_one_order_cannot_tell_a_position_bias() -> None:
    found = pair([said(1, (9, 7)), said(2, (9, 7))])
    assert found["position_bias"] is found["balanced"] is None


def test_the_sign_test_is_exact() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 5) == 2 / 32
    assert sign_test(8, 2) == pytest.approx(0.109375)
    assert sign_test(5000, 5000) == 1.0
    assert sign_test(5200, 4800) < 1e-4


def test_a_pair_named_the_other_way_round_is_the_same_pair() -> None:
    one, other = said(1, (9, 4)), turned(said(2, (3, 8), a_first=False))
    assert (other.a, other.score_a, other.a_first) == ("theirs", 8, True)
    ((key, members),) = grouped([one, other]).items()
    assert key == ("ours", "theirs", "gpt-4")
    assert [(m.score_a, m.score_b, m.a_first) for m in members] == [(9, 4, True), (3, 8, False)]


def test_intervals_are_those_of_a_slow_bootstrap() -> None:
    draw = random.Random(1)
    above = [draw.randint(1, 10) for _ in range(40)]
    below = [draw.randint(1, 10) for _ in range(40)]
    ratios = []
    for _ in range(4000):
        places = [draw.randrange(40) for _ in range(40)]
        ratios.append(sum(above[p] for p in places) / sum(below[p] for p in places))
    ratios.sort()
    low, high = ratio_interval(np.array(above, float), np.array(below, float))
    assert low == pytest.approx(ratios[100], abs=0.03)
    assert high == pytest.approx(ratios[3899], abs=0.03)


def test_an_interval_narrows_with_the_questions_and_repeats_itself() -> None:
    few, many = np.tile([0.0, 1.0], 20), np.tile([0.0, 1.0], 2000)
    low, high = mean_interval(few)
    assert low is not None
    assert high is not None
    assert (low, high) == mean_interval(few)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, rel=0.1)
    narrow = mean_interval(many)
    assert narrow[1] is not None
    assert narrow[1] - 0.5 == pytest.approx((high - 0.5) / 10, rel=0.15)


def test_resampled_columns_draw_the_same_questions() -> None:
    drawn = resampled(np.stack([np.arange(30.0), 2 * np.arange(30.0)]))
    assert (drawn[:, 1] == 2 * drawn[:, 0]).all()


def test_alpha_is_that_of_the_documented_example() -> None:
    """Krippendorff's own reliability data, as the package documents it."""
    nan = np.nan
    ratings = np.array(
        [
            [nan, nan, nan, nan, nan, 3, 4, 1, 2, 1, 1, 3, 3, nan, 3],
            [1, nan, 2, 1, 3, 3, 4, 3, nan, nan, nan, nan, nan, nan, nan],
            [nan, nan, 2, 1, 3, 4, 4, nan, 2, 1, 1, 3, 3, nan, 4],
        ]
    )
    assert alpha(ratings, "interval") == pytest.approx(0.811, abs=1e-3)
    assert alpha(np.ones((2, 5)), "interval") is None


def test_judges_are_compared_on_what_both_could_read() -> None:
    ours = [said(1, (8, 6)), said(2, (7, 9)), said(3, (5, 5)), said(4, (9, 3)), said(5, (1, 2))]
    others = [said(1, (8, 6)), said(2, (7, 9)), said(3, (6, 4)), said(4, None)]
    tables = tables_of([*ours, *(turned(turned(s)) for s in _by("claude", others))])
    found = agreement(tables)
    assert found["names"] == ["gpt-4", "claude"]
    (one,) = found["agreement"]
    assert (one["judges"], one["questions"]) == (["gpt-4", "claude"], 3)
    assert one["same_winner"] == pytest.approx(2 / 3)
    assert 0.8 < one["alpha_interval"] < 1
    assert 0.8 < one["spearman"] < 1
    assert agreement(tables_of([*ours, *_by("claude", ours)]))["agreement"][0]["alpha_ordinal"] == 1


def _by(judge: str, judgements: Sequence[Judgement]) -> list[Judgement]:
    return [
        said(
            int(s.question),
            None if s.score_a is None or s.score_b is None else (s.score_a, s.score_b),
            judge=judge,
        )
        for s in judgements
    ]


def test_two_files_with_the_same_reviews_are_two_judges() -> None:
    one = [said(1, (8, 6), source="first")]
    again = [said(1, (5, 6), source="second"), said(2, (5, 5), source="second")]
    assert [s.judge for s in told_apart([one, again])] == ["gpt-4 (first)", *["gpt-4 (second)"] * 2]
    other_order = [said(1, (5, 6), a_first=False, source="second")]
    assert [s.judge for s in told_apart([one, other_order])] == ["gpt-4", "gpt-4"]


def test_a_review_of_ours_is_read_by_model_whoever_was_first(tmp_path: Path) -> None:
    rows = [
        review(1, "9 4\nThe first.", models=["x", "y"], score=[4, 9], order=[1, 0], category="math"),
        review(2, "9 4\nThe first.", models=["x", "y"], score=None, order=[1, 0]),
        review("three", "9 4", models=["x", "y"], score=[9, 4], order=[0, 1]),
    ]
    source = read_reviews(written(tmp_path / "reviews.jsonl", rows), Naming(), "file")
    found = [(s.question, s.a, s.score_a, s.score_b, s.a_first) for s in source.judgements]
    assert found == [("1", "x", 4, 9, False), ("2", "x", 4, 9, False), ("three", "x", 9, 4, True)]
    assert not source.differences


def test_fastchats_mark_of_a_failure_is_no_score(tmp_path: Path) -> None:
    rows = [review(1, "I will not.", score=[-1, -1]), review(2, "8 9", score=[-1.0, -1.0])]
    source = read_reviews(written(tmp_path / "x_vs_y.jsonl", rows), Naming(), "file")
    assert [(s.score_a, s.win) for s in source.judgements] == [(None, None), (8, 0)]


@pytest.mark.parametrize(("word", "counts"), [("file", (8, 9)), ("text", None)])
def test_a_text_that_says_nothing_differs_from_its_score(tmp_path: Path, word: Word, counts: Scores) -> None:
    path = written(tmp_path / "x_vs_y.jsonl", [review(1, "No idea.", score=[8, 9]), review(2, "8 9")])
    source = read_reviews(path, Naming(), word)
    first = source.judgements[0]
    assert ((first.score_a, first.score_b) if first.win is not None else None) == counts
    assert [(d.line, d.text) for d in source.differences] == [(1, None)]


@pytest.mark.parametrize(
    "bad",
    [
        review(None, "8 9"),
        {"question_id": 1},
        review(1, "8 9", score=[8]),
        review(1, "8 9", score=[8, True]),
        review(1, "8 9", score=[8, -2]),
        review(1, "8 9", score="8 9"),
        review(1, "8 9", models=["x", "x"]),
        {"question_id": 1, "text": ["8 9"]},
        [1, 2],
        "8 9",
    ],
)
def test_a_bad_line_is_counted_and_the_rest_goes_on(tmp_path: Path, bad: object) -> None:
    source = read_reviews(written(tmp_path / "x_vs_y.jsonl", [review(1, "8 9"), bad]), Naming(), "file")
    assert [(b.line, len(source.judgements)) for b in source.bad] == [(2, 1)]
    with pytest.raises(PoolError, match=r"no usable review .*line 1"):
        read_reviews(written(tmp_path / "x_vs_y.jsonl", [bad]), Naming(), "file")


def test_a_file_that_names_nobody_needs_words(tmp_path: Path) -> None:
    path = written(tmp_path / "bard.jsonl", [review(1, "8 9")])
    with pytest.raises(UsageError, match=r"whose reviews.*--a and --b"):
        read_reviews(path, Naming(), "file")
    (found,) = read_reviews(path, Naming(b="vicuna"), "file").judgements
    assert (found.a, found.b) == ("bard", "vicuna")
    (found,) = read_reviews(path, Naming(a="one", b="two"), "file").judgements
    assert (found.a, found.b) == ("one", "two")
    with pytest.raises(UsageError, match="both models are called"):
        read_reviews(path, Naming(a="two", b="two"), "file")
