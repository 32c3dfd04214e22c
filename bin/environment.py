"""Makes .venv hold the named layers of requirements/: `environment.py base teacher`.

Standard library only, for it runs before anything is installed; it knows nothing of what the
packages are for. It may be killed at any moment and started twice at once: one lock is held as long
as it or its pip lives, and a layer's stamp (.venv/pins/LAYER.txt, a copy of its pin file, which
bin/ready.sh compares) is removed before the layer is touched and written when it is whole.
"""

import csv
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "requirements"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / "pins"
UNFINISHED = VENV / "unfinished"
LOG = VENV / "setup.log"
LOCK = ROOT / ".venv.lock"

PROMPT = "$ "
LOG_LINES_SHOWN = 10
LOG_NOISE = ("WARNING: Location", "Requirement already satisfied")
PROBE = "import sys, venv; sys.exit(sys.version_info < (3, 11))"
# A layer of this name is installed without its dependencies: not needed, and costly to build.
NO_DEPENDENCIES = "-nodeps"


class StepFailed(Exception):
    """A command of the set-up failed; its output is in the log."""


def main(layers: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with locked() as lock:
            make_ready(layers, lock)
    except KeyboardInterrupt:
        say("interrupted; run the command again and it goes on")
        return 130
    except StepFailed as failure:
        say(f"{failure} failed. The end of {LOG}:")
        print(*log_end(), sep="\n", file=sys.stderr)
        return 2
    except OSError as error:
        say(f"failed: {error}")
        return 2
    return 0


@contextmanager
def locked() -> Iterator[int]:
    """Yields the lock's descriptor, which children inherit: a pip that outlives us keeps it."""
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another command that is setting up...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def make_ready(layers: list[str], lock: int) -> None:
    if not usable():
        make_environment(lock)
    stale = [layer for layer in layers if stamp(layer) != pins(layer)]
    if stale:
        started = time.monotonic()
        remove_half_installed()
        alone = [layer for layer in stale if layer.endswith(NO_DEPENDENCIES)]
        rest = [layer for layer in stale if layer not in alone]
        if rest:
            install(rest, lock)
        if alone:
            install(alone, lock, "--no-deps")
        say(f"done in {time.monotonic() - started:.0f} s")


def usable() -> bool:
    """Whether .venv is finished and has a Python that is new enough and a pip that runs."""
    probes = ["-c", PROBE], ["-m", "pip", "--version"]
    return (
        PYTHON.exists()
        and not UNFINISHED.exists()
        and all(
            subprocess.run([PYTHON, *probe], env=environment(), capture_output=True).returncode == 0
            for probe in probes
        )
    )


def make_environment(lock: int) -> None:
    say(f"making an environment in {VENV} (once)...")
    if VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir()
    UNFINISHED.touch()
    # The real path carries the version: when that Python goes, the link to it breaks, and we see.
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    run("making the environment", lock, python, "-I", "-m", "venv", str(VENV))
    UNFINISHED.unlink()


def install(layers: list[str], lock: int, *options: str) -> None:
    """By one pip, which reads and resolves once."""
    contents = {layer: pins(layer) for layer in layers}
    packages = sum(not line.startswith(b"#") for pinned in contents.values() for line in pinned.splitlines())
    again = any(stamp(layer) is not None for layer in layers)
    names = ", ".join(layers)
    say(f"installing {names} ({packages} packages, {'again: the pins have changed' if again else 'once'})...")
    for layer in layers:
        stamp_file(layer).unlink(missing_ok=True)
    # what is imported compiles itself, once; all of it would take longer than to install it
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--no-compile"]
    files = [argument for layer in layers for argument in ("-r", str(pin_file(layer)))]
    run(f"installing {names}", lock, str(PYTHON), "-m", "pip", "install", *quiet, *options, *files)
    STAMPS.mkdir(exist_ok=True)
    for layer, content in contents.items():
        stamp_file(layer).write_bytes(content)


def remove_half_installed() -> None:
    """Forgets what an interrupted pip left half done: the next would take it for installed."""
    for packages in VENV.glob("lib/python*/site-packages"):
        for info in packages.glob("*.dist-info"):
            if not whole(info):
                shutil.rmtree(info)
        for set_aside in packages.glob("~*"):
            shutil.rmtree(set_aside)


def whole(info: Path) -> bool:
    """Whether all that a package's RECORD lists is there, at its listed size."""
    try:
        with (info / "RECORD").open(encoding="utf-8", newline="") as record:
            return all(
                not size or (info.parent / path).stat().st_size == int(size)
                for path, _, size in csv.reader(record)
            )
    except (OSError, ValueError, csv.Error):
        return False


def run(step: str, lock: int, *command: str) -> None:
    with LOG.open("a") as log:
        print(f"\n{PROMPT}{shlex.join(command)}", file=log, flush=True)
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=VENV,
            pass_fds=[lock],
        )
    if done.returncode != 0:
        raise StepFailed(step)


def environment() -> dict[str, str]:
    """The caller's settings (proxies, indexes) without those that lead pip and Python elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PIP_USER": "0"}


def log_end() -> list[str]:
    """The last lines that the last command wrote, without pip's small talk."""
    _, _, last = LOG.read_text(encoding="utf-8", errors="replace").rpartition(f"\n{PROMPT}")
    lines = [line for line in last.splitlines()[1:] if not line.startswith(LOG_NOISE)]
    return lines[-LOG_LINES_SHOWN:]


def pin_file(layer: str) -> Path:
    return PINS / f"{layer}.txt"


def stamp_file(layer: str) -> Path:
    return STAMPS / f"{layer}.txt"


def pins(layer: str) -> bytes:
    return pin_file(layer).read_bytes()


def stamp(layer: str) -> bytes | None:
    return stamp_file(layer).read_bytes() if stamp_file(layer).exists() else None


def say(text: str) -> None:
    print(f"setting up: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
