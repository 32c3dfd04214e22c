"""One process of a training run: `python -m trainers.worker JOB.json`, as launcher.py starts it.

sft:    rows → global batches → micro batches (packed or padded) → loss on the responses → folder.
reward: parts of prompts → global batches → one forward for each answer → loss on all pairs → the same.

The loss over pairs is InstructGPT's (arXiv 2203.02155, section 3.5, equation 1): the mean of
−log σ(r_better − r_worse) over a prompt's pairs, so that each prompt weighs the same. A prompt in parts
weighs by the pairs of each part.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers.attention import implementation
from trainers.callbacks import Telling
from trainers.config import RewardRecipe, SftRecipe, Training
from trainers.encoding import prompt_length
from trainers.micro_batches import room_for
from trainers.models import causal_model, tokenizer_of, with_lora
from trainers.process import fused_kernels, least_of_all, run_job
from trainers.reward_data import Parts, template_for
from trainers.reward_model import padding_of, reward_model
from trainers.rows import (
    Batch,
    TokenRows,
    end_to_end,
    example,
    load,
    order,
    packed,
    padded,
    steps_of,
    token_loss_sum,
)
from trainers.run_folder import About, Folder, write_about
from trainers.trainer import Lessons, Loop, joined, publish, save_tokenizer, save_weights, weights_dtype

ANSWER_TOKENS = 64


def train(job: dict[str, Any]) -> None:
    """Leaves the result in the folder's `result`, unless it was stopped before its end."""
    if job["kind"] == "dpo":
        from trainers.trl_worker import train_dpo  # TRL is an extra of its own

        train_dpo(job)
    elif job["kind"] == "distill":
        from trainers.distill_worker import train_distill

        train_distill(job, sampled, one_batch)
    elif job["kind"] == "rl":
        from trainers.rl_worker import train_rl

        train_rl(job)
    else:
        {"sft": train_sft, "reward": train_reward}[job["kind"]](job)


def train_sft(job: dict[str, Any]) -> None:
    recipe, tokenizer = SftRecipe(**job["recipe"]), tokenizer_of(job["model"])
    folder, rows = Folder(recipe.out), load(TokenRows, Path(job["rows"]))
    trained, packs = rows.trained, job["packed"]
    steps = steps_of(len(trained), recipe.batch, recipe.epochs)
    planned = trained[order(rows.lengths[trained], recipe.batch, steps, recipe.seed)]

    checkpoint, args = joined(recipe, job, steps, **one_batch(recipe))
    attention = implementation(packs, recipe.precision == "bf16")
    model = causal_model(job["model"], weights_dtype(recipe), attention)
    if recipe.lora is not None:
        model = with_lora(model, recipe.lora, recipe.recompute)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    room = room_for(least_of_all(job["tokens_at_once"]), recipe.rows_at_once, packs, recipe.max_length)

    def batch_of(group: Sequence[int]) -> Batch:
        examples = [example(*rows.row(i)) for i in group]
        width = room.width(max(len(one["input_ids"]) for one in examples))
        return packed(examples) if packs else padded(examples, pad, width)

    telling = Telling(rows.lengths[planned].sum(1), len(trained), recipe.batch, folder)
    lessons = Lessons(planned, rows.held_out, rows.lengths, rows.learnt, batch_of, room)
    draw = partial(sampled, rows=rows, tokenizer=tokenizer, count=recipe.samples)
    loop = Loop(lessons, token_loss_sum, draw, telling, folder.metrics, model=model, args=args)
    loop.train(resume_from_checkpoint=checkpoint)
    if telling.stopped:
        return
    publish(loop, recipe, tokenizer, job["template"], folder.result)


def one_batch(recipe: Training) -> dict[str, Any]:
    """The Trainer's arguments for a step that Loop cuts into micro batches itself."""
    size = {"per_device_train_batch_size": recipe.share, "gradient_accumulation_steps": 1}
    return size | fused_kernels()


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


def train_reward(job: dict[str, Any]) -> None:
    recipe, tokenizer = RewardRecipe(**job["recipe"]), tokenizer_of(job["model"])
    folder, parts = Folder(recipe.out), load(Parts, Path(job["rows"]))
    trained = parts.trained
    steps = steps_of(len(trained), recipe.batch, recipe.epochs)
    planned = trained[order(parts.lengths[trained], recipe.batch, steps, recipe.seed)]

    checkpoint, args = joined(recipe, job, steps, **one_batch(recipe))
    pad, attention = padding_of(tokenizer), implementation(True, recipe.precision == "bf16")
    model = reward_model(job["model"], weights_dtype(recipe), pad, attention=attention)
    if recipe.lora is not None:
        model = with_lora(model, recipe.lora, recipe.recompute, "SEQ_CLS")

    def batch_of(group: Sequence[int]) -> Batch:
        return collated([part_of(parts, i) for i in group])

    room = room_for(least_of_all(job["tokens_at_once"]), recipe.rows_at_once, True, recipe.max_length)
    telling = Telling(parts.lengths[planned].sum(1), len(trained), recipe.batch, folder)
    lessons = Lessons(planned, parts.held_out, parts.lengths, parts.weights, batch_of, room)
    loop = Loop(
        lessons, pair_loss_sum, lambda _: [], telling, folder.metrics, prompts_in, pair_figures,
        model=model, args=args,
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if telling.stopped:
        return
    save_weights(loop, recipe, folder.result)
    if loop.is_world_process_zero():
        write_about(About(template_for(tokenizer, recipe.template), recipe.max_length), folder.result)
        tokenizer.pad_token_id = pad
        save_tokenizer(tokenizer, folder.result)


def part_of(parts: Parts, index: int) -> dict[str, Any]:
    """answers: tensors of tokens. pairs: (P, 2). share: pairs of the whole prompt."""
    answers = [torch.tensor(np.asarray(tokens), dtype=torch.long) for tokens in parts.answers(index)]
    pairs = torch.tensor(np.asarray(parts.pairs_of(index)), dtype=torch.long)
    return {"answers": answers, "pairs": pairs, "share": int(parts.shares[index])}


def collated(found: Sequence[dict[str, Any]]) -> Batch:
    """All answers of these prompts end to end, so that none is padded. pairs: (P, 2) of these answers.
    shares: (P,) pairs that each pair's prompt has; whole, for no one casts those to bf16."""
    firsts = np.cumsum([0, *(len(part["answers"]) for part in found)])
    pairs = [part["pairs"] + int(first) for part, first in zip(found, firsts, strict=False)]
    return {
        **end_to_end([answer for part in found for answer in part["answers"]]),
        "pairs": torch.cat(pairs),
        "shares": torch.cat([torch.full((len(part["pairs"]),), part["share"]) for part in found]),
    }


def prompts_in(batch: Batch) -> float:
    """Whole prompts, and of others the part that is here."""
    return float((1.0 / batch["shares"].double()).sum())


def rewards(model: Any, batch: Batch) -> torch.Tensor:
    """(answers,) float32: one forward for each."""
    inputs = {name: value for name, value in batch.items() if name not in ("pairs", "shares")}
    found: torch.Tensor = model(**inputs).logits.float().squeeze(-1)
    return found


def differences(model: Any, batch: Batch) -> torch.Tensor:
    """(P,) r_better − r_worse of each pair."""
    better, worse = rewards(model, batch)[batch["pairs"]].unbind(1)
    return better - worse


def pair_loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """The sum over prompts of the mean over their pairs."""
    return weighted(differences(model, batch), batch)


def weighted(found: torch.Tensor, batch: Batch) -> torch.Tensor:
    return -(torch.nn.functional.logsigmoid(found) / batch["shares"]).sum()


def pair_figures(model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
    """Loss a prompt, and accuracy over pairs; a difference of 0 is half right."""
    found = differences(model, batch)
    right = (found > 0).double() + (found == 0).double() / 2
    return {
        "held_out_loss": (weighted(found, batch).item(), prompts_in(batch)),
        "held_out_accuracy": (right.sum().item(), float(len(right))),
    }


if __name__ == "__main__":
    run_job(sys.argv[1], train)
