"""What a training needs, by arithmetic, before any weight is read: bytes by ZeRO stage, and time.

Bytes a parameter (ZeRO, arXiv 1910.02054, section 3.1; fp32 master weights and Adam's two moments are
12): bf16 under DeepSpeed 2 + 2 + 12, of which stage 1 shares out the 12, stage 2 the gradients too,
stage 3 all. A plain loop keeps fp32 weights and casts as it computes: 16.
"""

from dataclasses import dataclass
from typing import Any

from trainers.recipe import Training

GIB = 2**30
PROCESS = 0.7 * GIB  # Python, torch and DeepSpeed, before any model
ADAM = 8
MASTER = 4
GATHERED = 2 * 10**9  # most of the parameters that stage 3 has whole at once
FLOPS_A_PARAMETER = 6  # forward 2, backward 4 (8 where activations are computed again)
# Share of a matrix product's speed that training reaches: a guess, so the time is told as a range.
EFFICIENCY = (0.15, 0.5)


@dataclass(frozen=True)
class Size:
    """The numbers of a model that decide its memory. outputs: numbers that it makes of each token."""

    parameters: int
    trained: int
    layers: int
    hidden: int
    inner: int
    outputs: int

    @classmethod
    def of(cls, config: Any, parameters: int, trained: int, outputs: int) -> "Size":
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


def need(size: Size, recipe: Training, stage: int | None) -> Need:
    """What one process needs at its peak."""
    share = recipe.processes
    bf16 = recipe.precision == "bf16"
    weight = 2 if bf16 and stage is not None else 4
    gradient = weight
    optimizer = ADAM + (MASTER if weight == 2 else 0)
    by_stage = {
        None: (1, 1, 1),
        0: (1, 1, 1),
        1: (1, 1, share),
        2: (1, share, share),
        3: (share, share, share),
    }
    weights, gradients, states = by_stage[stage]
    kept = size.parameters * weight / weights
    if stage == 3 and share > 1:
        kept += min(size.parameters, GATHERED) * weight
    # DeepSpeed without sharded gradients adds micro batches up in fp32 beside the bf16 ones.
    extra = MASTER if weight == 2 and stage in (0, 1) else 0
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
    return Need(kept + moving + slow, _activations(size, recipe), offloaded)


def _activations(size: Size, recipe: Training) -> float:
    """Of a micro batch of rows at full length, after Korthikanti et al. (arXiv 2205.05198) without the
    attention matrix, which sdpa does not keep; and logits in bf16 and fp32 with their gradient."""
    tokens = recipe.tokens_at_once
    unit = 2 if recipe.precision == "bf16" else 4
    layer = unit * (10 * size.hidden + 4 * size.inner)
    layers = layer + size.layers * unit * size.hidden if recipe.recompute else size.layers * layer
    return tokens * (layers + size.outputs * (unit + 8))


def seconds(parameters: int, tokens: float, flops: float, recompute: bool) -> tuple[float, float]:
    """Least and most that training on so many tokens may take at this speed."""
    work = (FLOPS_A_PARAMETER + 2 * recompute) * parameters * tokens
    return work / (flops * EFFICIENCY[1]), work / (flops * EFFICIENCY[0])


def gib(bytes_: float) -> str:
    return f"{bytes_ / GIB:.1f} GiB" if bytes_ >= GIB / 10 else f"{bytes_ / 2**20:.0f} MiB"
