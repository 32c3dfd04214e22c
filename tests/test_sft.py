"""`distill train sft`: the same losses whatever the processes, stages and kills; a result that loads."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

import tiny
from cli import ROOT
from killing import kill_at_step, leave_traces_of_a_kill

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
NEAR = 1e-4


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, its data, and a plain training of it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("sft")
    tiny.student(folder / "student")
    tiny.data(folder / "rows.jsonl")
    tiny.train(folder / "rows.jsonl", folder / "student", folder / "plain")
    return folder


def given(ground: Path, out: str) -> tuple[Path, Path, Path]:
    return ground / "rows.jsonl", ground / "student", ground / out


def same_losses(ground: Path, out: str) -> None:
    expected, found = tiny.measured(ground / "plain"), tiny.measured(ground / out)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        # DeepSpeed in fp32 without sharding tells no norm of the gradient.
        assert found[key] == pytest.approx(values[: len(found[key])], rel=NEAR), key


def test_the_student_learns_and_the_result_loads_in_plain_transformers(ground: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    losses = tiny.measured(ground / "plain")
    assert losses["held_out", 6] < losses["held_out", 0]
    out = ground / "plain"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    held = json.loads((out / "training" / "finished.json").read_text())["Losses (nats a learnt token)"]
    assert held["held out, at the end"] == losses["held_out", 6][0]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Say sea."}], tokenize=False)
    assert prompt.endswith("### Instruction:\nSay sea.\n\n### Response:")
    assert model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=2).shape[1] > 2
    card = (out / "README.md").read_text()
    assert re.search(r"sha256 of the file \| `[0-9a-f]{64}`", card)
    assert "| epochs | 1.0000 |" in card
    assert not (out / "training" / "checkpoints").exists()
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("out", "flags"),
    [
        ("zero0", ("--zero", 0)),
        ("zero1", ("--zero", 1, "--nproc", 2)),
        ("padded", ("--packing", "off", "--micro-batch", 2)),
    ],
    ids=["ZeRO-0, one process", "ZeRO-1, two processes", "padded, in smaller pieces"],
)
def test_stages_processes_and_packing_change_no_loss(
    ground: Path, out: str, flags: tuple[object, ...]
) -> None:
    tiny.train(*given(ground, out), *flags)
    same_losses(ground, out)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_killed_training_goes_on_as_if_nothing_had_been(ground: Path, stage: int) -> None:
    """Two processes, kill -9 in the middle: the losses are those of the plain, undisturbed training."""
    out, flags = f"killed{stage}", ("--zero", stage, "--nproc", 2)
    kill_at_step(tiny.words(*given(ground, out), *flags), ground / out, 5)
    leave_traces_of_a_kill(ground / out / "training" / "checkpoints")
    said = tiny.train(*given(ground, out), *flags, "--resume")
    assert "checkpoint-5 is passed over: it was not finished" in said
    assert "going on from step 4" in said
    same_losses(ground, out)
    from transformers import AutoModelForCausalLM

    mine = AutoModelForCausalLM.from_pretrained(ground / out).state_dict()
    plain = AutoModelForCausalLM.from_pretrained(ground / "plain").state_dict()
    assert all(mine[name].allclose(plain[name], atol=1e-5) for name in plain)
    assert "is finished" in tiny.train(*given(ground, out), *flags, "--resume")


def test_an_interrupted_training_stops_with_a_checkpoint_and_no_other_may_take_its_place(
    ground: Path,
) -> None:
    out = ground / "interrupted"
    command = tiny.words(*given(ground, "interrupted"), "--epochs", 20)
    process = subprocess.Popen(command, cwd=ROOT, env=tiny.env(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + tiny.SECONDS
    while not (out / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=tiny.SECONDS)
    assert process.returncode == 130, said
    assert "stopped with a checkpoint" in said
    assert "Traceback" not in said
    refused = tiny.train(*given(ground, "interrupted"), "--epochs", 3, "--zero", 0, "--resume", code=2)
    assert "epochs: 20.0 -> 3.0" in refused
    assert "zero: None -> 0" in refused
    again = tiny.train(*given(ground, "interrupted"), code=2)
    assert "holds a training already" in again


def test_lora_is_merged_into_a_plain_folder(ground: Path) -> None:
    from transformers import AutoModelForCausalLM

    tiny.train(*given(ground, "lora"), "--lora", 4, "--lr", 1e-2, "--eval-every", 6)
    losses = tiny.measured(ground / "lora")
    assert losses["held_out", 6] < losses["held_out", 0]
    names = set(AutoModelForCausalLM.from_pretrained(ground / "lora").state_dict())
    assert names == set(AutoModelForCausalLM.from_pretrained(ground / "student").state_dict())
    assert not (ground / "lora" / "adapter_config.json").exists()
