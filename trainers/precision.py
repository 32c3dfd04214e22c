"""bf16 as in the paper, where the machine has it. A CPU without it would only imitate it."""

from pathlib import Path
from typing import TypeVar

from trainers.machine import Machine
from trainers.progress import Display
from trainers.recipe import Training

CPUINFO = Path("/proc/cpuinfo")
CPU_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}  # the last one is ARM's name
R = TypeVar("R", bound=Training)


def with_precision(recipe: R, machine: Machine, display: Display, cpuinfo: Path = CPUINFO) -> R:
    """The recipe with bf16 unless it says otherwise, and fp32 on a CPU that would only imitate bf16."""
    if recipe.precision is not None:
        return recipe
    if machine.gpus or cpu_has_bf16(cpuinfo):
        return recipe.model_copy(update={"precision": "bf16"})
    display.say("in fp32: this CPU has no bf16 and would take many times longer (--precision bf16 insists)")
    return recipe.model_copy(update={"precision": "fp32"})


def cpu_has_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor has instructions for it, without which it is many times slower than fp32. Known
    from what the machine is: measuring could say something else each time."""
    named = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    flags = next((told for name, _, told in named if name.strip() in ("flags", "Features")), "")
    return bool(CPU_BF16 & set(flags.split()))
