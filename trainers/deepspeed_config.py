"""The configuration that DeepSpeed gets; 'auto' is filled in by transformers from the same recipe."""

import json
from pathlib import Path
from typing import Any

from store.errors import UsageError
from trainers.config import Training

Config = dict[str, Any]


def deepspeed_config(recipe: Training) -> Config | None:
    """None where a plain loop is meant. Raises UsageError for a file that is no configuration."""
    if recipe.deepspeed is not None:
        return _defaults(recipe) | _own(recipe, recipe.deepspeed)
    if recipe.stage is None:
        return None
    return _defaults(recipe) | {"zero_optimization": _zero(recipe, recipe.stage)}


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


def _own(recipe: Training, file: Path) -> Config:
    """The file's configuration. Under stage 3 the weights are gathered in the end, for without that a
    checkpoint of shards is all that is left."""
    found = _read(file)
    section = _zero_section(found)
    if section.get("stage") != 3:
        return found
    if recipe.lora is not None:
        raise UsageError(f"--deepspeed {file}: lora cannot be merged under zero 3; stage 2 shards as well")
    return found | {"zero_optimization": section | {"stage3_gather_16bit_weights_on_model_save": True}}


def _zero_section(config: Config) -> Config:
    return config.get("zero_optimization") or {}


def _defaults(recipe: Training) -> Config:
    return {
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


def _zero(recipe: Training, stage: int) -> Config:
    found: Config = {"stage": stage, "contiguous_gradients": True}
    if stage == 3:
        # Without it a checkpoint of shards is all that is left in the end.
        found["stage3_gather_16bit_weights_on_model_save"] = True
    if recipe.offload:
        found["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            found["offload_param"] = {"device": "cpu"}
    return found


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
