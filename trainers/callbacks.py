"""What happens between the steps of a training: measurements, checkpoints, and stopping when asked."""

import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from transformers import TrainerCallback

from trainers.errors import TrainingFailed
from trainers.process import finish_on, flops_a_token, measured, peak_memory, product_flops, report
from trainers.run_folder import Folder, seal

SOON = 1 << 28  # bytes of a checkpoint that is sealed at once: reading it again takes no time


class Telling(TrainerCallback):
    """Reports each step, makes checkpoints complete, and stops when the command asks."""

    def __init__(self, tokens: npt.NDArray[np.int64], rows: int, batch: int, folder: Folder) -> None:
        """tokens: of each step. rows: of one pass over the data. also: what else is told of a step."""
        self._tokens, self._rows, self._batch, self._folder = tokens, rows, batch, folder
        self.micro_batches: int | None = None  # of the last step, where they are the trainer's own
        self.seals_later = False  # whether the trainer calls `before_save`
        self._began = time.perf_counter()
        self._speed: float | None = None  # of all devices, in operations a second
        self._sealer = ThreadPoolExecutor(1, "sealing")
        self._sealing: Future[None] | None = None
        self.stopped = False
        self.also: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        flops = product_flops(args.device)
        self._a_token = flops_a_token(model)
        if flops is not None:
            self._speed = flops * args.world_size
            if state.is_world_process_zero:
                name = torch.cuda.get_device_name(args.device)
                measured(self._folder.metrics, "device", step=0, name=name, flops=flops)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()  # batches are made within the step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        finish_on(args.device)
        self._seconds = time.perf_counter() - self._began
        asked = torch.tensor(int(self._folder.stop.exists()), device=args.device)
        if args.world_size > 1:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX)  # all stop at the same step, or none
        last = state.global_step >= state.max_steps
        if last:
            control.should_save = False  # the result is written now; a checkpoint would go at once
        elif asked.item():
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
        tokens = int(self._tokens[step - 1])
        used = {"mfu": self._a_token * tokens / self._seconds / self._speed} if self._speed else {}
        measured(
            self._folder.metrics,
            "step",
            step=step,
            steps=state.max_steps,
            epoch=step * self._batch / self._rows,
            loss=logs["loss"],
            grad_norm=logs.get("grad_norm"),
            lr=logs.get("learning_rate"),
            tokens=tokens,
            seconds=self._seconds,
            micro_batches=self.micro_batches or args.gradient_accumulation_steps,
            peak_memory=peak_memory(args.device),
            **used,
            **self.also,
        )

    def before_save(self) -> None:
        """Until the checkpoint before is sealed: a new one takes the place of the oldest."""
        if self._sealing is not None:
            self._sealing.result()
            self._sealing = None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Each file of a checkpoint is read again and waits for the disk; training continues meanwhile."""
        if args.world_size > 1:
            dist.barrier()
        if not state.is_world_process_zero:
            return
        with self._folder.metrics.open("ab") as file:  # none is sealed whose measurements may be lost
            os.fsync(file.fileno())
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._sealing = self._sealer.submit(_sealed, checkpoint, state.global_step)
        if not self.seals_later or sum(file.stat().st_size for file in checkpoint.rglob("*")) < SOON:
            self.before_save()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before_save()


def _sealed(checkpoint: Path, step: int) -> None:
    seal(checkpoint)
    report("saved", step=step)
