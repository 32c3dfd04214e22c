"""A teacher of our own in a process beside us, for as long as it is needed (demo, recipes)."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from engine.subprocesses import command, mortal
from store.errors import DistillError

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
