"""`distill train distill` through the front door: a teacher's folder, an API's log-probabilities, GKD."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")

import numpy as np

from tests.support import tiny
from tests.support.killing import kill_at_step, leave_traces_of_a_kill

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, another model as its teacher, rows, and a training that nothing disturbed."""
    import torch

    folder = tmp_path_factory.mktemp("distill")
    tiny.student(folder / "student")
    teacher = tiny.model()
    torch.manual_seed(7)
    for weights in teacher.parameters():
        weights.data.add_(torch.randn_like(weights) * 0.05)
    teacher.save_pretrained(folder / "teacher")
    tiny.tokenizer().save_pretrained(folder / "teacher")
    tiny.data(folder / "rows.jsonl")
    tiny.train(*given(folder, "plain"), "--teacher", folder / "teacher", kind="distill")
    return folder


def given(ground: Path, out: str) -> tuple[Path, Path, Path]:
    return ground / "rows.jsonl", ground / "student", ground / out


def held(ground: Path, out: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (ground / out / "metrics.jsonl").read_bytes().splitlines())
    return [line for line in lines if line["kind"] == "held_out"]


def test_the_student_comes_nearer_to_its_teacher(ground: Path) -> None:
    measured = held(ground, "plain")
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"] / 1.5
    assert "Distilled from `" in (ground / "plain" / "README.md").read_text()


@pytest.mark.parametrize(
    ("out", "flags"),
    [
        ("padded", ("--packing", "off", "--micro-batch", 2)),
        ("zero2", ("--zero", 2, "--nproc", 2)),
        ("zero3", ("--zero", 3, "--nproc", 2)),
    ],
)
def test_pieces_and_processes_change_no_loss(ground: Path, out: str, flags: tuple[object, ...]) -> None:
    tiny.train(*given(ground, out), "--teacher", ground / "teacher", *flags, kind="distill")
    expected, found = tiny.measured(ground / "plain"), tiny.measured(ground / out)
    for key, values in expected.items():
        assert found[key][0] == pytest.approx(values[0], rel=1e-3), key


def test_a_killed_training_goes_on_as_if_nothing_had_been(ground: Path) -> None:
    words = (*given(ground, "killed"), "--teacher", ground / "teacher")
    kill_at_step(tiny.words(*words, kind="distill"), ground / "killed", 5, deaf=True)
    leave_traces_of_a_kill(ground / "killed" / "training")
    assert "continuing from step 4" in tiny.train(*words, "--resume", kind="distill")
    mine, plain = ((ground / out / "model.safetensors").read_bytes() for out in ("killed", "plain"))
    assert mine == plain


def test_a_student_that_is_its_teacher_has_no_loss_however_few_tokens_are_known(ground: Path) -> None:
    words = ("--teacher", ground / "student", "--top", 3, "--temperature", 2)
    tiny.train(*given(ground, "same"), *words, kind="distill")
    assert held(ground, "same")[0]["held_out_loss"] == pytest.approx(0, abs=1e-4)


def test_with_all_tokens_the_loss_is_the_kl(ground: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from trainers.distill_worker import TaughtRows, collated, kl_sum
    from trainers.rows import IGNORED, TokenRows, padded
    from trainers.teacher_targets import Targets, ask_teacher
    from trainers.trl_config import DistillRecipe

    rng = np.random.default_rng(0)
    lengths, learn = [9, 6], [4, 2]
    masks = [np.arange(n) >= n - k for n, k in zip(lengths, learn, strict=True)]
    tokens = rng.integers(3, 259, sum(lengths)).astype(np.int32)
    rows = TokenRows(tokens, np.concatenate(masks), np.array([0, 9, 15]), np.array([], np.int64))
    folder = ground / "targets"
    folder.mkdir()
    told = {"data": "d", "model": "m", "out": folder, "temperature": 3, "top": 259, "precision": "fp32"}
    recipe = DistillRecipe(**told, teacher=str(ground / "teacher"))
    ask_teacher(str(recipe.teacher), rows, folder, recipe)
    taught = TaughtRows(rows, Targets.read(folder))
    batch = collated([taught[0], taught[1]], lambda examples: padded(examples, pad=2))
    student, teacher = (AutoModelForCausalLM.from_pretrained(ground / n) for n in ("student", "teacher"))
    with torch.no_grad():
        found = kl_sum(student, batch, 3.0)
        both = [
            (m(batch["input_ids"], attention_mask=batch["attention_mask"]).logits / 3).log_softmax(-1)
            for m in (student, teacher)
        ]
    places = batch["targets"] != IGNORED
    assert int(places.sum()) == 6
    expected = torch.nn.functional.kl_div(both[0][places], both[1][places], reduction="sum", log_target=True)
    assert found.item() == pytest.approx(9 * expected.item(), rel=1e-3)


def rows_with_logprobs(count: int) -> list[dict[str, Any]]:
    """As `export --format logprobs` writes them, of a teacher that is sure of what it wrote."""

    def said(token: str) -> dict[str, Any]:
        other = "x" if token != "x" else "y"
        top = [{"token": token, "logprob": math.log(0.9)}, {"token": other, "logprob": math.log(0.05)}]
        return {"token": token, "logprob": math.log(0.9), "top_logprobs": top}

    return [{**row, "logprobs": [said(c) for c in row["output"]]} for row in tiny.rows(count)]


def test_an_apis_log_probabilities_are_learnt(ground: Path, tmp_path: Path) -> None:
    data = tiny.write(tmp_path / "rows.jsonl", rows_with_logprobs(30))
    out = ground / "stored"
    words = ("--template", "alpaca", "--epochs", 3, "--lr", 1e-2)
    said = tiny.train(data, ground / "student", out, *words, kind="distill")
    assert "30 of 30 rows with log-probabilities" in said
    measured = held(ground, "stored")
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"] - 1
    assert "the log-probabilities of an API" in (out / "README.md").read_text()


def test_what_is_missing_of_an_api_counts_as_one_token() -> None:
    from trainers.teacher_targets import softened

    logs = np.log(np.array([0.6, 0.3], np.float32))
    assert np.exp(softened(logs, 1.0)) == pytest.approx([0.6, 0.3], rel=1e-5)
    roots = np.sqrt([0.6, 0.3, 0.1])
    assert np.exp(softened(logs, 2.0)) == pytest.approx((roots / roots.sum())[:2], rel=1e-5)


def test_gkd_learns_from_the_students_own_answers(ground: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed (requirements/trl.txt)")
    words = ("--teacher", ground / "teacher", "--on-policy", 0.5, "--answer-tokens", 6)
    tiny.train(*given(ground, "gkd"), *words, kind="distill")
    measured = held(ground, "gkd")
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"]


def test_a_teacher_with_other_tokens_is_refused(ground: Path, tmp_path: Path) -> None:
    other = tiny.student(tmp_path / "other")
    file = other / "tokenizer.json"
    told = json.loads(file.read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    file.write_text(json.dumps(told))
    words = (*given(ground, "")[:2], tmp_path / "out", "--teacher", other)
    said = tiny.train(*words, kind="distill", code=2)
    assert "its tokenizer is not the student's" in said
    assert "`train sft` learns the answers of any teacher" in said


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"logprobs": None}, "no logprobs"),
        ({"logprobs": [{"token": "zzz", "logprob": -1.0}] * 7}, "another number of them"),
        ({"output": "abcd", "logprobs": [{"token": "ab", "logprob": -1.0}] * 4}, "not the student's: 'ab'"),
    ],
    ids=["none", "another number", "other tokens"],
)
def test_rows_that_say_nothing_are_refused(
    ground: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    data = tiny.write(tmp_path / "rows.jsonl", [rows_with_logprobs(1)[0] | change])
    said = tiny.train(data, ground / "student", tmp_path / "out", kind="distill", code=2)
    assert told in said
    assert "export --format logprobs" in said


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--on-policy", 0.5), "on_policy needs a teacher"),
        (("--divergence", 0.5, "--teacher", "x"), "divergence is for on_policy"),
        (("--teacher", "/nowhere"), "there is no such folder"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    ground: Path, tmp_path: Path, flags: tuple[object, ...], told: str
) -> None:
    said = tiny.train(*given(ground, "")[:2], tmp_path / "out", *flags, kind="distill", code=2)
    assert told in said
