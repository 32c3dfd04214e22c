"""One training process: joins its group, reports to the command, ends with it; and what its device does.

Reports are JSON records on standard output. Each one follows RFC 7464's separator on its own line, so it
can be told from anything that libraries print.
"""

import ctypes
import importlib.util
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import torch
import torch.distributed as dist

from store.errors import DistillError
from trainers.config import Training

SEPARATOR = b"\x1e"


def report(kind: str, **values: Any) -> None:
    """To be called by one process of a machine only."""
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), b"\n" + SEPARATOR + _record(kind, values) + b"\n")


def _record(kind: str, values: dict[str, Any]) -> bytes:
    return orjson.dumps({"kind": kind, **values}, option=orjson.OPT_SERIALIZE_NUMPY)


def measured(metrics: Path, kind: str, **values: Any) -> None:
    """A measurement: in its file first, by the process that seals checkpoints, so that none is sealed whose
    measurements a killed command never read; then told."""
    with metrics.open("ab") as file:
        file.write(_record(kind, values) + b"\n")
    report(kind, **values)


def parsed(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None where it is something else."""
    if not line.startswith(SEPARATOR):
        return None
    try:
        found: dict[str, Any] = orjson.loads(line[1:])
    except orjson.JSONDecodeError:
        return None
    return found


_PR_SET_PDEATHSIG = 1


def die_with_parent(command: int, alone: bool) -> None:
    """An orphan would keep writing into a folder that another run may have taken over. command: the
    process id of the command on this machine, which is the parent of a process that is alone; between it
    and several stands torchrun, which dies with it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    gone = os.getppid() != command if alone else not Path(f"/proc/{command}").exists()
    if gone or os.getppid() == 1:
        os._exit(1)


def on_cpu() -> bool:
    return not torch.cuda.is_available()


def join_processes(recipe: Training) -> None:
    """Before any weight is read: under ZeRO-3 reading shares them out."""
    if recipe.with_deepspeed:
        import deepspeed

        # Training uses no operator of shared memory. DeepSpeed would compile it on CPUs, under a lock that
        # outlives a kill and that every later training waits for.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo" if on_cpu() else "nccl")


def agreed(checkpoint: str | None) -> str | None:
    """The first process's choice: on several machines each might have seen another."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return checkpoint
    box = [checkpoint]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def least_of_all(tokens: int | None) -> int | None:
    """What fits on every machine's devices: all processes must make the same micro batches."""
    if tokens is None or not dist.is_initialized() or dist.get_world_size() == 1:
        return tokens
    found = [tokens] * dist.get_world_size()
    dist.all_gather_object(found, tokens)
    return min(found)


def run_job(file: str, work: Callable[[dict[str, Any]], None]) -> None:
    """Does the job of a file. Ends the process: 0 done or stopped as asked, 1 on an error, which is
    reported."""
    job = json.loads(Path(file).read_bytes())
    die_with_parent(job["parent"], job["alone"])
    try:
        work(job)
    except Exception as error:
        import traceback

        traceback.print_exc()
        told = str(error) if isinstance(error, DistillError) else f"{type(error).__name__}: {error}"
        report("failed", error=told[:600])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # the others may hang in a collective: the launcher ends them
    sys.stdout.flush()
    if dist.is_initialized():
        dist.destroy_process_group()


PRODUCT = 8192  # rows and columns of the bf16 matrices whose product is a GPU's speed
TIMES = 10


def fused_kernels() -> dict[str, Any]:
    """The Trainer's arguments for Liger's kernels (norms, rotary positions, SwiGLU), on a GPU where they are
    installed. Its cross-entropy is not among them: logits are made only where something is learnt."""
    if not torch.cuda.is_available() or importlib.util.find_spec("liger_kernel") is None:
        return {}
    wanted = {"rope": True, "rms_norm": True, "swiglu": True}
    without = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    return {"use_liger_kernel": True, "liger_kernel_config": wanted | without}


def finish_on(device: torch.device) -> None:
    """Returns when all that was asked of the device is done: kernels of a GPU run behind the program."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a GPU; on a CPU, the most that this process had in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def product_flops(device: torch.device) -> float | None:
    """Floating-point operations a second of a large product in bf16, measured. None on a CPU."""
    if device.type != "cuda":
        return None
    one = torch.randn(PRODUCT, PRODUCT, dtype=torch.bfloat16, device=device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    one @ one
    begin.record()
    for _ in range(TIMES):
        one @ one
    end.record()
    finish_on(device)
    return 2 * PRODUCT**3 * TIMES / (begin.elapsed_time(end) / 1000)


def flops_a_token(model: Any) -> float:
    """Of a forward and a backward pass: 2 for each weight that multiplies, 2 for the gradient of its input, 2
    for its own, if it learns. Attention and activations that are computed again are not counted; an input
    embedding multiplies only where it is the head as well."""
    found = model.get_input_embeddings().weight
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    looked_up = None if head is not None and head.weight is found else found
    return sum(
        (4 + 2 * one.requires_grad) * getattr(one, "ds_numel", one.numel())  # a whole one, under ZeRO-3
        for one in model.parameters()
        if one is not looked_up
    )
