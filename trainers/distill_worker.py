"""One process of `train distill`: the forward KL to what the teacher said, or TRL's GKD."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainers.attention import implementation
from trainers.callbacks import Telling
from trainers.micro_batches import Room, room_for
from trainers.models import causal_model, tokenizer_of, with_lora
from trainers.process import join_processes
from trainers.rows import (
    IGNORED,
    Batch,
    TokenRows,
    example,
    learnt_in,
    load,
    order,
    packed,
    padded,
    steps_of,
)
from trainers.run_folder import Folder
from trainers.teacher_targets import Targets, ask_teacher, firsts
from trainers.trainer import Lessons, Loop, joined, publish, weights_dtype
from trainers.trl_config import DistillRecipe

LEAST = 1e-7  # of a probability


class TaughtRows:
    """Rows with what the teacher said of them."""

    def __init__(self, rows: TokenRows, targets: Targets) -> None:
        self._rows, self._targets, self._firsts = rows, targets, firsts(rows)

    def batch(self, places: Sequence[int], pads: Any = None, room: Room | None = None) -> Batch:
        """pads: how rows are filled up, None: they are packed. teacher_ids, teacher_logs: (places, top), in
        the order of the targets."""
        examples = [example(*self._rows.row(place)) for place in places]
        wide = max(len(one["input_ids"]) for one in examples)
        found = packed(examples) if pads is None else pads(examples, width=room.width(wide) if room else 0)
        where = [slice(int(self._firsts[place]), int(self._firsts[place + 1])) for place in places]
        ids = np.concatenate([self._targets.ids[own] for own in where]).astype(np.int64)
        logs = np.concatenate([self._targets.logs[own] for own in where])
        return {**found, "teacher_ids": torch.from_numpy(ids), "teacher_logs": torch.from_numpy(logs)}


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


def train_distill(job: dict[str, Any], sampled: Any, one_batch: Any) -> None:
    """sampled, one_batch: see worker.py."""
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
    planned = trained[order(rows.lengths[trained], recipe.batch, steps, recipe.seed)]

    checkpoint, args = joined(recipe, job, steps, **one_batch(recipe))
    attention = implementation(job["packed"], recipe.precision == "bf16")
    model = causal_model(job["model"], weights_dtype(recipe), attention)
    if recipe.lora is not None:
        model = with_lora(model, recipe.lora, recipe.recompute)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    room = room_for(job["tokens_at_once"], recipe.rows_at_once, job["packed"], recipe.max_length)
    taught = TaughtRows(rows, targets)

    def batch_of(group: Sequence[int]) -> Batch:
        return taught.batch(group, None if job["packed"] else partial(padded, pad=pad), room)

    telling = Telling(rows.lengths[planned].sum(1), len(trained), recipe.batch, folder)
    lessons = Lessons(planned, rows.held_out, rows.lengths, rows.learnt, batch_of, room)
    loop = Loop(
        lessons, partial(kl_sum, temperature=recipe.temperature),
        partial(sampled, rows=rows, tokenizer=tokenizer, count=recipe.samples), telling, folder.metrics,
        measure=partial(figures, temperature=recipe.temperature), model=model, args=args,
    )  # fmt: skip
    loop.train(resume_from_checkpoint=checkpoint)
    if not telling.stopped:
        publish(loop, recipe, tokenizer, job["template"], folder.result)
