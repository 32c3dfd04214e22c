"""A result goes where it was sent: plain files are replaced whole, links followed, devices and pipes written
through, and `-` is standard output."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from store.datasets import write_lines
from store.errors import UsageError
from store.files import replacing
from tests.support.cli import ROOT, Ended, distill, environment, write_pool
from tests.support.ledgers import Book, opened

ROWS = 5


@pytest_asyncio.fixture
async def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    async with opened(tmp_path / "run") as ledger:
        book = Book(ledger)
        for number in range(1, ROWS + 1):
            book.add(number)
    return tmp_path / "run"


def lines(text: str | bytes) -> list[str]:
    return [orjson.loads(line)["output"] for line in text.splitlines()]


WANTED = [f"Answer {n}." for n in range(1, ROWS + 1)]


async def export(run: Path, out: object, format: str = "alpaca") -> Ended:
    return await distill("export", run, "--format", format, "--out", out)


def breaks_off() -> Iterator[bytes]:
    yield b"half"
    raise KeyboardInterrupt


class Fifo:
    """A named pipe with somebody who reads it to its end."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path, self.data = path, b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self.data = self.path.read_bytes()

    def read(self) -> bytes:
        self._reader.join(30)
        return self.data


def node(path: Path, minor: int) -> Path:
    """A character device of the memory driver: 3 is null, 7 is full."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        with path.open("wb"):
            pass
    except PermissionError:
        pytest.skip("only root may make devices, and not everywhere")
    return path


# Standard output.


@pytest.mark.parametrize("out", ["-", "/dev/stdout", "/proc/self/fd/1"])
async def test_standard_output_is_a_place_for_a_data_set(run: Path, out: str) -> None:
    ended = await export(run, out)
    assert (ended.code, lines(ended.out)) == (0, WANTED)
    assert ended.err == "5 rows written to standard output\n"


async def test_a_report_goes_to_standard_output(run: Path) -> None:
    ended = await distill("report", run, "--out", "-")
    assert ended.code == 0
    assert ended.out.startswith("<!doctype html>")
    assert ended.out.rstrip().endswith("</html>")
    assert "sections written to standard output" in ended.err


async def test_what_the_shell_has_put_into_a_file_stays_before_and_behind(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    words = " ".join([sys.executable, "-P -m engine export", str(run), "--format alpaca --out /dev/stdout"])
    script = f"echo before; {words}; echo behind"
    with out.open("wb") as sink:
        shell = await asyncio.create_subprocess_shell(script, stdout=sink, cwd=ROOT, env=environment())
        assert await shell.wait() == 0
    text = out.read_text().splitlines()
    assert (text[0], text[-1], lines("\n".join(text[1:-1]))) == ("before", "behind", WANTED)


@pytest.mark.parametrize("out", ["-", "/dev/stdout", "fifo"])
async def test_parquet_goes_through_a_pipe(run: Path, tmp_path: Path, out: str) -> None:
    path = tmp_path / "out.parquet"
    words = [sys.executable, "-P", "-m", "engine", "export", str(run), "--format", "parquet", "--out"]
    if out == "fifo":
        fifo = Fifo(tmp_path / "fifo")
        await asyncio.to_thread(subprocess.run, [*words, fifo.path], env=environment(), check=True)
        path.write_bytes(fifo.read())
    else:
        ended = await asyncio.to_thread(
            subprocess.run, [*words, out], env=environment(), check=True, capture_output=True
        )
        path.write_bytes(ended.stdout)
    assert pq.read_table(path).column("output").to_pylist() == WANTED


async def test_a_table_takes_standard_output_and_words_go_to_stderr(tmp_path: Path) -> None:
    data = write_pool(tmp_path / "data.jsonl", [{"instruction": "a", "output": "b c"}])
    for out in ("-", "/dev/stdout"):
        ended = await distill("evaluate", "lengths", data, "--csv", out)
        assert ended.code == 0
        assert ended.out.startswith("data,unit,rows,")
        assert len(ended.out.splitlines()) == 2
        assert "Lengths" in ended.err
    ended = await distill("evaluate", "duplicates", data, data, "--name", "x", "--name", "y", "--out", "-")
    assert ended.code == 0
    assert [orjson.loads(line) for line in ended.out.splitlines()]


@pytest.mark.parametrize("flags", [("--csv", "-", "--json"), ("--csv", "-", "--out", "/dev/stdout")])
async def test_two_results_cannot_share_standard_output(tmp_path: Path, flags: tuple[str, ...]) -> None:
    data = write_pool(tmp_path / "data.jsonl", [{"instruction": "a", "output": "b c"}])
    ended = await distill("evaluate", "duplicates", data, *flags)
    assert (ended.code, ended.out) == (2, "")
    assert "cannot share standard output" in ended.err


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`| head -1` of more than a pipe holds."""
    program = (
        "from pathlib import Path\nimport engine.export, engine.cli.app, store.datasets, sys\n"
        "def run(*_, **__): store.datasets.write_lines(Path('-'), (b'x' * 100 for _ in range(10**5)))\n"
        "engine.export.run_export = run\n"
        "sys.argv = ['distill', 'export', 'RUN', '--format', 'alpaca', '--out', '-']\nengine.cli.app.main()\n"
    )
    words = [sys.executable, "-P", "-c", program]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"x" * 100 + b"\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1


# What is no plain file.


async def test_a_device_stays_a_device(run: Path, tmp_path: Path) -> None:
    null = node(tmp_path / "null", 3)
    for format in ("alpaca", "parquet"):
        ended = await export(run, null, format)
        assert (ended.code, ended.err) == (0, f"5 rows written to {null}\n")
    assert (await distill("report", run, "--out", null)).code == 0
    data = write_pool(tmp_path / "data.jsonl", [{"instruction": "a", "output": "b c"}])
    ended = await distill("evaluate", "duplicates", data, "--csv", null, "--out", null)
    assert ended.code == 0
    assert stat.S_ISCHR(null.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["data.jsonl", "null", "run"]


async def test_a_device_that_takes_nothing_is_told(run: Path, tmp_path: Path) -> None:
    full = node(tmp_path / "full", 7)
    ended = await export(run, full)
    assert ended.code == 3
    assert f"cannot write {full}: No space left on device" in ended.err
    assert stat.S_ISCHR(full.stat().st_mode)


async def test_a_named_pipe_is_written_through(run: Path, tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    assert (await export(run, fifo.path)).code == 0
    assert lines(fifo.read()) == WANTED
    assert stat.S_ISFIFO(fifo.path.stat().st_mode)


async def test_a_link_to_a_pipe_is_written_through(run: Path, tmp_path: Path) -> None:
    fifo, link = Fifo(tmp_path / "fifo"), tmp_path / "link"
    link.symlink_to("fifo")
    assert (await export(run, link)).code == 0
    assert lines(fifo.read()) == WANTED
    assert link.is_symlink()


def test_an_open_descriptor_is_written_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w+b", buffering=0) as file:
        file.write(b"before\n")
        assert write_lines(Path(f"/dev/fd/{file.fileno()}"), iter([b"{}"])) == 1
        file.write(b"behind\n")
    assert path.read_bytes() == b"before\n{}\nbehind\n"


def test_a_pipe_that_breaks_off_half_way_holds_what_came_before(tmp_path: Path) -> None:
    fifo = Fifo(tmp_path / "fifo")
    with pytest.raises(KeyboardInterrupt):
        write_lines(fifo.path, breaks_off())
    assert fifo.read() == b"half\n"
    assert stat.S_ISFIFO(fifo.path.stat().st_mode)


async def test_where_no_file_can_be_is_bad_usage(run: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
    before = sorted(os.listdir(tmp_path))
    for out in ("folder", "folder/", "file/out", "loop", "socket", "x" * 300):
        ended = await export(run, f"{tmp_path}/{out}")
        assert (ended.code, f"cannot write {tmp_path}" in ended.err) == (2, True), ended.err
    assert (await export(run, "/dev/fd/77")).code == 2
    assert (await distill("report", run, "--out", tmp_path / "folder")).code == 2
    assert sorted(os.listdir(tmp_path)) == before


# Plain files and links to them.


def test_a_link_stays_and_its_target_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    target, link, second = tmp_path / "data" / "target", tmp_path / "link", tmp_path / "second"
    target.write_bytes(b"old")
    link.symlink_to("data/target")
    second.symlink_to("link")
    with target.open("rb") as reader:
        with replacing(second) as file:
            file.write(b"new")
            file.flush()
            assert target.read_bytes() == b"old"
        assert reader.read() == b"old"
    assert (target.read_bytes(), link.is_symlink(), second.is_symlink()) == (b"new", True, True)
    assert os.listdir(tmp_path / "data") == ["target"]


def test_what_breaks_off_leaves_the_target_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(KeyboardInterrupt):
        write_lines(tmp_path / "link", breaks_off())
    assert (tmp_path / "target").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


def test_a_link_to_nothing_makes_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("folder/target")
    assert write_lines(tmp_path / "link", iter([b"{}"])) == 1
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "target").read_bytes() == b"{}\n"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    path.chmod(mode)
    owner = (path.stat().st_uid, path.stat().st_gid)
    if os.geteuid() == 0:
        os.chown(path, *(owner := (12345, 12346)))
    write_lines(path, iter([b"{}"]))
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, *owner)


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "ours", iter([b"{}"]))
    (tmp_path / "another").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "another").stat().st_mode


def test_a_name_as_long_as_names_can_be_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    assert write_lines(path, iter([b"{}"])) == 1
    assert os.listdir(tmp_path) == [path.name]


def test_a_file_called_by_a_dash_has_a_folder_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with replacing(tmp_path / "-") as file:
        file.write(b"x")
    assert (tmp_path / "-").read_bytes() == b"x"


def test_a_ranking_into_a_pipe_keeps_nothing_beside_it(tmp_path: Path) -> None:
    from trainers.rank import _beside, run_rank

    with _beside(Path("/dev/stdout"), plain=False) as beside:
        assert beside.parent.is_dir()
        assert beside.parent != Path("/dev")
        kept = beside.parent
    assert not kept.exists()
    candidates = write_pool(tmp_path / "c.jsonl", [{"id": 1, "prompt": "a", "candidates": ["b"]}])
    with pytest.raises(UsageError, match="--split reads the ranking again"):
        run_rank(tmp_path, candidates, Path("-"), quiet=True, groups=tmp_path / "groups")


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "link", "lock", "reserve", "other.db"])
def test_a_ledger_is_never_an_output(tmp_path: Path, name: str) -> None:
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    (tmp_path / "other.db").write_bytes((tmp_path / "ledger.db").read_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "ledger.db")
    (tmp_path / "lock").touch()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="cannot write"):
        write_lines(tmp_path / name, [b"x"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_called_lock_is_one_elsewhere(tmp_path: Path) -> None:
    write_lines(tmp_path / "lock", [b"x"])
    assert (tmp_path / "lock").read_bytes() == b"x\n"
