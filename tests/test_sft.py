"""`distill train sft`: the same losses whatever the processes, stages and kills; a result that loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

from tests.support import tiny
from tests.support.cli import ROOT
from tests.support.killing import (
    at_step,
    children_of,
    kill_a_worker_at_step,
    kill_at_step,
    leave_traces_of_a_kill,
    until_gone,
)

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


def test_a_model_whose_config_is_of_another_is_refused_before_memory_is_taken(ground: Path) -> None:
    folder = shutil.copytree(ground / "student", ground / "other")
    (folder / "config.json").write_text('{"model_type": "llama"}')  # what it lacks makes it one of 7B
    for kind in ("sft", "reward"):
        data = ground / "rows.jsonl" if kind == "sft" else tiny.write(ground / "r.jsonl", tiny.rankings(9))
        said = tiny.train(data, folder, ground / "refused", code=2, kind=kind)
        assert "config.json describes another model than the weights" in said


@pytest.mark.parametrize(
    ("out", "flags"),
    [
        ("zero0", ("--zero", 0)),
        ("padded", ("--packing", "off", "--micro-batch", 2)),
    ],
    ids=["ZeRO-0, one process", "padded, in smaller pieces"],
)
def test_stages_and_packing_change_no_loss(ground: Path, out: str, flags: tuple[object, ...]) -> None:
    tiny.train(*given(ground, out), *flags)
    same_losses(ground, out)


def test_two_machines_change_no_loss(ground: Path) -> None:
    """ZeRO-1, a process each, with --out on a disk that both see; the first one has the result. No library
    is heard meanwhile."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = (*given(ground, "nodes"), "--zero", 1, "--nnodes", 2, "--master", f"127.0.0.1:{port}")
    warned = {name: value for name, value in tiny.env().items() if name != "PYTHONWARNINGS"}
    second = subprocess.Popen(
        tiny.words(*words, "--node-rank", 1), cwd=ROOT, env=warned, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert "the model is in" in tiny.train(*words, "--node-rank", 0)
    out, said = second.communicate(timeout=tiny.SECONDS)
    assert second.returncode == 0, said
    assert out == ""
    assert not re.search("WARNING|Warning|it/s|accelerator|GGUF", said), said
    assert "the model is in" not in said
    same_losses(ground, "nodes")


@pytest.mark.parametrize(
    ("stage", "again"), [(2, ("--nproc", 1)), (3, ("--zero", 3, "--nproc", 2))], ids=["as one", "as two"]
)
def test_a_killed_training_goes_on_as_if_nothing_had_been(
    ground: Path, stage: int, again: tuple[object, ...]
) -> None:
    """Two processes, kill -9 in the middle, once of one of them, once of the command: the losses are those
    of the plain, undisturbed training, also where another number of processes continues."""
    out = f"killed{stage}"
    words = tiny.words(*given(ground, out), "--zero", stage, "--nproc", 2)
    if stage == 2:
        code, said = kill_a_worker_at_step(words, ground / out, 5)
        assert code == 1, said
        assert "a training process was killed (SIGKILL)" in said
    else:
        kill_at_step(words, ground / out, 5)
    leave_traces_of_a_kill(ground / out / "training")
    said = tiny.train(*given(ground, out), *again, "--resume")
    assert ("checkpoint-4 is shared out anew" in said) == (stage == 2)
    assert "checkpoint-5 is skipped: it was not finished" in said
    assert "continuing from step 4" in said
    same_losses(ground, out)
    assert not (ground / out / "torn.safetensors").exists()
    from transformers import AutoModelForCausalLM

    mine = AutoModelForCausalLM.from_pretrained(ground / out).state_dict()
    plain = AutoModelForCausalLM.from_pretrained(ground / "plain").state_dict()
    assert all(mine[name].allclose(plain[name], atol=1e-5) for name in plain)
    assert "is finished" in tiny.train(*given(ground, out), *again, "--resume")


def test_an_interrupted_training_stops_with_a_checkpoint_and_no_other_may_take_its_place(
    ground: Path,
) -> None:
    process = at_step(tiny.words(*given(ground, "interrupted"), "--epochs", 20), ground / "interrupted", 1)
    workers = children_of(process.pid)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=tiny.SECONDS)
    assert process.returncode == 130, said
    assert "stopped with a checkpoint" in said
    assert "Traceback" not in said
    until_gone(workers)
    refused = tiny.train(*given(ground, "interrupted"), "--epochs", 3, "--zero", 0, "--resume", code=2)
    assert "epochs: 20.0 -> 3.0" in refused
    assert "zero: None -> 0" in refused
    again = tiny.train(*given(ground, "interrupted"), code=2)
    assert "holds a training run already" in again


def test_a_lost_terminal_stops_a_training_with_a_checkpoint(ground: Path) -> None:
    process = at_step(tiny.words(*given(ground, "hung-up"), "--epochs", 20), ground / "hung-up", 1)
    workers = children_of(process.pid)
    os.kill(process.pid, signal.SIGHUP)
    os.kill(process.pid, signal.SIGHUP)  # the shell and the kernel both tell of it
    _, said = process.communicate(timeout=tiny.SECONDS)
    assert process.returncode == 130, said
    assert "stopped with a checkpoint" in said
    assert "Traceback" not in said
    until_gone(workers)


def test_a_loss_that_is_no_number_ends_the_training_with_a_sentence(ground: Path) -> None:
    said = tiny.train(*given(ground, "diverged"), "--lr", 1e9, "--clip", 1e9, code=1)
    assert re.search(
        r"training failed: the loss of step \d is (nan|inf): start again with a lower --lr", said
    )


def test_lora_is_merged_into_a_plain_folder(ground: Path) -> None:
    from transformers import AutoModelForCausalLM

    tiny.train(*given(ground, "lora"), "--lora", 4, "--lr", 1e-2, "--eval-every", 6)
    losses = tiny.measured(ground / "lora")
    assert losses["held_out", 6] < losses["held_out", 0]
    names = set(AutoModelForCausalLM.from_pretrained(ground / "lora").state_dict())
    assert names == set(AutoModelForCausalLM.from_pretrained(ground / "student").state_dict())
    assert not (ground / "lora" / "adapter_config.json").exists()


SCRIPT = """
import asyncio, sys
import distill

print("the script began")
data, model, out = sys.argv[1:]


async def cell():
    return await asyncio.to_thread(
        distill.train_sft, data, model=model, out=out, epochs=1, batch=8, limit=9, samples=0,
        max_length=300, precision="fp32",
    )


print(asyncio.run(cell()))
"""


def test_a_script_without_a_main_guard_trains_in_a_thread_beside_a_running_loop(
    ground: Path, tmp_path: Path
) -> None:
    """As a notebook does: its kernel's loop runs, and FORCE_COLOR is set for all that it starts."""
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    words = [sys.executable, str(script), *map(str, (ground / "rows.jsonl", ground / "student", out))]
    env = tiny.env() | {"PYTHONPATH": str(ROOT), "FORCE_COLOR": "1"}
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=tiny.SECONDS, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.splitlines() == ["the script began", str(out)]  # no process of it ran it again
    assert "step 1 of 1: loss" in ended.stderr
    assert "\x1b" not in ended.stderr
    assert (out / "model.safetensors").exists()
