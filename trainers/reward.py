"""A reward model, one process of it: `python -m trainers.reward JOB.json`, as launch.py starts it.

parts of prompts → global batches → one forward for each answer → loss on all pairs → checkpoint → folder.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from trainers import reward_data
from trainers.batches import Batch, order, steps_of
from trainers.folder import Folder
from trainers.lora import merged, with_lora
from trainers.models import tokenizer_of
from trainers.pairs import PartRows, collated, loss_sum, measured, part_of, prompts_in
from trainers.recipe import RewardRecipe
from trainers.reports import report
from trainers.reward_data import Parts, template_for
from trainers.reward_model import About, padding_of, reward_model, write_about
from trainers.training import Loop, Telling, arguments
from trainers.worker import agreed, die_with_parent, join_processes, run_worker


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_bytes())
    die_with_parent(job["parent"] if job["alone"] else 0)
    run_worker(lambda: train(RewardRecipe(**job["recipe"]), job))


def train(recipe: RewardRecipe, job: dict[str, Any]) -> None:
    """Leaves the result in the folder's `result`, unless it was stopped before its end."""
    folder, tokenizer = Folder(recipe.out), tokenizer_of(job["model"])
    parts = reward_data.load(Path(job["rows"]))
    trained = parts.trained
    steps = steps_of(len(trained), recipe.batch, recipe.epochs)
    planned = order(parts.lengths[trained], recipe.batch, steps, recipe.seed)

    join_processes(recipe)
    set_seed(recipe.seed)
    checkpoint = agreed(job["checkpoint"])
    args = arguments(recipe, folder.checkpoints, steps, fresh=checkpoint is None)
    pad = padding_of(tokenizer)
    bf16_weights = recipe.precision == "bf16" and recipe.with_deepspeed
    model = reward_model(job["model"], torch.bfloat16 if bf16_weights else torch.float32, pad)
    if recipe.lora is not None:
        model = with_lora(model, recipe.lora, recipe.recompute, "SEQ_CLS")
    collate = partial(collated, pad=pad)

    telling = Telling(parts.lengths[trained][planned].sum(1), len(trained), recipe.batch, folder.stop)
    loop = Loop(
        planned, loss_sum, held_out_batches(parts, recipe, collate), lambda _: [],
        count=prompts_in, measure=measured,
        model=model, args=args, train_dataset=PartRows(parts, trained), data_collator=collate,
        callbacks=[telling],
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if telling.stopped:
        return
    save(loop, recipe, tokenizer, folder.result)


def held_out_batches(parts: Parts, recipe: RewardRecipe, collate: Any) -> list[Callable[[], Batch]]:
    """Micro batches of held-out parts, shortest first, made when they are wanted."""
    lengths = parts.lengths
    found = sorted(parts.held_out.tolist(), key=lambda i: int(lengths[i]))
    size = recipe.rows_at_once
    groups = [found[at : at + size] for at in range(0, len(found), size)]

    def batch(group: list[int]) -> Batch:
        made: Batch = collate([part_of(parts, i) for i in group])
        return made

    return [partial(batch, group) for group in groups]


def save(loop: Loop, recipe: RewardRecipe, tokenizer: Any, result: Path) -> None:
    """A plain folder of safetensors with its tokenizer, and how it reads."""
    if recipe.lora is not None:
        merged(loop, result)
    else:
        if recipe.precision == "bf16" and not loop.is_deepspeed_enabled:
            model: Any = loop.model
            model.to(torch.bfloat16)
        loop.save_model(str(result))
    if loop.is_world_process_zero():
        write_about(About(template_for(tokenizer, recipe.template), recipe.max_length), result)
        tokenizer.pad_token_id = padding_of(tokenizer)
        tokenizer.save_pretrained(result)
        (result / "training_args.bin").unlink(missing_ok=True)
        report("result")


if __name__ == "__main__":
    main(sys.argv[1])
