"""Makes .venv hold base and the named extras: `environment.py base train`.

Standard library only, since it runs before anything is installed; it knows nothing of what the
packages are for. An extra has up to two layers, requirements/EXTRA.txt and EXTRA-nodeps.txt. This may
be killed at any moment and started twice at once: one lock is held as long as it or its pip lives, and
a layer's stamp (.venv/pins/LAYER.txt, a copy of its pin file, which bin/ready.sh compares) is removed
before the layer is touched and written when it is complete.
"""

import csv
import errno
import fcntl
import math
import os
import re
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
DOWNLOADS = VENV / "downloads"  # where pip puts what it fetches, until it has installed it

PROMPT = "$ "
DISK_FULL = os.strerror(errno.ENOSPC)
LOG_LINES_SHOWN = 10
LOG_NOISE = ("WARNING: Location", "Requirement already satisfied")
PROBE = "import sys, venv; sys.exit(sys.version_info < (3, 11))"
# A layer of this name is installed without its dependencies: not needed, and costly to build.
NO_DEPENDENCIES = "-nodeps"


SIZE = re.compile(rb"^# About (\d+) MB", re.MULTILINE)  # of a layer, to download
# What fast and slow lines and disks do: MB a second, seconds a package.
FASTEST, SLOWEST = (30, 0.1), (3, 0.6)
ON_TERMINAL, IN_PIPE = 0.5, 20.0  # seconds between two words about progress


class StepFailed(Exception):
    """A command of the set-up failed; its output is in the log."""


def main(extras: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with locked() as lock:
            make_ready(layers_of(extras), lock)
    except KeyboardInterrupt:
        say("interrupted; run the command again and it continues")
        return 130
    except StepFailed as failure:
        end = log_end()
        if any(DISK_FULL in line for line in end):
            return disk_is_full()
        say(f"{failure} failed. The end of {LOG}:")
        print(*end, sep="\n", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return disk_is_full()
        say(f"failed: {error}")
        return 2
    return 0


def disk_is_full() -> int:
    say(f"the disk of {VENV} is full; make room and run the command again, and it continues")
    return 2


def layers_of(extras: list[str]) -> list[str]:
    found = (f"{extra}{kind}" for extra in extras for kind in ("", NO_DEPENDENCIES))
    return [layer for layer in found if pin_file(layer).is_file()]


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
        announce(stale)
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


def announce(layers: list[str]) -> None:
    """What is going to be installed, and how long that takes."""
    packages, megabytes = packages_of(layers), megabytes_of(layers)
    again = any(stamp(layer) is not None for layer in layers)
    extras = dict.fromkeys(layer.removesuffix(NO_DEPENDENCIES) for layer in layers)
    low, high = (megabytes / speed + packages * each for speed, each in (FASTEST, SLOWEST))
    say(
        f"installing {', '.join(extras)} ({packages} packages, about {megabytes} MB, "
        f"{'again: the pins have changed' if again else 'once'}); this usually takes {between(low, high)}"
    )


def packages_of(layers: list[str]) -> int:
    return sum(not line.startswith(b"#") for layer in layers for line in pins(layer).splitlines())


def megabytes_of(layers: list[str]) -> int:
    return sum(int(found[1]) for layer in layers if (found := SIZE.search(pins(layer))))


def between(low: float, high: float) -> str:
    least, most = max(1, round(low / 60)), math.ceil(high / 60)
    if high <= 60:
        return "less than a minute"
    return f"{least} to {most} minutes" if most > least else f"about {most} minute{'s' * (most > 1)}"


def install(layers: list[str], lock: int, *options: str) -> None:
    """By one pip, which reads and resolves once."""
    contents = {layer: pins(layer) for layer in layers}
    for layer in layers:
        stamp_file(layer).unlink(missing_ok=True)
    # what is imported compiles itself, once; all of it would take longer than to install it
    quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--no-compile"]
    files = [argument for layer in layers for argument in ("-r", str(pin_file(layer)))]
    run(
        f"installing {', '.join(layers)}", lock, str(PYTHON), "-m", "pip", "install", *quiet, *options, *files
    )
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
    shutil.rmtree(DOWNLOADS, ignore_errors=True)  # of one that was killed
    DOWNLOADS.mkdir()
    with LOG.open("a") as log:
        print(f"\n{PROMPT}{shlex.join(command)}", file=log, flush=True)
        began = log.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=environment() | {"TMPDIR": str(DOWNLOADS)}, cwd=VENV, pass_fds=[lock],
        )  # fmt: skip
        try:
            wait(process, began)
        except BaseException:
            process.kill()
            process.wait()
            raise
    shutil.rmtree(DOWNLOADS, ignore_errors=True)
    if process.returncode != 0:
        raise StepFailed(step)


def wait(process: "subprocess.Popen[bytes]", began: int) -> None:
    """Says now and then how far pip is: on a terminal in a line that is written again and again."""
    started = told = time.monotonic()
    on_terminal = sys.stderr.isatty()
    width, before = 0, installed_packages()
    while True:
        try:
            process.wait(0.25)
            break
        except subprocess.TimeoutExpired:
            now = time.monotonic()
        if now - told < (ON_TERMINAL if on_terminal else IN_PIPE):
            continue
        told = now
        line = f"setting up: {progress(began, before)}, {now - started:.0f} s"
        print(f"\r{line:<{width}}" if on_terminal else line, end="" if on_terminal else "\n",
              file=sys.stderr, flush=True)  # fmt: skip
        width = len(line)
    if width and on_terminal:
        print(f"\r{'':<{width}}\r", end="", file=sys.stderr, flush=True)


def progress(began: int, before: int) -> str:
    """began: where pip's words begin in the log. before: the packages that were there."""
    with LOG.open("rb") as log:
        log.seek(began)
        said = log.read()
    _, _, names = said.partition(b"Installing collected packages: ")
    if names:
        total = names.partition(b"\n")[0].count(b",") + 1
        return f"{min(total, max(0, installed_packages() - before))} of {total} packages installed"
    if not (found := said.count(b"Collecting ")):
        return "starting"
    megabytes = sum(size_of(file) for file in DOWNLOADS.rglob("*")) / 1e6
    return f"{found} packages found, {megabytes:.0f} MB downloaded"


def size_of(file: Path) -> int:
    """0 where pip has just moved or removed it."""
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:
        return 0


def installed_packages() -> int:
    return sum(1 for _ in VENV.glob("lib/python*/site-packages/*.dist-info"))


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
