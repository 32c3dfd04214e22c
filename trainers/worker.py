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

from trainers.config import RewardRecipe, SftRecipe
from trainers.encoding import prompt_length
from trainers.models import causal_model, tokenizer_of, with_lora
from trainers.process import run_job
from trainers.reward_data import Parts, template_for
from trainers.reward_model import padding_of, reward_model
from trainers.rows import (
    Batch,
    Examples,
    TokenRows,
    example,
    in_groups,
    load,
    order,
    packed,
    padded,
    steps_of,
    token_loss_sum,
)
from trainers.run_folder import About, Folder, write_about
from trainers.trainer import Loop, Telling, joined, publish, save_tokenizer, save_weights, weights_dtype

ANSWER_TOKENS = 64


def train(job: dict[str, Any]) -> None:
    """Leaves the result in the folder's `result`, unless it was stopped before its end."""
    if job["kind"] == "dpo":
        from trainers.trl_worker import train_dpo  # TRL is an extra of its own

        train_dpo(job)
    elif job["kind"] == "distill":
        from trainers.distill_worker import train_distill

        train_distill(job, sampled)
    elif job["kind"] == "rl":
        from trainers.rl_worker import train_rl

        train_rl(job)
    else:
        {"sft": train_sft, "reward": train_reward}[job["kind"]](job)


def train_sft(job: dict[str, Any]) -> None:
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
        planned, token_loss_sum, in_groups(rows.held_out, rows.lengths, recipe.rows_at_once, batch_of),
        partial(sampled, rows=rows, tokenizer=tokenizer, count=recipe.samples), folder.metrics,
        model=model, args=args, train_dataset=Examples(rows, trained), data_collator=collate,
        callbacks=[telling],
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if telling.stopped:
        return
    publish(loop, recipe, tokenizer, job["template"], folder.result)


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
        planned, pair_loss_sum, in_groups(parts.held_out, parts.lengths, recipe.rows_at_once, batch_of),
        lambda _: [], folder.metrics, count=prompts_in, measure=pair_figures,
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


class PartRows(torch.utils.data.Dataset[Batch]):
    """Chosen parts; each one as a batch of its own, not padded yet."""

    def __init__(self, parts: Parts, chosen: np.ndarray[Any, Any]) -> None:
        self._parts, self._chosen = parts, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, place: int) -> Any:
        return part_of(self._parts, int(self._chosen[place]))


def part_of(parts: Parts, index: int) -> dict[str, Any]:
    """answers: tensors of tokens. pairs: (P, 2). share: pairs of the whole prompt."""
    answers = [torch.tensor(np.asarray(tokens), dtype=torch.long) for tokens in parts.answers(index)]
    pairs = torch.tensor(np.asarray(parts.pairs_of(index)), dtype=torch.long)
    return {"answers": answers, "pairs": pairs, "share": int(parts.shares[index])}


def collated(found: Sequence[dict[str, Any]], pad: int) -> Batch:
    """input_ids, attention_mask: (answers, longest), filled on the right, the shortest first. pairs: (P, 2)
    rows of these. shares: (P,) pairs that each pair's prompt has; whole, for no one casts those to bf16."""
    unsorted = [answer for part in found for answer in part["answers"]]
    answers = sorted(unsorted, key=len)
    places = torch.tensor([len(answer) for answer in unsorted]).argsort(stable=True).argsort()
    firsts = np.cumsum([0, *(len(part["answers"]) for part in found)])
    pairs = [part["pairs"] + int(first) for part, first in zip(found, firsts, strict=False)]

    def fill(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    return {
        "input_ids": fill(answers, pad),
        "attention_mask": fill([torch.ones_like(answer) for answer in answers], 0),
        "pairs": places[torch.cat(pairs)],
        "shares": torch.cat([torch.full((len(part["pairs"]),), part["share"]) for part in found]),
    }


def prompts_in(batch: Batch) -> float:
    """Whole prompts, and of others the part that is here."""
    return float((1.0 / batch["shares"].double()).sum())


def rewards(model: Any, batch: Batch) -> torch.Tensor:
    """(answers,) float32. The shorter half apart from the longer: else two fifths of a batch were padding.
    Always two forwards, so that processes keep step under ZeRO-3."""
    halves = zip(batch["input_ids"].chunk(2), batch["attention_mask"].chunk(2), strict=True)
    cut = [(ids[:, :width], mask[:, :width]) for ids, mask in halves for width in (int(mask.sum(1).max()),)]
    return torch.cat([model(input_ids=i, attention_mask=m).logits.float().squeeze(-1) for i, m in cut])


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
