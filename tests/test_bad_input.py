"""What is wrong with a command is said in a sentence, with exit code 2, before anything is begun."""

from __future__ import annotations

import re
import signal
import socket
import struct
import sys
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


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of it, or of what imports it, would fail."""
    for name in ("torch", "trainers.models", "trainers.reward_model"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.skipif(not installed("train"), reason="the extra `train` is not installed")
def test_data_that_is_not_there_is_told_before_libraries_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(monkeypatch)
    for words in (
        ("train", "sft", "--data", "none.jsonl", "--model", "m", "--out", "o"),
        ("train", "reward", "--data", "none.jsonl", "--model", "m", "--out", "o"),
        ("rank", "--reward", "r", "--candidates", "none.jsonl", "--out", "o"),
        ("evaluate", "reward", "--reward", "r", "--data", "none.jsonl"),
    ):
        assert "none.jsonl: No such file or directory\n" in refused(*words)
    said = refused("evaluate", "reward", "--reward", "r", "--data", "pool.jsonl", "--limit", -1)
    assert "--limit -1: must be greater than 0" in said


def safetensors(cut: int = 0) -> bytes:
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    content = struct.pack("<Q", len(header)) + header + bytes(8)
    return content[: len(content) - cut]


# What lies in the folder `model`, and what is said of it.
FOLDERS: list[tuple[dict[str, bytes], str]] = [
    ({}, "the folder has no config.json; expected"),
    ({"config.json": b"{"}, "config.json cannot be read: Expecting property name"),
    ({"config.json": b"[]"}, "config.json cannot be read: it is not a JSON object"),
    ({"config.json": b"{}"}, "model: there are no weights beside config.json (model.safetensors)"),
    (
        {"config.json": b"{}", "model.safetensors": safetensors(cut=3)},
        f"model.safetensors is incomplete: {len(safetensors()) - 3:,} bytes of {len(safetensors()):,}",
    ),
    (
        {"config.json": b"{}", "model.safetensors": b"\x00\xff"},
        "model.safetensors is incomplete or not a safetensors file",
    ),
    (
        {"config.json": b"{}", "pytorch_model.bin": b"PK\x03\x04 and no more"},
        "pytorch_model.bin is incomplete or does not hold weights; save the model as safetensors",
    ),
    (
        {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"w": "a.safetensors"}}'},
        "model: a.safetensors is missing, which model.safetensors.index.json names",
    ),
]


@pytest.mark.skipif(not installed("train"), reason="the extra `train` is not installed")
@pytest.mark.parametrize(("files", "words"), FOLDERS, ids=[words for _, words in FOLDERS])
def test_a_folder_that_is_no_model_is_told_before_libraries_are_loaded(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], words: str
) -> None:
    without_torch(monkeypatch)
    Path("model").mkdir()
    for name, holds in files.items():
        (Path("model") / name).write_bytes(holds)
    assert words in refused("train", "sft", "--data", "pool.jsonl", "--model", "model", "--out", "o")
    assert words in refused("train", "reward", "--data", "pool.jsonl", "--model", "model", "--out", "o")
    assert words in refused("rank", "--reward", "model", "--candidates", "pool.jsonl", "--out", "o.jsonl")
    assert words in refused("evaluate", "reward", "--reward", "model", "--data", "pool.jsonl")
    assert not Path("o").exists()


@pytest.mark.skipif(not installed("train"), reason="the extra `train` is not installed")
def test_where_training_and_ranking_go_and_come_from_is_checked_before_libraries_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_torch(monkeypatch)
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    Path("model").mkdir()
    (Path("model") / "config.json").write_text("{}")
    (Path("model") / "model.safetensors").write_bytes(safetensors())
    sft = ("train", "sft", "--data", "pool.jsonl", "--model")
    ranked = ("rank", "--candidates", "pool.jsonl", "--out", "o.jsonl", "--reward")
    for words, told in (
        ((*sft, "m", "--out", "pool.jsonl"), "--out pool.jsonl is a file; name a folder"),
        ((*sft, "m", "--out", "full"), "--out full holds something else (mine.txt, …); name a new folder"),
        ((*sft, "m", "--out", "o", "--resume"), "nothing to resume in o: no training run was started there"),
        ((*sft, "pool.jsonl", "--out", "o"), "--model pool.jsonl is a file; expected a transformers folder"),
        ((*sft, "none/", "--out", "o"), "--model none/: there is no such folder"),
        ((*sft, "./none", "--out", "o"), "--model ./none: there is no such folder"),
        ((*ranked, "none"), "--reward none: there is no such folder; expected a folder of `train reward`"),
        ((*ranked, "pool.jsonl"), "--reward pool.jsonl: it is a file; expected a folder of `train reward`"),
        ((*ranked, "model"), "--reward model: no reward.json that says how it reads (No such file or"),
    ):
        assert told in refused(*words)
    (Path("model") / "reward.json").write_text('{"template": "none", "max_length": 9}')
    assert "no reward.json that says how it reads (template none, max_length 9)" in refused(*ranked, "model")
    (Path("model") / "reward.json").write_text('{"template": "alpaca", "max_length": 9}')
    folder = ("rank", "--candidates", "pool.jsonl", "--reward", "model", "--out", "full")
    assert "cannot write full: it is a folder; name a file" in refused(*folder)


MEASURES = {
    "lengths": ("lengths", "odd.jsonl"),
    "verbs": ("verbs", "odd.jsonl"),
    "duplicates": ("duplicates", "odd.jsonl"),
    "scores": ("scores", "odd.jsonl"),
    "shares": ("shares", "odd.jsonl"),
    "judge": ("judge", "--reviews", "odd.jsonl"),
    "overlap": ("overlap", "--train", "pool.jsonl", "--test", "odd.jsonl"),
    "rouge": ("rouge", "--predictions", "odd.jsonl", "--references", "pool.jsonl"),
    "references": ("rouge", "--predictions", "pool.jsonl", "--references", "odd.jsonl"),
}


@pytest.mark.skipif(not installed("evaluate"), reason="the extra `evaluate` is not installed")
@pytest.mark.parametrize("words", MEASURES.values(), ids=MEASURES)
def test_a_file_of_which_nothing_can_be_measured_is_named_with_what_is_wrong(words: tuple[str, ...]) -> None:
    Path("pool.jsonl").write_text('{"instruction": "Say a few words of hello.", "output": "Hello."}\n')
    for holds in tiny.ODD.values():
        Path("odd.jsonl").write_bytes(holds)
        said = refused("evaluate", *words)
        assert "odd.jsonl" in said
        assert ": it is empty" in said if not holds.strip() else re.search(r"line [12]: \w", said), said
    Path("odd.jsonl").unlink()
    assert "odd.jsonl: No such file or directory\n" in refused("evaluate", *words)
    Path("odd.jsonl").mkdir()
    assert "odd.jsonl" in refused("evaluate", *words)


@pytest.mark.skipif(not installed("evaluate"), reason="the extra `evaluate` is not installed")
def test_an_interrupted_command_says_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluators.data.lengths.measure", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        ended = tiny.distill("evaluate", "lengths", "pool.jsonl", "--csv", "table.csv")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == (130, "", "distill: interrupted; run the same command again\n")
    assert not Path("table.csv").exists()
