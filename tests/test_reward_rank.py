"""Candidates in order of reward: the same whatever was killed on the way; accuracy on any comparisons."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file

from store.errors import PoolError, UsageError
from tests.support import tiny
from trainers import rank as ranking
from trainers import reward_model
from trainers.errors import Stopped
from trainers.rank import fault, ranked, run_rank, split
from trainers.reward_model import Precision, Readable, Scorer, planned, precision_for, run_evaluation

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"id": n, "prompt": f"Say {n}.", "candidates": ["sea " * (n % 4), "moon", "stone " * n], "more": [n]}
        for n in range(20)
    ]
    rows.append({"id": "empty", "prompt": "Say.", "candidates": []})
    return tiny.write(tmp_path / "candidates.jsonl", rows)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_model, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr(ranking, "WINDOW", 9)


class Killed(BaseException):
    """Stands in for a kill between two batches."""


def dies_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The scorer's process ends in the midst of this batch. How many rows each batch had."""
    sizes: list[int] = []
    score = Scorer.rewards

    def until(self: Scorer, batch: Any) -> list[float]:
        if len(sizes) == batches:
            raise Killed
        sizes.append(len(batch))
        return score(self, batch)

    monkeypatch.setattr(Scorer, "rewards", until)
    return sizes


def test_rows_come_back_with_scores_and_order(reward: Path, candidates: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranked.jsonl"
    assert run_rank(reward, candidates, out, quiet=True) == 0
    given = [orjson.loads(line) for line in candidates.read_bytes().splitlines()]
    found = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    scorer = Scorer(reward)
    for row, asked in zip(found, given, strict=True):
        scores, order = row.pop("scores"), row.pop("order")
        assert row == asked
        assert sorted(order) == list(range(len(scores)))
        assert [scores[i] for i in order] == sorted(scores, reverse=True)
        for text, score in zip(row["candidates"], scores, strict=True):
            (alone,) = scorer.rewards([scorer.readable((row["prompt"], text))])
            assert score == pytest.approx(alone, abs=1e-4)
    assert not list(tmp_path.glob("*.scores"))


def test_a_killed_ranking_goes_on_with_the_next_batch_to_the_same_bytes(
    reward: Path, candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        all_sizes = dies_after(1000, patch)
        run_rank(reward, candidates, whole, quiet=True)
    for killed_after in (3, 4):
        with monkeypatch.context() as patch:
            dies_after(killed_after, patch)
            with pytest.raises(Killed):
                run_rank(reward, candidates, out, quiet=True)
        assert not out.exists()
    side = out.with_name("out.jsonl.scores")
    side.write_bytes(side.read_bytes() + b"[0.12,")  # and torn in the middle of a line
    with monkeypatch.context() as patch:
        sizes = dies_after(1000, patch)
        run_rank(reward, candidates, out, quiet=True)
    assert sizes == all_sizes[7:]
    assert out.read_bytes() == whole.read_bytes()
    assert not side.exists()


def test_an_interrupted_ranking_says_that_the_same_command_continues(
    reward: Path, candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, score, done = tmp_path / "out.jsonl", Scorer.rewards, []

    def interrupted(self: Scorer, batch: Any) -> list[float]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(len(batch))
        return score(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "rewards", interrupted)
        with pytest.raises(Stopped, match="interrupted; the same command continues where it stopped"):
            run_rank(reward, candidates, out, quiet=True)
    assert Stopped.exit_code == 130
    assert not out.exists()
    assert run_rank(reward, candidates, out, quiet=True) == 0


def test_scores_of_another_ranking_are_not_taken(
    reward: Path, candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        dies_after(2, patch)
        with pytest.raises(Killed):
            run_rank(reward, candidates, out, quiet=True)
    candidates.write_bytes(candidates.read_bytes() + b'{"prompt": "p", "candidates": ["a"]}\n')
    with pytest.raises(UsageError, match=r"holds scores of another ranking \(other candidates\)"):
        run_rank(reward, candidates, out, quiet=True)


def test_a_bad_row_is_left_out_and_said(
    reward: Path, candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidates.write_bytes(b'{"prompt": "p"}\n{"prompt": " ", "candidates": []}\n{to' + b"\n")
    with pytest.raises(PoolError, match=r"nothing to rank in .*: line 1: candidates is not a list of texts"):
        run_rank(reward, candidates, tmp_path / "out", quiet=True)
    candidates.write_bytes(candidates.read_bytes() + b'{"prompt": "p", "candidates": ["a", "b"]}\n')
    assert run_rank(reward, candidates, tmp_path / "out", quiet=False) == 0
    assert len((tmp_path / "out").read_bytes().splitlines()) == 1
    assert "3 rows are unusable and left out: line 1" in capsys.readouterr().err


def few_fields(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def headless(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def torn(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])


def broken(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({n: w * math.nan for n, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})


DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (few_fields, "config.json describes another model than the weights"),
    (headless, "1 weights are missing, such as score.weight"),
    (torn, "model.safetensors is incomplete"),
    (broken, "its rewards are not numbers"),
    (lambda f: (f / "model.safetensors").unlink(), "there are no weights"),
    (lambda f: (f / "tokenizer.json").write_text("{"), "its tokenizer cannot be read"),
    (lambda f: (f / "reward.json").write_text('{"template": "no", "max_length": 9}'), "no reward.json that"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[words for _, words in DAMAGE])
def test_a_damaged_folder_is_refused_and_draws_no_reward_at_random(
    reward: Path, candidates: Path, tmp_path: Path, damage: Callable[[Path], Any], words: str
) -> None:
    damage(copy := shutil.copytree(reward, tmp_path / "copy"))
    with pytest.raises(UsageError, match=words):
        run_rank(copy, candidates, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_the_candidates_are_not_written_over(reward: Path, candidates: Path) -> None:
    before = candidates.read_bytes()
    with pytest.raises(UsageError, match="is the file of candidates, which would be lost"):
        run_rank(reward, candidates, candidates, quiet=True)
    assert candidates.read_bytes() == before


def test_rank_groups_that_cannot_be_made_are_refused_before_any_score(
    reward: Path, candidates: Path, tmp_path: Path
) -> None:
    def refused(words: str, groups: Path) -> None:
        with pytest.raises(UsageError, match=words):
            run_rank(reward, candidates, tmp_path / "out", True, groups)
        assert not (tmp_path / "out").exists()

    refused("--split .* is a file", candidates)
    first = candidates.read_bytes().splitlines(keepends=True)[0]
    candidates.write_bytes(first + first)
    refused("line 2: the id 0 is an earlier row's too", tmp_path / "groups")
    candidates.write_bytes(b'{"prompt": "p", "candidates": ["a"]}\n')
    refused("line 1: --split needs an id", tmp_path / "groups")


def test_no_group_of_an_earlier_ranking_is_left(tmp_path: Path) -> None:
    row = {"id": 1, "prompt": "p", "candidates": ["a", "b"], "scores": [0.0, 1.0], "order": [1, 0]}
    ranked = tiny.write(tmp_path / "ranked.jsonl", [row])
    for name in ("rank3.jsonl", "rank10.jsonl", "ranks.jsonl"):
        (tmp_path / name).touch()
    split(ranked, tmp_path)
    assert {file.name for file in tmp_path.glob("rank*")} == {
        "rank1.jsonl", "rank2.jsonl", "ranked.jsonl", "ranks.jsonl",
    }  # fmt: skip


def test_equals_keep_their_order() -> None:
    assert ranked({"id": 1}, [0.5, 2.0, 0.5, 2.0])["order"] == [1, 3, 0, 2]
    assert fault({"prompt": "p", "candidates": ["a", 1]}) == "candidates is not a list of texts"


def test_batches_are_of_like_length_and_hold_every_answer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_model, "TOKENS_AT_ONCE", 30)
    answers = [Readable([0] * n, False) for n in (9, 1, 30, 2, 2, 9, 1, 9, 9, 40)]
    batches = planned(answers)
    assert batches == [[1, 6, 3, 4], [0, 5, 7], [8], [2], [9]]


def test_bf16_is_taken_where_the_processor_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = tmp_path / "cpuinfo"
    in_bf16, in_fp32 = (SimpleNamespace(dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    told.write_text("flags\t\t: fpu avx2 amx_bf16\n")
    assert precision_for(in_bf16, told) == "bf16"
    assert precision_for(in_fp32, told) == "fp32"  # as `train` leaves it where fp32 was faster
    told.write_text("flags\t\t: fpu avx2\n")
    assert precision_for(in_bf16, told) == "fp32"


def test_a_ranking_continues_in_the_precision_that_it_was_begun_in(
    reward: Path, candidates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "ranked.jsonl"
    other: Precision = "bf16" if Scorer(reward).precision == "fp32" else "fp32"
    with monkeypatch.context() as patch:
        patch.setattr(reward_model, "precision_for", lambda config: other)
        sizes = dies_after(2, patch)
        with pytest.raises(Killed):
            run_rank(reward, candidates, out, quiet=True)
    assert len(sizes) == 2
    assert run_rank(reward, candidates, out, quiet=True) == 0


def test_evaluate_reward_prints_its_object(
    reward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tiny.rankings(10)
    data = tiny.write(tmp_path / "comparisons.jsonl", [*rows, {"user_input": "p"}])
    assert run_evaluation(reward, data, None, json=True, quiet=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"] == 30
    assert report["bad_rows"] == 1
    assert 0 <= report["low"] <= report["accuracy"] <= report["high"] <= 1
    gaps = [
        (len(a["text"]) > len(b["text"])) + (len(a["text"]) == len(b["text"])) / 2
        for row in rows
        for n, a in enumerate(row["answers"])
        for b in row["answers"][n + 1 :]
    ]
    assert report["length_baseline"] == pytest.approx(sum(gaps) / 30)
    assert run_evaluation(reward, data, 5, json=False, quiet=True) == 0
    assert "right on" in capsys.readouterr().out
