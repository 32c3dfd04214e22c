"""A data set is whole, in pool order, and the same bytes each time it is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

import store.datasets
from engine.answers import LINES, check_format, clean
from engine.answers import POOLED as FORMATS
from engine.collect.settings import Settings
from engine.provider.responses import text_of
from engine.tasks.generate import task
from store.datasets import ExportRow, stored, write
from store.errors import StorageError, UsageError
from store.queries import connect_reader
from store.records import Instruction, Outcome, Response, Usage
from tests.support.ledgers import PLAN, Book, chat, item, opened, reply, request

USUAL: tuple[Outcome, ...] = ("stop", "length")


def read(run: Path, outcomes: tuple[Outcome, ...] = USUAL, stage: int = 1) -> list[ExportRow]:
    reader = connect_reader(run)
    try:
        role = task(None, None)
        return [
            ExportRow(
                role.record(role.decode(row.item), clean(text_of(row.raw))),
                row.sample,
                row.outcome,
                row.model,
            )
            for row in stored(reader, stage, outcomes)
        ]
    finally:
        reader.close()


def exported(
    rows: list[ExportRow], path: Path, format: str = "alpaca", samples: int = 1, system: str | None = None
) -> bytes:
    assert write(path, format, iter(rows), samples, system) == len(rows)
    return path.read_bytes()


def lines(data: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in data.splitlines()]


ROWS = [
    ExportRow(Instruction("a", "Name a comet.", "", "Halley"), 0, "stop", "gpt-4-0613"),
    ExportRow(Instruction("b", "اكتب", "שלום", "a\0b 😀\u2028"), 0, "length", "gpt-4-0613"),
    ExportRow(Instruction("c", 'Say "x"', "1\n2", ""), 1, "length", ""),
]


# Which rows, and in which order.


async def test_answers_come_in_pool_order_whatever_order_they_came_in(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number in range(1, 9):
            book.place(number)
        for number in (5, 2, 8, 1, 7, 3):
            book.answer(number)
    found = read(tmp_path)
    assert [row.item.id for row in found] == [f"row {n}" for n in (1, 2, 3, 5, 7, 8)]
    assert [row.item.output for row in found] == [f"Answer {n}." for n in (1, 2, 3, 5, 7, 8)]


async def test_equal_rows_all_have_their_line(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.add(1)
        for position in (1, 2):
            ledger.place(book.stage, position, item(position + 1), PLAN, [(0, 1)])
    found = [(row.item.id, row.item.output) for row in read(tmp_path)]
    assert found == [("row 1", "Answer 1."), ("row 2", "Answer 1."), ("row 3", "Answer 1.")]


async def test_only_the_outcomes_that_are_asked_for_are_written(tmp_path: Path) -> None:
    outcomes: list[Outcome] = ["stop", "length", "content_filter", "refusal"]
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number, outcome in enumerate(outcomes, 1):
            book.add(number, reply(f"{outcome} text", outcome))
        book.place(5)
        book.fail(5)
    assert [row.outcome for row in read(tmp_path)] == ["stop", "length"]
    assert [row.item.output for row in read(tmp_path, ("refusal",))] == ["refusal text"]
    assert len(read(tmp_path, tuple(outcomes))) == 4


async def test_a_filtered_request_has_an_empty_text(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        raw = b'{"error":{"code":"content_filter"}}'
        Book(ledger).add(1, Response("content_filter", "content_filter", Usage(), raw, 0, 0.1))
    (row,) = read(tmp_path, ("content_filter",))
    assert row.item.output == ""


async def test_all_samples_of_a_row_stand_together(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger, samples=2)
        for position in (0, 1):
            numbers = [2 * position + 1, 2 * position + 2]
            new = [request(n, sample) for sample, n in enumerate(numbers)]
            ledger.place(book.stage, position, item(position + 1), PLAN, list(enumerate(numbers)), new)
            for number in numbers:
                book.answer(number)
    found = [(row.item.id, row.sample, row.item.output) for row in read(tmp_path)]
    assert found == [
        ("row 1", 0, "Answer 1."),
        ("row 1", 1, "Answer 2."),
        ("row 2", 0, "Answer 3."),
        ("row 2", 1, "Answer 4."),
    ]


async def test_a_stage_has_its_own_rows(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        Book(ledger, "one").add(1)
        other = Book(ledger, "two")
        ledger.place(other.stage, 0, item(9), PLAN, [(0, 1)])
    assert [row.item.id for row in read(tmp_path, stage=1)] == ["row 1"]
    assert [row.item.id for row in read(tmp_path, stage=2)] == ["row 9"]


async def test_log_probabilities_are_written_as_the_server_told_them(tmp_path: Path) -> None:
    told = [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]
    body = orjson.loads(chat("Hi"))
    body["choices"][0]["logprobs"] = {"content": told}
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.add(1, Response("stop", "stop", Usage(1, 1), orjson.dumps(body), 0, 0.1))
        book.add(2, Response("stop", "stop", Usage(1, 1), chat("Ho"), 0, 0.1))
    reader = connect_reader(tmp_path)
    role = task(None, None)
    found = (
        (row, None, role.record(role.decode(row.item), text_of(row.raw))) for row in stored(reader, 1, USUAL)
    )
    lines = list(LINES["logprobs"](found, Settings(model="m", base_url="http://127.0.0.1"), 0.0))
    reader.close()
    assert [(line["output"], line["logprobs"]) for line in lines] == [("Hi", told), ("Ho", None)]


async def test_lone_surrogates_of_a_reply_become_the_replacement_character(tmp_path: Path) -> None:
    raw = chat("PLACE").replace(b"PLACE", rb"a\ud83d b \ud83d\ude00\ufeff")
    async with opened(tmp_path) as ledger:
        Book(ledger).add(1, Response("stop", "stop", Usage(1, 1), raw, 0, 0.1))
    assert [row.item.output for row in read(tmp_path)] == ["a\ufffd b 😀\ufeff"]


# How they are written.


def test_alpaca_s_shape_in_lines(tmp_path: Path) -> None:
    data = exported(ROWS, tmp_path / "sft.jsonl")
    assert lines(data)[0] == {"instruction": "Name a comet.", "input": "", "output": "Halley", "id": "a"}
    assert [row["output"] for row in lines(data)] == ["Halley", "a\0b 😀\u2028", ""]
    assert data.endswith(b"}\n")


def test_a_name_in_json_is_a_list_of_the_same_rows(tmp_path: Path) -> None:
    assert orjson.loads(exported(ROWS, tmp_path / "sft.json")) == lines(
        exported(ROWS, tmp_path / "sft.jsonl")
    )
    assert orjson.loads(exported([], tmp_path / "empty.json")) == []


def test_several_samples_are_told_apart(tmp_path: Path) -> None:
    assert [row["sample"] for row in lines(exported(ROWS, tmp_path / "x.jsonl", samples=2))] == [0, 0, 1]


def test_chat_lines_hold_the_conversation(tmp_path: Path) -> None:
    found = lines(exported(ROWS, tmp_path / "x.jsonl", "chat", system="Be brief."))
    head = {"role": "system", "content": "Be brief."}
    assert found[0] == {
        "messages": [
            head,
            {"role": "user", "content": "Name a comet."},
            {"role": "assistant", "content": "Halley"},
        ]
    }
    assert found[2]["messages"][1]["content"] == 'Say "x"\n\n1\n2'
    without = lines(exported(ROWS, tmp_path / "x.jsonl", "chat"))
    assert [turn["role"] for turn in without[0]["messages"]] == ["user", "assistant"]


def test_parquet_holds_every_column_over_several_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.datasets, "PARQUET_ROWS", 2)
    for count in (0, 1, 2, 3):
        exported(ROWS[:count], tmp_path / "x.parquet", "parquet")
        table = pq.read_table(tmp_path / "x.parquet")
        assert table.to_pylist() == [
            {
                "instruction": row.item.instruction,
                "input": row.item.input,
                "output": row.item.output,
                "id": row.item.id,
                "sample": row.sample,
                "outcome": row.outcome,
                "model": row.model,
            }
            for row in ROWS[:count]
        ]
        assert str(table.schema.field("sample").type) == "int32"


@pytest.mark.parametrize(
    ("format", "name"),
    [
        *((format, name) for format in FORMATS if format != "parquet" for name in ("x.jsonl", "x.json", "x")),
        ("alpaca", "x.csv"),
        ("alpaca", "x.jsonl.gz"),
        ("parquet", "x.parquet"),
    ],
)
def test_the_same_rows_are_the_same_bytes(tmp_path: Path, format: str, name: str) -> None:
    assert exported(ROWS, tmp_path / name, format) == exported(ROWS, tmp_path / f"again-{name}", format)


def test_an_unknown_format_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="--format csv: unknown; choose from alpaca, chat, parquet"):
        check_format("csv")


# Nobody ever reads half a data set.


def breaks_off() -> Iterator[ExportRow]:
    yield ROWS[0]
    raise KeyboardInterrupt


@pytest.mark.parametrize("format", FORMATS)
def test_what_breaks_off_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, format: str) -> None:
    path = tmp_path / "sft"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write(path, format, breaks_off(), 1, None)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    assert exported(ROWS, tmp_path / "a" / "b" / "sft.jsonl")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    for path in (tmp_path / "file" / "sft.jsonl", tmp_path / "folder"):
        with pytest.raises(UsageError, match=f"cannot write {path}"):
            write(path, "alpaca", iter(ROWS), 1, None)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = tmp_path / f".sft.jsonl.{os.getpid()}.part"
    beside.symlink_to("/dev/full")  # whatever is written there finds no room
    with pytest.raises(StorageError, match="No space left"):
        write(tmp_path / "sft.jsonl", "alpaca", iter(ROWS), 1, None)
    assert list(tmp_path.iterdir()) == []
