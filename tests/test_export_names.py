"""The name of an export says its form, one that promises another is refused, what is left out is counted."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from engine.export import ExportOptions, export_stage
from engine.recipe.load import load
from engine.recipe.schema import OfStep
from engine.recipe.steps import left_by, placed
from store.datasets import write_lines
from store.errors import UsageError
from store.pool import Pool
from tests.support.cli import distill
from tests.support.ledgers import Book, opened, reply
from tests.support.recipe_files import GOOD

TEXTS = ["One.", 'Two, "quoted"\nand a line', "=3+4", ""]


@pytest.fixture
async def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    async with opened(tmp_path / "run") as ledger:
        book = Book(ledger)
        ledger.note("UPDATE stages SET total = 8 WHERE id = ?", book.stage)
        for number, text in enumerate(TEXTS, 1):
            book.add(number, reply(text, "stop" if text else "empty"))
        book.place(5)
        book.fail(5, "timeout")
    return tmp_path / "run"


def export(run: Path, name: str, format: str | None = None) -> Any:
    return export_stage(run, run.parent / name, ExportOptions(format))


def outputs(rows: list[dict[str, Any]]) -> list[Any]:
    return [row["output"] for row in rows]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a", "a.txt", "a.jsonl.gz"])
async def test_lines(run: Path, name: str) -> None:
    assert export(run, name).rows == 3
    raw = (run.parent / name).read_bytes()
    raw = gzip.decompress(raw) if name.endswith(".gz") else raw
    assert outputs([orjson.loads(line) for line in raw.splitlines()]) == TEXTS[:3]


async def test_a_list_and_a_packed_list(run: Path) -> None:
    export(run, "a.json")
    export(run, "a.json.gz")
    plain = (run.parent / "a.json").read_bytes()
    assert outputs(orjson.loads(plain)) == TEXTS[:3]
    assert gzip.decompress((run.parent / "a.json.gz").read_bytes()) == plain


async def test_parquet_by_name_alone(run: Path) -> None:
    export(run, "a.parquet")
    assert pq.read_table(run.parent / "a.parquet").column("output").to_pylist() == TEXTS[:3]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")])
async def test_a_table_is_a_pool_again(run: Path, name: str, separator: str) -> None:
    export(run, name)
    path = run.parent / name
    raw = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    rows = list(csv.DictReader(io.StringIO(raw.decode(), newline=""), delimiter=separator))
    assert outputs(rows) == TEXTS[:3]
    assert list(rows[0]) == ["instruction", "input", "output", "id"]
    assert [row.output for row in Pool(str(path))] == TEXTS[:3]  # type: ignore[union-attr]


async def test_the_same_bytes_each_time(run: Path) -> None:
    for name in ("a.jsonl.gz", "a.csv"):
        export(run, name)
        first = (run.parent / name).read_bytes()
        export(run, name)
        assert (run.parent / name).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "format", "words"),
    [
        ("a.parquet", "alpaca", "or give --format parquet"),
        ("a.jsonl", "parquet", "end it in .parquet"),
        ("a.csv", "parquet", "end it in .parquet"),
        ("a.parquet.gz", "parquet", "end it in .parquet"),
        ("a.csv", "chat", "CSV cannot hold the lists"),
        ("a.xlsx", None, "end it in .jsonl, .json or .csv"),
        ("a.zip", "alpaca", "the name says .zip"),
    ],
)
async def test_a_name_that_promises_something_else_is_refused(
    run: Path, name: str, format: str | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        export(run, name, format)
    assert not (run.parent / name).exists()


def test_lines_of_json_are_never_called_a_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"end the name in \.jsonl"):
        write_lines(tmp_path / "a.csv", iter([b"{}"]))
    assert write_lines(tmp_path / "a.jsonl.gz", iter([b"{}", b"{}"])) == 2
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == b"{}\n{}\n"


async def test_rows_left_out_are_counted_by_their_reason(run: Path) -> None:
    ended = await distill("export", run, "--out", run.parent / "a.csv")
    assert ended.code == 0
    assert "3 rows written" in ended.err
    assert "1 row left out: empty 1" in ended.err
    assert "4 rows have no answer: pending 3, timeout 1" in ended.err


async def test_standard_output_is_lines(run: Path) -> None:
    ended = await distill("export", run, "--out", "-")
    assert outputs([orjson.loads(line) for line in ended.out.splitlines()]) == TEXTS[:3]


def test_files_of_a_rank_and_of_the_user_are_named_by_one_rule(tmp_path: Path) -> None:
    for name in ("pool.jsonl", "bard.jsonl.gz"):
        (tmp_path / name).write_text('{"instruction": "Hello.", "output": "x"}\n')
    (tmp_path / "small").mkdir()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(GOOD.replace('against = "a"', 'against = "bard.jsonl.gz"'))
    run = tmp_path / "run"
    made = left_by(run, OfStep(step="best", file="rank1.jsonl"), "rank")
    made.parent.mkdir(parents=True)
    made.write_text("{}\n")
    assert placed(load(recipe), run).stage["judged"].names == ("rank1", "bard")
