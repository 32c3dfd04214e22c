"""bin/distill on a fresh machine: what it installs, when, and what becomes of it when it is killed.

The checkout of these tests has the real bin/, code and command line. Its base is empty (what it needs comes
by PYTHONPATH), and its extra `evaluate` is one tiny package.
"""

from __future__ import annotations

import http.server
import os
import pty
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.environment import start_again
from store.errors import MissingExtra
from tests.support.cli import ROOT, environment, rows, write_pool

WHEEL = "tiny-1.0-py3-none-any.whl"
# Says what it was given, and reads its standard input only when nothing is missing.
PROBE = """
import os, sys
from engine.environment import start_again
from store.errors import MissingExtra
from store.errors import require
try:
    require("evaluate", purpose="the probe")
except MissingExtra as missing:
    start_again(missing)
    sys.exit(f"distill: {missing}")
import tiny
print(os.getpid(), sys.argv[1:], sys.stdin.read())
"""


def write_wheel(folder: Path) -> Path:
    """A package `tiny` with one module."""
    info = "tiny-1.0.dist-info"
    files = {
        "tiny.py": "'a module'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,{len(text)}\n" for name, text in files.items()) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, text in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(name, text)
    return folder / WHEEL


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose environment has base only."""
    folder = tmp_path_factory.mktemp("checkout")
    write_wheel(folder)
    shutil.copytree(ROOT / "bin", folder / "bin")
    for package in ("engine", "store", "trainers", "evaluators"):
        (folder / package).symlink_to(ROOT / package)
    (folder / "requirements").mkdir()
    (folder / "requirements" / "base.txt").write_text("# nothing\n")
    (folder / "requirements" / "evaluate.txt").write_text("# About 1 MB to download.\ntiny==1.0\n")
    (folder / "requirements" / "train.txt").write_text("no-such-package==1.0\n")
    ended = distill(folder, "--version")
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def checkout(installed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(installed, tmp_path / "checkout", symlinks=True)


def env(checkout: Path, **more: str) -> dict[str, str]:
    packages = os.pathsep.join((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    own = {"PYTHONPATH": packages, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout)}
    return environment() | own | {"PIP_CONFIG_FILE": os.devnull} | more


def start(checkout: Path, *words: object, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [checkout / "bin" / "distill", *map(str, words)], env=env(checkout, **more), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def distill(checkout: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    process = start(checkout, *words, **more)
    out, err = process.communicate("", timeout=120)
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def probed(checkout: Path) -> Path:
    """The same with the probe instead of the command line."""
    (checkout / "engine").unlink()
    (checkout / "engine").mkdir()
    for path in (ROOT / "engine").iterdir():
        if path.name not in ("__main__.py", "__pycache__"):
            (checkout / "engine" / path.name).symlink_to(path)
    (checkout / "engine" / "__main__.py").write_text(PROBE)
    return checkout


def stamps(checkout: Path) -> set[str]:
    return {file.stem for file in (checkout / ".venv" / "pins").iterdir()}


def site_packages(checkout: Path) -> Path:
    return next(checkout.glob(".venv/lib/python*/site-packages"))


def test_a_missing_extra_is_installed_and_the_command_starts_again_as_it_was(checkout: Path) -> None:
    process = start(probed(checkout), "two words", "$HOME", "")
    out, err = process.communicate("what was typed", timeout=120)
    assert out == f"{process.pid} ['two words', '$HOME', ''] what was typed\n", err
    assert err.startswith("setting up: installing evaluate (1 packages, about 1 MB, once); this usually")
    assert "\r" not in err
    again = start(checkout)
    assert again.communicate("", timeout=60)[1] == ""


def test_the_command_line_gets_the_extra_of_its_command(checkout: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(3))
    ended = distill(checkout, "evaluate", "lengths", "--field", "instruction", pool)
    assert ended.returncode == 0, ended.stderr
    assert "3" in ended.stdout
    assert stamps(checkout) == {"base", "evaluate"}


@pytest.mark.parametrize("words", ["--help", "train sft --help", "evaluate rouge --help", "report --help"])
def test_help_installs_base_only(checkout: Path, words: str) -> None:
    ended = distill(checkout, *words.split())
    assert (ended.returncode, ended.stderr) == (0, "")
    assert stamps(checkout) == {"base"}


def test_wrong_flags_are_told_before_anything_is_installed(checkout: Path, tmp_path: Path) -> None:
    ended = distill(checkout, "train", "sft", "--data", tmp_path / "none.jsonl", "--out", tmp_path / "out")
    assert (ended.returncode, ended.stderr) == (2, "distill: --model is missing: give it as a flag\n")
    ended = distill(checkout, "browse", tmp_path / "none")
    assert ended.returncode == 2
    assert stamps(checkout) == {"base"}


def test_what_cannot_be_installed_ends_the_command(checkout: Path, tmp_path: Path) -> None:
    words = ("train", "sft", "--data", "d", "--model", "m", "--out", tmp_path / "out")
    ended = distill(checkout, *words)
    assert ended.returncode == 2
    assert "installing train failed. The end of" in ended.stderr
    assert "no-such-package" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_two_commands_at_once_make_one_environment(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    both = [start(probed(checkout)) if not n else start(checkout) for n in range(2)]
    said = [process.communicate("", timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("making an environment" in err for _, err in said) == 1
    assert sum("waiting for another command that is setting up" in err for _, err in said) >= 1
    assert sum("installing evaluate" in err for _, err in said) == 1


@pytest.fixture
def slow_index(checkout: Path) -> Iterator[tuple[str, threading.Event]]:
    """An index whose only file comes when the event is set."""
    may_come = threading.Event()
    wheel = (checkout / WHEEL).read_bytes()

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_file = self.path.endswith(".whl")
            body = wheel if is_file else f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream" if is_file else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if is_file:
                may_come.wait(60)
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A test says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple", may_come
    finally:
        may_come.set()
        server.shutdown()
        server.server_close()


def from_index(url: str) -> dict[str, str]:
    return {"PIP_INDEX_URL": url, "PIP_FIND_LINKS": "", "PIP_NO_INDEX": "0", "PIP_NO_CACHE_DIR": "1"}


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("everything", [True, False], ids=["all of it", "the shell alone"])
def test_killed_during_an_install_it_continues_with_the_next_command(
    checkout: Path, slow_index: tuple[str, threading.Event], everything: bool
) -> None:
    url, may_come = slow_index
    with start(probed(checkout), **from_index(url)) as first:
        log = checkout / ".venv" / "setup.log"
        until(lambda: "Collecting tiny" in log.read_text())
        if everything:
            os.killpg(first.pid, signal.SIGKILL)
        else:
            first.kill()
        first.wait()
        assert stamps(checkout) == {"base"}
        with start(checkout, **from_index(url)) as second:
            assert second.stderr
            waits = "waiting for another command that is setting up" in second.stderr.readline()
            may_come.set()
            out, err = second.communicate("", timeout=60)
    assert second.returncode == 0, err
    assert out.startswith(f"{second.pid} ")
    assert waits is not everything
    assert stamps(checkout) == {"base", "evaluate"}


def test_progress_is_shown_on_a_terminal(checkout: Path, slow_index: tuple[str, threading.Event]) -> None:
    url, may_come = slow_index
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [probed(checkout) / "bin" / "distill"], env=env(checkout, **from_index(url)), stderr=theirs,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"MB downloaded" not in shown:
        shown += os.read(ours, 4096)
    may_come.set()
    process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert b"setting up: 1 packages found, 0 MB downloaded, " in shown


def test_a_half_installed_package_is_installed_again(checkout: Path) -> None:
    assert start(probed(checkout)).communicate("", timeout=60)[1].count("installing evaluate") == 1
    (checkout / ".venv" / "pins" / "evaluate.txt").unlink()
    (site_packages(checkout) / "tiny.py").unlink()
    out, err = start(checkout).communicate("", timeout=60)
    assert out, err


def test_a_full_disk_is_told_in_a_sentence(checkout: Path) -> None:
    pip = site_packages(checkout) / "pip" / "__main__.py"
    pip.write_text(
        "import sys\n"
        "if '--version' not in sys.argv:\n"
        "    sys.exit('ERROR: Could not install packages: [Errno 28] No space left on device')\n"
    )
    process = start(probed(checkout))
    _, err = process.communicate("", timeout=60)
    assert process.returncode == 2
    assert err.splitlines()[1:] == [
        f"setting up: the disk of {checkout}/.venv is full; make room and run the command again, and it "
        "continues"
    ]


def test_interrupted_it_says_how_to_continue(checkout: Path, slow_index: tuple[str, threading.Event]) -> None:
    url, _ = slow_index
    process = start(probed(checkout), **from_index(url))
    log = checkout / ".venv" / "setup.log"
    until(lambda: "Collecting tiny" in log.read_text())
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)  # by the shell: some die of what their child died of
    assert err.endswith("setting up: interrupted; run the command again and it continues\n")


def test_an_extra_that_stays_missing_is_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(os, "execv", started)
    monkeypatch.setenv("DISTILL_LAUNCHER", "bin/distill")
    monkeypatch.setenv("DISTILL_EXTRAS", "train")
    start_again(MissingExtra(["train"], "training"))
    monkeypatch.delenv("DISTILL_LAUNCHER")
    monkeypatch.delenv("DISTILL_EXTRAS")
    start_again(MissingExtra(["train"], "training"))


def test_the_launcher_knows_no_command() -> None:
    said = "".join(path.read_text() for path in (ROOT / "bin").iterdir() if path.is_file())
    assert "toml" not in said.lower()
    assert not [word for word in ("report", "rank", "annotate", "browse)", "demo)") if word in said]
