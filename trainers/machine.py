"""What this machine has: memory that is free, GPUs, and how fast it multiplies."""

import math
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

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


def cpu_flops(bf16: bool) -> float:
    """Floating-point operations a second of the fastest of some matrix products: other work on the machine
    slows most of them, seldom all."""
    import torch

    one = torch.randn(PROBE_SIZE, PROBE_SIZE, dtype=torch.bfloat16 if bf16 else torch.float32)
    end, best = time.perf_counter() + PROBE_SECONDS, math.inf
    one @ one  # warms up
    while (started := time.perf_counter()) < end or best == math.inf:
        one @ one
        best = min(best, time.perf_counter() - started)
    return 2 * PROBE_SIZE**3 / best
