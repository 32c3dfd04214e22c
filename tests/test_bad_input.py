"""What is wrong with a command is said in a sentence, with exit code 2, before anything is begun."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from store.errors import installed
from tests.support import tiny

ASK = ("--model", "m", "--base-url", "http://127.0.0.1:9/v1")


def refused(*words: object) -> str:
    code, out, said = tiny.distill(*words)
    assert (code, out) == (2, ""), said
    assert "Traceback" not in said
    return said


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("pool.jsonl").write_text('{"instruction": "Say hello."}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("name", "holds", "words"),
    [
        ("pool.jsonl", b"", "no usable row in pool pool.jsonl (it is empty)"),
        ("pool.jsonl", b"null\n", "(1 bad row; line 1: not an object but null)"),
        ("pool.jsonl", b"7\n8\n", "(2 bad rows; line 1: not an object but number)"),
        (
            "pool.parquet",
            b"PAR?\n",
            "pool.parquet is not a Parquet file, though its name ends in .parquet",
        ),
        ("pool.jsonl.gz", b"gzip?\n", "pool pool.jsonl.gz is not gzipped, though its name ends in .gz"),
    ],
)
def test_what_is_wrong_with_a_pool(name: str, holds: bytes, words: str) -> None:
    Path(name).write_bytes(holds)
    for command in (("estimate",), ("generate", "--run", "run")):
        assert words in refused(*command, name, *ASK)
    assert not Path("run").exists() or not any(Path("run").glob("*.jsonl"))


def test_rows_of_an_unpacked_file_are_read_whatever_its_name() -> None:
    Path("pool.jsonl.gz").write_bytes(Path("pool.jsonl").read_bytes())
    assert tiny.distill("estimate", "pool.jsonl.gz", *ASK)[0] == 0


def test_an_answer_that_is_null_is_told_with_the_columns() -> None:
    files = ("--answers", "pool.jsonl", "--against", "pool.jsonl", "--name", "a", "--name", "b")
    said = refused("judge", *files, "--run", "run", *ASK)
    assert "no answer: no output; its columns are instruction" in said


def test_an_empty_name_is_not_the_folder_that_one_stands_in(tmp_path: Path) -> None:
    """As in `--run "$RUN"`, of a variable that is not set."""
    for words, told in (
        (("generate", "pool.jsonl", "--run", "", *ASK), "--run '': it is empty; name a file or folder"),
        (("generate", "pool.jsonl", "--run=", *ASK), "--run '': it is empty"),
        (("generate", "", "--run", "run", *ASK), "an argument is empty: name a file or folder"),
        (("status", ""), "an argument is empty"),
        (("export", "--run", "run", "--out", ""), "--out '': it is empty"),
        (("train", "sft", "--data", "", "--model", "m", "--out", "o"), "--data '': it is empty"),
    ):
        assert told in refused(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]
    assert "--model '': must have at least 1 character" in refused("estimate", "pool.jsonl", "--model", "")


def test_files_that_cannot_be_read_are_told_without_pythons_words() -> None:
    Path("latin.toml").write_bytes(b'name = "\xe9"\n')
    Path("empty.txt").write_text(" \n")
    for words, told in (
        (("run", "none.toml", "--run", "r"), "cannot read recipe none.toml: No such file or directory\n"),
        (("run", ".", "--run", "r"), "cannot read recipe .: Is a directory\n"),
        (("run", "latin.toml", "--run", "r"), "recipe latin.toml: it is not UTF-8 (byte 8: 0xe9)\n"),
        (("generate", "pool.jsonl", "--run", "r", *ASK, "--prompt", "none.txt"),
         "cannot read --prompt none.txt: No such file or directory\n"),
        (("generate", "pool.jsonl", "--run", "r", *ASK, "--prompt", "empty.txt"),
         "--prompt empty.txt: the file is empty\n"),
    ):  # fmt: skip
        assert refused(*words).endswith(told)


def test_numbers_are_refused_in_our_words() -> None:
    said = refused("browse", "--run", "run", "--port", "x")
    assert "must be a whole number" in said
    assert "Input should" not in said
    for port, told in (
        (-1, "--port -1: must be from 0 to 65535"),
        (65536, "--port 65536: must be from 0 to 65535"),
    ):
        assert told in refused("serve", "--scripted", "--port", port)
    assert "--latency nan: must be a finite number" in refused(
        "serve", "--scripted", "--port", 0, "--latency", "nan"
    )


def test_a_port_that_is_in_use_is_told_before_a_model_is_read() -> None:
    Path("model").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = f"port {port} is in use; name another with --port, or 0 for a free one\n"
        for model in ("--scripted", "model"):
            assert told in refused("serve", model, "--port", port)
    assert "--parallel 0: must be at least 1" in refused("serve", "model", "--port", 0, "--parallel", 0)


def test_usage_shows_arguments_as_they_are_called() -> None:
    for words, usage in (
        (("generate",), "Usage: distill generate [OPTIONS] POOL\n"),
        (("score",), "Usage: distill score [OPTIONS] ANSWERS...\n"),
        (("serve",), "Usage: distill serve [OPTIONS] [MODEL]\n"),
        (("evaluate", "lengths"), "Usage: distill evaluate lengths [OPTIONS] FILE...\n"),
    ):
        code, out, _ = tiny.distill(*words, "--help")
        assert (code, out[: len(usage)]) == (0, usage)


@pytest.mark.skipif(not installed("train"), reason="the extra `train` is not installed")
def test_data_that_is_not_there_is_told_before_libraries_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("trainers.sft", "trainers.reward", "trainers.rank", "trainers.scoring"):
        monkeypatch.setitem(__import__("sys").modules, name, None)  # an import of it would fail
    for words in (
        ("train", "sft", "--data", "none.jsonl", "--model", "m", "--out", "o"),
        ("train", "reward", "--data", "none.jsonl", "--model", "m", "--out", "o"),
        ("rank", "--reward", "r", "--candidates", "none.jsonl", "--out", "o"),
        ("evaluate", "reward", "--reward", "r", "--data", "none.jsonl"),
    ):
        assert "none.jsonl: No such file or directory\n" in refused(*words)
    said = refused("evaluate", "reward", "--reward", "r", "--data", "pool.jsonl", "--limit", -1)
    assert "--limit -1: must be greater than 0" in said
