"""Length-controlled win rates: what a longer answer earns by its length alone is taken away, and no more."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from evaluators.judge.judgements import Judgement, difficulties
from evaluators.judge.metrics import judge_report, tables_of
from evaluators.judge.reviews import ReviewSource, read_preferences
from evaluators.stats import LEAST, length_controlled
from store.errors import PoolError
from store.pool import Pool

DATA = Path(os.environ.get("DISTILL_DATA", "not set"))
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="DISTILL_DATA is not set")


def drawn(
    quality: float, longer_by: float, by_length: float = 2.0, count: int = 4000, seed: int = 1
) -> tuple[Any, Any]:
    """Wins and lengths of a model that is `longer_by` characters longer on average than its opponent's 1,000,
    judged by somebody who likes length."""
    rng = np.random.default_rng(seed)
    lengths = np.stack([1000 + longer_by + 300 * rng.standard_normal(count), np.full(count, 1000.0)])
    difference = lengths[0] - lengths[1]
    logits = quality + by_length * np.tanh(difference / difference.std())
    return (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(float), lengths


def controlled(win: Any, lengths: Any, difficulty: Any = None) -> dict[str, Any]:
    found = length_controlled(win, lengths, difficulty)
    assert found is not None
    return found


def test_a_model_that_is_longer_and_no_better_wins_half() -> None:
    found = controlled(*drawn(quality=0.0, longer_by=200))
    assert found["plain"] > 0.65
    assert found["low"] < 0.5 < found["high"]
    assert found["win_rate"] == pytest.approx(0.5, abs=0.04)
    assert found["length_effect"] == pytest.approx(2.0, abs=0.2)


def test_a_better_model_that_is_shorter_gains() -> None:
    found = controlled(*drawn(quality=1.0, longer_by=-200))
    assert found["plain"] < 0.6
    assert found["win_rate"] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.04)


def test_where_length_earns_nothing_nothing_is_taken() -> None:
    found = controlled(*drawn(quality=0.7, longer_by=200, by_length=0.0))
    assert found["win_rate"] == pytest.approx(found["plain"], abs=0.03)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = sum(
        found["low"] <= 0.5 <= found["high"]
        for seed in range(50)
        for found in [controlled(*drawn(0.0, 200, count=300, seed=seed))]
    )
    assert 43 <= held <= 50


def test_the_interval_is_as_wide_as_a_bootstraps() -> None:
    win, lengths = drawn(0.3, 150, count=400)
    found = controlled(win, lengths)
    rng = np.random.default_rng(5)
    rates = []
    for _ in range(60):
        places = rng.integers(400, size=400)
        rates.append(controlled(win[places], lengths[:, places])["win_rate"])
    assert (found["high"] - found["low"]) / (2 * 1.96) == pytest.approx(np.std(rates), rel=0.35)


def test_a_tie_is_half_a_win() -> None:
    win, lengths = drawn(0.0, 0, by_length=0.0, count=200)
    win[:] = 0.5
    win[0] = 1.0
    assert controlled(win, lengths)["win_rate"] == pytest.approx(0.5, abs=0.01)


def test_few_questions_unknown_lengths_or_one_winner_give_no_figure() -> None:
    win, lengths = drawn(0.0, 100, count=LEAST)
    assert length_controlled(win, lengths, None) is not None
    assert length_controlled(win[1:], lengths[:, 1:], None) is None
    assert length_controlled(np.ones(LEAST), lengths, None) is None
    assert length_controlled(win, np.full((2, LEAST), np.nan), None) is None
    win[0] = np.nan
    assert length_controlled(win, lengths, None) is None


def test_a_question_is_as_hard_as_other_models_find_it() -> None:
    """Seven models, half of the questions hard; one model is asked the hard ones only. What it says itself
    must not tell how hard they are."""
    rng = np.random.default_rng(2)
    judgements = [
        Judgement(
            str(question), f"m{model}", "b", "j", None, None,
            float(rng.random() < (0.2 if question < 100 else 0.8)), None,
            lengths=(int(rng.integers(500, 1500)), 1000),
        )
        for model in range(7)
        for question in range(200)
    ]  # fmt: skip
    tables = tables_of(judgements)
    found = difficulties(tables)
    assert set(found) == set(range(7))
    hard, easy = found[0][:100], found[0][100:]
    assert hard.mean() < -0.5 < 0.5 < easy.mean()
    flipped = [j if j.a != "m0" else _lost(j) for j in judgements]
    assert np.allclose(difficulties(tables_of(flipped))[0], found[0])
    assert not difficulties(tables[:5])


def _lost(said: Judgement) -> Judgement:
    return Judgement(said.question, said.a, said.b, said.judge, None, None, 0.0, None, lengths=said.lengths)


def preference(value: object, **more: object) -> dict[str, Any]:
    row = {
        "prompt": "Why?",
        "output_1": "Because.",
        "model_1": "base",
        "output_2": "It is so.",
        "model_2": "new",
    }
    return {**row, "preference": value, "dataset": "koala", "annotator": "gpt-4", **more}


def read(tmp_path: Path, rows: Sequence[object]) -> ReviewSource:
    path = tmp_path / "preferences.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return read_preferences(path)


def test_preferences_are_the_second_models_wins(tmp_path: Path) -> None:
    source = read(tmp_path, [preference(v) for v in (2, 1.0, 1.5, 0, 1.75, None)])
    assert [said.win for said in source.judgements] == [1, 0, 0.5, 0.5, 0.75, None]
    first = source.judgements[0]
    assert (first.a, first.b, first.judge, first.category, first.lengths) == (
        "new",
        "base",
        "gpt-4",
        "koala",
        (9, 8),
    )


def test_generators_are_models_too(tmp_path: Path) -> None:
    row = {"instruction": "Why?", "output_1": "A", "generator_1": "x", "output_2": "B", "generator_2": "y"}
    (said,) = read(tmp_path, [{**row, "preference": 1}]).judgements
    assert (said.a, said.b, said.win) == ("y", "x", 0)


def test_a_bad_preference_is_counted(tmp_path: Path) -> None:
    bad = [preference(3), preference("2"), preference(2, model_1="new"), preference(2, output_1=None), [1]]
    source = read(tmp_path, [preference(2), *bad])
    assert [row.line for row in source.bad] == [2, 3, 4, 5, 6]
    with pytest.raises(PoolError, match=r"no usable preference .*line 1: preference must be"):
        read(tmp_path, bad)


@real_data
@pytest.mark.slow
def test_real_preferences_give_the_known_rates_and_lose_what_length_earned() -> None:
    path = DATA / "alpacaeval_gpt4_preferences.jsonl.gz"
    wins: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for _, row in Pool(path).objects():
        assert isinstance(row, dict)
        wins[row["model_2"]] += row["preference"] - 1
        counts[row["model_2"]] += 1
    pairs = judge_report([read_preferences(path)])["pairs"]
    assert sum(pair["replies"] for pair in pairs) == counts.total() == 31_199
    for pair in pairs:
        assert pair["win_rate"] == pytest.approx(wins[pair["a"]] / counts[pair["a"]], abs=1e-9)
        assert pair["win_rate_low"] < pair["win_rate"] < pair["win_rate_high"]
    found = {pair["a"]: pair["length_controlled"] for pair in pairs}
    longer = [one for one in found.values() if one["length_ratio"] > 2]
    assert sum(one["length_effect"] > 0 for one in longer) >= 0.9 * len(longer) > 20
    assert all(one["win_rate"] < one["plain"] for one in longer if one["length_effect"] > 0)
    loss = np.mean([one["plain"] - one["win_rate"] for one in longer])
    near = [one["plain"] - one["win_rate"] for one in found.values() if one["length_ratio"] < 2]
    assert loss > 0.1 > np.mean(near)
