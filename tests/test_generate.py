"""A pool goes in, a data set comes out, and nothing is asked twice: the road that everybody takes."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from tests.support.cli import (
    KEY,
    Row,
    asking,
    bare,
    belongs,
    distill,
    export,
    generate,
    prompt,
    rows,
    stage,
    started,
    status,
    until,
    write_pool,
)
from tests.support.provider import Config, Provider

POOL = [
    *rows(20),
    *({"instruction": f"Translate number {n}.", "input": f"numéro {n}", "id": f"t{n}"} for n in range(20)),
]
FINISHED: dict[str, Path] = {}  # a run of POOL, made once and copied


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider().running() as found:
        yield found


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.jsonl", POOL)


@pytest_asyncio.fixture
async def finished(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which all of POOL is answered."""
    if "run" not in FINISHED:
        folder = tmp_path_factory.mktemp("finished")
        async with Provider().running() as first:
            whole = write_pool(folder / "pool.jsonl", POOL)
            ended = await generate(folder / "run", whole, first.base_url)
            assert ended.code == 0, ended.err
        FINISHED["run"] = folder / "run"
    return Path(shutil.copytree(FINISHED["run"], tmp_path / "run"))


def assert_answers(exported: list[Row], pool: list[Row]) -> None:
    """A line for each row, in order, each with the words that belong to it."""
    asked = [(row["instruction"], row.get("input", "")) for row in pool]
    assert [(row["instruction"], row["input"]) for row in exported] == asked
    assert all(belongs(row["output"], prompt(row)) for row in exported)


async def test_from_estimate_to_data_set(tmp_path: Path, pool: Path, provider: Provider) -> None:
    estimated = await distill("estimate", pool, "--model", "gpt-4o", "--rpm", 500)
    assert estimated.code == 0, estimated.err
    for word in ("gpt-4o", "40 rows", "prompt tokens", "completion tokens", "cost", "$", "time"):
        assert word in estimated.out
    assert provider.counts.requests == 0

    run = tmp_path / "run"
    ended = await generate(run, pool, provider.base_url)
    assert ended.code == 0, ended.err
    assert ended.out == ""
    assert provider.counts.billed == provider.counts.requests == 40

    found = await stage(run)
    assert (found["total"], found["done"], found["failed"]) == (40, 40, {})
    assert found["prompt_tokens"] == provider.counts.prompt_tokens
    assert found["completion_tokens"] == provider.counts.completion_tokens

    exported = await export(run)
    assert_answers(exported, POOL)
    assert [row["id"] for row in exported] == [r.get("id", str(n)) for n, r in enumerate(POOL)]


async def test_the_same_run_gives_the_same_bytes_in_every_format(tmp_path: Path, finished: Path) -> None:
    for format, name in (
        ("alpaca", "a.json"), ("alpaca", "a.jsonl"), ("chat", "c.jsonl"), ("parquet", "p.parquet"),
    ):  # fmt: skip
        written = []
        for folder in ("once", "twice"):
            out = tmp_path / folder / name
            ended = await distill("export", finished, "--format", format, "--out", out)
            assert ended.code == 0, ended.err
            written.append(out.read_bytes())
        assert written[0] == written[1]

    listed = orjson.loads((tmp_path / "once/a.json").read_bytes())
    assert_answers(listed, POOL)
    lines = (tmp_path / "once/a.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line) for line in lines] == listed
    for line, row in zip((tmp_path / "once/c.jsonl").read_bytes().splitlines(), listed, strict=True):
        user, assistant = orjson.loads(line)["messages"]
        assert row["instruction"] in user["content"]
        assert row["input"] in user["content"]
        assert assistant == {"role": "assistant", "content": row["output"]}
    table = pq.read_table(tmp_path / "once/p.parquet").to_pylist()
    assert [{k: row[k] for k in listed[0]} for row in table] == listed


async def test_a_pool_reordered_and_grown_asks_only_what_is_new(
    tmp_path: Path, finished: Path, provider: Provider
) -> None:
    new = rows(5, "a new thing")
    mixed = [*new[:2], *reversed(POOL), *new[2:]]
    ended = await generate(finished, write_pool(tmp_path / "mixed.jsonl", mixed), provider.base_url)
    assert ended.code == 0, ended.err
    assert provider.counts.requests == 5
    assert_answers(await export(finished), mixed)


async def test_rows_that_left_the_pool_leave_the_data_set_and_come_back_free(
    tmp_path: Path, finished: Path, pool: Path, provider: Provider
) -> None:
    few = POOL[5:15]
    ended = await generate(finished, write_pool(tmp_path / "few.jsonl", few), provider.base_url)
    assert ended.code == 0, ended.err
    assert_answers(await export(finished), few)
    assert (await generate(finished, pool, provider.base_url)).code == 0
    assert_answers(await export(finished), POOL)
    assert provider.counts.requests == 0


async def test_a_renamed_stage_asks_nothing(finished: Path, pool: Path, provider: Provider) -> None:
    ended = await generate(finished, pool, provider.base_url, "--stage", "second")
    assert ended.code == 0
    assert provider.counts.requests == 0
    assert (await stage(finished, "second"))["done"] == 40
    assert_answers(await export(finished, "--stage", "second"), POOL)


async def test_a_second_run_asks_nothing_whatever_its_limits_and_the_pools_place(
    tmp_path: Path, finished: Path, provider: Provider
) -> None:
    elsewhere = write_pool(tmp_path / "elsewhere.jsonl", POOL)
    flags = ("--rpm", 1000, "--concurrency", 3, "--attempts", 2, "--timeout", 9, "--temperature", 1)
    ended = await generate(finished, elsewhere, provider.base_url, *flags)
    assert ended.code == 0
    assert provider.counts.requests == 0


async def test_another_temperature_asks_again_and_status_says_why(
    finished: Path, pool: Path, provider: Provider
) -> None:
    ended = await generate(finished, pool, provider.base_url, "--temperature", 0.7, "--replace")
    assert ended.code == 0
    assert provider.counts.requests == 40
    assert "temperature: 1.0 -> 0.7" in (await distill("status", finished)).out


async def test_samples_are_asked_one_by_one_and_exported_with_their_number(
    tmp_path: Path, finished: Path, pool: Path, provider: Provider
) -> None:
    ended = await generate(finished, pool, provider.base_url, "--samples", 3)
    assert ended.code == 0
    assert provider.counts.requests == 80  # the first sample of each was there
    assert (await stage(finished))["done"] == 120
    exported = await export(finished)
    assert [row["sample"] for row in exported] == [0, 1, 2] * 40
    assert_answers(exported, [row for row in POOL for _ in range(3)])


async def test_equal_rows_share_one_answer_and_each_has_its_line(tmp_path: Path, provider: Provider) -> None:
    repeated = [row for row in POOL[:10] for _ in range(5)] + POOL[:10]
    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", repeated)
    ended = await generate(run, pool, provider.base_url)
    assert ended.code == 0
    assert provider.counts.requests == 10
    assert (await stage(run))["done"] == 60
    assert_answers(await export(run), repeated)


async def test_imported_answers_are_not_bought_again(tmp_path: Path, pool: Path, provider: Provider) -> None:
    run = tmp_path / "run"
    paid = [row | {"output": f"An answer to {n}."} for n, row in enumerate(POOL[:15])]
    ended = await distill(
        *asking(write_pool(tmp_path / "paid.jsonl", paid), run, provider.base_url, command="import")
    )
    assert ended.code == 0, ended.err
    assert (await generate(run, pool, provider.base_url)).code == 0
    assert provider.counts.requests == 25
    exported = await export(run)
    assert [row["output"] for row in exported[:15]] == [row["output"] for row in paid]
    assert_answers(exported[15:], POOL[15:])


async def test_an_imported_answer_mends_a_row_that_had_failed(tmp_path: Path) -> None:
    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", POOL[:3])
    paid = write_pool(tmp_path / "paid.jsonl", [POOL[2] | {"output": "Paid elsewhere."}])
    async with Provider(Config(poison=POOL[2]["instruction"])).running() as p:
        assert (await generate(run, pool, p.base_url)).code == 1
        ended = await distill(*asking(paid, run, p.base_url, command="import"))
        assert ended.code == 0, ended.err
        assert (await generate(run, pool, p.base_url)).code == 0
    assert [row["output"] for row in await export(run)][2:] == ["Paid elsewhere."]


async def test_an_imported_blank_is_no_answer(tmp_path: Path, provider: Provider) -> None:
    run = tmp_path / "run"
    given = [row | {"output": output} for row, output in zip(POOL, ("Fine.", " \n", ""), strict=False)]
    paid = write_pool(tmp_path / "paid.jsonl", given)
    assert (await distill(*asking(paid, run, provider.base_url, command="import"))).code == 0
    assert (await generate(run, paid, provider.base_url)).code == 0
    assert provider.counts.requests == 2
    exported = await export(run)
    assert exported[0]["output"] == "Fine."
    assert_answers(exported[1:], POOL[1:3])


async def test_what_a_pilot_bought_is_kept(tmp_path: Path, pool: Path, provider: Provider) -> None:
    run = tmp_path / "run"
    words = asking(pool, run, provider.base_url, "--json", command="estimate")
    ended = await distill(*words, "--pilot", 12)
    assert ended.code == 0, ended.err
    assert provider.counts.requests == 12
    told = orjson.loads(ended.out)
    assert told["requests"] == 28
    assert told["completion_tokens"]["low"] <= told["completion_tokens"]["expected"]
    assert orjson.loads((await distill(*words)).out)["requests"] == 28  # what remains
    assert (await generate(run, pool, provider.base_url)).code == 0
    assert provider.counts.requests == 40
    assert_answers(await export(run), POOL)


async def test_an_estimate_counts_as_the_provider_bills(tmp_path: Path, pool: Path) -> None:
    async with Provider(Config(exact_tokens=True)).running() as p:
        money = ("--model", "gpt-4o", "--price-in", 10, "--price-out", 30, "--yes")
        words = ("--base-url", p.base_url, "--json", *money[:-1])
        told = orjson.loads((await distill("estimate", pool, *words)).out)
        ended = await generate(tmp_path / "run", pool, p.base_url, *money)
    assert ended.code == 0, ended.err
    assert told["prompt_tokens"] == p.counts.prompt_tokens
    found = await stage(tmp_path / "run")
    bill = p.counts.prompt_tokens * 10e-6 + p.counts.completion_tokens * 30e-6
    assert found["cost_usd"] == pytest.approx(bill, abs=40e-6)
    assert "estimated" in ended.err
    assert "billed" in ended.err


async def test_limit_takes_the_first_rows_and_is_done_with_them(
    tmp_path: Path, pool: Path, provider: Provider
) -> None:
    run = tmp_path / "run"
    assert (await generate(run, pool, provider.base_url, "--limit", 7)).code == 0
    assert provider.counts.requests == 7
    found = await stage(run)
    assert found["done"] == found["total"] == 7
    assert (await generate(run, pool, provider.base_url, "--limit", 7)).code == 0
    assert provider.counts.requests == 7
    assert_answers(await export(run), POOL[:7])


# Standard input


async def test_rows_of_a_slow_pipe_are_asked_as_they_come(tmp_path: Path, provider: Provider) -> None:
    run = tmp_path / "run"
    words = asking("-", run, provider.base_url)
    async with started(*words, stdin=asyncio.subprocess.PIPE) as command:
        assert command.process.stdin
        for number, row in enumerate(POOL[:6]):
            command.process.stdin.write(orjson.dumps(row) + b"\n")
            await until(lambda wanted=number: provider.counts.billed == wanted + 1)
        command.process.stdin.close()
        assert (await command.ended()).code == 0
    assert_answers(await export(run), POOL[:6])


async def test_limit_does_not_wait_for_a_row_that_it_does_not_want(
    tmp_path: Path, provider: Provider
) -> None:
    words = asking("-", tmp_path / "run", provider.base_url, "--limit", 2)
    async with started(*words, stdin=asyncio.subprocess.PIPE) as command:
        assert command.process.stdin
        command.process.stdin.write(b"".join(orjson.dumps(row) + b"\n" for row in POOL[:2]))
        await command.process.stdin.drain()
        assert (await command.ended(30)).code == 0
    assert provider.counts.billed == 2


async def test_an_interrupt_does_not_wait_for_standard_input(tmp_path: Path, provider: Provider) -> None:
    words = asking("-", tmp_path / "run", provider.base_url)
    async with started(*words, stdin=asyncio.subprocess.PIPE) as command:
        assert command.process.stdin
        command.process.stdin.write(orjson.dumps(POOL[0]) + b"\n")
        await until(lambda: provider.counts.billed == 1)
        command.send(signal.SIGINT)
        assert (await command.ended(30)).code == 130
    assert len(await export(tmp_path / "run")) == 1


# Rows of all kinds


async def test_bad_rows_are_named_and_counted_and_the_rest_goes_on(
    tmp_path: Path, provider: Provider
) -> None:
    lines = [orjson.dumps(row) for row in POOL[:4]]
    bad = [
        b"[1, 2]",
        b'{"input": "no instruction"}',
        b'{"instruction": "\xff\xfe"}',
        b"{broken",
        b'{"instruction": 7}',
    ]
    torn = orjson.dumps(POOL[4])[:-9]
    pool = tmp_path / "pool.jsonl"
    pool.write_bytes(b"\n".join([*lines[:2], *bad, b"", *lines[2:], torn]))
    run = tmp_path / "run"
    ended = await generate(run, pool, provider.base_url)
    assert ended.code == 0, ended.err
    for number in (3, 4, 5, 6, 7, 11):
        assert f"line {number}:" in ended.err
    found = await stage(run)
    assert (found["bad_rows"], found["done"], found["total"]) == (6, 4, 4)
    assert_answers(await export(run), POOL[:4])


@pytest.mark.parametrize("text", [b"", b'not json\n{"a": 1}\n', b"\x1f\x8b\x08broken"])
async def test_a_pool_of_nothing_usable_is_bad_input(tmp_path: Path, provider: Provider, text: bytes) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_bytes(text)
    ended = await generate(tmp_path / "run", pool, provider.base_url)
    assert ended.code == 2
    assert str(pool) in ended.err
    assert provider.counts.requests == 0


async def test_a_pool_of_nothing_usable_on_standard_input_is_bad_input(
    tmp_path: Path, provider: Provider
) -> None:
    words = asking("-", tmp_path / "run", provider.base_url)
    async with started(*words, stdin=asyncio.subprocess.PIPE) as command:
        assert command.process.stdin
        command.process.stdin.write(b"not json\n")
        command.process.stdin.close()
        assert (await command.ended()).code == 2
    assert provider.counts.requests == 0


async def test_text_of_every_script_and_size_comes_back(tmp_path: Path, provider: Provider) -> None:
    texts = [
        "👩‍🔬 and 🏳️‍🌈, please",
        "שלום עולם \u202eright to left\u202c و العربية",
        "nul \0 and bell \a and escape \x1b[31m",
        "line\nbreaks\r\nand\ttabs and \u2028 and \u0085",
        "日本語、中文、한국어",
        "{instruction} {input} %s $HOME <|endoftext|>",
        "e\u0301 is not é",
        "long " + "many words of one row, " * (2**20 // 23),
    ]
    wanted = [{"instruction": text, "input": text[:40]} for text in texts]
    lines = [orjson.dumps(row) for row in wanted] + [rb'{"instruction": "half \ud83d a pair"}']
    wanted.append({"instruction": "half \ufffd a pair", "input": ""})
    pool, run = tmp_path / "pool.jsonl", tmp_path / "run"
    pool.write_bytes(b"\n".join(lines))
    ended = await generate(run, pool, provider.base_url)
    assert ended.code == 0, ended.err
    assert_answers(await export(run), wanted)
    again = await generate(run, pool, provider.base_url)
    assert again.code == 0
    assert provider.counts.requests == len(wanted)


async def test_every_kind_of_pool_says_the_same(tmp_path: Path, finished: Path, provider: Provider) -> None:
    """Once answered, the same rows as a list, as CSV, as Parquet and zipped ask nothing."""
    flat = [{"instruction": row["instruction"], "input": row.get("input", "")} for row in POOL]
    table, parquet = io.StringIO(), io.BytesIO()
    writer = csv.DictWriter(table, ["instruction", "input"])
    writer.writeheader()
    writer.writerows(flat)
    pq.write_table(pa.Table.from_pylist(flat), parquet)
    kinds = {
        "list.json": orjson.dumps(flat),
        "table.csv.gz": gzip.compress(table.getvalue().encode()),
        "table.parquet": parquet.getvalue(),
    }
    for name, content in kinds.items():
        write_file(tmp_path / name, content)
        ended = await generate(finished, tmp_path / name, provider.base_url)
        assert ended.code == 0, (name, ended.err)
        assert provider.counts.requests == 0, name
    assert_answers(await export(finished), POOL)


def write_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)


# What goes out


async def test_what_is_sent_is_what_was_set(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    async with Provider().running() as p:
        understand = p._understand

        def watch(raw: bytes, key: str | None) -> Any:
            seen.append(orjson.loads(raw))
            return understand(raw, key)

        p._understand = watch  # type: ignore[method-assign]
        pool = write_pool(tmp_path / "pool.jsonl", POOL[:1])
        flags = ("--temperature", 0.5, "--system", "Be brief.", "--param", "seed=7", "--param", "stop=END",
                 "--omit", "top_p", "--max-tokens", 99, "--samples", 2)  # fmt: skip
        assert (await generate(tmp_path / "run", pool, p.base_url, *flags)).code == 0
    system, user = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": prompt(POOL[0])},
    )
    wanted = {
        "model": "gpt-4",
        "messages": [system, user],
        "temperature": 0.5,
        "max_tokens": 99,
        "seed": 7,
        "stop": "END",
    }
    assert seen == [wanted, wanted]
    keys = [key for content in p.counts.contents.values() for key in content.idempotency_keys]
    assert len(set(keys)) == 2


async def test_a_run_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    async with Provider(Config(latency=0.05)).running() as p:
        pool = write_pool(tmp_path / "pool.jsonl", rows(150))
        run = tmp_path / "run"
        words = asking(pool, run, p.base_url, "--concurrency", 4, *bare(tmp_path))
        async with started(*words) as command:
            await until(lambda: p.counts.billed > 5)
            p.control(latency=2)  # it must not end while we look
            half = (await status(run))["stages"]["generate"]
            exported = await export(run)
            refused = await distill("retry", run)
            assert command.process.returncode is None
            p.control(latency=0)
            assert (await command.ended()).code == 0
    assert 0 < half["done"] <= len(exported) < 150
    assert half["total"] == 150
    assert refused.code == 2
    assert all(belongs(row["output"], row["instruction"]) for row in exported)


@pytest.mark.slow
async def test_a_reader_of_the_words_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    """`distill generate ... 2>&1 | head -1`, or a terminal that was closed."""
    async with Provider(Config(latency=0.4)).running() as p:
        pool, run = write_pool(tmp_path / "pool.jsonl", rows(60)), tmp_path / "run"
        words = asking(pool, run, p.base_url, "--concurrency", 4)
        async with started(*words) as command:
            await until(lambda: p.counts.billed > 3)
            transport: Any = command.stderr._transport  # type: ignore[attr-defined]
            transport.close()
            code = await asyncio.wait_for(command.process.wait(), 30)
    assert p.counts.billed == 60
    assert (await stage(run))["done"] == 60
    assert code == 0


async def test_the_key_may_have_another_name_and_is_sent(tmp_path: Path) -> None:
    from tests.support.cli import environment

    async with Provider(Config(expect_key="another-key")).running() as p:
        pool = write_pool(tmp_path / "pool.jsonl", POOL[:2])
        words = asking(pool, tmp_path / "run", p.base_url, "--api-key-env", "TEACHER_KEY")
        assert (await distill(*words, env=environment(TEACHER_KEY="another-key"))).code == 0
    assert KEY != "another-key"
    assert Counter(c.billed for c in p.counts.contents.values()) == {1: 2}


async def test_the_address_may_come_from_the_environment(tmp_path: Path, provider: Provider) -> None:
    from tests.support.cli import environment

    pool = write_pool(tmp_path / "pool.jsonl", POOL[:1])
    words = ("generate", pool, "--run", tmp_path / "run", "--model", "teacher")
    ended = await distill(*words, env=environment(OPENAI_BASE_URL=provider.base_url + "/"))
    assert ended.code == 0, ended.err
    assert provider.counts.billed == 1
    assert os.environ.get("OPENAI_BASE_URL") != provider.base_url
