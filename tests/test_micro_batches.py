"""Micro batches: as few as memory allows, the same loss in any, and what a GPU is asked to do for one."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import tiny
from trainers import attention, preflight, process, worker
from trainers.attention import VARLEN, implementation
from trainers.config import RewardRecipe, SftRecipe
from trainers.memory import GIB, Machine, ModelSize, need, tokens_that_fit
from trainers.micro_batches import Room, room_for, shared, split
from trainers.models import flat_part
from trainers.preflight import check_size
from trainers.rows import TokenRows, example, gathered, packed, padded, save, token_loss_sum
from trainers.run_folder import Folder, read_metrics

pytestmark = pytest.mark.filterwarnings("default")
ALPACA = np.sort(np.random.default_rng(7).gamma(2.5, 45, 128).astype(int).clip(40, 512)).tolist()  # a step


# Which rows share one.


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize(
    "room",
    [Room(4, None), Room(None, 2000), Room(None, 100), Room(3, 1000), Room(None, 4096, False, 64)],
    ids=["rows", "tokens", "less than a row", "both", "padded"],
)
def test_each_row_is_in_one_micro_batch_that_has_room_for_it(room: Room, processes: int) -> None:
    found = shared(ALPACA, processes, room)
    assert sorted(row for own in found for group in own for row in group) == list(range(128))
    assert {sum(map(len, own)) for own in found} == {128 // processes}
    assert len({len(own) for own in found}) == 1  # ZeRO-3 keeps step
    for group in (group for own in found for group in own):
        assert room.holds([ALPACA[row] for row in group])


def test_a_step_of_128_short_rows_is_one_micro_batch_where_memory_allows() -> None:
    assert sum(ALPACA) > 12_000
    assert len(split(ALPACA, Room(None, 16_384))) == 1
    assert len(split(ALPACA, Room(None, 8192))) == 2
    sizes = [sum(ALPACA[row] for row in group) for group in split(ALPACA, Room(None, 4096))]
    assert max(sizes) < 1.1 * min(sizes)  # no small rest
    assert len(split(ALPACA, Room(4, None))) == 32  # as before, where rows are counted


def test_padded_rows_on_a_gpu_have_few_widths_and_little_padding() -> None:
    room = room_for(8192, 4, packed=False, longest=512)
    groups = split(ALPACA, room)
    widths = {room.width(ALPACA[group[0]]) for group in groups}
    assert len(widths) <= 16
    assert all(width % 32 == 0 for width in widths)
    assert sum(room.cost([ALPACA[row] for row in group]) for group in groups) < 1.5 * sum(ALPACA)
    batch = padded([example(range(10), [True] * 10), example(range(7), [True] * 7)], pad=1, width=64)
    assert batch["input_ids"].shape == batch["targets"].shape == (2, 64)
    assert batch["attention_mask"].sum(1).tolist() == [10, 7]


# What the check of memory counts.

LLAMA_1B = ModelSize(1_170_000_000, 1_170_000_000, 22, 2048, 5632, 49_152)
H100 = Machine(120 * GIB, gpus=(78 * GIB,))


def recipe(**more: Any) -> SftRecipe:
    given = {"data": Path("d"), "model": "m", "out": Path("o"), "precision": "bf16"}
    return SftRecipe(**(given | more))


def test_on_a_gpu_a_step_of_a_1b_model_goes_through_at_once() -> None:
    """Measured on an H100: 57.7 GB with all 14,200 tokens of a step at once."""
    tokens = tokens_that_fit(LLAMA_1B, recipe(), None, H100)
    assert tokens is not None
    assert tokens > sum(ALPACA)
    assert need(LLAMA_1B, recipe(), None, 14_200).device == pytest.approx(57.7e9, rel=0.08)
    assert tokens_that_fit(LLAMA_1B, recipe(), None, Machine(120 * GIB)) is None  # a CPU counts rows
    assert tokens_that_fit(LLAMA_1B, recipe(micro_batch=8), None, H100) is None


def test_the_check_counts_the_rows_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """128 rows of full length would need 160 GB; these are short."""
    monkeypatch.setattr(preflight, "size_of", lambda *_: LLAMA_1B)
    told: list[str] = []
    setup: Any = SimpleNamespace(machine=H100, display=SimpleNamespace(say=told.append))
    lengths = np.array(ALPACA * 3)
    fit = check_size(recipe(micro_batch=128), setup, None, 0, "rows", lengths)
    assert 45e9 < fit.needed < 60e9
    assert "micro batch 128 x 1 x 1 process = 128" in told[0]
    fit = check_size(recipe(), setup, None, 0, "rows", lengths)
    assert fit.tokens_at_once == tokens_that_fit(LLAMA_1B, recipe(), None, H100)
    assert "128 by 1 process, in micro batches of up to" in told[1]


def test_autocast_keeps_a_copy_and_adapters_leave_the_model_in_bf16() -> None:
    """OPT-1.3B was told 28.9 GB and took 31.5."""
    opt = ModelSize(1_320_000_000, 1_320_000_000, 24, 2048, 8192, 1)
    told = {name: Path(name) for name in ("data", "out")} | {"model": "m", "precision": "bf16"}
    reward = RewardRecipe(**told)
    assert need(opt, reward, None, 2 * 3 * 250).device == pytest.approx(31.5e9, rel=0.15)
    assert need(opt, reward, None, 0).states == 18 * opt.parameters
    small = ModelSize(opt.parameters, 10_000_000, 24, 2048, 8192, 1)
    adapters = RewardRecipe(**told, lora=16)
    assert need(small, adapters, None, 0).states < 2.2 * opt.parameters


# What a GPU is asked to do, counted on tensors without content.


class Operations(TorchDispatchMode):
    """Counts what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(kind: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of a forward and a backward pass of rows of these lengths, packed."""
    monkeypatch.setattr(attention, "has_kernel", lambda query: query.dtype == torch.bfloat16)
    with torch.device("meta"):
        model = tiny.model(kind).to(torch.bfloat16)
    model.set_attn_implementation(implementation(packed=True, bf16=True))
    batch = packed([example([3] * length, [True] * length) for length in lengths])
    here = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
    with Operations() as counted:
        token_loss_sum(model, here).backward()
    return counted.seen


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_packed_rows_are_one_attention_kernel_a_layer_and_no_mask(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (operations(kind, lengths, monkeypatch) for lengths in ([30, 20], ALPACA))
    for seen in (few, many):
        assert seen["torch_attn._varlen_attn.default"] == 2
        assert seen["torch_attn._varlen_attn_backward.default"] == 2
        assert not [name for name in seen if "scaled_dot_product" in name or "cudnn" in name]
    assert few.total() == many.total()  # 128 rows ask for no more kernels than 2
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_liger_replaces_what_it_is_to_and_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, whose kernels need a GPU: what it is asked for."""
    asked: list[tuple[str, dict[str, bool]]] = []

    def applied(model: Any, **how: bool) -> None:
        asked.append((type(model).__name__, how))

    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    stand_in = SimpleNamespace(_apply_liger_kernel_to_instance=applied)
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace(__spec__=object()))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", stand_in)
    assert process.fused_kernels() == {}  # there is no GPU
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        found = process.fused_kernels()
    monkeypatch.setattr(worker, "fused_kernels", lambda: found)
    trained(tmp_path, "liger", None)
    whole = {"rope": True, "rms_norm": True, "swiglu": True}
    assert asked == [
        ("LlamaForCausalLM", whole | {"cross_entropy": False, "fused_linear_cross_entropy": False})
    ]


# What a process reads of a model that is shared out.


class Watched:
    """A slice of safetensors that tells how many rows are read at once."""

    def __init__(self, one: Any, read: list[int]) -> None:
        self._one, self._read = one, read
        self.get_shape = one.get_shape

    def __getitem__(self, rows: slice) -> Any:
        self._read.append(rows.stop - rows.start)
        return self._one[rows]


def test_each_process_reads_its_own_rows_of_a_weight(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    weights = {"matrix": torch.arange(35.0).reshape(7, 5), "bias": torch.arange(7.0)}
    save_file(weights, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        for name, whole in weights.items():
            one, read = file.get_slice(name), list[int]()
            watched = Watched(one, read)
            share = -(-whole.numel() // 4) + 1  # aligned: the last process may have less, or nothing
            parts = [flat_part(watched, rank * share, share) for rank in range(4)]
            assert torch.equal(torch.cat(parts), whole.reshape(-1))
            assert max(read) < len(whole)  # no process reads all of it


# The same loss in any.


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_attention_over_packed_rows_is_that_of_rows_alone(kind: str) -> None:
    model = tiny.model(kind).eval()
    examples = [example(np.arange(n) % 250 + 3, [n > 4] * n) for n in (9, 30, 2, 17)]
    alone = sum(token_loss_sum(model, padded([one], pad=1)) for one in examples)
    model.set_attn_implementation(implementation(packed=True, bf16=False))
    assert model.config._attn_implementation == VARLEN
    together = token_loss_sum(model, packed(examples))
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


def test_a_sliding_window_ends_where_its_row_ends() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(**size, vocab_size=259, num_key_value_heads=2, sliding_window=8)
    model = MistralForCausalLM(config).eval()
    examples = [example(np.arange(n) % 250 + 3, [True] * n) for n in (5, 30, 17)]
    alone = sum(token_loss_sum(model, padded([one], pad=1)) for one in examples)
    model.set_attn_implementation(implementation(packed=True, bf16=False))
    assert token_loss_sum(model, packed(examples)).item() == pytest.approx(alone.item(), rel=1e-5)


def trained(tmp_path: Path, name: str, tokens_at_once: int | None, **more: Any) -> list[dict[str, Any]]:
    """The steps of a short training in this process."""
    folder = Folder(tmp_path / name)
    how = {"precision": "fp32", "batch": 8, "epochs": 1.0, "lr": 1e-3, "held_out": 0.1, "samples": 0}
    told = recipe(**(how | {"model": str(tmp_path / "student"), "out": folder.out, "warmup": 0.0} | more))
    if not (tmp_path / "student").exists():
        tiny.student(tmp_path / "student")
    draw = np.random.default_rng(3)
    drawn = [draw.integers(3, 259, draw.integers(5, 60)).tolist() for _ in range(36)]
    rows: TokenRows = gathered(((row, [n > 3 for n in range(len(row))]) for row in drawn), 0.1, 42)
    save(rows, folder.rows(0))
    worker.train(
        {"kind": "sft", "recipe": told.model_dump(mode="json"), "model": told.model, "packed": True,
         "rows": str(folder.rows(0)), "checkpoint": None, "deepspeed": None, "template": "alpaca",
         "tokens_at_once": tokens_at_once}
    )  # fmt: skip
    return [record for record in read_metrics(folder.metrics) if record["kind"] == "step"]


def near(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        a[name] == pytest.approx(b[name], abs=5e-4)
        for a, b in zip(one, other, strict=True)
        for name in ("loss", "grad_norm")
    )


def test_out_of_memory_repeats_the_step_in_smaller_pieces_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usual = trained(tmp_path, "usual", None)
    assert [step["micro_batches"] for step in usual] == [2, 2, 2, 2]
    assert [step["micro_batches"] for step in trained(tmp_path, "wide", 4096)] == [1, 1, 1, 1]
    capfd.readouterr()

    def short(model: Any, batch: Any) -> torch.Tensor:
        found = token_loss_sum(model, batch)
        if batch["input_ids"].numel() > 120 and torch.is_grad_enabled():
            found.backward()  # something of it was added already
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(worker, "token_loss_sum", short)
    small = trained(tmp_path, "small", 4096)
    assert near(small, usual)
    assert all(step["micro_batches"] > 2 for step in small)
    said = capfd.readouterr().out
    assert said.count("out of memory: step 1 is repeated in micro batches of 82 tokens") == 1
    assert near(trained(tmp_path, "by rows", None), usual)


def test_a_row_that_is_too_much_alone_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: Any, batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return token_loss_sum(model, batch)

    monkeypatch.setattr(worker, "token_loss_sum", full)
    with pytest.raises(torch.OutOfMemoryError):
        trained(tmp_path, "hopeless", 4096)


def test_bf16_casts_each_weight_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    usual = worker.token_loss_sum

    def counted(model: Any, batch: Any) -> torch.Tensor:
        with Operations() as operations:
            found = usual(model, batch)
        if torch.is_grad_enabled():
            seen.append(operations.seen["aten._to_copy.default"])
        return found

    monkeypatch.setattr(worker, "token_loss_sum", counted)
    steps = trained(tmp_path, "bf16", None, precision="bf16", micro_batch=2, held_out=0.0)
    assert len(seen) == 4 * len(steps)
    linear = 2 * 7 + 1  # weights of two layers, and the head
    for first, *others in (seen[at : at + 4] for at in range(0, len(seen), 4)):
        assert {first - other for other in others} == {linear}


def test_measurements_tell_the_memory_and_the_pieces_of_a_step(tmp_path: Path) -> None:
    steps = trained(tmp_path, "told", 4096)
    assert all(step["peak_memory"] > 100 << 20 for step in steps)
    assert not any("mfu" in step for step in steps)  # nobody knows what a CPU can do
