"""Supervised fine-tuning, one process of it: `python -m trainers.sft JOB.json`, as launch.py starts it.

rows → global batches → micro batches (packed or padded) → loss on the responses → checkpoint → folder.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from trainers import rows as rows_on_disk
from trainers.batches import Batch, Examples, example, loss_sum, order, packed, padded, steps_of
from trainers.folder import Folder
from trainers.lora import merged, with_lora
from trainers.models import causal_model, tokenizer_of
from trainers.recipe import SftRecipe
from trainers.reports import report
from trainers.rows import Rows
from trainers.sft_data import prompt_length
from trainers.templates import alpaca_chat_template
from trainers.training import Loop, Telling, arguments
from trainers.worker import agreed, die_with_parent, join_processes, run_worker

ANSWER_TOKENS = 64


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_bytes())
    die_with_parent(job["parent"] if job["alone"] else 0)
    run_worker(lambda: train(SftRecipe(**job["recipe"]), job))


def train(recipe: SftRecipe, job: dict[str, Any]) -> None:
    """Leaves the result in the folder's `result`, unless it was stopped before its end."""
    folder, rows, tokenizer = (
        Folder(recipe.out),
        rows_on_disk.load(Path(job["rows"])),
        tokenizer_of(job["model"]),
    )
    trained = rows.trained
    steps = steps_of(len(trained), recipe.batch, recipe.epochs)
    planned = order(rows.lengths[trained], recipe.batch, steps, recipe.seed)

    join_processes(recipe)
    set_seed(recipe.seed)
    checkpoint = agreed(job["checkpoint"])
    args = arguments(recipe, folder.checkpoints, steps, fresh=checkpoint is None)
    model = causal_model(job["model"], weights_dtype(recipe))
    if recipe.lora is not None:
        model = with_lora(model, recipe.lora, recipe.recompute)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = packed if job["packed"] else partial(padded, pad=pad)

    telling = Telling(rows.lengths[trained][planned].sum(1), len(trained), recipe.batch, folder.stop)
    loop = Loop(
        planned, loss_sum, held_out_batches(rows, recipe, collate),
        partial(sampled, rows=rows, tokenizer=tokenizer, count=recipe.samples),
        model=model, args=args, train_dataset=Examples(rows, trained), data_collator=collate,
        callbacks=[telling],
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if telling.stopped:
        return
    save(loop, recipe, tokenizer, job["template"], folder.result)


def weights_dtype(recipe: SftRecipe) -> torch.dtype:
    """DeepSpeed keeps fp32 master weights beside bf16 ones; a plain loop's weights are the masters."""
    return torch.bfloat16 if recipe.precision == "bf16" and recipe.with_deepspeed else torch.float32


def held_out_batches(rows: Rows, recipe: SftRecipe, collate: Any) -> list[Callable[[], Batch]]:
    """Micro batches of held-out rows, shortest first, made when they are wanted."""
    sorted_rows = sorted(rows.held_out.tolist(), key=lambda i: int(rows.lengths[i]))
    size = recipe.rows_at_once
    groups = [sorted_rows[at : at + size] for at in range(0, len(sorted_rows), size)]

    def batch(group: list[int]) -> Batch:
        found: Batch = collate([example(*rows.row(i)) for i in group])
        return found

    return [partial(batch, group) for group in groups]


def sampled(loop: Loop, rows: Rows, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """Greedy answers to the first held-out prompts, for people to look at. All processes answer, for
    under ZeRO-3 each holds a part of the weights."""
    found = []
    with loop.for_inference(), torch.no_grad(), loop.autocast():
        for index in rows.held_out[:count].tolist():
            tokens, learn = rows.row(index)
            before = prompt_length(learn)
            prompt = torch.tensor(tokens[:before].astype("int64"), device=loop.args.device)[None]
            written = loop.accelerator.unwrap_model(loop.model).generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=ANSWER_TOKENS,
                do_sample=False, temperature=None, top_p=None, top_k=None, use_cache=True,
                pad_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            said = {"prompt": tokens[:before], "answer": written[0, before:], "reference": tokens[before:]}
            found.append({k: tokenizer.decode(v, skip_special_tokens=True) for k, v in said.items()})
    return found


def save(loop: Loop, recipe: SftRecipe, tokenizer: Any, template: str, result: Path) -> None:
    """A plain folder of safetensors with its tokenizer and the chat template that it was taught."""
    if recipe.lora is not None:
        merged(loop, result)
    else:
        if recipe.precision == "bf16" and not loop.is_deepspeed_enabled:
            model: Any = loop.model
            model.to(torch.bfloat16)
        loop.save_model(str(result))
    if loop.is_world_process_zero():
        if template == "alpaca":
            tokenizer.chat_template = alpaca_chat_template(tokenizer)
        tokenizer.save_pretrained(result)
        (result / "training_args.bin").unlink(missing_ok=True)
        report("result")


if __name__ == "__main__":
    main(sys.argv[1])
