"""TRL's trainers on rows of training.py, in an interpreter that has trl; prints its own times as JSON.

Set for speed: no gradient checkpointing (its default), rows grouped by length, loss on completions only.
Packing and padding-free batches are documented for FlashAttention alone, which CPUs have not.
"""

import json
import sys
import time
from typing import Any

from datasets import load_dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Seconds of each step after the first."""

    def __init__(self) -> None:
        self.began, self.seconds, self.steps = 0.0, 0.0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step > 1:
            self.seconds += time.perf_counter() - self.began
            self.steps += 1


class Counted(SFTTrainer):
    """Counts tokens that are no padding, of each step after the first."""

    tokens = 0

    def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        if self.state.global_step > 0:
            self.tokens += int(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs, *given, **named)


def main(
    what: str, rows: str, model: str, precision: str, at_once: int, accumulation: int, most: int
) -> None:
    clock = Clock()
    settings: dict[str, Any] = {
        "output_dir": "/nonexistent", "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": accumulation, "num_train_epochs": 1, "max_length": most,
        "bf16": precision == "bf16", "gradient_checkpointing": False, "use_cpu": True,
        "dataloader_pin_memory": False, "train_sampling_strategy": "group_by_length", "save_strategy": "no",
        "report_to": [], "disable_tqdm": True, "model_init_kwargs": {"dtype": "float32"},
    }  # fmt: skip
    data = load_dataset("json", data_files=rows, split="train")
    tokenizer = AutoTokenizer.from_pretrained(model)
    given: dict[str, Any] = {"train_dataset": data, "processing_class": tokenizer, "callbacks": [clock]}
    if what == "sft":
        trainer: Any = Counted(model, args=SFTConfig(**settings), **given)
    else:
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            tokenizer.pad_token = tokenizer.unk_token
        settings["remove_unused_columns"] = False  # else the lengths to group by are gone
        trainer = RewardTrainer(model, args=RewardConfig(**settings), **given)
    trainer.train()
    print(
        json.dumps({"seconds": clock.seconds, "steps": clock.steps, "tokens": getattr(trainer, "tokens", 0)})
    )


if __name__ == "__main__":
    main(*sys.argv[1:5], *(int(value) for value in sys.argv[5:8]))  # type: ignore[arg-type]
