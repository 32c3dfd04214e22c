"""`distill train rl` through the front door: rewards by a model and by a function, kills, length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("trl", reason="TRL is not installed (requirements/trl.txt)")

from tests.support import tiny
from tests.support.killing import kill_at_step, leave_traces_of_a_kill

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
USUAL = (  # 6 steps
    "--template", "alpaca", "--answer-tokens", 12, "--group", 2, "--batch", 8, "--held-out", 0.2,
    "--eval-every", 6, "--samples", 4,
)  # fmt: skip
LETTERS = '''
def letters(prompts, answers):
    """How many letters an answer has."""
    return [sum(c.isascii() and c.isalpha() for c in answer) / 12 for answer in answers]

def one(prompts, answers):
    return [1.0]
'''


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, prompts, a reward model, a function, and a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("rl")
    tiny.student(folder / "student")
    tiny.reward_folder(folder / "reward")
    (folder / "letters.py").write_text(LETTERS)
    tiny.write(folder / "rows.jsonl", tiny.rankings(30))
    tiny.train(*given(folder, "plain"), *USUAL, "--reward", folder / "reward", kind="rl")
    return folder


def given(ground: Path, out: str) -> tuple[Path, Path, Path]:
    return ground / "rows.jsonl", ground / "student", ground / out


def records(ground: Path, out: str, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (ground / out / "metrics.jsonl").read_bytes().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_it_tells_reward_kl_and_length_of_each_step(ground: Path) -> None:
    from transformers import AutoModelForCausalLM

    steps = records(ground, "plain", "step")
    assert len(steps) == 6
    for step in steps:
        assert step["loss"] == -step["reward"]
        assert step["kl"] is not None
        assert 0 < step["answer_tokens"] <= 12
        assert step["tokens"] > 0
        assert len(step["answers"]) == 8
        mean = sum(reward for _, reward in step["answers"]) / 8
        assert mean == pytest.approx(step["reward"], abs=1e-3)
    out = ground / "plain"
    report = json.loads((out / "report.json").read_text())
    assert report["before"]["kl"] == pytest.approx(0, abs=1e-6)
    assert (out / "reward-length.png").read_bytes().startswith(b"\x89PNG")
    card = (out / "README.md").read_text()
    assert "![Reward against length](reward-length.png)" in card
    assert "| correlation of reward and length |" in card
    AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_it_learns_what_a_function_rewards(ground: Path, method: str) -> None:
    words = (*given(ground, method), *USUAL, "--method", method, "--reward", f"{ground}/letters.py:letters")
    flags = ("--lr", 1e-2, "--group", 4, "--batch", 16, "--epochs", 4, "--eval-every", 24)
    tiny.train(*words, *flags, kind="rl")
    rewards = [step["reward"] for step in records(ground, method, "step")]
    assert sum(rewards[-6:]) > sum(rewards[:6]) + 6 * 0.1
    assert records(ground, method, "held_out")[-1]["held_out_kl"] > 0.01


def test_a_penalty_is_taken_for_each_token(ground: Path) -> None:
    """With nothing but the penalty, and answers that end sooner being worth more, the reward is minus it."""
    function = ground / "nothing.py"
    function.write_text("def nothing(prompts, answers):\n    return [0.0] * len(answers)\n")
    words = ("--reward", f"{function}:nothing", "--length-penalty", 0.5)
    tiny.train(*given(ground, "penalty"), *USUAL, *words, kind="rl")
    for step in records(ground, "penalty", "step"):
        assert step["reward"] == pytest.approx(-0.5 * step["answer_tokens"], abs=1e-4)


def test_a_killed_training_goes_on_as_if_nothing_had_been(ground: Path) -> None:
    words = (*given(ground, "killed"), *USUAL, "--reward", ground / "reward")
    kill_at_step(tiny.words(*words, kind="rl"), ground / "killed", 5, deaf=True)
    leave_traces_of_a_kill(ground / "killed" / "training")
    said = tiny.train(*words, "--resume", kind="rl")
    assert "continuing from step 4" in said
    mine, plain = (records(ground, out, "step") for out in ("killed", "plain"))
    assert [step["answers"] for step in mine] == [step["answers"] for step in plain]
    weights = [(ground / out / "model.safetensors").read_bytes() for out in ("killed", "plain")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_share_the_answers(ground: Path, stage: int) -> None:
    out = f"zero{stage}"
    words = (*USUAL, "--reward", ground / "reward", "--zero", stage, "--nproc", 2)
    assert "the model is in" in tiny.train(*given(ground, out), *words, kind="rl")
    assert len(records(ground, out, "step")) == 6


def test_lora_is_merged(ground: Path) -> None:
    from transformers import AutoModelForCausalLM

    tiny.train(*given(ground, "lora"), *USUAL, "--reward", ground / "reward", "--lora", 4, kind="rl")
    names = set(AutoModelForCausalLM.from_pretrained(ground / "lora").state_dict())
    assert names == set(AutoModelForCausalLM.from_pretrained(ground / "student").state_dict())


@pytest.mark.parametrize(
    ("reward", "flags", "told"),
    [
        ("/nowhere", (), "there is no such folder"),
        ("{ground}/student", (), "no reward.json that says how it reads"),
        ("{ground}/letters.py:digits", (), "has no function digits"),
        ("no_such_module:f", (), "no_such_module cannot be imported"),
        ("no_such_file.py:f", (), "there is no file no_such_file.py"),
        ("{ground}/reward", ("--group", 3), "batch 8 must hold all 3 answers of a prompt"),
        ("{ground}/reward", ("--answer-tokens", 400), "leave no room for a prompt"),
        ("{ground}/reward", ("--batch", 600), "prompts to learn from, and a step takes"),
    ],
    ids=[
        "no folder",
        "no reward model",
        "no function",
        "no module",
        "no file",
        "groups",
        "no room",
        "few prompts",
    ],
)
def test_bad_input_is_refused(
    ground: Path, tmp_path: Path, reward: str, flags: tuple[object, ...], told: str
) -> None:
    words = (*USUAL, "--reward", reward.format(ground=ground), *flags)
    said = tiny.train(*given(ground, "")[:2], tmp_path / "out", *words, kind="rl", code=2)
    assert told in said


def test_a_function_that_returns_too_few_numbers_ends_it_with_a_sentence(ground: Path) -> None:
    words = (*given(ground, "few"), *USUAL, "--reward", f"{ground}/letters.py:one")
    said = tiny.train(*words, kind="rl", code=1)
    assert "it must return a number for each answer" in said
