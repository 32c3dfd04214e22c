"""A teacher of our own in a process beside us, for as long as it is needed (demo, recipes)."""

import contextlib
import errno
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from engine.subprocesses import command, mortal
from store.errors import DistillError, UsageError

PATIENCE = 120.0  # seconds until it must have said its address


class ServingFailed(DistillError):
    """The teacher did not start."""

    exit_code = 1


def check_port(port: int) -> None:
    """Before a model is loaded, which takes its time. Raises UsageError."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: wants 0 (any that is free) to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError as error:
            words = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
            raise UsageError(
                f"port {port} {words}; name another with --port, or 0 for any that is free"
            ) from None


def check_parallel(parallel: int) -> None:
    if parallel < 1:
        raise UsageError(f"--parallel {parallel}: must be at least 1")


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
        yield _address(server, log)
    finally:
        server.terminate()
        server.wait()


def _address(server: "subprocess.Popen[bytes]", log: Path) -> tuple[str, str]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        for line in log.read_text(errors="replace").splitlines(keepends=True):
            if line.startswith("serving ") and line.endswith(")\n"):
                return line.split(" at ")[1].split(" ")[0], line.rsplit(": ", 1)[1].rstrip(")\n")
        time.sleep(0.05)
    raise ServingFailed(f"the teacher did not start; see {log}")
