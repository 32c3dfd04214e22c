"""A reward model, one process of it: `python -m trainers.reward_worker JOB.json`, as launcher.py starts it.

parts of prompts → global batches → one forward for each answer → loss on all pairs → checkpoint → folder.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainers.batching import Batch, in_groups, order, steps_of
from trainers.config import RewardRecipe
from trainers.models import tokenizer_of, with_lora
from trainers.reward_data import Parts, template_for
from trainers.reward_loss import PartRows, collated, loss_sum, measured, part_of, prompts_in
from trainers.reward_model import About, padding_of, reward_model, write_about
from trainers.run_folder import Folder
from trainers.token_rows import load
from trainers.trainer import Loop, Telling, joined, save_tokenizer, save_weights, weights_dtype
from trainers.worker import run_job


def train(job: dict[str, Any]) -> None:
    """Leaves the result in the folder's `result`, unless it was stopped before its end."""
    recipe, tokenizer = RewardRecipe(**job["recipe"]), tokenizer_of(job["model"])
    folder, parts = Folder(recipe.out), load(Parts, Path(job["rows"]))
    trained = parts.trained
    steps = steps_of(len(trained), recipe.batch, recipe.epochs)
    planned = order(parts.lengths[trained], recipe.batch, steps, recipe.seed)

    checkpoint, args = joined(recipe, job, steps)
    pad = padding_of(tokenizer)
    model = reward_model(job["model"], weights_dtype(recipe), pad)
    if recipe.lora is not None:
        model = with_lora(model, recipe.lora, recipe.recompute, "SEQ_CLS")
    collate = partial(collated, pad=pad)

    def batch_of(group: Sequence[int]) -> Batch:
        return collate([part_of(parts, i) for i in group])

    telling = Telling(parts.lengths[trained][planned].sum(1), len(trained), recipe.batch, folder)
    loop = Loop(
        planned, loss_sum, in_groups(parts.held_out, parts.lengths, recipe.rows_at_once, batch_of),
        lambda _: [], folder.metrics, count=prompts_in, measure=measured,
        model=model, args=args, train_dataset=PartRows(parts, trained), data_collator=collate,
        callbacks=[telling],
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if telling.stopped:
        return
    save_weights(loop, recipe, folder.result)
    if loop.is_world_process_zero():
        write_about(About(template_for(tokenizer, recipe.template), recipe.max_length), folder.result)
        tokenizer.pad_token_id = pad
        save_tokenizer(tokenizer, folder.result)


if __name__ == "__main__":
    run_job(sys.argv[1], train)
