"""The command line as processes that fork from one that has imported it already.

Most of what a short command costs is the start of the interpreter and its imports. A fork is a process like
any other, with an environment and files of its own; signals end it, and its interpreter shuts down as ever.
It asks after a batch ten times as often (`WAITS`).

    python -m tests.support.zygote SOCKET     forks for each connection, until its standard input ends

A connection brings one line of JSON, with the files for standard input, output and error. It gets two lines:
the process's id, and, when that process has ended, its exit code (negative: the signal).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

EARLY = ("PYTHON", "LANG", "LC_")  # what an interpreter reads when it starts
ROOT = Path(__file__).resolve().parents[2]
WAITS = {"FIRST_WAIT": 0.05, "FIRST_POLL": 0.05}  # seconds; of batches; half a second for users
# What commands import as they run.
LATE = ("encodings.idna", "genai_prices.data", "pyarrow.compute", "uvloop")
NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # at an import
APART = ("engine.serve", "engine.browse", "engine.__main__")  # what few commands need, and the start itself


class Forked:
    """A process, with as much of asyncio's `Process` as tests use."""

    stdin = None

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection, self._over = connection, asyncio.Event()
        asyncio.get_running_loop().add_reader(connection, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._connection)
        self.returncode = int(_line(self._connection))
        self._connection.close()
        self._over.set()

    async def wait(self) -> int:
        await self._over.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(words: Sequence[object], env: Mapping[str, str], files: Sequence[int]) -> tuple[int, socket.socket]:
    """`distill WORDS...` with these files as 0, 1 and 2: its process id, and where its exit code arrives."""
    told = {"words": list(map(str, words)), "env": dict(env), "cwd": os.getcwd()}
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_address())
    socket.send_fds(connection, [json.dumps(told).encode() + b"\n"], files)
    return int(_line(connection)), connection


def run(words: Sequence[object], env: Mapping[str, str]) -> tuple[int, str, str]:
    """The same, waited for: (exit code, standard output, standard error)."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        _, connection = fork(words, env, [nothing.fileno(), out.fileno(), err.fileno()])
        with connection:
            code = int(_line(connection))
        return code, _text(out), _text(err)


def can(env: Mapping[str, str]) -> bool:
    """Whether a process that runs already may take this environment: what is read at the start is as here."""
    early = {name: value for name, value in env.items() if name.startswith(EARLY)}
    return early == _environment(early)


def _environment(names: Iterable[str]) -> dict[str, str]:
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    return {name: here[name] for name in names if name in here}


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _line(connection: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        more = connection.recv(65536)
        assert more, "the process that forks has ended"
        found += more
    return found


@functools.cache
def _address() -> str:
    """Of this process's zygote, which is started now."""
    folder = tempfile.mkdtemp(prefix="zygote-")
    address = f"{folder}/socket"
    env = _environment({*os.environ, "PYTHONPATH"}) | NO_THREADS
    command = [sys.executable, "-P", "-m", "tests.support.zygote", address]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline(), "no process that forks"

    def end() -> None:
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return address


# The process that forks.


def _serve(address: str) -> list[str]:
    """Returns in each child, with the words of its command line."""
    with selectors.DefaultSelector() as waiting, socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(100)
        waiting.register(door, selectors.EVENT_READ)
        waiting.register(sys.stdin, selectors.EVENT_READ)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            for key, _ in waiting.select():
                if key.fileobj is sys.stdin:  # the tests have ended, or were interrupted
                    for pid, _ in [other.data for other in waiting.get_map().values() if other.data]:
                        os.kill(pid, signal.SIGKILL)
                    os._exit(0)
                if key.fileobj is door:
                    connection, _ = door.accept()
                    if (words := _fork(connection, waiting)) is not None:
                        return words
                else:
                    pid, connection = key.data
                    waiting.unregister(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with connection, contextlib.suppress(OSError):
                        connection.sendall(b"%d\n" % code)


def _fork(connection: socket.socket, waiting: selectors.BaseSelector) -> list[str] | None:
    request, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if not request.endswith(b"\n"):
        request += _line(connection)
    if pid := os.fork():
        for file in files:
            os.close(file)
        connection.sendall(b"%d\n" % pid)
        waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
        return None
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for other in [key for key in waiting.get_map().values() if key.data]:
        os.close(other.fd)
        other.data[1].close()
    connection.close()
    told = json.loads(request)
    os.environ.clear()
    os.environ.update(told["env"])
    os.chdir(told["cwd"])
    words: list[str] = told["words"]
    return words


def _import_all() -> None:
    for package in map(importlib.import_module, ("store", "engine")):
        for known in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not known.name.startswith(APART):
                importlib.import_module(known.name)

    for late in LATE:
        importlib.import_module(late)
    for name, seconds in WAITS.items():
        found = [m for n, m in sys.modules.items() if n.startswith("engine.batch.") and hasattr(m, name)]
        assert found, f"no {name} to shorten"
        for module in found:
            setattr(module, name, seconds)

    from engine.provider.tokens import tokenizer_for

    tokenizer_for("gpt-4")  # the vocabulary that most tests count with
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose a thread"
    gc.freeze()


if __name__ == "__main__":
    _import_all()
    sys.argv[1:] = _serve(sys.argv[1])
    runpy.run_module("engine", run_name="__main__", alter_sys=True)
