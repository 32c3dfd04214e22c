"""What a judge said in the order shown goes out by model, and only what it is sure of."""

from __future__ import annotations

from itertools import permutations

import pytest

from engine.tasks.datasets import agreed, comparison_line, comparisons, ranking_line, review_line, verdict
from engine.tasks.parse_scores import Preference
from store.records import Contest

ANSWERS = {"a": "An a.", "b": "A b.", "c": "A c.", "d": "A d."}


def contest(order: tuple[int, ...], id: str = "1", given: str = "") -> Contest:
    models = tuple("abcd"[at] for at in order)
    return Contest(id, "Say it.", given, "", models, tuple(ANSWERS[m] for m in models), order)


def pairs(row: Contest, scores: tuple[float, ...], least: float = 0.0) -> list[tuple[str, str, float | None]]:
    found = comparisons([(row, scores)], least)
    return [(pair.chosen_model, pair.rejected_model, pair.margin) for pair in found]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_k_answers_make_all_ordered_pairs_whatever_the_order_shown(order: tuple[int, ...]) -> None:
    of_model = {"a": 4.0, "b": 9.0, "c": 7.5, "d": 1.0}
    row = contest(order)
    assert pairs(row, tuple(of_model[m] for m in row.models)) == [
        ("b", "a", 5.0),
        ("c", "a", 3.5),
        ("a", "d", 3.0),
        ("b", "c", 1.5),
        ("b", "d", 8.0),
        ("c", "d", 6.5),
    ]


def test_ties_make_no_pair_and_min_margin_leaves_out_the_close_ones() -> None:
    row = contest((0, 1, 2))
    assert pairs(row, (8, 8, 8)) == []
    assert pairs(row, (8, 8, 7)) == [("a", "c", 1), ("b", "c", 1)]
    assert pairs(row, (8, 7.5, 7), least=1) == [("a", "c", 1)]


def test_equal_answers_make_no_pair_however_they_were_scored() -> None:
    row = Contest("1", "Say it.", "", "", ("a", "b"), ("Same.", "Same."), (0, 1))
    assert pairs(row, (9, 3)) == []


def test_a_comparison_is_written_in_gpt_4_llms_shape() -> None:
    (pair,) = comparisons([(contest((1, 0), given="An input."), (6.0, 8.5))])
    assert comparison_line(pair) == {
        "user_input": "Say it.\n\nAn input.",
        "completion_a": "An a.",
        "completion_b": "A b.",
        "margin": 2.5,
        "models": ["a", "b"],
        "scores": [8.5, 6.0],
    }


def test_a_ranking_keeps_all_answers_and_the_order_shown() -> None:
    assert ranking_line(contest((2, 0, 1)), (7, 8, 9)) == {
        "prompt": "Say it.",
        "answers": [
            {"model": "a", "text": "An a.", "score": 8},
            {"model": "b", "text": "A b.", "score": 9},
            {"model": "c", "text": "A c.", "score": 7},
        ],
        "order": [2, 0, 1],
    }


def test_the_order_of_a_ranking_points_at_its_own_answers_where_a_model_is_missing() -> None:
    line = ranking_line(contest((3, 1)), (7, 8))
    assert [answer["model"] for answer in line["answers"]] == ["b", "d"]
    assert line["order"] == [1, 0]


# Preferences.


def winners(*said: tuple[tuple[int, ...], Preference | None]) -> list[tuple[str, str]]:
    found = agreed((contest(order), preference) for order, preference in said)
    return [(pair.chosen_model, pair.rejected_model) for pair in found]


def test_a_pair_is_made_only_where_both_orders_agree() -> None:
    assert winners(((0, 1), "first"), ((1, 0), "second")) == [("a", "b")]
    assert winners(((0, 1), "second"), ((1, 0), "first")) == [("b", "a")]
    assert winners(((0, 1), "first"), ((1, 0), "first")) == []  # it prefers whatever stands first
    assert winners(((0, 1), "tie"), ((1, 0), "tie")) == []
    assert winners(((0, 1), "first"), ((1, 0), "tie")) == []


def test_one_order_alone_makes_no_pair() -> None:
    assert winners(((0, 1), "first")) == []
    assert winners(((0, 1), "first"), ((1, 0), None)) == []
    assert winners(((0, 1), "first"), ((0, 1), "first")) == []


def test_every_sample_must_agree() -> None:
    both: list[tuple[tuple[int, ...], Preference | None]] = [((0, 1), "first"), ((1, 0), "second")]
    assert winners(*both, *both) == [("a", "b")]
    assert winners(*both, ((0, 1), None)) == [("a", "b")]
    assert winners(*both, ((0, 1), "tie")) == []


def test_neighbours_are_told_apart() -> None:
    rows: list[tuple[Contest, Preference | None]] = [
        (contest((0, 1), id="1"), "first"),
        (contest((1, 0), id="1"), "second"),
        (contest((0, 1), id="2"), "first"),
        (contest((1, 0), id="3"), "second"),
    ]
    found = list(agreed(rows))
    assert len(found) == 1
    line = comparison_line(found[0])
    assert line["margin"] is None
    assert "scores" not in line


# Verdicts.


def test_a_review_gives_the_scores_by_model_and_says_who_was_shown_first() -> None:
    first = Contest("7", "Q?", "", "math", ("a", "b"), ("x", "y"), (0, 1))
    swapped = Contest("7", "Q?", "", "math", ("b", "a"), ("y", "x"), (1, 0))
    line = review_line(verdict(first, (8, 6.5), "8 6.5\nWell."))
    assert line == {
        "question_id": 7,
        "category": "math",
        "models": ["a", "b"],
        "text": "8 6.5\nWell.",
        "score": [8, 6.5],
        "order": [0, 1],
    }
    line = review_line(verdict(swapped, (6.5, 8), "6.5 8\nWell."))
    assert line["score"] == [8, 6.5]
    assert line["models"] == ["a", "b"]
    assert line["order"] == [1, 0]


def test_a_reply_that_could_not_be_read_is_a_review_without_a_score() -> None:
    row = Contest("q-07", "Q?", "", "", ("a", "b"), ("x", "y"), (0, 1))
    line = review_line(verdict(row, None, "I cannot say."))
    assert line["score"] is None
    assert line["question_id"] == "q-07"
    assert line["text"] == "I cannot say."
