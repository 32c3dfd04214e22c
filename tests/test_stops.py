"""A run that must end early ends cleanly: with the cause in words, its exit code, and nothing lost."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.support.cli import (
    KEY,
    MODEL,
    asking,
    bare,
    belongs,
    distill,
    export,
    generate,
    ledger,
    rows,
    stage,
    started,
    status,
    until,
    write_pool,
)
from tests.support.provider import Config, Provider
from tests.support.scripted import completion, listening, scripted

REPLIES = "SELECT count(*) FROM responses"
ERRORS = "SELECT count(*) FROM errors"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.jsonl", rows(20))


async def assert_the_rest_is_answered(run: Path, pool: Path, url: str, *flags: object) -> None:
    """The same command, once the cause is gone, does what is left to do."""
    ended = await generate(run, pool, url, *flags)
    assert ended.code == 0, ended.err
    answered = ledger(run, "SELECT instruction FROM answers ORDER BY position")
    assert [instruction for (instruction,) in answered] == instructions(pool)


def instructions(pool: Path) -> list[str]:
    return [orjson.loads(line)["instruction"] for line in pool.read_bytes().splitlines()]


# What must not burn a pool


async def test_a_retired_model_costs_one_request_and_no_row(run: Path, pool: Path) -> None:
    async with Provider(Config(dead_model=True)).running() as p:
        ended = await generate(run, pool, p.base_url)
        assert ended.code == 3
        assert f"The model `{MODEL}` does not exist." in ended.err
        assert p.counts.requests == 1
        assert (await stage(run))["failed"] == {}
        p.control(dead_model=False)
        await assert_the_rest_is_answered(run, pool, p.base_url)
        assert p.counts.billed == 20


async def test_a_refused_parameter_ends_the_run_at_once_and_names_the_flag(run: Path, pool: Path) -> None:
    async with Provider(Config(refuse_params=("temperature",))).running() as p:
        ended = await generate(run, pool, p.base_url)
        assert ended.code == 3
        assert "Unsupported parameter: 'temperature'" in ended.err
        assert "--omit temperature" in ended.err
        assert p.counts.requests == 1
        assert (await stage(run))["failed"] == {}
        await assert_the_rest_is_answered(run, pool, p.base_url, "--omit", "temperature")


async def test_a_wrong_address_is_given_up_after_a_few_probes(run: Path, pool: Path) -> None:
    ended = await generate(run, pool, "http://127.0.0.1:9/v1", "--give-up", 1)
    assert ended.code == 3
    assert "127.0.0.1:9" in ended.err
    assert ledger(run, ERRORS)[0][0] <= 3
    assert (await stage(run))["failed"] == {}


# The key


def files_under(folder: Path) -> Iterator[tuple[Path, bytes]]:
    return ((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def command_line(pid: int) -> str:
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes().decode() if path.exists() else ""


def assert_nobody_tells_the_key(run: Path, *texts: str) -> None:
    for text in texts:
        assert KEY not in text
    for path, content in files_under(run):
        assert KEY.encode() not in content, path


@pytest.mark.parametrize("state", ["bad_key", "forbidden"])
async def test_a_refused_key_stops_the_run_at_once_and_is_told_to_nobody(
    run: Path, pool: Path, state: str
) -> None:
    async with Provider(Config(**{state: True}, latency=0.3)).running() as p:
        async with started(*asking(pool, run, p.base_url), fresh=True) as command:
            await until(lambda: p.counts.requests or command.process.returncode is not None)
            words = command_line(command.process.pid)
            ended = await command.ended()
        assert ended.code == 3
        assert p.counts.requests == 1
        assert_nobody_tells_the_key(run, words, ended.out, ended.err)
        assert ledger(run, "SELECT * FROM failures") == []
        if state == "bad_key":
            p.control(bad_key=False)
            await assert_the_rest_is_answered(run, pool, p.base_url)


async def test_a_key_refused_in_the_middle_keeps_what_was_answered(run: Path, pool: Path) -> None:
    async with Provider(Config(latency=0.1)).running() as p:
        async with started(*asking(pool, run, p.base_url, "--concurrency", 3)) as command:
            await until(lambda: p.counts.billed >= 6)
            p.control(bad_key=True)
            ended = await command.ended()
        assert ended.code == 3
        assert "Incorrect API key" in ended.err
        assert ledger(run, REPLIES) == [(p.counts.billed,)]
        assert p.counts.faults["bad_key"] <= 3
        p.control(bad_key=False)
        await assert_the_rest_is_answered(run, pool, p.base_url)
        assert p.counts.billed == 20


async def test_a_server_that_echoes_the_key_does_not_bring_it_into_the_ledger(
    run: Path, tmp_path: Path
) -> None:
    codes = {"an answer": 200, "a refusal": 400, "a fault": 500, "the end": 401}

    async def reply(request: web.Request) -> web.Response:
        question = orjson.loads(await request.read())["messages"][-1]["content"]
        said = f"You sent {request.headers['Authorization']}."
        error = orjson.dumps({"error": {"message": said, "code": said, "type": said}})
        raw = completion(said, model=said) if question == "an answer" else error
        return web.Response(body=raw, status=codes[question], reason=said, content_type="application/json")

    pool = write_pool(tmp_path / "pool.jsonl", [{"instruction": name} for name in codes])
    async with scripted(reply) as url:
        flags = ("--attempts", 1, "--concurrency", 1, *bare(tmp_path))
        ended = await generate(run, pool, url, *flags)
    assert ended.code == 3
    assert len(ledger(run, "SELECT DISTINCT status FROM errors")) == 3
    ((answer,),) = ledger(run, "SELECT output FROM answers")
    assert "You sent Bearer " in answer
    assert_nobody_tells_the_key(run, ended.out, ended.err)


@pytest.mark.parametrize("kind", ["torn", "no HTTP"])
async def test_not_even_half_a_reply_brings_the_key_into_the_ledger(
    run: Path, tmp_path: Path, kind: str
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sent = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"authorization"))
        start = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" if kind == "torn" else b""
        writer.write(start + b"You sent " + sent + b"\r\n\r\n")
        await writer.drain()
        writer.close()

    async with listening(talk) as url:
        flags = ("--attempts", 1, "--give-up", 0)
        ended = await generate(run, write_pool(tmp_path / "pool.jsonl", rows(2)), url, *flags)
    assert ledger(run, ERRORS)[0][0] > 0
    assert_nobody_tells_the_key(run, ended.out, ended.err)


# Quota, size, outages


async def test_an_exhausted_quota_stops_the_run_and_the_rest_stays_due(run: Path, pool: Path) -> None:
    async with Provider(Config(quota_after=7, latency=0.02)).running() as p:
        ended = await generate(run, pool, p.base_url, "--concurrency", 3)
        assert ended.code == 3
        assert "You exceeded your quota." in ended.err
        found = await stage(run)
        assert (found["done"], found["failed"]) == (p.counts.billed, {})
        p.control(quota_after=None)
        await assert_the_rest_is_answered(run, pool, p.base_url)
        assert p.counts.billed == 20


@pytest.mark.parametrize("flags", [(), ("--tpm", 60_000)])
async def test_a_row_too_large_for_the_limit_fails_alone_and_holds_up_nobody(
    run: Path, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    large = {"instruction": "Tell me about " + "everything and " * 20_000}
    pool = write_pool(tmp_path / "pool.jsonl", [*rows(5), large, *rows(5, "thing")])
    async with Provider(Config(tpm=60_000)).running() as p:
        ended = await generate(run, pool, p.base_url, "--max-tokens", 50, *flags, seconds=25)
    assert ended.code == 1, ended.err
    found = await stage(run)
    assert (found["done"], found["failed"]) == (10, {"too_large": 1})
    assert p.counts.requests == 11


@pytest.mark.parametrize(("kind", "concurrency"), [("503", 8), ("drop", 8), ("503", 2)])
async def test_an_outage_costs_time_and_no_row(
    run: Path, tmp_path: Path, kind: str, concurrency: int
) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(10 * concurrency))
    flags = ("--concurrency", concurrency, "--attempts", 2, *bare(tmp_path))
    async with Provider(Config(latency=0.1, outage_kind=kind)).running() as p:
        async with started(*asking(pool, run, p.base_url, *flags)) as command:
            await until(lambda: p.counts.billed >= 2 * concurrency)
            p.control(outage=True)
            await until(lambda: p.counts.faults["outage"])
            await asyncio.sleep(2)  # so long is it down
            p.control(outage=False)
            ended = await command.ended()
        assert ended.code == 0, ended.err
    assert p.counts.faults["outage"] <= 6 * concurrency + 10  # until it was noticed, and probes
    assert ledger(run, "SELECT count(*) FROM failures") == [(0,)]
    assert all(belongs(row["output"], row["instruction"]) for row in await export(run))


async def test_an_outage_at_the_last_rows_costs_none_of_them(run: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(6))
    flags = ("--concurrency", 1, "--attempts", 2)
    async with Provider(Config(latency=0.2)).running() as p:
        async with started(*asking(pool, run, p.base_url, *flags)) as command:
            await until(lambda: p.counts.billed == 2)
            p.control(outage=True)
            await until(lambda: p.counts.faults["outage"])
            await asyncio.sleep(2)  # so long is it down
            p.control(outage=False)
            ended = await command.ended()
        assert ended.code == 0, ended.err


async def test_an_outage_at_the_start_is_waited_out(run: Path, pool: Path) -> None:
    async with Provider(Config(outage=True)).running() as p:
        async with started(*asking(pool, run, p.base_url, "--attempts", 1)) as command:
            await until(lambda: p.counts.faults["outage"] >= 2)
            p.control(outage=False)
            assert (await command.ended()).code == 0
        assert p.counts.faults["outage"] <= 3
        assert p.counts.billed == 20


async def test_an_outage_without_end_is_given_up(run: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(100))
    async with Provider(Config(latency=0.1)).running() as p:
        words = asking(pool, run, p.base_url, "--concurrency", 8, "--attempts", 2, "--give-up", 2)
        async with started(*words) as command:
            await until(lambda: p.counts.billed >= 16)
            p.control(outage=True)
            ended = await command.ended(15)
        assert ended.code == 3
        assert "The server is overloaded" in ended.err
        found = await stage(run)
        assert (found["done"], found["failed"]) == (p.counts.billed, {})
        p.control(outage=False)
        await assert_the_rest_is_answered(run, pool, p.base_url)
        assert p.counts.billed == 100


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_lets_what_is_in_flight_land(
    run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(60))
    async with Provider(Config(latency=0.7)).running() as p:
        async with started(*asking(pool, run, p.base_url, "--concurrency", 8)) as command:
            await until(lambda: p.counts.billed >= 9 and p.counts.in_flight == 8)
            asked = p.counts.requests
            command.send(number)
            ended = await command.ended(30)
        assert ended.code == 130
        assert p.counts.requests <= asked + 1
        assert p.counts.faults["abandoned"] == 0
        assert ledger(run, REPLIES) == [(p.counts.billed,)]
        assert ledger(run, "SELECT * FROM unanswered") == []
        p.control(latency=0)
        if number == signal.SIGINT:
            await assert_the_rest_is_answered(run, pool, p.base_url)
            assert p.counts.billed == 60


async def test_a_second_interrupt_waits_for_nothing(run: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(60))
    async with Provider(Config(latency=0.01)).running() as p:
        async with started(*asking(pool, run, p.base_url, "--concurrency", 8)) as command:
            await until(lambda: p.counts.billed >= 1)
            p.control(latency=60)
            await asyncio.sleep(0.3)  # what was asked at the old latency has ended
            await until(lambda: p.counts.in_flight == 8)
            command.send(signal.SIGINT)
            await asyncio.sleep(0.3)
            command.send(signal.SIGINT)
            ended = await command.ended(3)
        assert ended.code == 130
        found = await status(run)
        assert found["unanswered"] == 8
        assert found["stages"]["generate"]["done"] == p.counts.billed - p.counts.faults["abandoned"]


async def test_a_second_interrupt_counts_what_is_on_its_way_to_the_disk(run: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(60))
    async with Provider(Config(latency=0.5)).running() as p:
        async with started(*asking(pool, run, p.base_url, "--concurrency", 8)) as command:
            await until(lambda: p.counts.in_flight == 8)
            with closing(sqlite3.connect(run / "ledger.db", isolation_level=None)) as writer:
                writer.execute("BEGIN IMMEDIATE")  # the disk takes nothing
                await until(lambda: p.counts.billed == 9)
                await asyncio.sleep(0.3)
                for _ in range(2):
                    command.send(signal.SIGINT)
                    await asyncio.sleep(0.3)
                writer.execute("ROLLBACK")
            ended = await command.ended(10)
        assert ended.code == 130
        assert ledger(run, REPLIES) == [(p.counts.billed,)]
        assert re.search(r"done +9 of 60\n", ended.err), ended.err


@pytest.mark.parametrize("times", [1, 2])
async def test_an_interrupt_does_not_wait_for_the_first_answer(run: Path, pool: Path, times: int) -> None:
    async with Provider(Config(latency=60)).running() as p:
        async with started(*asking(pool, run, p.base_url)) as command:
            await until(lambda: p.counts.in_flight == 1)
            for _ in range(times):
                command.send(signal.SIGINT)
                await asyncio.sleep(0.3)
            ended = await command.ended(10 if times == 1 else 3)
        assert p.counts.requests == 1
    assert ended.code == 130
    assert (await status(run))["unanswered"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_before_the_first_request_is_an_interrupt(
    run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(100_000))  # surveyed for some seconds
    async with Provider().running() as p:
        async with started(*asking(pool, run, p.base_url)) as command:
            await until(lambda: (run / "ledger.db").exists())
            await asyncio.sleep(0.3)
            command.send(number)
            ended = await command.ended(5)
        assert p.counts.requests == 0
    assert ended.code == 130


# Money


@pytest.mark.slow
async def test_the_budget_is_never_passed_whatever_happens(run: Path, tmp_path: Path) -> None:
    """Kills, lost and unreadable replies: what was billed stays under the cap at every moment."""
    price_in, price_out, cap = 1000, 3000, 12.0  # USD a million tokens, USD
    pool = write_pool(tmp_path / "pool.jsonl", rows(200))
    dice = random.Random(1)
    faults = {"p_reset_after": 0.03, "p_malformed": 0.03, "p_500": 0.03}
    async with Provider(Config(exact_tokens=True, latency=0.05, **faults)).running() as p:

        def billed() -> float:
            return (p.counts.prompt_tokens * price_in + p.counts.completion_tokens * price_out) / 1e6

        money = ("--model", "gpt-4o", "--price-in", price_in, "--price-out", price_out)
        flags = ("--max-tokens", 60, "--concurrency", 8, *bare(tmp_path), *money)
        words = asking(pool, run, p.base_url, *flags, "--budget", cap)
        for _ in range(2):
            before = p.counts.billed
            async with started(*words) as command:
                await until(lambda seen=before: p.counts.billed > seen + dice.randrange(10))
                command.send(signal.SIGKILL)
                await command.ended()
            await until(lambda: p.counts.in_flight == 0)
            assert billed() <= cap
        ended = await distill(*words)
        assert ended.code == 3
        assert "budget of $12.00" in ended.err
        assert cap * 0.5 < billed() <= cap
        found = await status(run)
        assert found["spent_usd"] <= billed() <= found["spent_usd"] + found["at_risk_usd"] <= cap
        asked = p.counts.requests

        again = await distill(*words)
        assert again.code == 3
        assert p.counts.requests <= asked + 1
        assert billed() <= cap

        await assert_the_rest_is_answered(run, pool, p.base_url, *flags, "--budget", 20 * cap)


async def test_a_budget_without_a_price_is_bad_usage(run: Path, pool: Path) -> None:
    words = asking(pool, run, "http://192.0.2.1/v1", "--model", "nobodys-model")
    ended = await distill(*words, "--budget", 5)
    assert ended.code == 2
    assert "--price-in" in ended.err
    ended = await distill(*words)
    assert ended.code == 2
    assert "--yes" in ended.err


async def test_nobody_at_the_terminal_and_no_word_about_money_is_bad_usage(run: Path, pool: Path) -> None:
    async with Provider().running() as p:
        money = ("--price-in", 10, "--price-out", 30)
        ended = await generate(run, pool, p.base_url, *money)
        assert ended.code == 2
        assert "--budget" in ended.err
        assert "--yes" in ended.err
        assert p.counts.requests == 0
        assert (await generate(run, pool, p.base_url, *money, "--yes")).code == 0


# The run folder and its disk


async def test_a_second_process_is_told_who_holds_the_folder(run: Path, pool: Path) -> None:
    async with Provider(Config(latency=30)).running() as p:
        async with started(*asking(pool, run, p.base_url)) as first:
            await until(lambda: p.counts.in_flight == 1)
            for words in (
                asking(pool, run, p.base_url),
                asking(pool, run, p.base_url, command="import"),
                ["retry", run],
            ):
                ended = await distill(*words)
                assert ended.code == 2
                assert re.search(rf"\b{first.process.pid}\b", ended.err)
            assert first.process.returncode is None
        assert p.counts.requests == 1


@contextmanager
def small_disk(at: Path, size: str, *options: str) -> Iterator[Path]:
    """A file system of its own; the test is skipped where that is not permitted."""
    at.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "none", str(at)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("mean_tokens", "concurrency"), [(40, 16), (4000, 32)])
async def test_on_a_full_disk_the_run_stops_and_what_was_billed_is_stored(
    tmp_path: Path, mean_tokens: int, concurrency: int
) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(2000))
    flags = ("--concurrency", concurrency, "--max-tokens", 10_000, *bare(tmp_path))
    with small_disk(tmp_path / "disk", "8m") as disk:
        run = disk / "run"
        async with Provider(Config(mean_tokens=mean_tokens, latency=0.05)).running() as p:
            ended = await generate(run, pool, p.base_url, *flags)
            assert ended.code == 3, ended.err
            assert re.search(r"(disk|space|room).*free some space", ended.err), ended.err
            assert p.counts.billed < 2000
            assert ledger(run, REPLIES) == [(p.counts.billed,)]
            done = (await stage(run))["done"]
            assert done == p.counts.billed

            ended = await generate(run, pool, p.base_url, *flags)  # it is still full
            assert ended.code == 3, ended.err
            assert "free some space" in ended.err
            assert ledger(run, REPLIES) == [(p.counts.billed,)]

            remount(disk, "size=200m")
            limit = ("--limit", p.counts.billed + 100)
            assert (await generate(run, pool, p.base_url, *flags, *limit)).code == 0
            assert ledger(run, REPLIES) == [(p.counts.billed,)]
        exported = await export(run)
        assert len(exported) == p.counts.billed == len(p.counts.contents)
        assert all(belongs(row["output"], row["instruction"]) for row in exported)
        assert ledger(run, "PRAGMA integrity_check") == [("ok",)]


async def test_a_folder_that_cannot_be_written_is_said_before_anything_is_asked(
    tmp_path: Path, pool: Path
) -> None:
    (tmp_path / "file").touch()
    async with Provider().running() as p:
        for folder in (tmp_path / "file", tmp_path / "file/run", Path("/proc/distill")):
            ended = await generate(folder, pool, p.base_url)
            assert ended.code == 2
            assert str(folder) in ended.err
        assert p.counts.requests == 0


async def test_a_disk_that_is_read_only_is_said_before_anything_is_asked(tmp_path: Path, pool: Path) -> None:
    async with Provider().running() as p:
        with small_disk(tmp_path / "disk", "8m") as disk:
            assert (await generate(disk / "run", pool, p.base_url)).code == 0
            asked = p.counts.requests
            remount(disk, "ro")
            for folder in (disk / "run", disk / "new"):
                ended = await generate(folder, pool, p.base_url, "--temperature", 0.1)
                assert ended.code == 2
                assert str(folder) in ended.err
            assert p.counts.requests == asked
            assert (await stage(disk / "run"))["done"] == 20
            assert len(await export(disk / "run")) == 20


@pytest.mark.parametrize("content", [b"", b"not a ledger" * 1000])
async def test_a_ledger_that_is_none_is_said_in_a_sentence(run: Path, pool: Path, content: bytes) -> None:
    make_file(run / "ledger.db", content)
    out = run / "out.jsonl"
    commands: list[list[Any]] = [
        ["status", run],
        ["export", run, "--format", "alpaca", "--out", out],
        ["retry", run],
    ]
    if content:
        commands.append(asking(pool, run, "http://127.0.0.1:9/v1"))
    for words in commands:
        ended = await distill(*words)
        if content or words[0] == "export":
            assert ended.code == 2
            assert str(run) in ended.err
    assert not out.exists()


def make_file(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)


async def test_bad_usage_is_told_in_a_sentence(run: Path, tmp_path: Path, pool: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    cases: list[tuple[list[object], str]] = [
        (asking(tmp_path / "none.jsonl", run, url), "none.jsonl"),
        (asking(tmp_path, run, url), str(tmp_path)),
        (asking(pool, run, "127.0.0.1:9"), "--base-url"),
        (asking(pool, run, url, "--temperature", 7), "--temperature"),
        (asking(pool, run, url, "--prompt", tmp_path / "none.txt"), "none.txt"),
        (["status", tmp_path / "nowhere"], "nowhere"),
    ]
    for two in (cases[:2], cases[2:4], cases[4:]):
        ended = await asyncio.gather(*(distill(*words) for words, _ in two))
        for (words, said), end in zip(two, ended, strict=True):
            assert end.code == 2, (words, end.err)
            assert said in end.err
