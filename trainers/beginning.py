"""What every training does before its first step: how long it may take, what it is, where it goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers import checkpoints
from trainers.folder import Folder, forget_after
from trainers.machine import cpu_flops
from trainers.memory import seconds
from trainers.models import fingerprint
from trainers.progress import Display, duration
from trainers.recipe import FREE, Training
from trainers.zero import deepspeed_config, stage_of

SLOWER = 1.5  # bf16 than fp32, from which it is worth a word


def tell_time(recipe: Training, parameters: int, tokens: float, display: Display) -> None:
    """How long so many tokens may take on this CPU, by a product of matrices measured now."""
    bf16 = recipe.precision == "bf16"
    speed = cpu_flops(bf16)
    least, most = seconds(parameters, tokens, speed, recipe.recompute)
    display.say(f"on this CPU, between {duration(least)} and {duration(most)}")
    if bf16 and (other := cpu_flops(False)) > SLOWER * speed:
        display.say(f"  it multiplies fp32 {other / speed:.0f} times faster than bf16: --precision fp32")


def begin(
    recipe: Training, identity: Mapping[str, Any], folder: Folder, resume: bool, display: Display
) -> Path | None:
    """The checkpoint to go on from. Raises NotTheSame."""
    if recipe.node_rank == 0:
        folder.same(identity) if resume else folder.begin(identity)
    if not resume:
        return None
    checkpoint = checkpoints.last_whole(folder.checkpoints, display.say)
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    display.say(f"going on from step {step}" if checkpoint else "no whole checkpoint yet: from the beginning")
    if recipe.node_rank == 0:
        forget_after(folder.metrics, step if checkpoint else -1)
    return checkpoint


def identity_of(recipe: Training, digest: str, model: str, **more: Any) -> dict[str, Any]:
    """All that a resume must have in common with the run. digest: of the rows."""
    told = recipe.model_dump(mode="json", exclude=FREE | {"zero", "micro_batch", "packing"})
    return told | {
        "data": digest,
        "model": fingerprint(model),
        "processes": recipe.processes,
        "micro_batch": recipe.rows_at_once,
        "zero": stage_of(recipe),
        "deepspeed": deepspeed_config(recipe),
        **more,
    }


def losses(records: list[dict[str, Any]]) -> dict[str, object]:
    """The training's and the held-out losses, for the card."""
    steps = [r for r in records if r["kind"] == "step"]
    held = [r for r in records if r["kind"] == "held_out"]
    last = steps[-max(1, len(steps) // 10) :]
    found: dict[str, object] = {"steps": steps[-1]["step"] if steps else 0}
    if steps:
        found["training, mean of the last tenth"] = sum(r["loss"] for r in last) / len(last)
    if held:
        found["held out, before"] = held[0]["held_out_loss"]
        found["held out, at the end"] = held[-1]["held_out_loss"]
    return found
