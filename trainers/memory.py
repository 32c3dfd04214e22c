"""Does this training fit in memory, and if not, what would? By arithmetic, before any weight is read.

Bytes for a parameter (ZeRO, arXiv 1910.02054, section 3.1; fp32 master weights and Adam's two moments are
12): bf16 under DeepSpeed 2 + 2 + 12, of which stage 1 shares the 12, stage 2 the gradients too, stage 3
all. A plain loop keeps fp32 weights, 16 with gradients and moments, and in bf16 a copy of them: 18.
"""

import functools
import math
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainers.config import Training
from trainers.errors import TooLarge
from trainers.micro_batches import FILLED, MOST_TOKENS

GIB = 2**30
PROCESS = 0.7 * GIB  # Python, torch and DeepSpeed, before any model
ADAM = 8
MASTER = 4
GATHERED = 2 * 10**9  # most of the parameters that stage 3 has whole at once
FLOPS_A_PARAMETER = 6  # forward 2, backward 4 (8 where activations are computed again)
CAUTION = 0.7  # of the tokens that fit by arithmetic are tried first
# Share of a matrix product's speed that training reaches: a guess, so the time is told as a range.
EFFICIENCY = (0.15, 0.5)


@dataclass(frozen=True)
class ModelSize:
    """The numbers of a model that decide its memory. outputs: numbers that it makes of each token."""

    parameters: int
    trained: int
    layers: int
    hidden: int
    inner: int
    outputs: int

    @classmethod
    def of(cls, config: Any, parameters: int, trained: int, outputs: int) -> "ModelSize":
        hidden = config.hidden_size
        inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", 4 * hidden)
        return cls(parameters, trained, config.num_hidden_layers, hidden, inner, outputs)


def lora_parameters(rank: int, shapes: list[tuple[int, int]]) -> int:
    """Of two thin matrices beside each linear layer of these shapes (out, in)."""
    return sum(rank * (out + into) for out, into in shapes)


@dataclass(frozen=True)
class Need:
    """Bytes of one process, on its device and (offloaded) in RAM beside it."""

    states: float
    activations: float
    offloaded: float = 0.0

    @property
    def device(self) -> float:
        return self.states + self.activations


def need(size: ModelSize, recipe: Training, stage: int | None, tokens: int | None = None) -> Need:
    """What one process needs at its peak. tokens: of a micro batch; rows of full length, unless said."""
    share, bf16 = recipe.processes, recipe.precision == "bf16"
    activations = activations_a_token(size, recipe) * (recipe.tokens_at_once if tokens is None else tokens)
    if stage is None:
        weights = size.parameters * (2 if bf16 and recipe.lora else 4) + size.trained * 4 * bool(recipe.lora)
        copies = size.trained * 2 * bf16  # autocast keeps one of each weight that learns during a step
        return Need(weights + copies + size.trained * (4 + ADAM), activations)
    weight = gradient = 2 if bf16 else 4
    optimizer = ADAM + (MASTER if bf16 else 0)
    by_stage = {0: (1, 1, 1), 1: (1, 1, share), 2: (1, share, share), 3: (share, share, share)}
    weights, gradients, states = by_stage[stage]
    kept = size.parameters * weight / weights
    if stage == 3 and share > 1:
        kept += min(size.parameters, GATHERED) * weight
    # DeepSpeed without sharded gradients adds micro batches up in fp32 beside the bf16 ones.
    extra = MASTER if bf16 and stage in (0, 1) else 0
    moving = size.trained * ((gradient + extra) / gradients)
    slow = size.trained * optimizer / states
    offloaded = 0.0
    if recipe.offload:
        offloaded, slow = slow + size.trained * gradient / gradients, 0.0
        if stage == 3:
            offloaded, kept = (
                offloaded + size.parameters * weight / share,
                min(size.parameters, GATHERED) * weight,
            )
    return Need(kept + moving + slow, activations, offloaded)


def activations_a_token(size: ModelSize, recipe: Training) -> float:
    """Bytes, after Korthikanti et al. (arXiv 2205.05198) without the attention matrix, which no kernel
    keeps; and logits in bf16 and fp32 with their gradient."""
    unit = 2 if recipe.precision == "bf16" else 4
    layer = unit * (10 * size.hidden + 4 * size.inner)
    layers = layer + size.layers * unit * size.hidden if recipe.recompute else size.layers * layer
    return layers + size.outputs * (unit + 8)


def tokens_that_fit(size: ModelSize, recipe: Training, stage: int | None, machine: "Machine") -> int | None:
    """Of a micro batch on these GPUs, until the first steps have measured it; None where rows are counted."""
    if not machine.gpus or recipe.micro_batch:
        return None
    free = FILLED * min(machine.gpus[: recipe.nproc]) - need(size, recipe, stage, 0).states
    fits = int(CAUTION * free / activations_a_token(size, recipe))
    return min(MOST_TOKENS, max(1, fits))


def seconds(parameters: int, tokens: float, flops: float, recompute: bool) -> tuple[float, float]:
    """Least and most that training on so many tokens may take at this speed."""
    work = (FLOPS_A_PARAMETER + 2 * recompute) * parameters * tokens
    return work / (flops * EFFICIENCY[1]), work / (flops * EFFICIENCY[0])


def gib(bytes_: float) -> str:
    return f"{bytes_ / GIB:.1f} GiB" if bytes_ >= GIB / 10 else f"{bytes_ / 2**20:.0f} MiB"


MIB = 2**20
PROBE_SIZE = 512
PROBE_SECONDS = 0.2


@dataclass(frozen=True)
class Machine:
    """ram: bytes that can still be had. gpus: bytes free on each; empty where there is none."""

    ram: int
    gpus: tuple[int, ...] = ()


def this_machine() -> Machine:
    return Machine(free_ram(), free_on_gpus())


def free_ram(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """The kernel's estimate, or what a container's limit leaves, whichever is less."""
    lines = meminfo.read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):  # no such limit
        return free


def free_on_gpus() -> tuple[int, ...]:
    """Asks nvidia-smi, for asking torch would take memory of each GPU in this process."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        return ()
    return tuple(int(line) * MIB for line in told.stdout.split() if line.isdigit())


@functools.cache
def cpu_flops(bf16: bool) -> float:
    """Floating-point operations a second of the fastest of some matrix products: other work on the machine
    slows most of them, seldom all. Measured once, so that all that is said of it agrees."""
    import torch

    one = torch.randn(PROBE_SIZE, PROBE_SIZE, dtype=torch.bfloat16 if bf16 else torch.float32)
    end, best = time.perf_counter() + PROBE_SECONDS, math.inf
    one @ one  # warms up
    while (started := time.perf_counter()) < end or best == math.inf:
        one @ one
        best = min(best, time.perf_counter() - started)
    return 2 * PROBE_SIZE**3 / best


CPUINFO = Path("/proc/cpuinfo")
CPU_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}  # the last one is ARM's name


def cpu_has_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor has instructions for it, without which it is many times slower than fp32."""
    named = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    flags = next((told for name, _, told in named if name.strip() in ("flags", "Features")), "")
    return bool(CPU_BF16 & set(flags.split()))


MOST_MACHINES = 64  # that are advised
LORA_RANK, LORA_SHARE = 16, 100  # of so many parameters about one is learnt
SHOWN = 2  # ways out


@dataclass(frozen=True)
class Way:
    """Out of too little memory. change: to the recipe. why: what it means for the training."""

    flags: str
    change: dict[str, Any]
    stage: int | None
    why: str


def check_memory(
    size: ModelSize, recipe: Training, stage: int | None, machine: Machine, tokens: int | None = None
) -> Need:
    """Raises TooLarge with the numbers and what would fit. tokens: of the largest micro batch, where that is
    known."""
    wanted = need(size, recipe, stage, tokens)
    if fits(wanted, recipe, machine):
        return wanted
    found: list[tuple[Way, Need]] = []
    for way in _ways_out(recipe, stage, machine):
        if found and ("nnodes" in way.change or len(found) == SHOWN or not found[0][0].flags):
            break
        changed = recipe.model_copy(update={"micro_batch": 1, "recompute": True} | way.change)
        trained = size.parameters // LORA_SHARE if changed.lora else size.trained
        needed = need(replace(size, trained=trained), changed, way.stage)
        if fits(needed, changed, machine):
            found.append((way, needed))
            if "nnodes" in way.change:
                break
    smaller = "--recompute" if machine.gpus else "--micro-batch 1 --recompute"
    told = [
        f"{way.flags} {smaller}".strip() + f", which fits in {_briefly(needed, machine)}: {way.why}"
        for way, needed in found
    ]
    largest = (sum(machine.gpus) or machine.ram) / (20 if stage is None else 24)
    instead = "Use " + "; or ".join(told)
    if not told:
        instead = f"Use a model of at most about {largest / 1e9:.1f}B parameters here"
    ways = ["no ZeRO" if stage is None else f"ZeRO-{stage}", str(recipe.precision)]
    ways += ["offload"] * recipe.offload + [f"LoRA {recipe.lora}"] * (recipe.lora is not None)
    raise TooLarge(
        f"this machine has too little memory for this training run: {size.parameters / 1e9:.2f}B parameters "
        f"({', '.join([*ways, _processes(recipe)])}) need about {_told(wanted, recipe, machine)}. {instead}"
    )


def _briefly(needed: Need, machine: Machine) -> str:
    if not machine.gpus:
        return f"{gib(needed.device + needed.offloaded + PROCESS)} of RAM"
    beside = f" and {gib(needed.offloaded)} of RAM" if needed.offloaded else ""
    return f"{gib(needed.device)} of a GPU{beside}"


def in_words(
    size: ModelSize, recipe: Training, wanted: Need, machine: Machine, rows: str, tokens: int | None
) -> str:
    """What a training run that fits is. rows: what a batch counts. tokens: that a micro batch holds at first,
    None where rows are counted."""
    if tokens is not None:
        pieces = f"{recipe.batch} by {_processes(recipe)}, in micro batches of up to {tokens:,} tokens"
    else:
        pieces = f"micro batch {recipe.rows_at_once} x {recipe.accumulation} x {_processes(recipe)}"
        pieces += f" = {recipe.batch}"
    memory = f"{gib(wanted.device)} of a GPU" if machine.gpus else f"{gib(wanted.device + PROCESS)} of RAM"
    return (
        f"{_millions(size.parameters)} parameters, {_millions(size.trained)} trained, in {recipe.precision}; "
        f"a process needs up to {memory}; {rows} a step: {pieces}"
    )


def fits(wanted: Need, recipe: Training, machine: Machine) -> bool:
    if not machine.gpus:
        return recipe.nproc * (wanted.device + wanted.offloaded + PROCESS) <= machine.ram
    on_gpu = recipe.nproc <= len(machine.gpus) and wanted.device <= min(machine.gpus[: recipe.nproc])
    return on_gpu and recipe.nproc * (wanted.offloaded + PROCESS) <= machine.ram


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


def _ways_out(recipe: Training, stage: int | None, machine: Machine) -> Iterator[Way]:
    """Smaller pieces; all weights on all GPUs, or with the optimizer in RAM; few weights; more machines."""
    each = len(machine.gpus) or recipe.nproc
    yield Way("", {}, stage, "the same training in smaller pieces, slower by a quarter")
    if machine.gpus:
        if recipe.batch % each == 0 and each > 1:
            why = f"all weights learn, shared out over {each} GPUs"
            yield Way(f"--zero 3 --nproc {each}", {"nproc": each}, 3, why)
        why = "all weights learn; the optimizer runs on the CPU, which takes most of a step's time"
        yield Way("--zero 3 --offload", {"offload": True}, 3, why)
    few = "adapters learn, about a hundredth of the weights, and steps are fast"
    lora: dict[str, Any] = {"lora": LORA_RANK, "offload": False}
    if recipe.processes == 1:
        yield Way(f"--lora {LORA_RANK}", lora, None, few)
    else:
        yield Way(f"--zero 2 --lora {LORA_RANK}", lora, 2, few)
    for machines in range(2, MOST_MACHINES + 1):
        if recipe.batch % (machines * each) == 0:
            flags = f"{machines} machines like this one, on each --zero 3 --nnodes {machines} --nproc {each}"
            change = {"nnodes": machines, "nproc": each}
            yield Way(f"{flags} --master HOST:PORT", change, 3, "all weights learn, shared out over them")
