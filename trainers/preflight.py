"""What happens before the first step, for every kind of training: the folder, the model, the precision,
whether it fits and how long it may take, DeepSpeed's configuration, and where to continue.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from store.errors import UsageError
from store.pool import Pool
from trainers.config import FREE, Training
from trainers.display import Display, duration
from trainers.launcher import run
from trainers.memory import (
    CPUINFO,
    Machine,
    ModelSize,
    check_memory,
    cpu_flops,
    cpu_has_bf16,
    in_words,
    lora_parameters,
    seconds,
    this_machine,
)
from trainers.models import config_of, fingerprint, linear_shapes, resolve
from trainers.run_folder import Folder, forget_after, last_checkpoint, step_of, write

R = TypeVar("R", bound=Training)


@dataclass(frozen=True)
class Setup:
    """What a training run is begun with, besides its recipe. model: folder or hub name;
    config: the model's."""

    folder: Folder
    model: str
    config: Any
    machine: Machine
    display: Display
    resume: bool
    quiet: bool
    env: Mapping[str, str]


def set_up(recipe: R, resume: bool, quiet: bool, env: Mapping[str, str]) -> tuple[R, Setup] | None:
    """The recipe with its precision, and what it is begun with; None where the training is finished. Raises
    UsageError."""
    display, folder = Display(quiet), Folder(recipe.out)
    if recipe.node_rank == 0:
        folder.check(resume)
    Pool(recipe.data)  # is it there?
    if resume and folder.finished.is_file():
        display.say(f"{recipe.out} is finished; nothing to do")
        return None
    model = resolve(recipe.model, folder.work)
    config, machine = config_of(model), this_machine()
    recipe = with_precision(recipe, folder, resume, machine, display)
    return recipe, Setup(folder, model, config, machine, display, resume, quiet, env)


def check_length(recipe: Training, config: Any) -> None:
    """Raises UsageError where the model cannot read so much at once."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.max_length > longest:
        raise UsageError(f"--max-length {recipe.max_length}: this model reads at most {longest} tokens")


def check_size(
    recipe: Training, setup: Setup, skeleton: Any, outputs: int, counted: str, beside: int = 0
) -> int:
    """The parameters of a model, of which the skeleton has the shapes. outputs: numbers that it makes of each
    token. counted: what a batch counts. beside: parameters of other models that are only read meanwhile.
    Raises TooLarge."""
    parameters = trained = sum(p.numel() for p in skeleton.parameters())
    if recipe.lora is not None:
        trained = lora_parameters(recipe.lora, linear_shapes(skeleton))
    size = ModelSize.of(setup.config, parameters + beside, trained, outputs)
    needed = check_memory(size, as_configured(recipe), stage_of(recipe), setup.machine)
    setup.display.say(in_words(size, recipe, needed, setup.machine, counted))
    return parameters


def tell_time(recipe: Training, setup: Setup, parameters: int, tokens: int) -> None:
    """How long so many tokens an epoch may take on this CPU, by a product of matrices measured now."""
    if setup.machine.gpus:
        return
    speed = cpu_flops(recipe.precision == "bf16")
    least, most = seconds(parameters, tokens * recipe.epochs, speed, recipe.recompute)
    setup.display.say(f"on this CPU, between {duration(least)} and {duration(most)}")


def carry_out(recipe: Training, setup: Setup, kind: str, identity: Mapping[str, Any], **job: Any) -> None:
    """Trains in processes of their own, from the beginning or the last complete checkpoint, which the first
    machine chooses for all. job: what this kind of training wants to know besides what all do. Raises
    NotTheSame, Stopped, TrainingFailed."""
    folder, checkpoint = setup.folder, None
    if recipe.node_rank == 0 and not setup.resume:
        folder.begin(identity)
    elif recipe.node_rank == 0:
        folder.same(identity)
        checkpoint = last_checkpoint(folder.checkpoints, setup.display.say)
        step = step_of(checkpoint) if checkpoint else 0
        setup.display.say(
            f"continuing from step {step}"
            if checkpoint
            else "no complete checkpoint yet: starting from the beginning"
        )
        forget_after(folder.metrics, step if checkpoint else -1)
    told: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"), "parent": os.getpid(), "alone": recipe.processes == 1,
        "kind": kind,
        "rows": str(folder.rows(recipe.node_rank)), "checkpoint": str(checkpoint) if checkpoint else None,
        "model": setup.model, "deepspeed": deepspeed_config(recipe),
    }  # fmt: skip
    write(folder.job(recipe.node_rank), {**told, **job})
    run(recipe, folder, setup.env, not setup.machine.gpus, setup.quiet)


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
        display.say(f"in fp32: this CPU {times} (--precision bf16 overrides this)")
    return recipe.model_copy(update={"precision": "fp32" if times else "bf16"})


def slower_in_bf16(cpuinfo: Path = CPUINFO) -> str:
    """How much, in words; empty where bf16 is no slower than fp32. A CPU without bf16 only imitates it."""
    if not cpu_has_bf16(cpuinfo):
        return "has no bf16 and would take many times longer in it"
    bf16, fp32 = cpu_flops(True), cpu_flops(False)
    return f"multiplies fp32 {fp32 / bf16:.1f} times faster than bf16" if fp32 > bf16 else ""


Config = dict[str, Any]


def deepspeed_config(recipe: Training) -> Config | None:
    """What DeepSpeed gets, where 'auto' is filled in by transformers from the same recipe; None where a plain
    loop is meant. Raises UsageError for a file that is no configuration."""
    if recipe.deepspeed is None and recipe.stage is None:
        return None
    found: Config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": recipe.precision == "bf16"},  # with fp32 master weights
        # torch's AdamW also where its states are offloaded: the same losses, and nothing to compile.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }
    # Under stage 3 the weights are gathered in the end: else a checkpoint of shards is all that is left.
    gathered = {"stage3_gather_16bit_weights_on_model_save": True}
    if recipe.deepspeed is not None:
        found |= _read(recipe.deepspeed)
        section = _zero_section(found)
        if section.get("stage") != 3:
            return found
        if recipe.lora is not None:
            words = "lora cannot be merged under zero 3; stage 2 shards as well"
            raise UsageError(f"--deepspeed {recipe.deepspeed}: {words}")
        return found | {"zero_optimization": section | gathered}
    zero: Config = {"stage": recipe.stage, "contiguous_gradients": True}
    if recipe.stage == 3:
        zero |= gathered
    if recipe.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if recipe.stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return found | {"zero_optimization": zero}


def stage_of(recipe: Training) -> int | None:
    """The ZeRO stage, for the arithmetic of memory."""
    if recipe.deepspeed is None:
        return recipe.stage
    return int(_zero_section(_read(recipe.deepspeed)).get("stage", 0))


def as_configured(recipe: Training) -> Training:
    """The recipe with what a file of one's own offloads, for the same arithmetic."""
    if recipe.deepspeed is None:
        return recipe
    section = _zero_section(_read(recipe.deepspeed))
    parts = [section.get(name) or {} for name in ("offload_optimizer", "offload_param")]
    devices = {part.get("device", "none") for part in parts}
    return recipe.model_copy(update={"offload": devices != {"none"}})


def _zero_section(config: Config) -> Config:
    return config.get("zero_optimization") or {}


def _read(file: Path) -> Config:
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read --deepspeed {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--deepspeed {file}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"--deepspeed {file}: expected a JSON object as DeepSpeed documents it")
    return found
