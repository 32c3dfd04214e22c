"""Supervised fine-tuning, one process of it: `python -m trainers.sft_worker JOB.json`, from launcher.py.

rows → global batches → micro batches (packed or padded) → loss on the responses → checkpoint → folder.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainers.batching import Batch, Examples, example, in_groups, loss_sum, order, packed, padded, steps_of
from trainers.config import SftRecipe
from trainers.encoding import alpaca_chat_template, prompt_length
from trainers.models import causal_model, tokenizer_of, with_lora
from trainers.run_folder import Folder
from trainers.token_rows import TokenRows, load
from trainers.trainer import Loop, Telling, joined, save_tokenizer, save_weights, weights_dtype
from trainers.worker import run_job

ANSWER_TOKENS = 64


def train(job: dict[str, Any]) -> None:
    """Leaves the result in the folder's `result`, unless it was stopped before its end."""
    recipe, tokenizer = SftRecipe(**job["recipe"]), tokenizer_of(job["model"])
    folder, rows = Folder(recipe.out), load(TokenRows, Path(job["rows"]))
    trained = rows.trained
    steps = steps_of(len(trained), recipe.batch, recipe.epochs)
    planned = order(rows.lengths[trained], recipe.batch, steps, recipe.seed)

    checkpoint, args = joined(recipe, job, steps)
    model = causal_model(job["model"], weights_dtype(recipe))
    if recipe.lora is not None:
        model = with_lora(model, recipe.lora, recipe.recompute)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = packed if job["packed"] else partial(padded, pad=pad)

    def batch_of(group: Sequence[int]) -> Batch:
        found: Batch = collate([example(*rows.row(i)) for i in group])
        return found

    telling = Telling(rows.lengths[trained][planned].sum(1), len(trained), recipe.batch, folder)
    loop = Loop(
        planned, loss_sum, in_groups(rows.held_out, rows.lengths, recipe.rows_at_once, batch_of),
        partial(sampled, rows=rows, tokenizer=tokenizer, count=recipe.samples), folder.metrics,
        model=model, args=args, train_dataset=Examples(rows, trained), data_collator=collate,
        callbacks=[telling],
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if telling.stopped:
        return
    save_weights(loop, recipe, folder.result)
    if loop.is_world_process_zero():
        if job["template"] == "alpaca":
            tokenizer.chat_template = alpaca_chat_template(tokenizer)
        save_tokenizer(tokenizer, folder.result)


def sampled(loop: Loop, rows: TokenRows, tokenizer: Any, count: int) -> list[dict[str, Any]]:
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


if __name__ == "__main__":
    run_job(sys.argv[1], train)
