"""What happens before the first step: the precision, how long it may take, where to continue."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from store.errors import UsageError
from store.pool import Pool
from trainers import checkpoints
from trainers.config import FREE, Training
from trainers.deepspeed_config import as_configured, deepspeed_config, stage_of
from trainers.display import Display, duration
from trainers.launcher import run
from trainers.memory import Machine, ModelSize, check_memory, cpu_flops, in_words, lora_parameters, seconds
from trainers.models import fingerprint, linear_shapes
from trainers.run_folder import Folder, forget_after, write


def check_length(recipe: Training, config: Any) -> None:
    """Raises UsageError where the model cannot read so much at once."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.max_length > longest:
        raise UsageError(f"--max-length {recipe.max_length}: this model reads at most {longest} tokens")


def check_size(
    recipe: Training,
    config: Any,
    skeleton: Any,
    outputs: int,
    machine: Machine,
    display: Display,
    counted: str,
) -> int:
    """The parameters of a model, of which the skeleton has the shapes. outputs: numbers that it makes of each
    token. counted: what a batch counts. Raises TooLarge."""
    parameters = trained = sum(p.numel() for p in skeleton.parameters())
    if recipe.lora is not None:
        trained = lora_parameters(recipe.lora, linear_shapes(skeleton))
    size = ModelSize.of(config, parameters, trained, outputs)
    needed = check_memory(size, as_configured(recipe), stage_of(recipe), machine)
    display.say(in_words(size, recipe, needed, machine, counted))
    return parameters


def tell_time(recipe: Training, machine: Machine, parameters: int, tokens: int, display: Display) -> None:
    """How long so many tokens an epoch may take on this CPU, by a product of matrices measured now."""
    if machine.gpus:
        return
    speed = cpu_flops(recipe.precision == "bf16")
    least, most = seconds(parameters, tokens * recipe.epochs, speed, recipe.recompute)
    display.say(f"on this CPU, between {duration(least)} and {duration(most)}")


def opened(recipe: Training, resume: bool, display: Display) -> Folder | None:
    """The folder to train in; None where it is finished. Raises UsageError."""
    folder = Folder(recipe.out)
    if recipe.node_rank == 0:
        folder.check(resume)
    Pool(recipe.data)  # is it there?
    if resume and folder.finished.is_file():
        display.say(f"{recipe.out} is finished; nothing to do")
        return None
    return folder


def carry_out(
    recipe: Training,
    module: str,
    identity: Mapping[str, Any],
    folder: Folder,
    resume: bool,
    quiet: bool,
    env: Mapping[str, str],
    machine: Machine,
    job: Mapping[str, Any],
) -> None:
    """Trains in processes of their own, from the beginning or the last whole checkpoint. job: what
    `module` wants to know besides what all of them do. Raises NotTheSame, Stopped, TrainingFailed."""
    checkpoint = begin(recipe, identity, folder, resume, Display(quiet))
    told: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"), "parent": os.getpid(), "alone": recipe.processes == 1,
        "rows": str(folder.rows(recipe.node_rank)), "checkpoint": str(checkpoint) if checkpoint else None,
    }  # fmt: skip
    write(folder.job(recipe.node_rank), {**told, **job})
    run(recipe, module, folder, env, not machine.gpus, quiet)


def begin(
    recipe: Training, identity: Mapping[str, Any], folder: Folder, resume: bool, display: Display
) -> Path | None:
    """The checkpoint to go on from, which the first machine chooses for all. Raises NotTheSame."""
    if recipe.node_rank:
        return None
    if not resume:
        folder.begin(identity)
        return None
    folder.same(identity)
    checkpoint = checkpoints.last_whole(folder.checkpoints, display.say)
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    display.say(
        f"continuing from step {step}" if checkpoint else "no complete checkpoint yet: from the beginning"
    )
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


CPUINFO = Path("/proc/cpuinfo")
CPU_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}  # the last one is ARM's name
R = TypeVar("R", bound=Training)


def with_precision(
    recipe: R, folder: Folder, resume: bool, machine: Machine, display: Display, cpuinfo: Path = CPUINFO
) -> R:
    """The recipe with its precision: as it says; as the training was begun that is resumed; else bf16, and on
    a CPU that is slower in it fp32. Several machines must agree, so nothing is measured there."""
    alone = not machine.gpus and recipe.nnodes == 1
    if recipe.precision is not None:
        if recipe.precision == "bf16" and alone and not resume and (times := slower_in_bf16(cpuinfo)):
            display.say(f"in bf16, as asked: this CPU {times}")
        return recipe
    if resume and (begun := folder.begun_in) is not None:
        return recipe.model_copy(update={"precision": begun})
    if machine.gpus or (cpu_has_bf16(cpuinfo) and not alone):
        return recipe.model_copy(update={"precision": "bf16"})
    times = slower_in_bf16(cpuinfo)
    if times:
        display.say(f"in fp32: this CPU {times} (--precision bf16 insists)")
    return recipe.model_copy(update={"precision": "fp32" if times else "bf16"})


def slower_in_bf16(cpuinfo: Path = CPUINFO) -> str:
    """How much, in words; empty where bf16 is no slower than fp32. A CPU without bf16 only imitates it."""
    if not cpu_has_bf16(cpuinfo):
        return "has no bf16 and would take many times longer in it"
    bf16, fp32 = cpu_flops(True), cpu_flops(False)
    return f"multiplies fp32 {fp32 / bf16:.1f} times faster than bf16" if fp32 > bf16 else ""


def cpu_has_bf16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor has instructions for it, without which it is many times slower than fp32."""
    named = (line.partition(":") for line in cpuinfo.read_text().splitlines())
    flags = next((told for name, _, told in named if name.strip() in ("flags", "Features")), "")
    return bool(CPU_BF16 & set(flags.split()))
