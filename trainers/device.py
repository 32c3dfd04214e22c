"""The device that trains: its kernels, when it has finished, what memory it took, and how much of its speed
was used."""

import importlib.util
import resource
from typing import Any

import torch

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


def finish(device: torch.device) -> None:
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
    one = torch.ones(PRODUCT, PRODUCT, dtype=torch.bfloat16, device=device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    one @ one
    begin.record()
    for _ in range(TIMES):
        one @ one
    end.record()
    finish(device)
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
