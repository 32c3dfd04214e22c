"""A pool gives the same rows whatever shape it lies in, and a bad row costs no other."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import store.text_streams
from store.errors import PoolError
from store.pool import Pool
from store.records import BadRow, Instruction
from tests.support.pools import Reader, bad_lines, complaint, good, instructions, pool_of

Rows = list[dict[str, Any]]
FIELDS = ("id", "instruction", "input", "output")

# What a pool of the world holds, all of it legal.
HARD_ROWS: Rows = [
    {"id": "plain", "instruction": "Name a comet.", "input": "", "output": "Halley"},
    {"id": "lines", "instruction": 'Say "a, b"\nand\r\nc\td.', "input": "x\n\ny", "output": ""},
    {
        "id": "right-to-left",
        "instruction": "اكتب قصة قصيرة عن البحر",
        "input": "שלום",
        "output": "",
    },
    {
        "id": "emoji",
        "instruction": "What is 👩‍👩‍👧‍👦 in 🇫🇷?",
        "input": "\u202edesrever\u202c",
        "output": "",
    },
    {
        "id": "combining",
        "instruction": "e\u0301 is not \u00e9",
        "input": "\u2028\u2029\u0085",
        "output": "",
    },
    {
        "id": "braces",
        "instruction": '{"instruction": "{input}"}',
        "input": "[1, 2]",
        "output": "\\n",
    },
    {
        "id": "long",
        "instruction": "Sum up. " + "中 word, " * 90_000,
        "input": "z" * 200_000,
        "output": "",
    },
]


def as_lines(rows: Rows) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def as_list(rows: Rows) -> bytes:
    return orjson.dumps(rows, option=orjson.OPT_INDENT_2)


def as_csv(rows: Rows, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_tsv(rows: Rows) -> bytes:
    return as_csv(rows, "\t")


def as_parquet(rows: Rows) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


SHAPES: dict[str, Callable[[Rows], bytes]] = {
    "pool.jsonl": as_lines,
    "pool.json": as_list,
    "pool.csv": as_csv,
    "pool.tsv": as_tsv,
    "pool.parquet": as_parquet,
}
NAMES = [*SHAPES, *(f"{name}.gz" for name in SHAPES)]


def packed(name: str, rows: Rows) -> bytes:
    data = SHAPES[name.removesuffix(".gz")](rows)
    return gzip.compress(data) if name.endswith(".gz") else data


# Every shape gives the same rows.


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_gives_every_row_unchanged(tmp_path: Path, name: str) -> None:
    rows = pool_of(tmp_path, packed(name, HARD_ROWS), name)
    assert good(rows) == [Instruction(**row) for row in HARD_ROWS]
    assert not bad_lines(rows)


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json", "pool.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, name: str) -> None:
    rows = pool_of(tmp_path, b"\xef\xbb\xbf" + packed(name, HARD_ROWS[:2]), name)
    assert good(rows) == [Instruction(**row) for row in HARD_ROWS[:2]]


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json"])
def test_white_space_before_the_first_row_does_not_hide_its_shape(tmp_path: Path, name: str) -> None:
    rows = pool_of(tmp_path, b" \r\n\n\t" + packed(name, HARD_ROWS[:2]), name)
    assert instructions(rows) == [row["instruction"] for row in HARD_ROWS[:2]]


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json", "pool.parquet"])
def test_nul_stays_what_it_is(tmp_path: Path, name: str) -> None:
    row = {"id": "nul", "instruction": "a\0b", "input": "\0", "output": ""}
    (found,) = good(pool_of(tmp_path, packed(name, [row]), name))
    assert found == Instruction(**row)


def test_nul_in_csv_becomes_the_replacement_character(tmp_path: Path) -> None:
    data = b"instruction,input\r\na\0b,c\r\nd,e\r\n"
    assert instructions(pool_of(tmp_path, data, "pool.csv")) == ["a\ufffdb", "d"]


@pytest.mark.parametrize("shape", ["lines", "list"])
def test_lone_surrogates_become_the_replacement_character(tmp_path: Path, shape: str) -> None:
    row = rb'{"id":"\udfff","instruction":"a\ud800b \ud83d\ude00 \ude00\ud83d","input":"\ud83d"}'
    data = row + b"\n" if shape == "lines" else b"[" + row + b"]"
    (found,) = good(pool_of(tmp_path, data, "pool.json" if shape == "list" else "pool.jsonl"))
    wanted = Instruction("\ufffd", "a\ufffdb 😀 \ufffd\ufffd", "\ufffd")
    assert found == wanted


def test_line_ends_of_other_systems_and_empty_lines_are_no_rows(tmp_path: Path) -> None:
    rows = pool_of(tmp_path, b'{"instruction":"a"}\r\n\r\n   \n\n{"instruction":"b"}')
    assert instructions(rows) == ["a", "b"]
    assert not bad_lines(rows)


def test_gzip_of_several_members_is_one_pool(tmp_path: Path) -> None:
    parts = [gzip.compress(as_lines([row])) for row in HARD_ROWS]
    assert len(good(pool_of(tmp_path, b"".join(parts), "pool.jsonl.gz"))) == len(HARD_ROWS)


# Published shapes.


def test_self_instruct_rows_take_input_and_output_from_their_first_instance(tmp_path: Path) -> None:
    rows = [
        {
            "id": "seed_task_0",
            "instruction": "Plan.",
            "instances": [{"input": "oats", "output": "eat"}],
        },
        {"id": "seed_task_1", "instruction": "Go.", "instances": []},
        {
            "id": "seed_task_2",
            "instruction": "Go.",
            "input": "own",
            "instances": [{"input": "other"}],
        },
    ]
    assert good(pool_of(tmp_path, as_lines(rows))) == [
        Instruction("seed_task_0", "Plan.", "oats", "eat"),
        Instruction("seed_task_1", "Go.", "", ""),
        Instruction("seed_task_2", "Go.", "own", ""),
    ]


def test_fastchat_questions_are_read_by_question_id_and_text(tmp_path: Path) -> None:
    rows = [
        {
            "question_id": 1,
            "text": "How can I improve my time management skills?",
            "category": "generic",
        }
    ]
    (found,) = good(pool_of(tmp_path, as_lines(rows)))
    assert found == Instruction("1", "How can I improve my time management skills?", category="generic")


def test_a_row_without_an_id_is_named_by_its_position_among_the_usable_rows(tmp_path: Path) -> None:
    data = b'{"instruction":"a"}\nbad\n{"instruction":"b","id":null}\n{"instruction":"c","id":7}\n'
    rows = good(pool_of(tmp_path, data))
    assert [row.id for row in rows] == ["0", "1", "7"]


def test_a_null_input_is_an_empty_one(tmp_path: Path) -> None:
    (found,) = good(pool_of(tmp_path, b'{"instruction":"a","input":null,"output":null}\n'))
    assert found == Instruction("0", "a")


# Bad rows.

BAD_LINES = [
    (b'["instruction"]', "not an object"),
    (b'"instruction"', "not an object"),
    (b"7", "not an object"),
    (b"null", "not an object"),
    (b"{}", "no instruction"),
    (b'{"text":"no question_id"}', "no instruction"),
    (b'{"instruction":""}', "no instruction"),
    (b'{"instruction":" \\n "}', "no instruction"),
    (b'{"instruction":null}', "no instruction"),
    (b'{"instruction":["a"]}', "instruction is not text"),
    (b'{"instruction":"a","input":{"b":1}}', "input is not text"),
    (b'{"instruction":"\xff\xfe"}', "not UTF-8"),
    (b'{"instruction":"\xed\xa0\x80"}', "not UTF-8"),
    (b'{"instruction":"a"', "not JSON"),
    (b"{'instruction':'a'}", "not JSON"),
    (b'{"instruction":"a"}{"instruction":"b"}', "not JSON"),
    (b'{"instruction":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[f"{b[:30]!r}" for b, _ in BAD_LINES])
def test_a_bad_line_is_reported_with_its_number_and_the_rest_goes_on(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    rows = pool_of(tmp_path, b'{"instruction":"a"}\n\n' + line + b'\n{"instruction":"b"}\n')
    (bad,) = (row for row in rows if isinstance(row, BadRow))
    assert bad.line == 3
    assert reason in bad.reason
    assert len(bad.reason) < 200
    assert instructions(rows) == ["a", "b"]


def test_a_torn_last_line_is_told_as_such(tmp_path: Path) -> None:
    assert "line is incomplete" in complaint(tmp_path, b'{"instruction":"a"}\n{"instruction":"b')
    assert "line is incomplete" not in complaint(tmp_path, b'{"instruction":"a"}\n{"instruction":"b\n')


TWICE = [
    (b'{"instruction": "a", "instruction": "b"}', "'instruction' appears twice with different values"),
    (b'{"id": 1, "instruction": "a", "id": 2}', "'id' appears twice with different values"),
    (b'{"messages": [], "instruction": "a", "messages": {}}', "'messages' appears twice"),
]
ONCE = [
    b'{"instruction": "a", "instruction": "a"}',
    b'{"instruction": "instruction", "input": "say \\"input\\": b"}',
    b'{"instruction": "a", "other": {"instruction": "b", "other": 1}}',
]


@pytest.mark.parametrize(("line", "words"), TWICE)
@pytest.mark.parametrize("shape", [b"%b\n", b"[%b]", b'[{"instruction": "c"}, %b]'])
def test_a_name_that_stands_twice_with_different_values_makes_a_bad_row(
    tmp_path: Path, line: bytes, words: str, shape: bytes
) -> None:
    assert words in complaint(tmp_path, shape % line, "pool.json")


def test_a_name_that_stands_twice_in_a_row_of_a_list_on_one_line_makes_a_bad_row(tmp_path: Path) -> None:
    line = b'{"data": [{"instruction": "c"}, {"instruction": "a", "instruction": "b"}]}\n'
    assert "'instruction' appears twice" in complaint(tmp_path, line)


@pytest.mark.parametrize("line", ONCE)
def test_what_only_looks_like_a_name_twice_is_a_row(tmp_path: Path, line: bytes) -> None:
    (row,) = pool_of(tmp_path, line + b"\n", "pool.jsonl")
    assert isinstance(row, Instruction)


def test_the_byte_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path, b'{"instruction":"\xff"}\n') == "not UTF-8 (byte 16: 0xff)"


@pytest.mark.parametrize("length", [1001, 1002, 2001, 2002, 5000])
def test_an_over_long_line_is_left_out_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(store.text_streams, "MAX_ROW_BYTES", 1000)
    long = b'{"instruction":"' + b"x" * (length - 18) + b'"}'
    assert len(long) == length
    rows = pool_of(tmp_path, b'{"instruction":"a"}\n' + long + b'\n{"instruction":"b"}\n')
    assert bad_lines(rows) == [2]
    assert instructions(rows) == ["a", "b"]


def test_the_longest_allowed_line_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.text_streams, "MAX_ROW_BYTES", 1000)
    long = b'{"instruction":"' + b"x" * 982 + b'"}'
    assert len(long) == 1000
    for end in (b"\n", b""):
        assert instructions(pool_of(tmp_path, long + end)) == ["x" * 982]


def test_bad_items_of_a_list_are_reported_with_their_number(tmp_path: Path) -> None:
    data = b'[{"instruction":"a"}, 5, "text", {"instruction":"b"}, {}, {"instruction":"c"}]'
    rows = pool_of(tmp_path, data, "pool.json")
    assert bad_lines(rows) == [2, 3, 5]
    assert instructions(rows) == ["a", "b", "c"]


def test_a_torn_list_keeps_the_items_before_the_tear(tmp_path: Path) -> None:
    rows = pool_of(tmp_path, b'[{"instruction":"a"},{"instruction":"b"},{"instruc', "pool.json")
    assert instructions(rows) == ["a", "b"]
    assert bad_lines(rows) == [3]


@pytest.mark.parametrize(
    "item", [b"{'instruction': 'a'}", b'{"instruction":"a\nb"}', b'{"instruction"}', b"{,}", b"oops"]
)
def test_an_item_of_a_list_that_is_no_json_costs_no_other(tmp_path: Path, item: bytes) -> None:
    data = b'[{"instruction":"a"},\n' + item + b',\n{"instruction":"c"},{"instruction":"d"}]'
    rows = pool_of(tmp_path, data, "pool.json")
    assert bad_lines(rows) == [2]
    assert instructions(rows) == ["a", "c", "d"]


def test_broken_utf_8_in_a_list_costs_its_own_item_only(tmp_path: Path) -> None:
    data = b'[{"instruction":"a"},{"instruction":"\xff"},{"instruction":"c"},{"instruction":"d"}]'
    rows = pool_of(tmp_path, data, "pool.json")
    assert bad_lines(rows) == [2]
    assert instructions(rows) == ["a", "c", "d"]


def test_an_item_of_a_list_nested_too_deeply_is_a_bad_row(tmp_path: Path) -> None:
    deep = b'{"instruction":' + b"[" * 5000 + b"]" * 5000 + b"}"
    rows = pool_of(tmp_path, b'[{"instruction":"a"},' + deep + b',{"instruction":"c"}]', "pool.json")
    assert bad_lines(rows) == [2]
    assert instructions(rows) == ["a", "c"]


def test_bad_rows_of_a_table_are_reported_with_their_line(tmp_path: Path) -> None:
    data = b'instruction,input\na,"one\ntwo"\n,empty\nb,\xff\nc,d,more\ne\n'
    rows = pool_of(tmp_path, data, "pool.csv")
    assert bad_lines(rows) == [4, 5, 6, 7]
    assert instructions(rows) == ["a"]


def test_a_table_without_an_instruction_column_has_no_usable_row(tmp_path: Path) -> None:
    said = "no instruction; its columns are question (rename `question`?)"
    assert complaint(tmp_path, b"question\nwhat?\n", "pool.csv") == said


def test_an_over_long_field_of_a_table_is_one_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.text_streams, "MAX_ROW_BYTES", 1000)
    data = b"instruction\na\n" + b"x" * 1500 + b"\nb\n"
    rows = pool_of(tmp_path, data, "pool.csv")
    assert instructions(rows) == ["a", "b"]
    assert bad_lines(rows) == [3]


def test_a_parquet_row_without_an_instruction_is_reported_with_its_number(tmp_path: Path) -> None:
    data = as_parquet([{"instruction": "a"}, {"instruction": None}, {"instruction": "c"}])
    rows = pool_of(tmp_path, data, "pool.parquet")
    assert bad_lines(rows) == [2]
    assert instructions(rows) == ["a", "c"]


def test_a_torn_parquet_file_is_a_bad_row_and_no_crash(tmp_path: Path) -> None:
    rows = pool_of(tmp_path, as_parquet(HARD_ROWS)[:-20], "pool.parquet")
    assert not good(rows)
    assert "Parquet" in next(row.reason for row in rows if isinstance(row, BadRow))


# Pools that cannot be used.


def test_an_empty_pool_has_no_rows(tmp_path: Path) -> None:
    for name in ("pool.jsonl", "pool.json", "pool.csv"):
        assert pool_of(tmp_path, b"", name) == []
        assert pool_of(tmp_path, b"\n\n", name) == []
    assert pool_of(tmp_path, b"[]", "pool.json") == []
    assert pool_of(tmp_path, gzip.compress(b""), "pool.jsonl.gz") == []
    assert pool_of(tmp_path, as_csv([]), "pool.csv") == []


def test_a_pool_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"nowhere\.jsonl: No such file"):
        Pool(tmp_path / "nowhere.jsonl")


def test_a_pool_that_is_a_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="is a folder; name a file in it"):
        Pool(tmp_path)


def test_a_pool_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "file").write_bytes(b"")
    for path in ("loop.jsonl", "file/pool.jsonl"):
        with pytest.raises(PoolError, match="cannot read pool"):
            Pool(tmp_path / path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_pool_without_read_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.touch(0o000)
    with pytest.raises(PoolError, match="Permission denied"):
        Pool(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_read_that_fails_is_a_pool_error() -> None:
    with pytest.raises(PoolError, match="reading pool /proc/self/mem failed"):
        list(Pool("/proc/self/mem"))


def damaged(how: str) -> bytes:
    data = bytearray(gzip.compress(as_lines([{"instruction": f"row {n}" * 50} for n in range(20_000)])))
    middle = len(data) // 2
    if how == "torn":
        return bytes(data[:middle])
    data[middle : middle + 40] = bytes(40) if how == "zeros" else b"\xff" * 40
    return bytes(data)


@pytest.mark.parametrize("how", ["torn", "zeros", "ones"])
def test_damaged_gzip_is_told_after_the_rows_before_the_damage(tmp_path: Path, how: str) -> None:
    path = tmp_path / "pool.jsonl.gz"
    path.write_bytes(damaged(how))
    rows = iter(Pool(path))
    assert isinstance(next(rows), Instruction)
    with pytest.raises(PoolError, match=r"pool\.jsonl\.gz failed"):
        list(rows)


# Passes over a pool.


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json", "pool.csv.gz", "pool.parquet"])
def test_a_file_can_be_read_twice_and_given_up_half_way(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(packed(name, HARD_ROWS))
    pool = Pool(path)
    first = next(iter(pool))
    assert list(pool) == list(pool)
    assert next(iter(pool)) == first


def test_the_fraction_grows_from_none_to_all(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(as_lines([{"instruction": "x" * 1000}] * 4000))
    pool = Pool(path)
    seen = [pool.fraction] + [pool.fraction for _ in pool] + [pool.fraction]
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[1] < 0.5
    assert seen[-1] == 1


# Standard input.


def test_a_pipe_hands_over_its_rows_as_they_come() -> None:
    with Reader() as reader:
        for n in range(3):
            reader.write(b'{"instruction":"row %d"}\n' % n)
            assert reader.line() == f"row {n}"
        reader.write(b"oops\n")
        assert reader.line() == "bad 4"
        reader.end()
        assert reader.line() == "end"


def test_a_pipe_hands_over_the_items_of_a_list_as_they_come() -> None:
    with Reader() as reader:
        for n in range(3):
            reader.write(b'%s{"instruction":"row %d"},' % (b"" if n else b"[", n))
            assert reader.line() == f"row {n}"
        reader.write(b"{}]")
        reader.end()
        assert [reader.line(), reader.line()] == ["bad 4", "end"]


@pytest.mark.parametrize("name", ["pool.json", "pool.parquet", "pool.jsonl.gz", "pool.parquet.gz"])
def test_standard_input_takes_the_shapes_that_show_themselves(name: str) -> None:
    with Reader() as reader:
        reader.write(packed(name, [{"id": str(n), "instruction": f"row {n}"} for n in range(3)]))
        assert reader.rest()[:4] == ["row 0", "row 1", "row 2", "end"]
