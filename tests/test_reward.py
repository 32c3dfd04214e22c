"""`distill train reward` through the front door: it learns, it survives kills, and its folder is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

from tests.support import tiny
from tests.support.killing import kill_at_step, leave_traces_of_a_kill

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
NEAR = 1e-4
USUAL = (  # 10 steps
    "--template", "alpaca", "--epochs", 2, "--held-out", 0.2, "--lr", 5e-3, "--eval-every", 5,
)  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, comparisons, and a plain training on them that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reward")
    tiny.student(folder / "student")
    tiny.write(folder / "rows.jsonl", tiny.rankings(50))
    tiny.train(*given(folder, "plain"), *USUAL, kind="reward")
    return folder


def given(ground: Path, out: str) -> tuple[Path, Path, Path]:
    return ground / "rows.jsonl", ground / "student", ground / out


def distill(*words: object) -> str:
    code, out, said = tiny.distill(*words)
    assert code == 0, said
    return out


def test_it_learns_a_toy_preference_and_says_what_it_is_worth(ground: Path) -> None:
    losses = tiny.measured(ground / "plain")
    assert losses["held_out", 10] < losses["held_out", 0]
    out = ground / "plain"
    report = json.loads((out / "report.json").read_text())
    assert (report["pairs"], report["prompts"]) == (30, 10)
    assert report["accuracy"] > 0.9
    assert report["low"] > report["length_baseline"]
    card = (out / "README.md").read_text()
    assert "It beats length by" in card
    assert "| held out of these | 10 |" in card
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (out / "training" / "checkpoints").exists()


def test_its_folder_ranks_and_is_measured(ground: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows = [
        {"id": n, "prompt": f"Say {n}.", "candidates": ["c" * 8, "a" * (1 + n), "b" * 5]} for n in range(6)
    ]
    candidates = tiny.write(tmp_path / "candidates.jsonl", rows)
    out = tmp_path / "ranked.jsonl"
    distill("rank", "--reward", ground / "plain", "--candidates", candidates, "--out", out)
    ranked = [json.loads(line) for line in out.read_text().splitlines()]
    assert sum(row["order"][0] == 1 for row in ranked) >= 5
    data = tiny.write(tmp_path / "unseen.jsonl", tiny.rankings(80)[50:])
    told = json.loads(distill("evaluate", "reward", "--reward", ground / "plain", "--data", data, "--json"))
    assert told["pairs"] == 90
    assert told["accuracy"] > 0.9
    model = AutoModelForSequenceClassification.from_pretrained(ground / "plain")
    tokenizer = AutoTokenizer.from_pretrained(ground / "plain")
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("out", "flags"),
    [
        ("small", ("--micro-batch", 1)),
        ("zero2", ("--zero", 2, "--nproc", 2)),
        ("zero3", ("--zero", 3, "--nproc", 2)),
    ],
    ids=["in smaller pieces", "ZeRO-2, two processes", "ZeRO-3, two processes"],
)
def test_pieces_and_processes_change_no_loss(ground: Path, out: str, flags: tuple[object, ...]) -> None:
    tiny.train(*given(ground, out), *USUAL, *flags, kind="reward")
    same_losses(ground, out)


def test_a_killed_training_goes_on_as_if_nothing_had_been(ground: Path) -> None:
    words = (*given(ground, "killed"), *USUAL)
    kill_at_step(tiny.words(*words, kind="reward"), ground / "killed", 5, deaf=True)
    leave_traces_of_a_kill(ground / "killed" / "training")
    said = tiny.train(*words, "--resume", kind="reward")
    assert "checkpoint-5 is skipped: it was not finished" in said
    assert "continuing from step 4" in said
    same_losses(ground, "killed")
    mine, plain = ((ground / out / "model.safetensors").read_bytes() for out in ("killed", "plain"))
    assert mine == plain


def same_losses(ground: Path, out: str) -> None:
    expected, found = tiny.measured(ground / "plain"), tiny.measured(ground / out)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, rel=NEAR), key


def test_lora_learns_with_its_head_and_is_merged(ground: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    tiny.train(*given(ground, "lora"), *USUAL, "--lora", 4, kind="reward")
    losses = tiny.measured(ground / "lora")
    assert losses["held_out", 10] < losses["held_out", 0]
    names = set(AutoModelForSequenceClassification.from_pretrained(ground / "lora").state_dict())
    assert names == set(AutoModelForSequenceClassification.from_pretrained(ground / "plain").state_dict())


def test_a_file_without_pairs_is_refused(ground: Path, tmp_path: Path) -> None:
    rows = tiny.write(tmp_path / "rows.jsonl", [{"instruction": "a", "output": "b"}] * 2)
    said = tiny.train(rows, ground / "student", tmp_path / "out", kind="reward", code=2)
    assert "no comparison in" in said
    assert (
        said.count("not a comparison: expected prompt with answers") == 1
    )  # what is wrong with all is said once
