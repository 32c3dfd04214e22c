"""Processes of ours beside us (steps of recipes, a teacher of our own): they end when we do, however we end.
Linux asks the kernel for that."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import IO

from store.errors import DistillError

_PR_SET_PDEATHSIG = 1


def command(*arguments: str) -> list[str]:
    """`distill ARGUMENTS`."""
    return [sys.executable, "-P", "-m", "engine", *arguments]


def mortal(number: int) -> Callable[[], None] | None:
    """For `preexec_fn`: the process gets this signal when its parent dies (on Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    return lambda: ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


Stop = Callable[[str, bool], None]  # (by whom, whether at once)


def run_to_end(
    words: Sequence[str],
    stdout: IO[bytes] | int,
    on_our_death: int,
    stoppable: Callable[[Stop], AbstractContextManager[None]] | None = None,
) -> int:
    """Its exit code; 130 where we were told to stop. It is out of the terminal's reach: the first SIGINT,
    SIGTERM or SIGHUP asks it to end, a second SIGINT or SIGTERM ends it and its children at once.
    stoppable: who tells us instead of signals, which only the main thread can handle."""
    process: subprocess.Popen[bytes] | None = None
    told = 0

    def stop(by: str, is_urgent: bool) -> None:
        nonlocal told
        told += 1
        if process is None or process.poll() is not None:
            return
        if is_urgent:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.terminate()

    with (stoppable or _signals)(stop):
        process = subprocess.Popen(
            list(words), stdin=subprocess.DEVNULL, stdout=stdout, start_new_session=True,
            preexec_fn=mortal(on_our_death),
        )  # fmt: skip
        if told:
            process.terminate()
        code = process.wait()
    return 130 if told else code


@contextlib.contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    told = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if number == signal.SIGHUP:  # the shell and the kernel both tell of a lost terminal
            signal.signal(number, signal.SIG_IGN)
            if told:
                return
        was, told = told, True
        stop(signal.Signals(number).name, was)

    if threading.current_thread() is not threading.main_thread():  # which alone may handle them
        yield
        return
    numbers = stop_signals()
    before = [signal.signal(number, hear) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


def stop_signals() -> tuple[signal.Signals, ...]:
    """What asks us to stop: Ctrl-C, `kill`, and a lost terminal, unless (by `nohup`) we were told to
    outlive it."""
    asked = (signal.SIGINT, signal.SIGTERM)
    return asked if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*asked, signal.SIGHUP)


PATIENCE = 120.0  # seconds until it must have said its address


class ServingFailed(DistillError):
    """The teacher did not start."""

    exit_code = 1


@contextlib.contextmanager
def served(model: str, log: Path) -> Iterator[tuple[str, str]]:
    """`distill serve MODEL` (or `scripted`) on any free port: (address, model name). Its words go to
    the log. It is out of the terminal's reach: what is in flight when we are interrupted is answered."""
    what = ["--scripted"] if model == "scripted" else [model]
    with log.open("wb") as sink:
        words = command("serve", *what, "--port", "0")
        server = subprocess.Popen(
            words, stdout=sink, stderr=sink, start_new_session=True, preexec_fn=mortal(signal.SIGTERM)
        )
    try:
        address, deadline = None, time.monotonic() + PATIENCE
        while address is None:
            if time.monotonic() >= deadline or server.poll() is not None:
                raise ServingFailed(f"the teacher did not start; see {log}")
            for line in log.read_text(errors="replace").splitlines(keepends=True):
                if line.startswith("serving ") and line.endswith(")\n"):
                    address = line.split(" at ")[1].split(" ")[0], line.rsplit(": ", 1)[1].rstrip(")\n")
                    break
            else:
                time.sleep(0.05)
        yield address
    finally:
        server.terminate()
        server.wait()
