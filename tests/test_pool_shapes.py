"""Pools as other programs write them are read, or refused in one sentence that says what is there."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store.errors import PoolError
from store.pool import Pool
from store.records import BadRow, Instruction
from tests.support.pools import Reader, bad_lines, complaint, good, instructions, pool_of

ROWS = [
    {"instruction": 'Say "a; b", please.', "input": "x\ty|z", "output": "one\ntwo"},
    {"instruction": "翻译 é 😀", "input": "", "output": ""},
    {"instruction": "Name a hill.", "input": "here", "output": "Petrin"},
]
WANTED = [Instruction(str(n), **row) for n, row in enumerate(ROWS)]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def indented(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=4)


def table(rows: list[dict[str, Any]], separator: str = ",") -> str:
    def quoted(values: list[str]) -> str:
        return separator.join('"' + value.replace('"', '""') + '"' for value in values)

    return "".join(quoted(each) + "\r\n" for each in [list(rows[0]), *(list(row.values()) for row in rows)])


SHAPES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "pool.jsonl": lines,
    "pool.json": indented,
    "pool.csv": table,
}


# Encodings and separators.


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
        (b"", "utf-16-le"),
        (b"", "utf-16-be"),
    ],
)
def test_unicode_is_read_in_every_encoding(
    tmp_path: Path, name: str, mark: bytes, encoding: str, gz: str
) -> None:
    data = mark + SHAPES[name](ROWS).encode(encoding)
    assert pool_of(tmp_path, gzip.compress(data) if gz else data, name + gz) == WANTED


@pytest.mark.parametrize("name", ["pool.csv", "pool.tsv", "pool.psv", "pool.txt", "pool"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("first", ["", "sep={}\r\n", '"sep={}"\r\n'])
def test_tables_tell_their_separator(tmp_path: Path, name: str, separator: str, first: str) -> None:
    data = first.format(separator) + table(ROWS, separator)
    assert pool_of(tmp_path, data.encode(), name) == WANTED


def test_old_line_ends_of_a_mac_are_line_ends(tmp_path: Path) -> None:
    rows = pool_of(tmp_path, b"instruction,input\ra,b\rc,d\r", "pool.csv")
    assert rows == [Instruction("0", "a", "b"), Instruction("1", "c", "d")]


def test_a_separator_in_a_table_of_one_column_is_told(tmp_path: Path) -> None:
    """It used to cost the text behind it."""
    rows = pool_of(tmp_path, b'instruction\nName a tea, please.\n"Name a hill, please."\n', "pool.csv")
    assert instructions(rows) == ["Name a hill, please."]
    assert bad_lines(rows) == [2]


def test_column_names_count_in_any_case(tmp_path: Path) -> None:
    wanted = [Instruction("7", "a", "b", "c")]
    row = {"ID": 7, "Instruction": "a", " INPUT ": "b", "Output": "c"}
    assert pool_of(tmp_path, json.dumps(row).encode() + b"\n") == wanted
    assert pool_of(tmp_path, json.dumps([row]).encode(), "pool.json") == wanted
    assert pool_of(tmp_path, b"ID;Instruction; INPUT ;Output\n7;a;b;c\n", "pool.csv") == wanted
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row]), file)
    assert pool_of(tmp_path, file.getvalue(), "pool.parquet") == wanted


def test_two_columns_of_a_row_are_not_made_one(tmp_path: Path) -> None:
    rows = pool_of(tmp_path, b'{"Instruction":"a","instruction":"b"}\n')
    assert instructions(rows) == ["b"]


# JSON in other shapes.


@pytest.mark.parametrize("name", ["pool.json", "pool.jsonl", "pool"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"version": "0.1", "data": ROWS}),
        json.dumps({"data": ROWS, "count": 3}, indent=2),
        json.dumps({"meta": {"tags": ["a"]}, "rows": ROWS, "errors": []}, indent=4),
        json.dumps({"of_our_own": ROWS}),
        "\n".join(json.dumps({"items": [row]}) for row in ROWS),
        "\n".join(json.dumps([row]) for row in ROWS),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        json.dumps(ROWS[:1]) + "\n" + json.dumps(ROWS[1], indent=1) + "\n" + json.dumps(ROWS[2]),
        json.dumps(ROWS),
    ],
    ids=[
        "wrapped",
        "wrapped, indented",
        "among others",
        "any name",
        "pages",
        "a list a line",
        "jq",
        "mixed",
        "list",
    ],
)
def test_lists_and_objects_that_hold_a_list_are_read_under_any_name(
    tmp_path: Path, text: str, name: str
) -> None:
    assert pool_of(tmp_path, text.encode(), name) == WANTED


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_is_a_pool_of_one_row(tmp_path: Path, indent: int | None) -> None:
    data = json.dumps(ROWS[0], indent=indent).encode()
    assert pool_of(tmp_path, data, "pool.json") == WANTED[:1]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_with_two_lists_of_rows_is_refused(tmp_path: Path, indent: int | None) -> None:
    data = json.dumps({"train": ROWS, "test": ROWS}, indent=indent).encode()
    with pytest.raises(PoolError, match=r"line 1: an object with several lists of rows, `train` and `test`"):
        pool_of(tmp_path, data, "pool.json")


def test_a_row_that_holds_a_list_stays_a_row(tmp_path: Path) -> None:
    row = {"instruction": "Plan.", "instances": [{"input": "oats", "output": "eat"}]}
    assert pool_of(tmp_path, json.dumps(row).encode()) == [Instruction("0", "Plan.", "oats", "eat")]
    for own in ({"messages": [{"role": "user", "question": "a"}]}, {"id": 1, "talk": [{"role": "user"}]}):
        (bad,) = pool_of(tmp_path, json.dumps(own).encode())
        assert str(bad).count("its columns are") == 1


def test_a_torn_wrapper_is_told(tmp_path: Path) -> None:
    data = json.dumps({"data": ROWS}, indent=2).encode()[:-20]
    assert (
        complaint(tmp_path, data, "pool.json") == "the file ends in the middle of the value that begins here"
    )


def test_a_torn_line_does_not_take_the_next_ones_with_it(tmp_path: Path) -> None:
    for torn in (
        '{"instruction":"a",',
        '{"instruction":',
        '{"instruction":"a","tags":[',
        "{",
        '{"instruction":"a',
    ):
        rows = pool_of(tmp_path, f'{torn}\n{{"instruction":"b"}}\n{{"instruction":"c"}}\n'.encode())
        assert (bad_lines(rows), instructions(rows)) == ([1], ["b", "c"])


# Values that are no text.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "0"),
        ("12", "12"),
        ("0.5", "0.5"),
        ("-0.0", "0"),
        ("3.0", "3"),
        ("false", "false"),
        ("true", "true"),
        ('"0"', "0"),
    ],
)
def test_numbers_and_truths_are_text(tmp_path: Path, value: str, text: str) -> None:
    line = f'{{"instruction":"a","input":{value},"output":{value}}}\n'
    assert pool_of(tmp_path, line.encode()) == [Instruction("0", "a", text, text)]


@pytest.mark.parametrize("value", ["null", "NaN", '""'])
def test_nothing_is_the_empty_text(tmp_path: Path, value: str) -> None:
    assert good(pool_of(tmp_path, f'{{"instruction":"a","input":{value}}}'.encode())) == [
        Instruction("0", "a")
    ]


@pytest.mark.parametrize("value", ["[]", "{}", '["a"]', '{"a":1}', "Infinity"])
def test_an_input_that_is_a_list_or_an_object_is_a_bad_row(tmp_path: Path, value: str) -> None:
    assert "input is not text" in complaint(tmp_path, f'{{"instruction":"a","input":{value}}}\n'.encode())


@pytest.mark.parametrize("value", ["[]", "{}", "0", "12", "false", "NaN"])
def test_an_instruction_that_is_no_text_is_a_bad_row(tmp_path: Path, value: str) -> None:
    reason = complaint(tmp_path, f'{{"instruction":{value},"input":"b"}}\n'.encode())
    assert "instruction is not text" in reason


def test_missing_numbers_of_a_parquet_file_are_empty(tmp_path: Path) -> None:
    file = io.BytesIO()
    columns = {"instruction": ["a", "b"], "input": pa.array([0, float("nan")], pa.float64())}
    pq.write_table(pa.table(columns), file)
    rows = good(pool_of(tmp_path, file.getvalue(), "pool.parquet"))
    assert [row.input for row in rows] == ["0", ""]


def test_a_question_of_one_turn_is_read(tmp_path: Path) -> None:
    raw = b'{"question_id": 81, "category": "writing", "turns": ["Compose a song."]}\n'
    (row,) = good(pool_of(tmp_path, raw))
    assert (row.id, row.instruction, row.category) == ("81", "Compose a song.", "writing")


# What is not read is named.


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a", "answer": "b"}, "its columns are question, answer (rename `question`?)"),
        ({"prompt": "a", "completion": "b"}, "its columns are prompt, completion (rename `prompt`?)"),
        ({"messages": [{"role": "user", "content": "a"}]}, "a chat in `messages` is not read here"),
        ({"id": 1, "conversations": [{"from": "human", "value": "a"}]}, "a chat in `conversations` is not"),
        ({"question_id": 81, "turns": ["a", "b"]}, "its columns are question_id, turns (a chat in `turns`"),
        ({"x" * 50: "a"} | {f"c{n}": n for n in range(20)}, "xxx…, c0, c1, c2, c3, c4, c5, c6 and others"),
        ({}, "the row is empty"),
    ],
)
def test_a_row_without_an_instruction_names_the_columns_that_it_has(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    reason = complaint(tmp_path, json.dumps(row).encode())
    assert reason.startswith("no instruction; ")
    assert said in reason
    assert len(reason) < 200


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("pool.jsonl", "{}")
    return file.getvalue()


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a)")
    return connection.serialize()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (zipped(), "a zip archive or an Excel workbook"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed with zstd"),
        (b"\xfd7zXZ\0" + bytes(20), "compressed with xz"),
        (gzip.compress(gzip.compress(b"{}")), "compressed twice"),
        (database(), "a SQLite database"),
        (b"<!DOCTYPE html>\n<html>", "a web page, not data"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
    ],
    ids=["zip", "zstd", "xz", "gzip twice", "SQLite", "HTML", "LFS"],
)
@pytest.mark.parametrize("name", ["pool.jsonl", "pool.csv", "pool.gz"])
def test_files_of_other_kinds_are_refused_in_a_sentence(
    tmp_path: Path, data: bytes, said: str, name: str
) -> None:
    with pytest.raises(PoolError, match=f"{name} is {said}"):
        pool_of(tmp_path, data, name)


def test_a_pipe_that_hands_over_single_bytes_shows_its_shape() -> None:
    for data in (
        b'\n [{"instruction":"a"}]',
        b"instruction;input\na;b\n",
        "instruction\na\n".encode("utf-16"),
    ):
        with Reader() as reader:
            for place in range(len(data)):
                reader.write(data[place : place + 1])
            assert reader.rest()[:2] == ["a", "end"]


def test_an_empty_list_among_lists_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_text('[{"instruction": "A"}]\n[]\n[{"instruction": "B"}]\n[]\n')
    assert [row.instruction for row in Pool(path) if isinstance(row, Instruction)] == ["A", "B"]
    assert not [row for row in Pool(path) if isinstance(row, BadRow)]
