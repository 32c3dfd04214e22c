"""TRL's trainers on rows of training.py, in an interpreter that has trl; prints its own times as JSON.

Set for speed: no gradient checkpointing (its default), loss on completions only. On a CPU rows are grouped by
length: packing and padding-free batches are documented for FlashAttention alone, which CPUs have not. On a
GPU they are packed (best fit), with the FlashAttention that torch carries where flash-attn is not installed.
"""

import importlib.util
import json
import sys
import time
from typing import Any

import torch
from datasets import load_dataset
from transformers import AttentionInterface, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

PACKED_AT_ONCE, PAIRS_AT_ONCE = 24, 24  # sequences of full length, and pairs, in a micro batch on a GPU


class Clock(TrainerCallback):
    """Seconds of the steps that count, until the device has finished."""

    def __init__(self, left_out: int) -> None:
        self.began, self.seconds, self.steps, self.left_out = 0.0, 0.0, 0, left_out

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        finished()
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        finished()
        if state.global_step > self.left_out:
            self.seconds += time.perf_counter() - self.began
            self.steps += 1


def finished() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Counted(SFTTrainer):
    """Counts tokens that are no padding, of the steps that count."""

    tokens, left_out = 0, 0

    def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
        if self.state.global_step >= self.left_out:
            mask = inputs.get("attention_mask")
            self.tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
        return super().compute_loss(model, inputs, *given, **named)


def attention() -> str:
    """flash-attn's where it is installed, else torch's own with the rows' ends read from positions."""
    if importlib.util.find_spec("flash_attn") is not None and torch.cuda.is_available():
        return "flash_attention_2"
    from trainers.attention import varlen_attention

    ends: dict[int, Any] = {}

    def packed(module: Any, q: Any, k: Any, v: Any, mask: Any, position_ids: Any = None, **how: Any) -> Any:
        if id(position_ids) not in ends:  # once a batch, not in each layer
            ends.clear()
            firsts = torch.nonzero(position_ids.reshape(-1) == 0).reshape(-1)
            last = torch.tensor([position_ids.numel()], device=firsts.device)
            cut = torch.cat([firsts, last]).int()
            ends[id(position_ids)] = (position_ids, cut, int(cut.diff().max()))
        _, cut, longest = ends[id(position_ids)]
        how |= {"cu_seq_lens_q": cut, "max_length_q": longest}
        return varlen_attention(module, q, k, v, None, **how)

    AttentionInterface.register("packed", packed)
    return "packed"


def main(told: dict[str, Any]) -> None:
    clock, sft = Clock(told["left_out"]), told["what"] == "sft"
    packs = sft and told["cuda"]
    batch = max(1, told["batch"] // (4 if packs else 1))  # a packed sequence holds about four rows
    at_once = told["at_once"] or min(batch, PACKED_AT_ONCE if sft else PAIRS_AT_ONCE)
    steps = {"gradient_accumulation_steps": max(1, batch // at_once)}
    frozen = told["lora"] and told["precision"] == "bf16"
    weights: dict[str, Any] = {"dtype": "bfloat16" if frozen else "float32"}
    settings: dict[str, Any] = {
        "output_dir": "/nonexistent", "per_device_train_batch_size": at_once, **steps,
        "num_train_epochs": 1, "max_length": told["most"], "bf16": told["precision"] == "bf16",
        "gradient_checkpointing": False, "use_cpu": not told["on_gpu"],
        "dataloader_pin_memory": told["on_gpu"], "save_strategy": "no", "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    if packs:
        settings |= {"packing": True}
        weights |= {"attn_implementation": attention()}
    else:
        settings |= {"train_sampling_strategy": "group_by_length"}
    if told["on_gpu"] and importlib.util.find_spec("liger_kernel") is not None and sft:
        settings |= {"use_liger_kernel": True}
    settings["model_init_kwargs"] = weights
    data = load_dataset("json", data_files=told["rows"], split="train")
    tokenizer = AutoTokenizer.from_pretrained(told["model"])
    given: dict[str, Any] = {"train_dataset": data, "processing_class": tokenizer, "callbacks": [clock]}
    if told["lora"]:
        from peft import LoraConfig

        rank = told["lora"]
        given["peft_config"] = LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear",
            task_type="CAUSAL_LM" if sft else "SEQ_CLS",
        )  # fmt: skip
    if sft:
        trainer: Any = Counted(told["model"], args=SFTConfig(**settings), **given)
        trainer.left_out = told["left_out"]
    else:
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            tokenizer.pad_token = tokenizer.unk_token
        settings["remove_unused_columns"] = False  # else the lengths to group by are gone
        trainer = RewardTrainer(told["model"], args=RewardConfig(**settings), **given)
    trainer.train()
    peak = torch.cuda.max_memory_allocated() if told["on_gpu"] else 0
    tokens = getattr(trainer, "tokens", 0)
    print(json.dumps({"seconds": clock.seconds, "steps": clock.steps, "tokens": tokens, "peak": peak}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
