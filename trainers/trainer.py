"""transformers' Trainer with our row order and exact loss, and the result as a folder of safetensors.

Shared by all kinds of training: each brings a model, a collator and a loss.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from trainers.config import Training
from trainers.encoding import alpaca_chat_template
from trainers.errors import TrainingFailed
from trainers.models import merged
from trainers.process import agreed, join_processes, measured, on_cpu, report
from trainers.rows import Batch, Planned, learnt_in
from trainers.run_folder import Folder, seal

SHARE_BETWEEN_SAVES = 10  # of all steps, unless said
LR_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
LossSum = Callable[[Any, Batch], torch.Tensor]
Count = Callable[[Batch], float]
Measure = Callable[[Any, Batch], dict[str, tuple[float, float]]]


def joined(
    recipe: Training,
    job: Mapping[str, Any],
    steps: int,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> tuple[str | None, Any]:
    """This process among the others, before any weight is read: the checkpoint that all go on from, and the
    Trainer's arguments. kind: those of a trainer that takes more of them."""
    join_processes(recipe)
    set_seed(recipe.seed)
    checkpoint = agreed(job["checkpoint"])
    work = Folder(recipe.out).checkpoints
    fresh = checkpoint is None
    return checkpoint, arguments(recipe, job["deepspeed"], work, steps, fresh, kind, **more)


def weights_dtype(recipe: Training) -> torch.dtype:
    """DeepSpeed keeps fp32 master weights beside bf16 ones; a plain loop's weights are the masters."""
    return torch.bfloat16 if recipe.precision == "bf16" and recipe.with_deepspeed else torch.float32


def arguments(
    recipe: Training,
    deepspeed: dict[str, Any] | None,
    work: Path,
    steps: int,
    fresh: bool,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> TrainingArguments:
    """The recipe as transformers puts it; to be made before the model is read (ZeRO-3)."""
    often = max(1, math.ceil(steps / SHARE_BETWEEN_SAVES))
    return kind(
        output_dir=str(work),
        per_device_train_batch_size=recipe.rows_at_once,
        gradient_accumulation_steps=recipe.accumulation,
        max_steps=steps,
        learning_rate=recipe.lr,
        lr_scheduler_type=LR_SCHEDULES[recipe.schedule],
        warmup_steps=recipe.warmup,  # below 1: a share of the steps
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        optim="adamw_torch",
        bf16=recipe.precision == "bf16",
        gradient_checkpointing=recipe.recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recipe.recompute else None,
        deepspeed=deepspeed,
        use_cpu=on_cpu(),
        dataloader_pin_memory=not on_cpu(),
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_on_start=fresh,
        eval_steps=recipe.eval_every or often,
        save_strategy="steps",
        save_steps=recipe.save_every or often,
        save_total_limit=recipe.keep,
        seed=recipe.seed,
        disable_tqdm=True,
        report_to=[],
        log_level="warning",
        **more,
    )


class Loop(Trainer):
    """Trainer with three things of our own: the order of rows, the loss as a sum over what is learnt in
    the whole global batch, and an evaluation that is exact over tokens (or whatever `count` counts).

    order: (steps, batch) places in `train_dataset`. held_out: its batches, the same in each process.
    judged: called after each evaluation by all processes (samples); what it returns is reported.
    metrics: the file that measurements go to.
    count: how much of a batch the loss is a sum over. measure: of a held-out batch, each figure by name
    as a sum and what it is to be divided by; the loss alone, unless given.
    """

    def __init__(
        self,
        order: npt.NDArray[np.int64],
        loss_sum: LossSum,
        held_out: list[Callable[[], Batch]],
        judged: Callable[["Loop"], list[dict[str, Any]]],
        metrics: Path,
        count: Count = learnt_in,
        measure: Measure | None = None,
        **given: Any,
    ) -> None:
        self._order, self._loss_sum, self._held_out, self._judged = order, loss_sum, held_out, judged
        self._metrics, self._count, self._measure = metrics, count, measure or self._loss_alone
        super().__init__(**given, eval_dataset=given["train_dataset"])  # evaluate() below has its own
        self.model_accepts_loss_kwargs = True  # the loss is normalised below, not by the Trainer

    def _get_train_sampler(self, train_dataset: Any = None) -> Planned:
        return Planned(self._order)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        count = torch.tensor(sum(self._count(batch) for batch in batch_samples), device=device)
        return self.accelerator.gather(count.reshape(1)).sum() if self.args.world_size > 1 else count

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Each learnt token (or prompt) of the global batch weighs the same; processes' gradients are
        averaged, so that the sum over them wants their number."""
        return self._loss_sum(model, inputs) * self.accelerator.num_processes / num_items_in_batch

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The held-out loss a token, by all processes together, whatever their number."""
        names: list[str] = []
        total = torch.zeros(0)
        ranks, rank = self.args.world_size, self.args.process_index
        with self.for_inference() as model:
            for first in range(0, len(self._held_out), ranks):
                place = first + rank
                mine = self._held_out[min(place, len(self._held_out) - 1)]()
                mine = {name: tensor.to(self.args.device) for name, tensor in mine.items()}
                with torch.no_grad(), self.autocast():
                    found = self._measure(model, mine)
                if not names:
                    names, total = list(found), torch.zeros(len(found), 2, dtype=torch.float64)
                if place < len(self._held_out):  # else only to keep step with the others
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


class Telling(TrainerCallback):
    """Reports each step, makes checkpoints complete, and stops when the command asks."""

    def __init__(self, tokens: npt.NDArray[np.int64], rows: int, batch: int, folder: Folder) -> None:
        """tokens: of each step. rows: of one pass over the data. also: what else is told of a step."""
        self._tokens, self._rows, self._batch, self._folder = tokens, rows, batch, folder
        self._began = time.perf_counter()
        self.stopped = False
        self.also: dict[str, Any] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._seconds = time.perf_counter() - self._began
        asked = torch.tensor(int(self._folder.stop.exists()), device=args.device)
        if args.world_size > 1:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)  # all stop at the same step, or none
        if asked.item() and state.global_step < state.max_steps:
            if state.is_local_process_zero:
                report("stopping", step=state.global_step)  # on each machine: any of them may have asked
            self.stopped = control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:
            return
        step = state.global_step
        if not math.isfinite(logs["loss"]):  # which all processes see, for it is their mean
            raise TrainingFailed(
                f"the loss of step {step} is {logs['loss']}: start again with a lower --lr, with --precision "
                "fp32, or with another model"
            )
        if not state.is_world_process_zero:
            return
        measured(
            self._folder.metrics,
            "step",
            step=step,
            steps=state.max_steps,
            epoch=step * self._batch / self._rows,
            loss=logs["loss"],
            grad_norm=logs.get("grad_norm"),
            lr=logs.get("learning_rate"),
            tokens=int(self._tokens[step - 1]),
            seconds=self._seconds,
            **self.also,
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:
            dist.barrier()
        if state.is_world_process_zero:
            name = f"checkpoint-{state.global_step}"
            seal(Path(args.output_dir) / name)
            report("saved", step=state.global_step)
        if args.world_size > 1:
            dist.barrier()


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
