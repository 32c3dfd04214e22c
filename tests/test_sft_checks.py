"""What is refused before a weight is read, and checkpoints that are or are not to be trusted."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from store.errors import UsageError
from tests.support import tiny
from trainers import preflight
from trainers.config import SftRecipe, recipe_from
from trainers.display import Display
from trainers.errors import NotTheSame, TooLarge, TrainingFailed
from trainers.launcher import Processes, environment
from trainers.memory import GIB, Machine, ModelSize, check_memory, free_ram, need
from trainers.preflight import as_configured, deepspeed_config, stage_of, with_precision
from trainers.run_folder import Folder, forget_after, held_by, last_checkpoint, read_metrics, seal

GIVEN = {"data": Path("d"), "model": "m", "out": Path("o"), "precision": "bf16"}
LLAMA_7B = ModelSize(6_738_415_616, 6_738_415_616, 32, 4096, 11008, 32000)


def recipe(**more: Any) -> SftRecipe:
    return recipe_from(SftRecipe, GIVEN | more, None)


# Recipes.


def test_the_defaults_are_the_papers(tmp_path: Path) -> None:
    on_gpu = Machine(ram=GIB, gpus=(GIB,))
    told = with_precision(recipe(precision=None), Folder(tmp_path), False, on_gpu, Display(quiet=True))
    assert (told.epochs, told.batch, told.lr, told.schedule) == (3, 128, 2e-5, "cosine")
    assert (told.warmup, told.max_length, told.precision) == (0.03, 512, "bf16")
    assert (told.rows_at_once, told.accumulation, told.with_deepspeed) == (4, 32, False)


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    """The precision on a CPU with these flags that multiplies so fast in each."""

    def choose(
        flags: str, bf16: float = 1, fp32: float = 1, resume: bool = False, **given: Any
    ) -> str | None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\n{flags}\n")
        monkeypatch.setattr(preflight, "cpu_flops", lambda is_bf16: bf16 if is_bf16 else fp32)
        told = recipe(**({"precision": None} | given))
        cpu, display = Machine(ram=GIB), Display(quiet=False)
        return with_precision(told, Folder(tmp_path), resume, cpu, display, cpuinfo).precision

    return choose


HAS_BF16 = "flags\t\t: fpu amx_bf16"


def test_a_cpu_that_would_only_imitate_bf16_trains_in_fp32_and_says_so(
    chosen: Callable[..., str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen("flags\t\t: fpu avx2 avx512f") == "fp32"
    assert "in fp32: this CPU has no bf16" in capsys.readouterr().err
    for flags in (HAS_BF16, "Features\t: fp asimd bf16"):
        assert chosen(flags) == "bf16"
    assert not capsys.readouterr().err


def test_a_cpu_that_is_slower_in_bf16_trains_in_fp32_and_says_so_in_a_line(
    chosen: Callable[..., str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(HAS_BF16, bf16=1, fp32=5) == "fp32"
    assert capsys.readouterr().err.splitlines() == [
        "in fp32: this CPU multiplies fp32 5.0 times faster than bf16 (--precision bf16 overrides this)"
    ]
    assert chosen(HAS_BF16, bf16=4, fp32=1) == "bf16"
    assert not capsys.readouterr().err


def test_a_given_precision_is_obeyed(
    chosen: Callable[..., str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(HAS_BF16, bf16=1, fp32=5, precision="bf16") == "bf16"
    assert "in bf16, as asked: this CPU multiplies fp32 5.0 times faster" in capsys.readouterr().err
    assert chosen(HAS_BF16, bf16=5, fp32=1, precision="fp32") == "fp32"
    assert not capsys.readouterr().err


def test_machines_that_train_together_choose_by_what_they_are(chosen: Callable[..., str | None]) -> None:
    assert chosen(HAS_BF16, bf16=1, fp32=5, nnodes=2, master="a:1") == "bf16"
    assert chosen("flags\t\t: fpu avx2", nnodes=2, master="a:1") == "fp32"


def test_a_resumed_training_continues_in_its_precision(
    chosen: Callable[..., str | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for begun in ("bf16", "fp32"):
        Folder(tmp_path).begin({"precision": begun})
        assert chosen(HAS_BF16, bf16=1, fp32=5, resume=True) == begun
        assert chosen(HAS_BF16, bf16=5, fp32=1, resume=True) == begun
        assert chosen("flags\t\t: fpu", resume=True) == begun
    assert not capsys.readouterr().err
    (tmp_path / "training" / "run.json").write_text("{}")
    assert chosen(HAS_BF16, bf16=1, fp32=5, resume=True) == "fp32"


def test_micro_batch_and_accumulation_follow_from_batch_and_processes() -> None:
    told = recipe(batch=36, nproc=2, nnodes=3, master="h:1")
    assert (told.rows_at_once, told.accumulation, told.stage) == (3, 2, 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nproc": 3}, "batch 128 cannot be shared by 3 processes: 129 could"),
        ({"micro_batch": 3}, "micro_batch 3 does not divide the 128 rows"),
        ({"epochs": 0}, "--epochs 0: must be greater than 0"),
        ({"epochs": 1e300}, "--epochs 1e+300: must be less than or equal to 10000"),
        ({"lr": math.inf}, "--lr inf: must be a finite number"),
        ({"zero": 4}, "--zero 4: "),
        ({"offload": True}, "offload needs zero 2 or 3"),
        ({"deepspeed": "f", "zero": 2}, "a DeepSpeed file itself says what zero and offload would"),
        ({"lora": 8, "zero": 3}, "lora cannot be merged under zero 3"),
        ({"nnodes": 2}, "nnodes needs master HOST:PORT"),
        ({"node_rank": 1}, "node_rank counts from 0"),
        ({"data": None}, "--data is missing"),
    ],
)
def test_what_cannot_be_meant_is_said(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        recipe(**given)
    assert words in str(refused.value)


def test_a_file_has_the_flags_names_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "sft.toml"
    file.write_text('data = "rows.jsonl"\nmodel = "m"\nout = "/o"\nmax-length = 64\nepochs = 2\n')
    told = recipe_from(SftRecipe, {"epochs": 1.0, "zero": None}, file)
    assert (told.data, told.out) == (tmp_path / "rows.jsonl", Path("/o"))
    assert (told.max_length, told.epochs) == (64, 1.0)
    file.write_text("leanring_rate = 1\n")
    with pytest.raises(UsageError, match=r"sft\.toml: leanring_rate: there is no setting of this name"):
        recipe_from(SftRecipe, GIVEN, file)
    file.write_text("x = = 1")
    with pytest.raises(UsageError, match="not valid TOML"):
        recipe_from(SftRecipe, GIVEN, file)


# Memory.


def test_a_7b_model_is_refused_with_the_numbers_where_it_cannot_be_held() -> None:
    with pytest.raises(TooLarge) as refused:
        check_memory(LLAMA_7B, recipe(zero=2), 2, Machine(ram=23 * GIB))
    words = str(refused.value)
    assert words.startswith(
        "this machine has too little memory for this training run: 6.74B parameters (ZeRO-2, bf16, 1 process)"
    )
    assert "need about 112.1 GiB of RAM" in words
    assert "23.0 GiB are free" in words
    assert "Use --lora 16 --micro-batch 1 --recompute, which fits in 14." in words
    assert words.endswith("of RAM: adapters learn, about a hundredth of the weights, and steps are fast")


@pytest.mark.parametrize("machine", [Machine(ram=23 * GIB), Machine(100 * GIB, gpus=(20 * GIB,) * 2)])
def test_so_many_machines_as_are_advised_can_hold_it_and_share_a_batch(machine: Machine) -> None:
    told = recipe(precision="fp32")
    with pytest.raises(TooLarge) as refused:
        check_memory(LLAMA_7B, told, None, machine)
    nodes, each = map(int, re.findall(r"--nnodes (\d+) --nproc (\d+)", str(refused.value))[0])
    assert each == max(1, len(machine.gpus))
    advised = recipe(precision="fp32", zero=3, nnodes=nodes, nproc=each, master="h:1", micro_batch=1)
    check_memory(LLAMA_7B, advised.model_copy(update={"recompute": True}), 3, machine)


def test_it_is_let_through_where_it_can_be_held() -> None:
    check_memory(LLAMA_7B, recipe(zero=3, nproc=8), 3, Machine(400 * GIB, gpus=(78 * GIB,) * 8))
    check_memory(LLAMA_7B, recipe(zero=2, offload=True), 2, Machine(500 * GIB, gpus=(140 * GIB,)))


def test_what_would_fit_is_named() -> None:
    gpus = (80 * GIB,) * 4
    with pytest.raises(TooLarge) as refused:
        check_memory(LLAMA_7B, recipe(), None, Machine(400 * GIB, gpus))
    ways = str(refused.value).partition("Use ")[2].split("; or ")
    assert ways[0].startswith("--zero 3 --nproc 4 --recompute, which fits in ")
    assert ways[0].endswith("of a GPU: all weights learn, shared out over 4 GPUs")
    assert ways[1].startswith("--zero 3 --offload --recompute, which fits in ")
    with pytest.raises(TooLarge, match="2 GPUs, and 1 are here"):
        check_memory(LLAMA_7B, recipe(zero=3, nproc=2), 3, Machine(400 * GIB, (80 * GIB,)))


def test_on_one_gpu_a_7b_model_is_told_both_ways_and_what_they_mean() -> None:
    one = Machine(119 * GIB, gpus=(78 * GIB,))
    with pytest.raises(TooLarge) as refused:
        check_memory(LLAMA_7B, recipe(), None, one)
    ways = str(refused.value).partition("Use ")[2].split("; or ")
    assert re.match(r"--zero 3 --offload --recompute, which fits in [\d.]+ GiB of a GPU and ", ways[0])
    assert "all weights learn; the optimizer runs on the CPU" in ways[0]
    assert re.match(r"--lora 16 --recompute, which fits in 1\d\.\d GiB of a GPU: adapters learn", ways[1])
    check_memory(LLAMA_7B, recipe(zero=3, offload=True, recompute=True, micro_batch=1), 3, one)
    less_ram = Machine(40 * GIB, gpus=(24 * GIB,))
    with pytest.raises(TooLarge, match=r"Use --lora 16 --recompute, which fits in [^;]*$"):
        check_memory(LLAMA_7B, recipe(), None, less_ram)


def test_each_stage_shares_out_more() -> None:
    states = [need(LLAMA_7B, recipe(nproc=8, zero=stage), stage).states for stage in range(4)]
    assert states == sorted(states, reverse=True)
    alone = need(LLAMA_7B, recipe(zero=2), 2).states
    assert alone / LLAMA_7B.parameters == 16  # 2 + 2 + 12, as in the paper on ZeRO
    assert need(LLAMA_7B, recipe(precision="fp32"), None).states == alone
    assert need(LLAMA_7B, recipe(), None).states / LLAMA_7B.parameters == 18  # autocast keeps a copy in bf16


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:   2048 kB\n")
    assert free_ram(meminfo, tmp_path / "none") == 2 << 20
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert free_ram(meminfo, tmp_path) == 400_000


def test_a_deepspeed_file_is_taken_with_what_the_result_needs(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    file.write_text(json.dumps({"zero_optimization": zero, "bf16": {"enabled": False}}))
    told = recipe(deepspeed=file)
    found = deepspeed_config(told)
    assert found is not None
    gathered = {"stage3_gather_16bit_weights_on_model_save": True}
    assert (found["zero_optimization"], found["bf16"]) == (zero | gathered, {"enabled": False})
    assert found["train_batch_size"] == "auto"
    assert (stage_of(told), as_configured(told).offload) == (3, True)
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert not as_configured(told).offload
    with pytest.raises(UsageError, match="lora cannot be merged under zero 3"):
        deepspeed_config(recipe(deepspeed=file, lora=4))
    file.write_text("[1]")
    with pytest.raises(UsageError, match="expected a JSON object"):
        deepspeed_config(told)


# What ends badly.


def ends(code: str, tmp_path: Path) -> str:
    """What is said of a training process that does this."""
    processes = Processes([sys.executable, "-c", code], {}, tmp_path / "log.txt")
    with pytest.raises(TrainingFailed) as failed:
        list(processes.records())
    processes.kill()
    return str(failed.value)


def test_why_a_training_process_ended_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ended with status 3; the log is" in ends("exit(3)", tmp_path)
    told = 'print("\\n\\x1e" + \'{"kind": "failed", "error": "%s"}\'); exit(1)'
    assert "training failed: ValueError: odd; " in ends(told % "ValueError: odd", tmp_path)
    assert "more memory than there is" in ends(told % "you tried to allocate memory", tmp_path)
    assert "was killed (SIGKILL)" in ends("import os; os.kill(os.getpid(), 9)", tmp_path)
    one_of_two = "import sys; print('Signal 9 (SIGKILL)', file=sys.stderr); "  # as torchrun logs it
    assert "was killed (SIGKILL)" in ends(one_of_two + told % "RuntimeError: Connection closed", tmp_path)
    assert "training failed: ValueError: odd; " in ends(told % "ValueError: odd", tmp_path)  # the log goes on
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3 << 20))
    said = ends(told % "RuntimeError: PytorchStreamWriter failed writing file data/0", tmp_path)
    assert said.startswith("training ended with the disk full (3 MiB left): make room, then --resume")


def test_a_folder_that_cannot_be_written_ends_in_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingFailed, match=r"metrics\.jsonl: No space left on device; --resume continues"),
        held_by(Folder(tmp_path), 0),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")


def test_one_process_sees_one_gpu_and_several_see_all() -> None:
    """transformers would split a batch of one process over all GPUs that it sees."""
    for given, seen in (({}, "0"), ({"CUDA_VISIBLE_DEVICES": "3,1"}, "3")):
        assert environment(recipe(), given, on_cpu=False)["CUDA_VISIBLE_DEVICES"] == seen
    assert (
        environment(recipe(nproc=2), {"CUDA_VISIBLE_DEVICES": "3,1"}, False)["CUDA_VISIBLE_DEVICES"] == "3,1"
    )
    assert environment(recipe(), {}, on_cpu=True)["CUDA_VISIBLE_DEVICES"] == ""


# Folders.


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    Folder(tmp_path / "new").check(resume=False)
    with pytest.raises(UsageError, match="nothing to resume"):
        Folder(tmp_path / "new").check(resume=True)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"holds something else \(thesis.tex, …\)"):
        Folder(tmp_path).check(resume=False)


def test_a_resume_as_something_else_names_what_differs(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.begin({"epochs": 3.0, "data": "a" * 64, "zero": 2, "processes": 2, "micro_batch": 4})
    folder.same({"epochs": 3.0, "data": "a" * 64, "zero": 2, "processes": 1, "micro_batch": 8})
    with pytest.raises(NotTheSame, match=r"\(data: aaaaaaaaaaaa… -> bbbbbbbbbbbb…; zero: 2 -> 3\)"):
        folder.same({"epochs": 3.0, "data": "b" * 64, "zero": 3, "processes": 2})


def test_a_model_is_the_same_wherever_its_folder_lies(tmp_path: Path) -> None:
    from trainers.models import fingerprint

    one = fingerprint(str(tiny.student(tmp_path / "one")))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert fingerprint(str(tmp_path / "two")) == one
    assert fingerprint(str(tiny.student(tmp_path / "other", "opt"))) != one


def test_a_resume_of_what_nobody_can_read_is_refused_in_words(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.work.mkdir()
    for torn in ("{torn", "[1]", "\xff"):
        (folder.work / "run.json").write_text(torn, encoding="latin-1")
        with pytest.raises(UsageError, match=r"run\.json cannot be read"):
            folder.same({"lr": 1})


def test_measurements_after_the_checkpoint_are_forgotten_and_a_torn_line_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1}\n{"step":2}\n{"step":3}\n{"st')
    forget_after(path, 2)
    assert [record["step"] for record in read_metrics(path)] == [1, 2]


# Checkpoints.


def made(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "global_step").mkdir(parents=True)
    (checkpoint / "weights.bin").write_bytes(b"w" * 100)
    (checkpoint / "global_step" / "rank0.bin").write_bytes(b"o" * 100)
    seal(checkpoint)
    return checkpoint


def truncate(checkpoint: Path) -> None:
    (checkpoint / "weights.bin").write_bytes(b"w" * 50)


def flip(checkpoint: Path) -> None:
    (checkpoint / "global_step" / "rank0.bin").write_bytes(b"o" * 99 + b"x")


def lose(checkpoint: Path) -> None:
    (checkpoint / "weights.bin").unlink()


def tear(checkpoint: Path) -> None:
    (checkpoint / "complete.json").write_text('{"weights.b')


def unfinish(checkpoint: Path) -> None:
    (checkpoint / "complete.json").unlink()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, "weights.bin has 50 bytes, not 100"),
        (flip, "global_step/rank0.bin has changed since it was written"),
        (lose, "weights.bin is missing"),
        (tear, "its complete.json is incomplete"),
        (unfinish, "it was not finished"),
    ],
)
def test_a_damaged_last_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, damage: Any, why: str
) -> None:
    good, bad = made(tmp_path, 9), made(tmp_path, 10)
    damage(bad)
    said: list[str] = []
    assert last_checkpoint(tmp_path, said.append) == good
    assert said == [f"checkpoint-10 is skipped: {why}"]
    assert not bad.exists()
    assert last_checkpoint(tmp_path, said.append) == good
    assert len(said) == 1


def test_no_checkpoint_is_no_fault(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none", pytest.fail) is None
    json.loads((made(tmp_path, 1) / "complete.json").read_text())


def test_deepspeed_is_not_heard_where_there_is_no_gpu() -> None:
    """It is imported in the command's own process where the embedded model is unpacked."""
    program = "from trainers.cli import quieten; quieten(); import deepspeed; deepspeed.get_accelerator()"
    quiet = {**tiny.env(), "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=quiet, capture_output=True, text=True, check=True
    )
    assert (ended.stdout, ended.stderr) == ("", "")
