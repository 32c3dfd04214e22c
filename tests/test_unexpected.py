"""An error that nobody foresaw: exit code 4, one sentence, the traceback in a file, and nothing lost."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import sys
from pathlib import Path

import pytest

from tests.support.cli import KEY, ROOT, Ended, asking, environment, ledger, rows, write_pool
from tests.support.provider import Provider

# Python imports it at its start; what it breaks is broken in that process alone.
BREAK = "sitecustomize.py"


def _break(folder: Path, broken: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / BREAK).write_text(broken)


async def ended(*words: object, broken: str, folder: Path, **env: str) -> Ended:
    """`distill WORDS...` in which something is broken. Not `cli.distill`: that lets no fault pass."""
    _break(folder, broken)
    path = os.pathsep.join((str(folder), str(ROOT)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "engine", *map(str, words),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=environment(PYTHONPATH=path, TMPDIR=str(folder), **env),
    )  # fmt: skip
    out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(), err.decode())


def traceback_of(end: Ended) -> Path:
    """The file that the last line names, which is for its owner alone."""
    assert "Traceback" not in end.out + end.err
    found = re.search(r"the traceback is in (\S+\.txt)$", end.err.strip().splitlines()[-1])
    assert found, end.err
    file = Path(found[1])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "Traceback (most recent call last)" in file.read_text()
    return file


IN_STATUS = """
import engine.run.status
def broken(run):
    raise ZeroDivisionError(f"float division by zero {WORDS}")
engine.run.status.status_of = broken
"""
IN_THE_RUN = """
import engine.collect.stats
def count(self, *args):
    if self.answered == 20:
        raise KeyError("nobody thought of this")
    self.answered += 1
engine.collect.stats.RunState.count = count
"""
IN_A_THREAD = """
import engine.run.status, threading
def broken(run):
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    return {}
engine.run.status.status_of = broken
"""
IN_A_LOG = """
import engine.run.status, logging
def broken(run):
    try:
        raise OSError("a library's own")
    except OSError:
        logging.getLogger("library").exception("something in a library")
    return {}
engine.run.status.status_of = broken
"""


async def test_it_is_one_sentence_and_exit_code_4(tmp_path: Path) -> None:
    end = await ended("status", tmp_path, broken=IN_STATUS.replace("{WORDS}", ""), folder=tmp_path / "broken")
    assert end.code == 4
    assert len(end.err.strip().splitlines()) == 1
    assert end.err.startswith("distill: an unexpected error (ZeroDivisionError: float division by zero")
    assert "everything paid for" not in end.err  # there is no ledger here
    assert traceback_of(end).parent == tmp_path / "broken"  # the folder for temporary files


async def test_a_run_keeps_what_was_paid_and_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", rows(60))
    async with Provider().running() as p:
        words = asking(pool, run, p.base_url, "--concurrency", 4)
        end = await ended(*words, broken=IN_THE_RUN, folder=tmp_path / "broken")
        assert end.code == 4, end.err
        assert f"everything paid for is saved in {run / 'ledger.db'}" in end.err
        assert traceback_of(end).parent == run
        assert "nobody thought of this" in traceback_of(end).read_text()
        (stored,) = ledger(run, "SELECT count(*) FROM answers")[0]
        assert stored >= 20
        end = await ended(*words, broken="", folder=tmp_path / "broken")
        assert end.code == 0, end.err
        assert ledger(run, "SELECT count(*) FROM answers") == [(60,)]


@pytest.mark.parametrize(
    ("secret", "env"),
    [
        (KEY, {}),
        ("plain-words-as-key", {"MY_TEACHER_KEY": "plain-words-as-key"}),
        ("hunter2hunter2", {"DB_PASSWORD": "hunter2hunter2"}),
        ("sk-ant-REDACTED", {}),  # it came from elsewhere
        ("me:pass@proxy", {}),
        ("A1b2C3d4E5f6G7h8", {"ODDLY_NAMED": "A1b2C3d4E5f6G7h8"}),
    ],
)
async def test_secrets_are_neither_said_nor_written(tmp_path: Path, secret: str, env: dict[str, str]) -> None:
    said = f"the header was 'Bearer {secret}' at http://{secret}/v1".replace("me:pass@proxy", "me:pass@proxy")
    broken = IN_STATUS.replace("{WORDS}", said)
    end = await ended("status", tmp_path, broken=broken, folder=tmp_path / "broken", **env)
    assert end.code == 4
    written = traceback_of(end).read_text()
    kept = secret.partition("@")[0]
    assert kept not in end.err
    assert kept not in written.replace(broken, "")  # its own lines are shown
    assert "[secret]" in end.err


@pytest.mark.parametrize("broken", [IN_A_THREAD, IN_A_LOG], ids=["thread", "log"])
async def test_what_a_thread_or_a_library_could_raise_to_nobody_is_a_sentence_too(
    tmp_path: Path, broken: str
) -> None:
    end = await ended("status", tmp_path, "--json", broken=broken, folder=tmp_path / "broken")
    assert (end.code, end.out) == (0, "{}\n")
    assert "an unexpected error" in end.err
    traceback_of(end)


async def test_a_folder_that_cannot_be_written_is_no_further_error(tmp_path: Path) -> None:
    broken = IN_STATUS.replace("{WORDS}", "") + "import os\nos.environ['TMPDIR'] = '/proc'\n"
    broken += "import tempfile\ntempfile.gettempdir = lambda: '/proc'\n"
    end = await ended("status", tmp_path, broken=broken, folder=tmp_path / "broken")
    assert end.code == 4
    assert "its traceback could not be written anywhere" in end.err


async def test_interrupts_broken_pipes_and_errors_of_ours_keep_their_codes(tmp_path: Path) -> None:
    for raised, code in (
        ("KeyboardInterrupt", 130),
        ("BrokenPipeError", 1),
        ("SystemExit(7)", 7),
        ("__import__('store.errors').errors.StorageError('full')", 3),
        ("__import__('asyncio').CancelledError", 4),
        ("MemoryError", 4),
    ):
        broken = (
            f"import engine.run.status\ndef broken(run):\n    raise {raised}\n"
            "engine.run.status.status_of = broken\n"
        )
        end = await ended("status", tmp_path, broken=broken, folder=tmp_path / "broken")
        assert end.code == code, raised
        assert "Traceback" not in end.err
