"""No row of a damaged pool is lost in silence: it is read, or told with its line, or the file is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

import store.text_streams
from store.errors import PoolError
from store.pool import Pool
from store.records import BadRow, Instruction

Found = tuple[list[str], list[tuple[int, str]]]


def found(folder: Path, data: bytes | str, name: str) -> Found:
    """(instructions, bad rows) of a file with this content."""
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    rows = list(Pool(path))
    return (
        [row.instruction for row in rows if isinstance(row, Instruction)],
        [(row.line, row.reason) for row in rows if isinstance(row, BadRow)],
    )


def table(count: int, separator: str = ",") -> str:
    """A row of number n stands in line n + 2."""
    head = separator.join(("id", "instruction", "input", "output"))
    rows = (separator.join((str(n), f"Ask {n}?", "", "x")) for n in range(count))
    return "\n".join([head, *rows]) + "\n"


def asked(count: int, *but: int) -> list[str]:
    return [f"Ask {n}?" for n in range(count) if n not in but]


def objects(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Ask {n}?", "input": ""} for n in range(count)]


# Quotes of tables.


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_quote_that_is_never_closed_costs_its_own_row_and_is_told_with_its_line(
    tmp_path: Path, separator: str
) -> None:
    data = table(2000, separator).replace(f"{separator}Ask 10?", f'{separator}"Ask 10?')
    rows, bad = found(tmp_path, data, "pool.csv")
    assert rows == asked(2000, 10)
    assert bad == [(12, "a quote opens here and is never closed; reading continues in the next line")]


def test_a_quote_that_only_another_row_s_quote_ends_is_told_with_the_line_where_it_opens(
    tmp_path: Path,
) -> None:
    data = table(40).replace("Ask 10?", '"Ask 10?').replace("Ask 20?", '"Ask, 20?"')
    rows, [(line, why)] = found(tmp_path, data, "pool.csv")
    assert rows == [row if row != "Ask 20?" else "Ask, 20?" for row in asked(40, 10)]
    assert line == 12
    assert "not closed before the next one, in line 22" in why


def test_rows_that_two_stray_quotes_enclose_are_found(tmp_path: Path) -> None:
    """The record is legal CSV of the right width: only its lines give it away."""
    data = table(40).replace("Ask 10?", '"Ask 10?').replace("Ask 30?", 'Ask 30?"')
    rows, [(line, why)] = found(tmp_path, data, "pool.csv")
    assert rows == [row if row != "Ask 30?" else 'Ask 30?"' for row in asked(40, 10)]
    assert (line, "takes in 20 more lines that look like rows" in why) == (12, True)


def test_several_unclosed_quotes_are_each_told(tmp_path: Path) -> None:
    data = table(40)
    for number in (3, 4, 39):
        data = data.replace(f"Ask {number}?", f'"Ask {number}?')
    rows, bad = found(tmp_path, data, "pool.csv")
    assert rows == asked(40, 3, 4, 39)
    assert [line for line, _ in bad] == [5, 6, 41]


def test_an_unclosed_quote_where_every_field_is_quoted(tmp_path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([["instruction", "input"], *(([f"Ask {n}?", ""]) for n in range(30))])
    data = text.getvalue().replace('"Ask 7?"', '"Ask 7?')
    rows, [(line, _)] = found(tmp_path, data, "pool.csv")
    assert (rows, line) == (asked(30, 7), 9)


def test_where_a_table_has_one_column_an_unclosed_quote_refuses_the_file(tmp_path: Path) -> None:
    data = "instruction\n" + "\n".join(asked(30)).replace("Ask 9?", '"Ask 9?')
    with pytest.raises(PoolError, match=r"pool\.csv, line 11: a quote opens here and is never closed"):
        found(tmp_path, data, "pool.csv")


def test_an_unclosed_quote_is_found_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.text_streams, "MAX_ROW_BYTES", 1000)
    data = table(2000).replace(",Ask 10?", ',"Ask 10?')
    rows, [(line, _)] = found(tmp_path, data, "pool.csv")
    assert (rows, line) == (asked(2000, 10), 12)


LEGAL = {
    "many lines": "\n".join(f"line {n}" for n in range(300)),
    "a table of the pool's own width": "id,name,age,city\n" + "\n".join(f"{n},Ann,5,Rome" for n in range(50)),
    "code": "x = {\n" + "\n".join(f"    'k{n}': [1, 2, 3]," for n in range(50)) + "\n}",
    "quotes": 'He said "a, b"\nand ""\nand "\n"',
    "blank lines": "a\n\n\n\nb",
}


@pytest.mark.parametrize("column", ["instruction", "input", "output"])
@pytest.mark.parametrize("text", LEGAL.values(), ids=LEGAL)
def test_texts_of_several_lines_stay_one_field(tmp_path: Path, text: str, column: str) -> None:
    rows = [{"id": "0", "instruction": "a", "input": "", "output": "c", column: text} for _ in range(3)]
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, ["id", "instruction", "input", "output"])
    writer.writeheader()
    writer.writerows(rows)
    path = tmp_path / "pool.csv"
    path.write_text(written.getvalue(), newline="")
    assert list(Pool(path)) == [Instruction(**row) for row in rows]


def test_a_quote_that_is_not_doubled_is_told(tmp_path: Path) -> None:
    data = 'instruction,output\n"He said "hi" there",x\nb,y\n'
    rows, bad = found(tmp_path, data, "pool.csv")
    assert rows == ["b"]
    assert bad == [(2, "a quote inside a quoted field is not doubled")]


def test_the_rest_of_a_damaged_text_is_not_taken_for_a_row(tmp_path: Path) -> None:
    data = 'instruction,output\n"One\nHe said "hi" to me\nend",x\nb,y\nc,z\n'
    rows, bad = found(tmp_path, data, "pool.csv")
    assert rows == ["b", "c"]
    assert [line for line, _ in bad] == [2, 3, 4]


def test_rows_with_too_many_or_too_few_fields_are_told(tmp_path: Path) -> None:
    rows, bad = found(tmp_path, "instruction,input\na,b,c\nd\ne,f\n", "pool.csv")
    assert rows == ["e"]
    assert bad == [
        (2, "3 fields where the header names 2: put fields that hold the separator in quotes"),
        (3, "1 field where the header names 2"),
    ]


@pytest.mark.parametrize(
    "header", ["instruction,input,input", "Instruction,instruction", "id,instruction, id "]
)
def test_a_column_that_is_named_twice_refuses_the_file(tmp_path: Path, header: str) -> None:
    with pytest.raises(PoolError, match=r"pool\.csv, line 1: two columns are called"):
        found(tmp_path, f"{header}\na,b,c\n", "pool.csv")


# Lists.


def test_what_stands_behind_a_list_is_read(tmp_path: Path) -> None:
    lists = json.dumps(objects(3)), json.dumps(objects(3), indent=2)
    lines = "\n".join(map(json.dumps, objects(2)))
    for name in ("pool.json", "pool.jsonl"):
        for between in ("", "\n", "\r\n \t\n", "\ufeff"):
            for first in lists:
                assert found(tmp_path, first + between + lists[0] + lists[1], name) == (asked(3) * 3, [])
                assert found(tmp_path, f"{first}{between}{lines}", name) == (asked(3) + asked(2), [])


def test_a_list_behind_lines_is_read(tmp_path: Path) -> None:
    for indent in (None, 1):
        data = json.dumps({"instruction": "a"}) + "\n" + json.dumps(objects(3), indent=indent) + "\n"
        assert found(tmp_path, data, "pool.jsonl") == (["a", *asked(3)], [])


def test_text_behind_a_list_is_told(tmp_path: Path) -> None:
    rows, [(number, why)] = found(tmp_path, json.dumps(objects(3)) + "\nEnd of file\n", "pool.json")
    assert (rows, number) == (asked(3), 4)
    assert why.startswith("after the end of the JSON list: not JSON")


def test_a_list_that_is_closed_too_early_is_read_to_its_end_and_told(tmp_path: Path) -> None:
    data = json.dumps(objects(6)).replace('2?", "input": ""}', '2?", "input": ""}]')
    rows, bad = found(tmp_path, data, "pool.json")
    assert rows == asked(6)
    assert bad == [(4, "the JSON list is closed before its end")]


@pytest.mark.parametrize("indent", [None, 1], ids=["one line", "many lines"])
@pytest.mark.parametrize(
    ("right", "wrong"),
    [('"Ask 2?"', '"Ask 2?'), ('"Ask 2?"', 'Ask 2?"'), ('"Ask 2?"', '{"Ask 2?"'), ('"Ask 2?"', '["Ask 2?"')],
)
def test_an_item_without_an_end_costs_no_other(
    tmp_path: Path, right: str, wrong: str, indent: int | None
) -> None:
    data = json.dumps(objects(50), indent=indent).replace(right, wrong)
    rows, [(number, why)] = found(tmp_path, data, "pool.json")
    assert (rows, number) == (asked(50, 2), 3)
    assert why.startswith("not JSON")


def test_a_missing_comma_costs_no_more_than_the_item_before_it(tmp_path: Path) -> None:
    data = json.dumps(objects(6)).replace('"}, {"instruction": "Ask 3?"', '"} {"instruction": "Ask 3?"')
    rows, [(number, _)] = found(tmp_path, data, "pool.json")
    assert (rows, number) == (asked(6, 2), 3)


def test_a_list_that_has_lost_its_ends_is_read(tmp_path: Path) -> None:
    lines = ",\n".join(map(json.dumps, objects(4)))
    assert found(tmp_path, lines, "pool.jsonl") == (asked(4), [])


def test_chance_damage_loses_no_row_in_silence(tmp_path: Path) -> None:
    """One character put in or taken out, 300 times: all rows but the damaged one are read, and a row that
    is not read is counted."""
    random_ = random.Random(7)
    words = ["tea", '"quoted"', "a, b", "x;y", "two\nlines", '{"k": 1}', "[1, 2]", "}, {", "wörld"]
    for _ in range(300):
        rows = [
            {"instruction": f"Row {n}: {random_.choice(words)}", "input": random_.choice(words)}
            for n in range(random_.randint(5, 40))
        ]
        text, name, signs = _written(rows, random_)
        place, sign = random_.randrange(len(text) // 8, len(text)), random_.choice(signs)
        damaged = text[:place] + sign + text[place:]
        if random_.random() < 0.5 and (place := text.find(sign, place)) >= 0:
            damaged = text[:place] + text[place + 1 :]
        read, bad = found(tmp_path, damaged, name)
        whole = {str(row["instruction"]) for row in rows}
        assert len(whole.difference(read)) <= 3, damaged
        assert len(read) + len(bad) >= len(rows), damaged
        assert len(set(read) - whole) <= 1, damaged


def _written(rows: list[dict[str, Any]], random_: random.Random) -> tuple[str, str, str]:
    """(text, name of the file, signs that can do damage) in a shape that is drawn."""
    shape = random_.choice(["lines", "list", "pretty", "csv"])
    if shape == "lines":
        return "".join(json.dumps(row) + "\n" for row in rows), "pool.jsonl", '""""{}[],'
    if shape != "csv":
        return json.dumps(rows, indent=4 if shape == "pretty" else None), "pool.json", '""""{}[],'
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["instruction", "input"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue(), "pool.csv", '""",'


# Bytes.


def test_bytes_of_another_encoding_cost_their_own_row(tmp_path: Path) -> None:
    lines = '{"instruction":"café"}\n{"instruction":"b"}\n'.encode("latin-1")
    assert found(tmp_path, lines, "pool.jsonl") == (["b"], [(1, "not UTF-8 (byte 19: 0xe9)")])
    rows = "instruction\ncafé\nb\n".encode("latin-1")
    assert found(tmp_path, rows, "pool.csv") == (["b"], [(2, "not UTF-8: save the file as UTF-8")])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_torn_utf_16_is_told(tmp_path: Path, encoding: str) -> None:
    data = ("\ufeff" + "\n".join(map(json.dumps, objects(9)))).encode(encoding)
    assert found(tmp_path, data[:-5], "pool.jsonl")[0] == asked(8)
    alone = "\ud800\ud800".encode(encoding, "surrogatepass")
    rows, [(line, why)] = found(tmp_path, data[:40] + alone + data[40:], "pool.jsonl")
    assert (rows, line, why) == (asked(9, 0), 1, "not UTF-16")


@pytest.mark.parametrize("name", ["pool.jsonl.gz", "pool.csv.gz", "pool.json.gz"])
def test_gzip_that_is_cut_off_is_told(tmp_path: Path, name: str) -> None:
    random_ = random.Random(1)
    rows = [{"instruction": random_.randbytes(30).hex()} for _ in range(2000)]
    text = json.dumps(rows) if "json.gz" in name else "\n".join(map(json.dumps, rows))
    if "csv" in name:
        text = "instruction\n" + "\n".join(str(row["instruction"]) for row in rows)
    with pytest.raises(PoolError, match="ended before the end-of-stream marker"):
        found(tmp_path, gzip.compress(text.encode())[:-3000], name)
