"""The parts of a served student: its prompt is the one that it was taught; text, chances, folders, layers."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.serve.command import check_folder
from engine.serve.model_loader import alpaca, fastest, load, prompt_tokens
from engine.serve.sequence import Writing, next_tokens, nucleus
from store.errors import UsageError
from store.records import alpaca_prompt
from store.student import TextTokens
from tests.support import tiny
from tests.support.cli import ROOT
from trainers.encoding import ALPACA_CHAT_TEMPLATE, alpaca_chat_template, prompt_ids

pytestmark = pytest.mark.filterwarnings("default")

CHATS = [
    [("user", "Say sea.")],
    [("user", alpaca_prompt("Say sea.", "twice"))],
    [("system", "Be short."), ("user", "Say sea."), ("assistant", "sea"), ("user", "Again.")],
]


def chat(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


# Prompts


def with_beginning() -> Any:
    """A tokenizer that puts a beginning-of-sequence before every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    found = tiny.tokenizer()
    found.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return found


@pytest.mark.parametrize("make", [tiny.tokenizer, with_beginning], ids=["bare", "with <s>"])
def test_a_student_is_asked_with_the_tokens_that_it_was_taught(make: Callable[[], Any]) -> None:
    """By the template of its folder, and by ours where the folder has none."""
    tokenizer = make()
    taught = prompt_ids(alpaca_prompt("Say sea."), TextTokens(tokenizer))
    tokenizer.chat_template = alpaca_chat_template(tokenizer)
    assert prompt_tokens(chat(CHATS[0]), TextTokens(tokenizer)) == taught
    tokenizer.chat_template = None
    assert prompt_tokens(chat(CHATS[0]), TextTokens(tokenizer)) == taught


@pytest.mark.parametrize("turns", CHATS, ids=["plain", "in the form already", "several turns"])
def test_alpacas_template_is_the_trainers(turns: list[tuple[str, str]]) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = ALPACA_CHAT_TEMPLATE
    rendered = tokenizer.apply_chat_template(chat(turns), tokenize=False, add_generation_prompt=True)
    assert alpaca(chat(turns), "</s>") == rendered


# Text


def of_bytes(tokens: Sequence[int]) -> str:
    """A token is a byte."""
    return bytes(tokens).decode(errors="replace")


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_text_ends_before_the_first_stop_string_and_is_whole_otherwise(text: str, stops: list[str]) -> None:
    writing, shown = Writing(of_bytes, stops), ""
    ended = False
    for byte in text.encode(errors="replace"):
        ended = writing.add(byte)
        shown += writing.text[len(shown) : writing.settled()]
        if ended:
            break
    writing.end()
    whole = text.encode(errors="replace").decode()
    found = [whole.find(stop) for stop in stops if stop in whole]
    first_done = min((whole.find(stop) + len(stop) for stop in stops if stop in whole), default=None)
    assert ended == (first_done is not None)
    if first_done is None:
        assert writing.text == whole
    else:
        assert (
            writing.text
            == whole[: min(at for at in found if any(whole[:first_done].find(stop) == at for stop in stops))]
        )
    assert writing.text.startswith(shown)


def test_bytes_that_are_no_character_do_not_hold_the_text_up() -> None:
    writing = Writing(of_bytes, ["end"])
    assert not any(writing.add(0xFF) for _ in range(20))
    assert [writing.add(byte) for byte in b"end"][-1]
    assert writing.text == "\ufffd" * 20


# Chances


@dataclass
class Sampled:
    temperature: float = 1.0
    top_p: float = 1.0
    draws: random.Random = field(default_factory=lambda: random.Random(0))


def test_tokens_come_as_often_as_they_are_likely() -> None:
    chances = [0.5, 0.0, 0.3, 0.2]
    logits = torch.tensor([chances]).log()
    kinds = [{}, {"temperature": 2.0}, {"top_p": 0.6}]
    rows = [Sampled(draws=random.Random(n), **kinds[n % 3]) for n in range(9000)]
    found = torch.tensor(next_tokens(logits.repeat(9000, 1), rows)).reshape(3000, 3)
    counts = torch.stack([(found == token).sum(0) for token in range(4)], dim=1)
    flat = torch.tensor(chances).sqrt()
    expected = [torch.tensor(chances), flat / flat.sum(), torch.tensor([0.625, 0, 0.375, 0])]
    for shares, wanted in zip(counts / 3000, expected, strict=True):
        assert torch.allclose(shares, wanted, atol=0.04)  # 4 sigma
    assert next_tokens(logits, [Sampled(temperature=0)]) == [0]


def test_a_nucleus_holds_the_likeliest_that_reach_top_p_and_one_at_least() -> None:
    chances = torch.tensor([[0.2, 0.5, 0.3]] * 3)
    assert (nucleus(chances, [0.0, 0.5, 0.51]) > 0).tolist() == [
        [False, True, False], [False, True, False], [False, True, True],
    ]  # fmt: skip


def test_bf16_is_taken_where_the_processor_has_it(tmp_path: Path) -> None:
    told = tmp_path / "cpuinfo"
    for flags, dtype in (("fpu avx512_bf16", torch.bfloat16), ("fpu avx2", torch.float32)):
        told.write_text(f"processor : 0\nflags\t\t: {flags}\n")
        assert fastest(torch.device("cpu"), torch.bfloat16, told) is dtype
        assert fastest(torch.device("cpu"), torch.float32, told) is torch.float32  # as `train` chose it


# Folders


def torn(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def incomplete(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def few_fields(folder: Path) -> None:
    """What it lacks is filled in: a model of 7B parameters."""
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')


def deeper(folder: Path) -> None:
    told = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**told, "num_hidden_layers": 4}))


def opened(folder: Path) -> None:
    check_folder(folder)
    load(folder, "pupil")


DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: (f / "config.json").unlink(), "no config.json there"),
    (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "a LoRA adapter only"),
    (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    (lambda f: (f / "model.safetensors").unlink(), "there are no weights"),
    (lambda f: (f / "tokenizer.json").write_text("{"), "its tokenizer cannot be read"),
    (torn, r"model.safetensors is incomplete: 141,800 bytes of 142,800"),
    (incomplete, "1 weights are missing, such as model.layers.1.mlp.up_proj.weight"),
    (few_fields, r"config.json describes another model than the weights: .* is \(32000, 4096\) by it"),
    (deeper, "18 weights are missing, .* describes 53,728 parameters, and there are 35,168"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[words for _, words in DAMAGE])
def test_a_folder_that_cannot_be_served_is_refused_in_words(
    pupil: Path, tmp_path: Path, damage: Callable[[Path], Any], words: str
) -> None:
    folder = shutil.copytree(pupil, tmp_path / "pupil")
    damage(folder)
    with pytest.raises(UsageError, match=words):
        opened(folder)


def test_a_reward_model_is_refused_by_the_command_with_exit_code_2(reward: Path) -> None:
    command = [*tiny.words(reward, reward, reward)[:4], "serve", str(reward), "--port", "0"]
    ended = subprocess.run(command, cwd=ROOT, env=tiny.env(), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"distill: {reward} is a reward model: it scores answers")


def test_the_precision_of_a_server_is_checked_and_said(pupil: Path, capfd: Any) -> None:
    for words, told in (
        ((pupil, "--precision", "fp8"), "--precision fp8: expected bf16 or fp32"),
        (("smollm2", "--precision", "bf16"), "--precision is for a transformers folder"),
        (("--scripted", "--precision", "bf16"), "--precision is for a transformers folder"),
    ):
        code, _, said = tiny.distill("serve", *words, "--port", 0)
        assert code == 2
        assert told in said
    assert load(pupil, "x", "fp32").repeats == (not torch.cuda.is_available())
    assert not load(pupil, "x", "bf16").repeats


def test_opt_writes_the_same_padded_and_alone(tmp_path: Path) -> None:
    """Its positions are learnt, and start at 2."""
    from engine.serve.model_runner import Batch
    from engine.serve.sequence import Generation

    folder = tiny.student(tmp_path / "opt", "opt")
    student = load(folder, "opt", "fp32")

    def row(prompt: list[int]) -> Generation:
        writing = Writing(student.decode, ())
        return Generation(prompt, 10, 0.0, 1.0, random.Random(0), writing, None, lambda _: None)

    prompts = [[5] * n for n in (1, 30, 7)]
    alone = []
    for rows in [[row(p)] for p in prompts] + [[row(p) for p in prompts]]:
        batch = Batch(student)
        batch.join(rows)
        while batch.rows:
            batch.step()
        alone.extend(one.writing.text for one in rows)
    assert alone[:3] == alone[3:]
