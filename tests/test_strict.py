"""Bad rows are counted in the last line whatever is hidden, and with --strict nothing is asked for them."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import (
    FREE,
    MODEL,
    asking,
    distill,
    generate,
    rows,
    stage,
    started,
    status,
    until,
    write_pool,
)
from tests.support.judging import Judge
from tests.support.recipe_files import after, run_recipe, score, stage_told, teacher, write_recipe
from tests.support.recipe_files import generate as generating
from tests.support.scripted import scripted

LEFT_OUT = "2 bad rows left out; the first is line 2: input is not text: []"


def with_bad_rows(path: Path, count: int = 4) -> Path:
    """Lines 2 and `count + 2` of the file are bad."""
    good = [json.dumps(row) for row in rows(count)]
    lines = [good[0], '{"instruction":"a","input":[]}', *good[1:], "{torn"]
    path.write_text("\n".join(lines))
    return path


def last_line(said: str) -> str:
    return said.rstrip().splitlines()[-1].rstrip()


@pytest.mark.parametrize("flags", [(), ("--quiet",), ("--quiet", "--yes"), ("--limit", 4)])
async def test_bad_rows_are_counted_in_the_last_line(
    tmp_path: Path, run: Path, flags: tuple[Any, ...]
) -> None:
    async with scripted(Judge().answer) as url:
        pool = with_bad_rows(tmp_path / "pool.jsonl", 5 if "--limit" in flags else 4)
        ended = await generate(run, pool, url, *flags)
    assert ended.code == 0, ended.err
    limited = LEFT_OUT.replace("2 bad rows", "1 bad row")
    assert last_line(ended.err) == (limited if "--limit" in flags else LEFT_OUT)


async def test_bad_rows_are_counted_in_the_last_line_when_rows_fail_or_the_run_stops(
    tmp_path: Path, run: Path
) -> None:
    judge = Judge()
    judge.refuse.add("row 2")
    async with scripted(judge.answer) as url:
        ended = await generate(run, with_bad_rows(tmp_path / "pool.jsonl"), url, "--quiet")
        assert (ended.code, last_line(ended.err)) == (1, LEFT_OUT)
        judge.refuse.add("about row")
        stopped = await generate(tmp_path / "other", with_bad_rows(tmp_path / "pool.jsonl", 99), url)
    assert stopped.code == 3
    assert last_line(stopped.err).endswith("left out; the first is line 2: input is not text: []")


async def test_a_quiet_run_without_bad_rows_says_nothing(tmp_path: Path, run: Path) -> None:
    async with scripted(Judge().answer) as url:
        ended = await generate(run, write_pool(tmp_path / "pool.jsonl", rows(3)), url, "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


async def test_a_row_swallowed_by_an_open_quote_is_told_in_the_last_line(tmp_path: Path, run: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["instruction", "input"])
    writer.writeheader()
    writer.writerows({**row, "input": ""} for row in rows(30))
    pool = tmp_path / "pool.csv"
    pool.write_text(text.getvalue().replace("Tell me about row 9.", '"Tell me about row 9.'))
    async with scripted(Judge().answer) as url:
        ended = await generate(run, pool, url, "--quiet")
        assert (await stage(run))["done"] == 29
        assert last_line(ended.err).startswith("1 bad row left out; the first is line 11: a quote opens here")
        strict = await generate(tmp_path / "strict", pool, url, "--strict")
    assert strict.code == 2
    assert "line 11: a quote opens here" in strict.err


@pytest.mark.parametrize("flags", [(), ("--quiet", "--yes"), ("--batch",), ("--sample", 2)])
async def test_strict_asks_nothing_for_a_pool_with_a_bad_row(
    tmp_path: Path, run: Path, flags: tuple[Any, ...]
) -> None:
    judge, pool = Judge(), with_bad_rows(tmp_path / "pool.jsonl", 5000)
    async with scripted(judge.answer) as url:
        ended = await generate(run, pool, url, "--strict", *flags)
    assert (ended.code, judge.asked) == (2, [])
    assert f"2 bad rows in {pool}" in ended.err
    assert "and --strict allows none: line 2: input is not text: []; line 5002: not JSON" in ended.err


async def test_strict_looks_no_further_than_the_limit(tmp_path: Path, run: Path) -> None:
    good = rows(3)
    pool = tmp_path / "pool.jsonl"
    pool.write_text("\n".join([*map(json.dumps, good), "{torn"]))
    async with scripted(Judge().answer) as url:
        assert (await generate(run, pool, url, "--strict", "--limit", 3)).code == 0
        assert (await generate(run, pool, url, "--strict", "--limit", 4)).code == 2


async def test_strict_changes_no_request(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), write_pool(tmp_path / "pool.jsonl", rows(4))
    async with scripted(judge.answer) as url:
        assert (await generate(run, pool, url)).code == 0
        assert (await generate(run, pool, url, "--strict")).code == 0
    assert len(judge.asked) == 4
    assert (await status(run))["changed"] == {}


async def test_a_stream_ends_at_its_first_bad_row_and_keeps_what_it_has_asked(
    tmp_path: Path, run: Path
) -> None:
    judge = Judge()
    async with (
        scripted(judge.answer) as url,
        started(*asking("-", run, url, "--strict", "--yes"), stdin=asyncio.subprocess.PIPE) as command,
    ):
        assert command.process.stdin
        for number, row in enumerate(rows(3), 1):
            command.process.stdin.write(json.dumps(row).encode() + b"\n")
            await until(lambda number=number: len(judge.asked) == number)  # type: ignore[misc]
        command.process.stdin.write(b'{"instruction":"a","input":[]}\n')
        ended = await command.ended()
    assert ended.code == 2
    assert "a bad row in standard input, and --strict allows none: line 4: input is not text" in ended.err
    assert (await stage(run))["done"] == 3


@pytest.mark.parametrize("command", ["score", "judge", "compare"])
async def test_strict_allows_no_answer_that_cannot_be_shown(tmp_path: Path, run: Path, command: str) -> None:
    judge, pair = Judge(), []
    for name in ("a", "b"):
        answers: list[dict[str, Any]] = [{"question_id": n, "text": f"{name}{n}"} for n in range(3)]
        pair.append(write_pool(tmp_path / f"{name}.jsonl", answers))
    questions = write_pool(
        tmp_path / "q.jsonl", [{"question_id": n, "text": f"Q{n}?", "category": "x"} for n in range(3)]
    )
    files = pair if command == "score" else ["--answers", pair[0], "--against", pair[1]]
    async with scripted(judge.answer) as url:
        words = [command, *files, "--questions", questions, "--base-url", url, "--model", MODEL, *FREE]
        assert (await distill(*words, "--run", run, "--strict")).code == 0
        asked = len(judge.asked)
        assert asked
        write_pool(pair[0], [{"question_id": n, "text": "new" if n else ["no text"]} for n in range(3)])
        ended = await distill(*words, "--run", tmp_path / "other", "--strict")
        assert (ended.code, len(judge.asked)) == (2, asked)
        assert "--strict allows none: line 1:" in ended.err
        quiet = await distill(*words, "--run", tmp_path / "quiet", "--quiet")
    assert quiet.code == 0
    assert last_line(quiet.err).startswith("2 bad rows left out; the first is line 1:")


async def test_strict_holds_for_translate_estimate_and_import(tmp_path: Path, run: Path) -> None:
    judge, pool = Judge(), with_bad_rows(tmp_path / "pool.jsonl")
    async with scripted(judge.answer) as url:
        for command in ("translate", "import"):
            ended = await distill(*asking(pool, run, url, "--strict", command=command))
            assert (ended.code, judge.asked) == (2, []), ended.err
            assert "--strict allows none" in ended.err
        ended = await distill("estimate", pool, "--model", MODEL, "--base-url", url, "--strict")
    assert ended.code == 2
    assert "--strict allows none" in ended.err


async def test_import_counts_what_it_could_not_read(tmp_path: Path, run: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"instruction":"a","output":7}\n{torn\n{"instruction":"b","input":{},"output":"x"}\n')
    ended = await distill(*asking(pool, run, "http://127.0.0.1:9/v1", command="import"))
    assert ended.code == 0, ended.err
    assert last_line(ended.err).startswith(
        "1 answer imported, 0 were there already, 0 rows had none; 2 bad rows left out; the first is line 2:"
    )


async def test_an_output_that_is_no_text_is_told_where_outputs_are_translated(
    tmp_path: Path, run: Path
) -> None:
    lines = [
        '{"instruction":"a","output":["x"]}',
        "",
        '{"instruction":"b","output":"c"}',
        '{"instruction":"d"}',
    ]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("\n".join(lines))
    async with scripted(Judge().answer) as url:
        ended = await distill(*asking(pool, run, url, "--field", "output", command="translate"))
    assert "line 1: output is not text: ['x']" in ended.err
    assert "line 4: no output; its columns are instruction" in ended.err


@pytest.mark.parametrize("where", ["recipe", "stage"])
async def test_strict_is_a_key_of_recipes_and_of_stages(tmp_path: Path, run: Path, where: str) -> None:
    judge, pool = Judge(), with_bad_rows(tmp_path / "pool.jsonl")
    async with scripted(judge.answer) as url:

        def recipe(is_strict: bool) -> Path:
            head = {"strict": is_strict} if where == "recipe" else {}
            own = {"strict": is_strict} if where == "stage" else {}
            tables = {"teacher.t": teacher(url), "stage.a": generating(pool, **own), "stage.b": after("a")}
            return write_recipe(tmp_path, tables, **head)

        ended = await run_recipe(recipe(True), run)
        assert (ended.code, judge.asked) == (2, [])
        assert "--strict allows none" in ended.err
        ended = await run_recipe(recipe(False), run)
    assert ended.code == 0, ended.err
    assert last_line(ended.err) == LEFT_OUT


async def test_a_stage_may_take_bad_rows_where_its_recipe_allows_none(tmp_path: Path, run: Path) -> None:
    pool = with_bad_rows(tmp_path / "pool.jsonl")
    async with scripted(Judge().answer) as url:
        tables = {"teacher.t": teacher(url), "stage.a": generating(pool, strict=False)}
        assert (await run_recipe(write_recipe(tmp_path, tables, strict=True), run)).code == 0


async def test_bad_rows_of_a_file_beside_a_stage_are_counted(tmp_path: Path, run: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(3))
    lines = [json.dumps({**row, "output": f"V {n}"}) for n, row in enumerate(rows(3))]
    (tmp_path / "vicuna.jsonl").write_text("\n".join([*lines[:2], "{torn", lines[2]]))
    async with scripted(Judge().answer) as url:

        def recipe(is_strict: bool) -> Path:
            tables = {
                "teacher.t": teacher(url),
                "stage.a": generating(pool),
                "stage.s": score("a", "vicuna.jsonl", strict=is_strict),
            }
            return write_recipe(tmp_path, tables)

        ended = await run_recipe(recipe(True), run)
        assert ended.code == 2
        assert "and --strict allows none: line 3:" in ended.err
        ended = await run_recipe(recipe(False), run)
    assert ended.code == 0, ended.err
    assert last_line(ended.err).startswith("1 bad row left out; the first is line 3: ")
    assert stage_told(run, "s")["bad_rows"] == 1


async def test_rows_before_damage_are_asked_and_the_damage_is_told(tmp_path: Path, run: Path) -> None:
    """A cut gzip ends the run with exit code 2; what could be read is answered and kept."""
    import gzip
    import random

    random_ = random.Random(3)
    lines = [json.dumps({"instruction": random_.randbytes(40).hex()}) for _ in range(400)]
    pool = tmp_path / "pool.jsonl.gz"
    pool.write_bytes(gzip.compress("\n".join(lines).encode())[:-2000])
    judge = Judge()
    async with scripted(judge.answer) as url:
        ended = await generate(run, pool, url, "--quiet", "--yes")
    assert ended.code == 2
    assert "ended before the end-of-stream marker" in ended.err
    done = (await stage(run))["done"]
    assert 0 < done == len(judge.asked)
