"""transformers' Trainer with our row order and exact loss, and the result as a folder of safetensors.

Shared by all kinds of training: each brings a model, its lessons and a loss.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from transformers import Trainer, TrainingArguments, set_seed

from trainers.callbacks import Telling
from trainers.config import Training
from trainers.encoding import alpaca_chat_template
from trainers.micro_batches import FILLED, MOST_TOKENS, Room, shared, split
from trainers.models import merged
from trainers.process import agreed, join_processes, measured, on_cpu, report
from trainers.rows import Batch, learnt_in, to_device
from trainers.run_folder import UNIVERSAL, Folder

SHARE_BETWEEN_SAVES = 10  # of all steps, unless said
LR_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
MEASURED_AFTER = 1  # step of a process: from then on the optimizer has its states
GROWS_BY = 1.3  # that a micro batch grows at least, if it does
LossSum = Callable[[Any, Batch], torch.Tensor]
Count = Callable[[Batch], float]
Measure = Callable[[Any, Batch], dict[str, tuple[float, float]]]


@dataclass
class Lessons:
    """What is learnt, by the numbers of rows. steps: (steps, batch) rows of each, shortest first. held_out:
    rows. lengths: tokens of each row. counts: how much of the loss each is (learnt tokens, or prompts).
    batch_of: makes rows a batch. room: what a micro batch may hold."""

    steps: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    counts: npt.NDArray[Any]
    batch_of: Callable[[Sequence[int]], Batch]
    room: Room


def joined(
    recipe: Training,
    job: Mapping[str, Any],
    steps: int,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> tuple[str | None, Any]:
    """This process among the others, before any weight is read: the checkpoint that all go on from, and the
    Trainer's arguments. kind, more: see `arguments`."""
    join_processes(recipe)
    set_seed(recipe.seed)
    checkpoint = agreed(job["checkpoint"])
    work = Folder(recipe.out).checkpoints
    config = job["deepspeed"]
    if checkpoint is not None and (Path(checkpoint) / UNIVERSAL).is_file():
        config |= {"checkpoint": {"load_universal": True}}
    return checkpoint, arguments(recipe, config, work, steps, checkpoint is None, kind, **more)


def weights_dtype(recipe: Training) -> torch.dtype:
    """DeepSpeed keeps fp32 master weights beside bf16 ones; a plain loop's weights are the masters, unless
    adapters learn in their place."""
    frozen = recipe.with_deepspeed or recipe.lora is not None
    return torch.bfloat16 if recipe.precision == "bf16" and frozen else torch.float32


def arguments(
    recipe: Training,
    deepspeed: dict[str, Any] | None,
    work: Path,
    steps: int,
    fresh: bool,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> TrainingArguments:
    """The recipe as transformers puts it; to be made before the model is read (ZeRO-3). kind: those of a
    trainer that takes more of them. more: instead of what stands here."""
    often = max(1, math.ceil(steps / SHARE_BETWEEN_SAVES))
    cpu = on_cpu()
    told: dict[str, Any] = {
        "output_dir": str(work),
        "per_device_train_batch_size": recipe.rows_at_once,
        "gradient_accumulation_steps": recipe.accumulation,
        "max_steps": steps,
        "learning_rate": recipe.lr,
        "lr_scheduler_type": LR_SCHEDULES[recipe.schedule],
        "warmup_steps": recipe.warmup,  # below 1: a share of the steps
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.clip,
        "optim": "adamw_torch_fused",
        "bf16": recipe.precision == "bf16",
        "gradient_checkpointing": recipe.recompute,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if recipe.recompute else None,
        "deepspeed": deepspeed,
        "use_cpu": cpu,
        "dataloader_pin_memory": not cpu,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_on_start": fresh,
        "eval_steps": recipe.eval_every or often,
        "save_strategy": "steps",
        "save_steps": recipe.save_every or often,
        "save_total_limit": recipe.keep,
        "seed": recipe.seed,
        "disable_tqdm": True,
        "report_to": [],
        "log_level": "warning",
    }
    return kind(**(told | more))


class Loop(Trainer):
    """Trainer with three things of our own: which rows make a step and how they go through the model, the
    loss as a sum over what is learnt in the complete step, and an evaluation that is exact over tokens (or
    whatever `count` counts).

    judged: called after each evaluation by all processes (samples); what it returns is reported.
    metrics: the file that measurements go to.
    count: how much of a batch the loss is a sum over. measure: of a held-out batch, each figure by name
    as a sum and what it is to be divided by; the loss alone, unless given.
    """

    def __init__(
        self,
        lessons: Lessons,
        loss_sum: LossSum,
        judged: Callable[["Loop"], list[dict[str, Any]]],
        telling: Telling,
        metrics: Path,
        count: Count = learnt_in,
        measure: Measure | None = None,
        **given: Any,
    ) -> None:
        self.lessons, self._loss_sum, self._judged = lessons, loss_sum, judged
        self._metrics, self._count, self._measure = metrics, count, measure or self._loss_alone
        self._telling, telling.seals_later = telling, True
        steps: Any = range(len(lessons.steps))  # training and evaluation are our own, below
        super().__init__(**given, train_dataset=steps, eval_dataset=steps, callbacks=[telling])

    def get_train_dataloader(self) -> Any:
        """The numbers of the steps."""
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=1, collate_fn=_only)

    def _get_num_items_in_batch(self, batch_samples: list[int], device: torch.device) -> Any:
        return float(self.lessons.counts[self.lessons.steps[batch_samples]].sum())

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # process.py counts them

    def training_step(self, model: Any, inputs: int, num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of a step and its gradient; DeepSpeed takes its step, too. A plain loop that runs out of
        memory repeats it in smaller pieces: nothing of it is lost, and the same rows give the same loss."""
        model.train()
        rows = self.lessons.steps[inputs]
        while True:
            lengths = self.lessons.lengths[rows].tolist()
            groups = shared(lengths, self.args.world_size, self.lessons.room)[self.args.process_index]
            try:
                found = self._learnt(model, [rows[group].tolist() for group in groups], num_items_in_batch)
            except torch.OutOfMemoryError:
                largest = max(groups, key=lambda group: self.lessons.room.cost([lengths[n] for n in group]))
                if self.is_deepspeed_enabled or len(largest) == 1:
                    raise
                self._halve([lengths[n] for n in largest])
            else:
                self._telling.micro_batches = len(groups)
                self._measure_memory(max(self.lessons.room.cost([lengths[n] for n in g]) for g in groups))
                return found
            model.zero_grad()
            torch.cuda.empty_cache()

    def _learnt(self, model: Any, groups: list[list[int]], count: float) -> torch.Tensor:
        """Each learnt token (or prompt) of the step weighs the same; processes' gradients are averaged, so
        that the sum over them wants their number."""
        total = torch.zeros((), device=self.args.device)
        how = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        with self.autocast():  # around all of them, so that weights are cast once a step
            for number, rows in enumerate(groups, 1):
                batch = to_device(self.lessons.batch_of(rows), self.args.device)
                loss = self._loss_sum(model, batch) * self.args.world_size / count
                self.accelerator.gradient_state._set_sync_gradients(number == len(groups))
                with torch.autocast(self.args.device.type, enabled=False):
                    self.accelerator.backward(loss, **how)
                total += loss.detach()
        return total

    def _halve(self, lengths: list[int]) -> None:
        room = self.lessons.room
        if room.tokens is None:
            room = replace(room, rows=len(lengths) // 2)
            told = f"{room.rows} rows"
        else:
            room = replace(room, tokens=room.cost(lengths) // 2)
            told = f"{room.tokens:,} tokens"
        self.lessons.room = room
        text = f"out of memory: step {self.state.global_step + 1} is repeated in micro batches of {told}"
        report("notice", text=text)

    def _measure_memory(self, tokens: int) -> None:
        """Micro batches as large as memory has room for, by what the second step took. All processes agree,
        for they must keep step."""
        room, done = self.lessons.room, self.state.global_step - self._initial_global_step
        if room.tokens is None or self.args.device.type != "cuda" or done != MEASURED_AFTER:
            return
        free, _ = torch.cuda.mem_get_info()
        held, kept = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
        took = max(1, torch.cuda.max_memory_allocated() - kept)
        fits = torch.tensor(
            min(MOST_TOKENS, int((FILLED * (free + held) - kept) / took * tokens)), device=self.args.device
        )
        if self.args.world_size > 1:
            dist.all_reduce(fits, op=dist.ReduceOp.MIN)
        if fits.item() > GROWS_BY * room.tokens:
            self.lessons.room = replace(room, tokens=int(fits.item()))

    def _prepare_for_training(self, *given: Any) -> Any:
        found = super()._prepare_for_training(*given)
        if hasattr(getattr(self.optimizer, "optimizer", None), "gradient_accumulation_steps"):
            # Else ZeRO takes the norm of the last micro batch for that of the step where it offloads.
            self.optimizer.optimizer.gradient_accumulation_steps = 2
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._telling.before_save()
        super()._save_checkpoint(model, trial)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The held-out loss a token, by all processes together, whatever their number."""
        names: list[str] = []
        total = torch.zeros(0)
        ranks, rank = self.args.world_size, self.args.process_index
        lengths = self.lessons.lengths
        rows = sorted(self.lessons.held_out.tolist(), key=lambda row: int(lengths[row]))
        groups = split(lengths[rows].tolist(), self.lessons.room) if rows else []
        with self.for_inference() as model:
            for first in range(0, len(groups), ranks):
                place = first + rank
                mine = [rows[n] for n in groups[min(place, len(groups) - 1)]]
                batch = to_device(self.lessons.batch_of(mine), self.args.device)
                with torch.no_grad(), self.autocast():
                    found = self._measure(model, batch)
                if not names:
                    names, total = list(found), torch.zeros(len(found), 2, dtype=torch.float64)
                if place < len(groups):  # else only to keep step with the others
                    total += torch.tensor(list(found.values()), dtype=torch.float64)
        if ranks > 1 and names:
            total = self.accelerator.reduce(total.to(self.args.device)).cpu()
        samples = self._judged(self)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
        if not names or not total[:, 1].all():
            return {}
        held = dict(zip(names, (total[:, 0] / total[:, 1]).tolist(), strict=True))
        if self.is_world_process_zero():
            measured(self._metrics, "held_out", step=self.state.global_step, **held, samples=samples)
        return {"eval_loss": held["held_out_loss"]}

    def _loss_alone(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        return {"held_out_loss": (self._loss_sum(model, batch).item(), self._count(batch))}

    @contextlib.contextmanager
    def for_inference(self) -> Iterator[Any]:
        """The model as it stands, without dropout for a moment."""
        model = self.model_wrapped
        model.eval()
        try:
            yield model
        finally:
            model.train()

    def autocast(self) -> Any:
        """A plain loop in bf16 keeps fp32 weights, and computes so; DeepSpeed's weights are bf16."""
        wanted = self.args.bf16 and not self.is_deepspeed_enabled
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=wanted)


def _only(found: list[int]) -> int:
    return found[0]


def save_weights(loop: Loop, recipe: Training, result: Path) -> None:
    """By all processes, for under ZeRO-3 each holds a part. In bf16 where that was trained in."""
    if recipe.lora is not None:
        merged(loop, result)
        return
    if recipe.precision == "bf16" and not loop.is_deepspeed_enabled:
        model: Any = loop.model
        model.to(torch.bfloat16)
    loop.save_model(str(result))


def publish(loop: Any, recipe: Training, tokenizer: Any, template: str, result: Path) -> None:
    """A model that answers as it was taught to: with the template that it was asked by."""
    save_weights(loop, recipe, result)
    if loop.is_world_process_zero():
        if template == "alpaca":
            tokenizer.chat_template = alpaca_chat_template(tokenizer)
        save_tokenizer(tokenizer, result)


def save_tokenizer(tokenizer: Any, result: Path) -> None:
    """By one process. With it the result is complete, which is reported."""
    tokenizer.save_pretrained(result)
    (result / "training_args.bin").unlink(missing_ok=True)
    report("result")
