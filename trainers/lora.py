"""LoRA through peft: thin matrices beside each linear layer are learnt, and merged in the end."""

from pathlib import Path
from typing import Any

ALPHA = 2  # times the rank
DROPOUT = 0.0


def with_lora(model: Any, rank: int, recompute: bool, task: str = "CAUSAL_LM") -> Any:
    """task: peft's name for it; with SEQ_CLS the head is learnt whole."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=ALPHA * rank,
        lora_dropout=DROPOUT,
        target_modules="all-linear",
    )
    if recompute:
        model.enable_input_require_grads()
    return get_peft_model(model, config)


def linear_shapes(model: Any) -> list[tuple[int, int]]:
    """(out, in) of every layer that LoRA stands beside: all linear ones but the head."""
    import torch

    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return [(layer.out_features, layer.in_features) for layer in layers]


def merged(loop: Any, result: Path) -> None:
    """Writes the model with what was learnt added to its weights, by the first process."""
    if loop.is_world_process_zero():
        import torch

        whole = loop.accelerator.unwrap_model(loop.model).merge_and_unload()
        if loop.args.bf16:
            whole.to(torch.bfloat16)
        whole.save_pretrained(result)
