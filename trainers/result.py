"""What a trained model leaves: a plain folder of safetensors with its tokenizer."""

from pathlib import Path
from typing import Any

import torch

from trainers.lora import merged
from trainers.recipe import Training
from trainers.reports import report
from trainers.training import Loop


def save_weights(loop: Loop, recipe: Training, result: Path) -> None:
    """By all processes, for under ZeRO-3 each holds a part. In bf16 where that was trained in."""
    if recipe.lora is not None:
        merged(loop, result)
        return
    if recipe.precision == "bf16" and not loop.is_deepspeed_enabled:
        model: Any = loop.model
        model.to(torch.bfloat16)
    loop.save_model(str(result))


def save_tokenizer(tokenizer: Any, result: Path) -> None:
    """By one process. With it the result is whole, which is reported."""
    tokenizer.save_pretrained(result)
    (result / "training_args.bin").unlink(missing_ok=True)
    report("result")
