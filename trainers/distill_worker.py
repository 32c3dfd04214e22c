"""One process of `train distill`: the forward KL to what the teacher said, or TRL's GKD."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers.models import causal_model, tokenizer_of, with_lora
from trainers.process import join_processes
from trainers.rows import (
    IGNORED,
    Batch,
    TokenRows,
    example,
    in_groups,
    learnt_in,
    load,
    order,
    packed,
    padded,
    steps_of,
)
from trainers.run_folder import Folder
from trainers.teacher_targets import Targets, ask_teacher, firsts
from trainers.trainer import Loop, Telling, joined, publish, weights_dtype
from trainers.trl_config import DistillRecipe

LEAST = 1e-7  # of a probability


class TaughtRows(torch.utils.data.Dataset[Batch]):
    """Chosen rows with what the teacher said of them."""

    def __init__(self, rows: TokenRows, targets: Targets) -> None:
        self._rows, self._targets, self._firsts, self._chosen = rows, targets, firsts(rows), rows.trained

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, place: int) -> Batch:
        return self.row(int(self._chosen[place]))

    def row(self, index: int) -> Batch:
        where = slice(int(self._firsts[index]), int(self._firsts[index + 1]))
        ids, logs = np.array(self._targets.ids[where]), np.array(self._targets.logs[where])
        found = {"teacher_ids": torch.tensor(ids, dtype=torch.long), "teacher_logs": torch.tensor(logs)}
        return example(*self._rows.row(index)) | found


def collated(examples: Sequence[Batch], rows: Any) -> Batch:
    """rows: how tokens become a batch, packed or padded. teacher_ids, teacher_logs: (places, top), in the
    order of the targets."""
    names = ("teacher_ids", "teacher_logs")
    return dict(rows(examples)) | {name: torch.cat([e[name] for e in examples]) for name in names}


def kl_sum(model: Any, batch: Batch, temperature: float) -> torch.Tensor:
    """KL(teacher‖student) summed over places, times the squared temperature. All tokens that the teacher was
    not asked for are one: so the student that is its teacher has a loss of 0, however few are known."""
    logs, student = batch["teacher_logs"].float(), _student(model, batch, temperature)
    asked = logs > -math.inf
    teacher, own = logs.exp(), student.gather(-1, batch["teacher_ids"])
    rest = (1 - teacher.sum(-1)).clamp(min=0)
    own_rest = (1 - torch.where(asked, own.exp(), 0.0).sum(-1)).clamp(min=LEAST)
    entropy = torch.special.entr(teacher).sum() + torch.special.entr(rest).sum()
    cross = torch.where(asked, teacher * own, 0.0).sum() + (rest * own_rest.log()).sum()
    return -(entropy + cross) * temperature**2


def _student(model: Any, batch: Batch, temperature: float) -> torch.Tensor:
    """(places, vocabulary) log-probabilities where something is learnt."""
    given = {name: t for name, t in batch.items() if name not in ("targets", "teacher_ids", "teacher_logs")}
    logits = model(**given, use_cache=False).logits
    learnt = batch["targets"].reshape(-1) != IGNORED
    flat = logits.reshape(-1, logits.shape[-1])
    return (flat[learnt].float() / temperature).log_softmax(-1)


def figures(model: Any, batch: Batch, temperature: float) -> dict[str, tuple[float, float]]:
    """The loss, and how often the student's most likely token is the teacher's."""
    count = float(learnt_in(batch))
    best = _student(model, batch, 1.0).argmax(-1)
    first = batch["teacher_ids"][:, 0]
    return {
        "held_out_loss": (kl_sum(model, batch, temperature).item(), count),
        "held_out_accuracy": (float((best == first).sum()), count),
    }


def train_distill(job: dict[str, Any], sampled: Any) -> None:
    """sampled: draws answers to held-out prompts."""
    recipe, tokenizer = DistillRecipe(**job["recipe"]), tokenizer_of(job["model"])
    folder, rows = Folder(recipe.out), load(TokenRows, Path(job["rows"]))
    if recipe.on_policy:
        from trainers.rl_worker import train_gkd

        train_gkd(job, recipe, tokenizer, rows, folder)
        return
    join_processes(recipe)
    if job["teacher"] is not None:
        ask_teacher(job["teacher"], rows, Path(job["rows"]), recipe)
    targets, trained = Targets.read(Path(job["rows"])), rows.trained
    steps = steps_of(len(trained), recipe.batch, recipe.epochs)
    planned = order(rows.lengths[trained], recipe.batch, steps, recipe.seed)

    checkpoint, args = joined(recipe, job, steps)
    model = causal_model(job["model"], weights_dtype(recipe))
    if recipe.lora is not None:
        model = with_lora(model, recipe.lora, recipe.recompute)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = partial(collated, rows=packed if job["packed"] else partial(padded, pad=pad))
    taught = TaughtRows(rows, targets)

    def batch_of(group: Sequence[int]) -> Batch:
        return collate([taught.row(i) for i in group])

    telling = Telling(rows.lengths[trained][planned].sum(1), len(trained), recipe.batch, folder)
    loop = Loop(
        planned, partial(kl_sum, temperature=recipe.temperature),
        in_groups(rows.held_out, rows.lengths, recipe.rows_at_once, batch_of),
        partial(sampled, rows=rows, tokenizer=tokenizer, count=recipe.samples), folder.metrics,
        measure=partial(figures, temperature=recipe.temperature),
        model=model, args=args, train_dataset=taught, data_collator=collate, callbacks=[telling],
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if not telling.stopped:
        publish(loop, recipe, tokenizer, job["template"], folder.result)
