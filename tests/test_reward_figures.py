"""Accuracy with an interval that knows of prompts, beside length and chance; calibration; plain words."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("numpy", reason="the trainers' packages are not installed (requirements/train.txt)")

import numpy as np

from trainers.reward_metrics import Judged, calibration, effective, interval, report_on, words


def judged(gaps: list[float], **more: list[float]) -> Judged:
    n = len(gaps)
    given: dict[str, Any] = {"margin": [math.nan] * n, "better": [10.0] * n, "worse": [10.0] * n} | more
    prompt = np.array(more.get("prompt", range(n)), np.int64)
    values = (np.array(values, float) for values in (gaps, given["margin"], given["better"], given["worse"]))
    return Judged(*values, prompt)


def test_pairs_of_prompts_of_their_own_have_wilsons_interval() -> None:
    right = np.array([1.0] * 70 + [0.0] * 30)
    low, high = interval(right, np.arange(100))
    # Wilson's for 70 of 100: 0.6042 to 0.7811; the variance is estimated with 99, not 100.
    assert (low, high) == (pytest.approx(0.6042, abs=2e-3), pytest.approx(0.7811, abs=2e-3))


def test_pairs_that_agree_within_a_prompt_tell_no_more_than_the_prompt() -> None:
    right = np.repeat(np.array([1.0] * 7 + [0.0] * 3), 10)
    prompt = np.repeat(np.arange(10), 10)
    assert effective(right, prompt) == pytest.approx(9)
    low, high = interval(right, prompt)
    alone = interval(right, np.arange(100))
    assert low < alone[0]
    assert high > alone[1]


def test_all_right_is_not_certain() -> None:
    low, high = interval(np.ones(12), np.repeat(np.arange(4), 3))
    assert (low, high) == (pytest.approx(4 / (4 + 1.96**2), abs=1e-3), pytest.approx(1.0))


def test_the_report_has_the_figures_that_were_promised_and_buckets_that_add_up() -> None:
    report = report_on(
        judged(
            [1.0, -1.0, 2.0, 0.0],
            margin=[0.5, 1.0, 6.0, math.nan],
            better=[30, 10, 20, 5],
            worse=[10, 30, 21, 5],
        )
    )
    assert {"pairs", "accuracy", "low", "high", "length_baseline"} <= report.keys()
    assert (report["pairs"], report["prompts"]) == (4, 4)
    assert report["accuracy"] == (1 + 0 + 1 + 0.5) / 4
    assert report["length_baseline"] == (1 + 0 + 0 + 0.5) / 4
    assert report["over_length"]["difference"] == 0.25
    assert [b["pairs"] for b in report["by_margin"]] == [2, 0, 0, 1, 1]
    assert [b["pairs"] for b in report["by_length"]] == [1, 0, 2, 0, 1]


def test_calibration_by_hand() -> None:
    logit = math.log(0.95 / 0.05)
    found = calibration(np.array([logit] * 19 + [-logit]))  # says 0.95, is right in 19 of 20
    assert found["brier"] == pytest.approx(0.95 * 0.05**2 + 0.05 * 0.95**2)
    assert found["ece"] == pytest.approx(0, abs=1e-9)
    assert [b["pairs"] for b in found["bins"]][:3] == [0, 0, 0]
    sure = calibration(np.array([50.0, -50.0]))
    assert (sure["brier"], sure["ece"]) == (pytest.approx(0.5), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("gaps", "better", "said"),
    [
        ([1.0] * 40, [5.0] * 40, "It beats length by +100.0 points"),
        ([-1.0] * 40, [20.0] * 40, "It does NOT beat length: -100.0 points"),
        ([1.0, -1.0] * 20, [20.0, 5.0] * 20, "It is NOT shown to beat length: +0.0 points"),
    ],
)
def test_it_is_said_plainly_whether_length_is_beaten(
    gaps: list[float], better: list[float], said: str
) -> None:
    assert words(report_on(judged(gaps, better=better)))[1].startswith(said)


def test_a_margin_at_which_length_does_as_well_is_named() -> None:
    report = report_on(judged([1.0, -1.0], margin=[5.0, 0.5], better=[20.0, 20.0]))
    told = " ".join(words(report))
    assert (
        "does not beat length at margin over 0, up to 1: 0.0 % against 100.0 % (1 pairs, which are few)"
        in told
    )
    assert "NOT shown to be better than chance" in told
