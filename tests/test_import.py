"""`import`: answers from elsewhere stand in the stage as if they had been asked for, whatever happens."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
from pathlib import Path

import pytest

from tests.support.batch_server import BatchServer
from tests.support.cli import (
    KEY,
    Ended,
    Row,
    asking,
    bare,
    distill,
    export,
    generate,
    ledger,
    rows,
    stage,
    started,
    until,
    write_pool,
)
from tests.support.provider import Config, Provider

NOWHERE = "http://127.0.0.1:9/v1"


def answered(pool: list[Row], word: str = "Answer") -> list[Row]:
    return [row | {"output": f"{word} to: {row['instruction']}"} for row in pool]


async def take_in(run: Path, file: Path, *flags: object) -> Ended:
    return await distill(*asking(file, run, NOWHERE, *flags, command="import"))


async def taken_in(run: Path, file: Path, *flags: object) -> str:
    """What it said."""
    ended = await take_in(run, file, *flags)
    assert ended.code == 0, ended.err
    return ended.err


async def texts(run: Path, *flags: object) -> list[tuple[str, str]]:
    return [(row["instruction"], row["output"]) for row in await export(run, *flags)]


def pairs(pool: list[Row]) -> list[tuple[str, str]]:
    return [(row["instruction"], row["output"]) for row in pool]


def stored(run: Path) -> int:
    if not (run / "ledger.db").exists():
        return 0
    try:
        return int(ledger(run, "SELECT count(*) FROM responses")[0][0])
    except sqlite3.Error:  # the ledger is being made
        return 0


def assert_sound(run: Path) -> None:
    """Each answer once, each row with its request, and no account of what never was."""
    assert ledger(run, "PRAGMA integrity_check") == [("ok",)]
    assert ledger(run, "PRAGMA foreign_key_check") == []
    assert ledger(run, "SELECT request FROM responses GROUP BY 1 HAVING count(*) > 1") == []
    assert ledger(run, "SELECT count(*) FROM unanswered") == [(0,)]
    assert ledger(run, "SELECT sent - ended, spent_micro FROM spending") == [(0, 0)]


def assert_no_gap(run: Path) -> None:
    """Rows stand at the first positions, one at each; there may be none yet."""
    if stored(run):
        ((count, end),) = ledger(run, "SELECT count(*), max(position) + 1 FROM samples")
        assert count == end


# Kills


async def was_killed(run: Path, file: Path, answers: int, seconds: float) -> bool:
    """So long after so many answers are stored, unless it has ended by then."""
    async with started(*asking(file, run, NOWHERE, command="import")) as command:
        await until(lambda: stored(run) >= answers or command.process.returncode is not None, every=0.002)
        await asyncio.sleep(seconds)
        command.send(signal.SIGKILL)
        return (await command.ended()).code == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_an_import_that_is_killed_again_and_again_takes_in_all_rows_in_their_order(
    tmp_path: Path, seed: int
) -> None:
    pool = answered(rows(12_000))
    for blank in (3, 7000, 11_999):
        pool[blank]["output"] = ""
    run, file, draw = tmp_path / "run", write_pool(tmp_path / "paid.jsonl", pool), random.Random(seed)
    killed = 0
    for _ in range(6):
        wanted = stored(run) + draw.choice([0, 1, 600, 2000])
        killed += await was_killed(run, file, wanted, draw.uniform(0, 0.02))
        assert_no_gap(run)
    assert killed >= 3
    said = await taken_in(run, file)
    assert "3 rows had none" in said
    assert "stage 'generate' has 12,000 rows; 3 of them have no answer yet" in said
    assert_sound(run)
    assert await texts(run) == pairs([row for row in pool if row["output"]])
    async with Provider().running() as p:
        assert (await generate(run, file, p.base_url)).code == 0
        assert p.counts.requests == 3
    assert [row["instruction"] for row in await export(run)] == [row["instruction"] for row in pool]


async def test_a_ledger_in_which_an_import_was_killed_long_ago_is_completed(tmp_path: Path) -> None:
    """Answers without a place: an earlier version took in the rest of a file like this."""
    pool = answered(rows(60))
    run, file = tmp_path / "run", write_pool(tmp_path / "paid.jsonl", pool)
    await taken_in(run, file)
    with sqlite3.connect(run / "ledger.db") as db:
        db.execute("DELETE FROM samples WHERE position >= 25")
        db.execute("DELETE FROM rows WHERE id & 0xffffffffff >= 25")
    db.close()
    assert "60 were there already" in await taken_in(run, file)
    assert await texts(run) == pairs(pool)
    assert_sound(run)


async def test_an_interrupt_keeps_what_was_taken_in(tmp_path: Path) -> None:
    pool = answered(rows(20_000))
    run, file = tmp_path / "run", write_pool(tmp_path / "paid.jsonl", pool)
    async with started(*asking(file, run, NOWHERE, command="import")) as command:
        await until(lambda: stored(run) >= 1000, every=0.002)
        command.send(signal.SIGINT)
        assert (await command.ended()).code == 130
    before = stored(run)
    assert 1000 <= before < 20_000
    assert f"{before:,} were there already" in await taken_in(run, file)
    assert await texts(run) == pairs(pool)


# Places


async def test_a_second_file_stands_behind_the_first_and_both_may_come_again(tmp_path: Path) -> None:
    first, second = answered(rows(30)), answered(rows(20, "other"), "Reply")
    run = tmp_path / "run"
    files = [write_pool(tmp_path / "a.jsonl", first), write_pool(tmp_path / "b.jsonl", second)]
    for _ in range(2):
        for file in files:
            await taken_in(run, file)
    assert await texts(run) == pairs([*first, *second])
    assert [row["id"] for row in await export(run)] == [str(n) for n in range(50)]
    assert (await stage(run))["total"] == 50
    both = write_pool(tmp_path / "both.jsonl", [*second, *first])
    assert "50 were there already" in await taken_in(run, both)
    assert await texts(run) == pairs([*first, *second])
    assert_sound(run)


async def test_a_file_that_has_grown_adds_its_new_rows_only(tmp_path: Path) -> None:
    pool = answered([*rows(20), *rows(3)])  # with three rows that stand in it twice
    run, file = tmp_path / "run", tmp_path / "paid.jsonl"
    await taken_in(run, write_pool(file, pool))
    grown = [*pool, *answered(rows(5, "new")), pool[0]]
    said = await taken_in(run, write_pool(file, grown))
    assert "5 answers imported, 24 were there already" in said
    assert await texts(run) == pairs(grown)


async def test_rows_of_a_pool_that_was_asked_keep_their_places(tmp_path: Path) -> None:
    run, asked = tmp_path / "run", rows(10)
    pool = write_pool(tmp_path / "pool.jsonl", asked)
    async with Provider().running() as p:
        assert (await generate(run, pool, p.base_url, "--limit", 4, *bare(tmp_path))).code == 0
        paid = answered([*rows(3, "extra"), *reversed(asked[2:8])])
        file = write_pool(tmp_path / "paid.jsonl", paid)
        said = await taken_in(run, file, *bare(tmp_path))
        assert "7 answers imported, 0 were there already" in said
        assert "2 not imported, because their requests have another reply already" in said
        assert [row["instruction"] for row in (await export(run))[:4]] == [
            row["instruction"] for row in asked[:4]
        ]
        assert (await generate(run, pool, p.base_url, *bare(tmp_path))).code == 0
        assert p.counts.requests == 6  # rows 0-3, 8 and 9
    exported = await texts(run)
    assert [instruction for instruction, _ in exported] == [row["instruction"] for row in asked]
    assert exported[4:8] == pairs(answered(asked))[4:8]


async def test_generate_asks_only_for_what_no_file_has_answered(tmp_path: Path) -> None:
    asked = rows(30)
    paid = [*answered(asked[:10]), *asked[10:20]]
    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", asked)
    said = await taken_in(run, write_pool(tmp_path / "paid.jsonl", paid))
    assert "10 answers imported, 0 were there already, 10 rows had none" in said
    assert "stage 'generate' has 20 rows; 10 of them have no answer yet, and generate asks for them" in said
    assert (await stage(run))["total"] == 20
    async with Provider().running() as p:
        assert (await generate(run, pool, p.base_url)).code == 0
        assert p.counts.requests == 20
    assert (await texts(run))[:10] == pairs(answered(asked[:10]))


# Equal rows


@pytest.mark.parametrize("answer_first", [True, False])
async def test_of_equal_rows_the_one_with_an_answer_counts_whichever_comes_first(
    tmp_path: Path, answer_first: bool
) -> None:
    (row,) = rows(1)
    pair = [row | {"output": "Yes."}, row | {"output": ""}]
    run, file = tmp_path / "run", write_pool(tmp_path / "paid.jsonl", pair if answer_first else pair[::-1])
    said = await taken_in(run, file)
    assert "1 answer imported" in said
    assert "no answer yet" not in said
    assert [output for _, output in await texts(run)] == ["Yes.", "Yes."]


async def test_of_different_answers_to_equal_rows_the_first_counts_and_the_others_are_counted(
    tmp_path: Path,
) -> None:
    (row,) = rows(1)
    run = tmp_path / "run"
    three = [row | {"output": text} for text in ("One.", "Two.", "One.")]
    said = await taken_in(run, write_pool(tmp_path / "a.jsonl", three))
    assert "1 answer imported, 1 were there already" in said
    assert "1 not imported, because their requests have another reply already" in said
    other = write_pool(tmp_path / "b.jsonl", [row | {"output": "Three."}])
    assert "1 not imported, because their requests have another reply already" in await taken_in(run, other)
    assert [output for _, output in await texts(run)] == ["One."] * 3


async def test_equal_rows_are_the_samples_of_one_row_where_several_are_wanted(tmp_path: Path) -> None:
    asked = rows(3)
    one, two = answered(asked, "First"), answered(asked, "Second")
    run, samples = tmp_path / "run", ("--samples", 3)
    mixed = [row for pair in zip(one, two, strict=True) for row in pair]
    said = await taken_in(run, write_pool(tmp_path / "a.jsonl", mixed), *samples)
    assert "3 samples of them (3 to a row) have no answer yet" in said
    again = await taken_in(run, write_pool(tmp_path / "a.jsonl", mixed), *samples)
    assert "0 answers imported, 6 were there already" in again
    await taken_in(run, write_pool(tmp_path / "b.jsonl", answered(asked[:1], "Third")), *samples)
    late = await taken_in(run, write_pool(tmp_path / "c.jsonl", answered(asked[:1], "Fourth")), *samples)
    assert "1 not imported, because their requests have another reply already" in late
    async with Provider().running() as p:
        pool = write_pool(tmp_path / "pool.jsonl", asked)
        assert (await generate(run, pool, p.base_url, *samples)).code == 0
        assert p.counts.requests == 2
    exported = await export(run)
    assert [(row["instruction"], row["sample"]) for row in exported] == [
        (row["instruction"], sample) for row in asked for sample in range(3)
    ]
    assert [row["output"].split()[0] for row in exported[:3]] == ["First", "Second", "Third"]


async def test_equal_answers_to_equal_rows_are_samples_of_their_own(tmp_path: Path) -> None:
    (row,) = rows(1)
    run, file = tmp_path / "run", write_pool(tmp_path / "a.jsonl", [row | {"output": "Paris."}] * 3)
    for taken, known in ((3, 0), (0, 3)):
        said = await taken_in(run, file, "--samples", 3)
        assert f"{taken} answers imported, {known} were there already" in said
    assert len(await export(run)) == 3


# What cannot be taken in


async def test_bad_rows_are_counted_and_said(tmp_path: Path) -> None:
    run, file = tmp_path / "run", write_pool(tmp_path / "paid.jsonl", answered(rows(3)))
    file.write_bytes(
        file.read_bytes() + b'{"output": "Of what?"}\n[1, 2]\n{"instruction": "Torn',
    )
    said = await taken_in(run, file)
    assert "3 answers imported" in said
    assert said.splitlines()[-1].endswith(
        "; 3 bad rows left out; the first is line 4: no instruction; its columns are output"
    )
    assert (await stage(run))["bad_rows"] == 3


@pytest.mark.parametrize("content", [b'{"instruction": "Hi."}\n', b"", b"[]", b"nothing\n"])
async def test_a_file_without_an_answer_is_bad_usage_and_leaves_nothing(
    tmp_path: Path, content: bytes
) -> None:
    run, file = tmp_path / "run", tmp_path / "pool.jsonl"
    file.write_bytes(content)
    ended = await take_in(run, file)
    assert ended.code == 2
    assert str(file) in ended.err
    assert not (run / "ledger.db").exists()


async def test_answers_under_other_settings_do_not_get_among_those_of_a_stage(tmp_path: Path) -> None:
    run, file = tmp_path / "run", write_pool(tmp_path / "paid.jsonl", answered(rows(3)))
    await taken_in(run, file)
    before = ledger(run, "SELECT count(*) FROM runs")
    for flags, words in (
        (("--temperature", 0.5), "temperature: 1.0 -> 0.5"),
        (("--model", "gpt-4o"), "model: gpt-4 -> gpt-4o"),
        (bare(tmp_path), "prompt"),
        (("--samples", 2), "give --samples 1"),
    ):
        ended = await take_in(run, file, *flags)
        assert ended.code == 2, ended.err
        assert words in ended.err
    assert ledger(run, "SELECT count(*) FROM runs") == before
    await taken_in(run, file, "--temperature", 0.5, "--stage", "colder")
    assert len(await export(run, "--stage", "colder")) == 3
    assert len(await export(run, "--stage", "generate")) == 3


async def test_a_stage_of_another_task_takes_no_answers_in(tmp_path: Path) -> None:
    run, pool = tmp_path / "run", write_pool(tmp_path / "paid.jsonl", answered(rows(3)))
    async with Provider().running() as p:
        await distill(*asking(pool, run, p.base_url, command="translate"))
    ended = await take_in(run, pool, "--stage", "translate")
    assert ended.code == 2
    assert "translate" in ended.err
    assert ledger(run, "SELECT task FROM stages") == [("translate",)]


async def test_answers_may_come_through_a_pipe(tmp_path: Path) -> None:
    run, pool = tmp_path / "run", answered(rows(5))
    words = asking("-", run, NOWHERE, command="import")
    async with started(*words, stdin=asyncio.subprocess.PIPE) as command:
        assert command.process.stdin
        command.process.stdin.write(write_pool(tmp_path / "a.jsonl", pool).read_bytes())
        command.process.stdin.close()
        ended = await command.ended()
    assert ended.code == 0, ended.err
    assert await texts(run) == pairs(pool)


async def test_the_first_rows_only_if_so_wanted_and_the_rest_later(tmp_path: Path) -> None:
    run, pool = tmp_path / "run", answered(rows(10))
    file = write_pool(tmp_path / "a.jsonl", pool)
    await taken_in(run, file, "--limit", 4)
    assert await texts(run) == pairs(pool[:4])
    await taken_in(run, file)
    assert await texts(run) == pairs(pool)
    assert KEY.encode() not in (run / "ledger.db").read_bytes()


async def test_a_row_that_was_refused_gets_its_imported_answer(tmp_path: Path) -> None:
    asked = rows(3)
    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", asked)
    async with Provider(Config(poison=asked[2]["instruction"])).running() as p:
        assert (await generate(run, pool, p.base_url)).code == 1
    await taken_in(run, write_pool(tmp_path / "paid.jsonl", answered(asked[2:])))
    assert (await texts(run))[2] == pairs(answered(asked))[2]
    assert (await stage(run))["failed"] == {}


async def test_thinking_in_an_imported_answer_is_read_as_in_any_reply(tmp_path: Path) -> None:
    asked = rows(2)
    given = ("<think>Hm.</think>Yes.", "<think>Only thinking.</think>")
    paid = [row | {"output": text} for row, text in zip(asked, given, strict=True)]
    run, file = tmp_path / "run", write_pool(tmp_path / "paid.jsonl", paid)
    assert "1 answer imported, 0 were there already, 1 row had none" in await taken_in(run, file)
    assert "0 answers imported, 1 were there already, 1 row had none" in await taken_in(run, file)
    assert [output for _, output in await texts(run)] == ["Yes."]


async def test_an_imported_answer_takes_the_place_of_one_that_is_none(tmp_path: Path) -> None:
    asked = rows(2)
    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", asked)
    async with BatchServer(faults={"row 1.": ["no_text"] * 5}).running() as server:
        flags = (*bare(tmp_path), "--batch", "--batch-grace", 0.3)
        assert (await generate(run, pool, server.base_url, *flags)).code == 1
    await taken_in(run, write_pool(tmp_path / "paid.jsonl", answered(asked)), *bare(tmp_path))
    assert (await texts(run))[1] == pairs(answered(asked))[1]


async def test_an_answer_that_is_no_text_is_a_bad_row(tmp_path: Path) -> None:
    asked = [
        {"instruction": "List three colours.", "output": ["red", "green"]},
        {"instruction": "A", "output": {"a": 1}},
        {"instruction": "B", "output": "b"},
        {"instruction": "C"},
        {"instruction": "D", "output": 0},
    ]
    file = write_pool(tmp_path / "a.jsonl", asked)
    said = await taken_in(tmp_path / "run", file)
    assert "2 answers imported, 0 were there already, 1 row had none; 2 bad rows left out" in said
    assert "line 1: output is not text: ['red', 'green']" in said
    ended = await take_in(tmp_path / "strict", file, "--strict")
    assert ended.code == 2
    assert "2 bad rows" in ended.err
