"""Starts the processes of a training run, shows what they report, and ends it.

One process is started directly, several through torchrun. Their logs go to a file, their reports come as
records. Ctrl-C does not reach them: the first one, or a lost terminal, asks for a checkpoint and a stop;
the second ends everything at once. With several machines only the first one receives measurements.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from trainers.config import Training
from trainers.display import Display, draw
from trainers.errors import OutOfMemory, Stopped, TrainingFailed
from trainers.process import parsed
from trainers.run_folder import UNIVERSAL, Folder, read_metrics

_PR_SET_PDEATHSIG = 1
WORKER = "trainers.worker"
FULL = 64 << 20  # bytes left on a disk that could not take a checkpoint
ALONE = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
}  # fmt: skip


def command(recipe: Training, job: Path) -> list[str]:
    if recipe.processes == 1:
        return [sys.executable, "-P", "-m", WORKER, str(job)]
    where = ["--standalone"]
    if recipe.nnodes > 1:
        host, port = str(recipe.master).rsplit(":", 1)
        where = [f"--node-rank={recipe.node_rank}", f"--master-addr={host}", f"--master-port={port}"]
    size = [f"--nnodes={recipe.nnodes}", f"--nproc-per-node={recipe.nproc}"]
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run"]
    return [*torchrun, *size, *where, "-m", WORKER, str(job)]


def environment(recipe: Training, given: Mapping[str, str], on_cpu: bool) -> dict[str, str]:
    """The caller's, and what DeepSpeed and torchrun want to know."""
    threads = str(max(1, (os.cpu_count() or 1) // recipe.nproc))
    found = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false", **given}
    # DeepSpeed looks for ninja there, if a configuration of one's own has something compiled.
    found["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{given.get('PATH', os.defpath)}"
    found |= {"PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if on_cpu:
        found |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    else:  # micro batches differ in size: without it, what they leave free is in pieces
        found.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        if (
            not recipe.with_deepspeed
        ):  # transformers would split each batch over all GPUs that one process sees
            found["CUDA_VISIBLE_DEVICES"] = given.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    for name in (*ALONE, "MASTER_PORT"):
        found.pop(name, None)  # torchrun sets them, and where nothing is to be joined they would mislead
    if recipe.processes == 1 and recipe.with_deepspeed:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            found |= ALONE | {"MASTER_PORT": str(free.getsockname()[1])}
    return found


def reshared(checkpoint: Path, processes: int, env: Mapping[str, str]) -> bool:
    """Whether another number of processes wrote it. Then it is written anew beside, in DeepSpeed's universal
    form, which any number reads. Raises TrainingFailed."""
    parts = list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt"))
    if len(parts) in (0, processes) or (checkpoint / UNIVERSAL).is_file():
        return False
    source = parts[0].parent
    made = checkpoint / f"{source.name}_universal"
    shutil.rmtree(made, ignore_errors=True)
    words = [sys.executable, "-P", "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    words += ["--input_folder", str(source), "--output_folder", str(made)]
    words += ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    env = {**env, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise TrainingFailed(f"{checkpoint.name} cannot be shared out anew: {ended.stderr[-300:]}")
    return True


class Processes:
    """The processes of a training run on this machine, started; `records` until they have ended."""

    def __init__(self, words: list[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log.open("ab")
        self._began = self._log.tell()  # behind what earlier runs wrote
        self._failed: str | None = None
        self._process = subprocess.Popen(
            words, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log,
            start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip

    def records(self) -> Iterator[dict[str, Any]]:
        """What is reported, as it comes. Raises TrainingFailed if they end badly."""
        out: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        for line in out:
            record = parsed(line)
            if record is None:
                self._log.write(line)
                self._log.flush()
            elif record["kind"] == "failed":
                self._failed = record["error"]
            else:
                yield record
        code = self._process.wait()
        if code:
            kind = OutOfMemory if self._failed and "OutOfMemory" in self._failed else TrainingFailed
            raise kind(f"{self._why(code)}; the log is {self._log.name}")

    def _why(self, code: int) -> str:
        memory = (
            "it needed more memory than there is (try --micro-batch 1, --recompute, --max-length, --zero 3)"
        )
        free = shutil.disk_usage(self._log.name).free
        if free < FULL:  # which libraries tell in words of their own
            return f"training ended with the disk full ({free >> 20} MiB left): make room, then --resume"
        log = Path(self._log.name).read_bytes()[self._began :][-20_000:]
        if code == -signal.SIGKILL or b"Signal 9 (SIGKILL)" in log:  # the others tell of a lost connection
            return f"a training process was killed (SIGKILL): if nobody did that, {memory}"
        if self._failed is not None:
            short = "allocate memory" in self._failed or "OutOfMemory" in self._failed
            return f"training failed: {memory if short else self._failed}"
        return f"training ended with status {code}"

    def kill(self) -> None:
        """All of them, at once; no more is known of what they do."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


PLOTTED = {"loss", "held_out_loss", "held_out_accuracy", "lr", "grad_norm"}


def run(recipe: Training, folder: Folder, env: Mapping[str, str], on_cpu: bool, quiet: bool) -> None:
    """Returns when the result lies in the folder's `result`. Raises Stopped, TrainingFailed."""
    folder.stop.unlink(missing_ok=True)
    shutil.rmtree(folder.result, ignore_errors=True)  # of a training that was killed while it wrote it
    words = command(recipe, folder.job(recipe.node_rank))
    processes = Processes(words, environment(recipe, env, on_cpu), folder.log(recipe.node_rank))
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
                    if record["step"]:
                        draw(read_metrics(folder.metrics), folder.curves, title_of(recipe), recipe.loss_name)
                elif record["kind"] == "stopping":
                    stopped = record["step"]
                elif record["kind"] == "notice":
                    display.say(record["text"])
    finally:
        processes.kill()
    if stopped:
        raise Stopped(f"stopped with a checkpoint at step {stopped}; --resume continues")


@contextmanager
def _stoppable(folder: Folder, processes: Processes, display: Display) -> Iterator[None]:
    def asked(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:  # the shell and the kernel both tell of a lost terminal
            signal.signal(number, signal.SIG_IGN)
        elif folder.stop.exists():
            raise KeyboardInterrupt
        folder.stop.touch()
        display.say("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once")

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
