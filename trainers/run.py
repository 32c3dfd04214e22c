"""One training from the command's side: start its processes, show what they report, end it well.

Shared by what is trained. Of several machines the first alone hears of measurements. A first Ctrl-C, or
the loss of the terminal, asks for a checkpoint and a stop, a second Ctrl-C ends all at once.
"""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from trainers import launch
from trainers.curves import draw
from trainers.errors import Stopped
from trainers.folder import Folder, read_metrics
from trainers.progress import Display
from trainers.recipe import Training

PLOTTED = {"loss", "held_out_loss", "held_out_accuracy", "lr", "grad_norm"}


def run(
    recipe: Training, module: str, folder: Folder, env: Mapping[str, str], on_cpu: bool, quiet: bool
) -> None:
    """Returns when the result lies in the folder's `result`. Raises Stopped, TrainingFailed."""
    folder.stop.unlink(missing_ok=True)
    shutil.rmtree(folder.result, ignore_errors=True)  # of a training that was killed while it wrote it
    words = launch.command(recipe, module, folder.job(recipe.node_rank))
    processes = launch.Processes(words, launch.environment(recipe, env, on_cpu), folder.log(recipe.node_rank))
    stopped, board = 0, _board(recipe, folder)
    display = Display(quiet)
    try:
        with _stoppable(folder, processes, display), display:
            for record in processes.records():
                if record["kind"] == "step":
                    board(record)
                    display.step(record)
                elif record["kind"] == "held_out":
                    board(record)
                    display.held_out(record)
                    _draw(record["step"], folder, recipe)
                elif record["kind"] == "stopping":
                    stopped = record["step"]
    finally:
        processes.kill()
    if stopped:
        raise Stopped(f"stopped with a checkpoint at step {stopped}; --resume goes on")


@contextmanager
def _stoppable(folder: Folder, processes: launch.Processes, display: Display) -> Iterator[None]:
    def asked(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # the shell and the kernel both tell of a lost terminal
            signal.signal(number, signal.SIG_IGN)
        elif folder.stop.exists():
            raise KeyboardInterrupt
        folder.stop.touch()
        display.say("stopping after this step, with a checkpoint; Ctrl-C again: at once")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # by nohup, or because it came already
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, asked) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


def _draw(step: int, folder: Folder, recipe: Training) -> None:
    if step:
        draw(read_metrics(folder.metrics), folder.curves, title_of(recipe), recipe.loss_name)


def _board(recipe: Training, folder: Folder) -> Callable[[dict[str, Any]], None]:
    """Writes a record's numbers for TensorBoard, where that was asked for."""
    if not recipe.tensorboard:
        return lambda record: None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder.work / "tensorboard"))

    def write(record: dict[str, Any]) -> None:
        for name in PLOTTED & record.keys():
            if record[name] is not None:
                writer.add_scalar(name, record[name], record["step"])
        writer.flush()

    return write


def title_of(recipe: Training) -> str:
    return f"{recipe.model.rstrip('/').rsplit('/', 1)[-1]} on {recipe.data.name}"
