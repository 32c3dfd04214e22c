"""Whether this machine has room for a training, and where it has not, what would fit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from trainers.errors import TooLarge
from trainers.machine import Machine
from trainers.memory import PROCESS, Need, Size, gib, need
from trainers.recipe import Training

MOST_MACHINES = 64  # that are advised
SMALLER: dict[str, Any] = {"micro_batch": 1, "recompute": True}
FLAGS = "--micro-batch 1 --recompute"
LORA_RANK, LORA_SHARE = 16, 100  # of so many parameters about one is learnt


def check_memory(size: Size, recipe: Training, stage: int | None, machine: Machine) -> Need:
    """Raises TooLarge with the numbers and what would fit."""
    wanted = need(size, recipe, stage)
    if fits(wanted, recipe, machine):
        return wanted
    raise TooLarge(
        f"this machine cannot hold the training: {size.parameters / 1e9:.2f}B parameters "
        f"({_how(recipe, stage)}) need about {_told(wanted, recipe, machine)}. "
        + _instead(size, recipe, stage, machine)
    )


def in_words(size: Size, recipe: Training, wanted: Need, machine: Machine, rows: str) -> str:
    """What a training that fits is. rows: what a batch counts."""
    memory = f"{gib(wanted.device)} of a GPU" if machine.gpus else f"{gib(wanted.device + PROCESS)} of RAM"
    return (
        f"{_millions(size.parameters)} parameters, {_millions(size.trained)} trained, in {recipe.precision}; "
        f"a process needs up to {memory}; {rows} a step: micro batch {recipe.rows_at_once} x "
        f"{recipe.accumulation} x {_processes(recipe)} = {recipe.batch}"
    )


def fits(wanted: Need, recipe: Training, machine: Machine) -> bool:
    if not machine.gpus:
        return recipe.nproc * (wanted.device + wanted.offloaded + PROCESS) <= machine.ram
    on_gpu = recipe.nproc <= len(machine.gpus) and wanted.device <= min(machine.gpus[: recipe.nproc])
    return on_gpu and recipe.nproc * (wanted.offloaded + PROCESS) <= machine.ram


def _how(recipe: Training, stage: int | None) -> str:
    ways = ["no ZeRO" if stage is None else f"ZeRO-{stage}", str(recipe.precision)]
    ways += ["offload"] * recipe.offload + [f"LoRA {recipe.lora}"] * (recipe.lora is not None)
    return ", ".join([*ways, _processes(recipe)])


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 10**9 else f"{count / 1e6:.4g}M"


def _processes(recipe: Training) -> str:
    return f"{recipe.processes} process{'es' * (recipe.processes > 1)}"


def _told(wanted: Need, recipe: Training, machine: Machine) -> str:
    states = f"{gib(wanted.states)} for weights, gradients and optimizer"
    parts = f"{states}, {gib(wanted.activations)} for activations"
    if not machine.gpus:
        total = recipe.nproc * (wanted.device + wanted.offloaded + PROCESS)
        return f"{gib(total)} of RAM ({parts}, a process), and {gib(machine.ram)} are free"
    if recipe.nproc > len(machine.gpus):
        return f"{recipe.nproc} GPUs, and {len(machine.gpus)} are here"
    free = gib(min(machine.gpus[: recipe.nproc]))
    beside = f"{gib(recipe.nproc * (wanted.offloaded + PROCESS))} of RAM with {gib(machine.ram)} free"
    return f"{gib(wanted.device)} a GPU ({parts}) with {free} free, and {beside}"


def _instead(size: Size, recipe: Training, stage: int | None, machine: Machine) -> str:
    """The first of the usual ways out that fits, by the same arithmetic."""
    for flags, change, other in _ways_out(recipe, stage, machine):
        changed = recipe.model_copy(update=SMALLER | change)
        trained = size.parameters // LORA_SHARE if changed.lora else size.trained
        if fits(need(replace(size, trained=trained), changed, other), changed, machine):
            return f"Use {flags} {FLAGS}, which fits".replace("Use  ", "Use ")
    largest = (sum(machine.gpus) or machine.ram) / (20 if stage is None else 24)
    return f"Use a model of at most about {largest / 1e9:.1f}B parameters here"


def _ways_out(
    recipe: Training, stage: int | None, machine: Machine
) -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """(flags, what they change, ZeRO stage): smaller pieces, all GPUs, offloading, LoRA, more machines."""
    each = len(machine.gpus) or recipe.nproc
    yield "", {}, stage
    if machine.gpus:
        if recipe.batch % each == 0:
            yield f"--zero 3 --nproc {each}", {"nproc": each}, 3
        yield "--zero 3 --offload", {"offload": True}, 3
    # DeepSpeed keeps the frozen weights in bf16, a plain loop in fp32.
    yield f"--zero 2 --lora {LORA_RANK}", {"lora": LORA_RANK}, 2
    for machines in range(2, MOST_MACHINES + 1):
        if recipe.batch % (machines * each) == 0:
            flags = f"{machines} machines like this one, on each --zero 3 --nnodes {machines} --nproc {each}"
            yield f"{flags} --master HOST:PORT", {"nnodes": machines, "nproc": each}, 3
