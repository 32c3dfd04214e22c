"""A lost terminal asks a run to stop: what is in flight lands, and the run can be resumed. Under nohup the
loss is ignored."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.batch_server import BatchServer
from tests.support.batching import Bench, assert_all_answered, assert_billed_once
from tests.support.cli import (
    asking,
    distill,
    environment,
    generate,
    ledger,
    rows,
    stage,
    started,
    until,
    write_pool,
)
from tests.support.provider import Config, Provider
from tests.support.recipe_files import after, teacher, write_recipe
from tests.support.recipe_files import generate as stage_of
from tests.support.terminals import on_terminal

REPLIES = "SELECT count(*) FROM responses"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.jsonl", rows(60))


def nothing_is_lost(run: Path, p: Provider) -> None:
    assert p.counts.faults["abandoned"] == 0
    assert ledger(run, REPLIES) == [(p.counts.billed,)]
    assert ledger(run, "SELECT * FROM unanswered") == []
    assert ledger(run, "SELECT DISTINCT exit_code FROM runs") == [(130,)]


async def test_a_closed_terminal_lets_what_is_in_flight_land(run: Path, pool: Path) -> None:
    async with Provider(Config(latency=0.7)).running() as p:
        async with on_terminal(*asking(pool, run, p.base_url, "--concurrency", 8)) as command:
            await until(lambda: p.counts.billed >= 9 and p.counts.in_flight == 8)
            asked = p.counts.requests
            assert b"generate" in command.shown  # the live display, which then has nowhere to go
            command.hang_up()
            assert await command.ended() == 130
        assert p.counts.requests <= asked + 1
        nothing_is_lost(run, p)
        p.control(latency=0)
        assert (await generate(run, pool, p.base_url)).code == 0
        assert p.counts.billed == 60


@pytest.mark.parametrize("others", [[signal.SIGHUP], [signal.SIGHUP] * 3, [signal.SIGTERM]])
async def test_a_hangup_that_is_told_twice_is_no_sign_of_impatience(
    run: Path, pool: Path, others: list[signal.Signals]
) -> None:
    """A shell and the kernel both tell of it, and an init system sends SIGTERM beside it."""
    async with Provider(Config(latency=0.7)).running() as p:
        async with started(*asking(pool, run, p.base_url, "--concurrency", 8)) as command:
            await until(lambda: p.counts.billed >= 9 and p.counts.in_flight == 8)
            command.send(signal.SIGHUP)
            for number in others:
                await asyncio.sleep(0.1)
                command.send(number)
            ended = await command.ended(30)
        assert ended.code == 130
        assert "stopped by SIGHUP" in ended.err
        nothing_is_lost(run, p)


async def test_an_interrupt_after_a_hangup_is_the_first_of_its_kind_and_a_second_waits_for_nothing(
    run: Path, pool: Path
) -> None:
    async with Provider(Config(latency=60)).running() as p:
        async with started(*asking(pool, run, p.base_url, "--concurrency", 8)) as command:
            await until(lambda: p.counts.in_flight == 1)
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGINT):
                command.send(number)
                await asyncio.sleep(0.2)
            ended = await command.ended(3)
        assert ended.code == 130


async def test_under_nohup_a_closed_terminal_stops_nothing(run: Path, pool: Path, tmp_path: Path) -> None:
    async with Provider(Config(latency=0.3)).running() as p:
        words = asking(pool, run, p.base_url, "--concurrency", 8)
        with (tmp_path / "said").open("wb") as said:
            async with on_terminal(*words, before=["nohup"], stderr=said.fileno(), cwd=tmp_path) as command:
                await until(lambda: p.counts.billed >= 9)
                command.hang_up()
                await until(lambda: p.counts.billed >= 20)
                os.kill(command.process.pid, signal.SIGHUP)
                assert await command.ended() == 0
        assert p.counts.billed == 60
        assert b"Traceback" not in (tmp_path / "said").read_bytes()


async def test_a_terminal_that_nobody_reads_any_more_does_not_end_a_run_that_ignores_its_loss(
    run: Path, pool: Path
) -> None:
    """What is written to it fails, and the run goes to its end all the same: live display, last table."""
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    async with Provider(Config(latency=0.3)).running() as p:
        words = asking(pool, run, p.base_url, "--concurrency", 8)
        async with on_terminal(*words, before=ignoring) as command:
            await until(lambda: p.counts.billed >= 9 and b"generate" in command.shown)
            command.hang_up()
            assert await command.ended() == 0
        assert p.counts.billed == 60
        assert (await stage(run))["done"] == 60


async def test_a_hangup_before_the_first_request_is_an_interrupt(run: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(100_000))  # surveyed for some seconds
    async with Provider().running() as p:
        async with started(*asking(pool, run, p.base_url)) as command:
            await until(lambda: (run / "ledger.db").exists())
            await asyncio.sleep(0.3)
            for _ in range(3):
                command.send(signal.SIGHUP)
            ended = await command.ended(5)
        assert (ended.code, p.counts.requests) == (130, 0)


async def test_a_hangup_stops_every_stage_of_a_recipe(run: Path, pool: Path, tmp_path: Path) -> None:
    async with Provider(Config(latency=0.5)).running() as p:
        tables = {
            "teacher.t": teacher(p.base_url, concurrency=8),
            "stage.a": stage_of(pool),
            "stage.b": after("a"),
        }
        recipe = write_recipe(tmp_path, tables)
        async with started("run", recipe, "--run", run) as command:
            await until(lambda: p.counts.billed >= 20 and p.counts.in_flight == 8)
            command.send(signal.SIGHUP)
            command.send(signal.SIGHUP)
            ended = await command.ended(30)
        assert ended.code == 130
        nothing_is_lost(run, p)
        p.control(latency=0)
        assert (await distill("run", recipe, "--run", run)).code == 0
        assert p.counts.billed == 120


async def test_a_hangup_leaves_batches_where_they_are(tmp_path: Path) -> None:
    async with BatchServer(frozen=True).running() as server:
        bench = Bench(tmp_path, server)
        async with started(*bench.words) as command:
            await until(lambda: server.calls["retrieve"] >= 2)
            command.send(signal.SIGHUP)
            ended = await command.ended(20)
        assert ended.code == 130, ended.err
        server.frozen = False
        assert (await distill(*bench.words)).code == 0
        assert_billed_once(server, bench.count)
    await assert_all_answered(bench)


SLEEPER = "import time; print('here', flush=True); time.sleep(60)"
STEP = f"""
import signal, sys
from engine.subprocesses import run_to_end
from engine.terminal import stop_on_signals
stop_on_signals()
code = run_to_end([sys.executable, "-c", {SLEEPER!r}], sys.stdout.buffer, signal.SIGKILL)
print("ended", code, flush=True)
"""


async def test_a_hangup_asks_the_command_of_a_step_to_end() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", STEP, stdout=asyncio.subprocess.PIPE, env=environment()
    )
    assert process.stdout
    assert await process.stdout.readline() == b"here\n"
    before = time.monotonic()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    assert await process.stdout.readline() == b"ended 130\n"
    assert time.monotonic() - before < 10
    assert await process.wait() == 0


async def test_a_server_ends_with_its_terminal() -> None:
    async with on_terminal("serve", "--scripted", "--port", 0) as command:
        await until(lambda: b"serving" in command.shown)
        command.hang_up()
        assert await command.ended(10) == 0
