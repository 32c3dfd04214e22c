"""`kill -9` at each step of the life of a batch, and resume: no batch is paid twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support.batch_server import BatchServer
from tests.support.batching import Bench, assert_all_answered, assert_billed_once, at_risk
from tests.support.cli import Ended, distill, started, status, until


async def killed(bench: Bench, server: BatchServer, step: str, where: str) -> None:
    """Runs until the server stands at a step, and kills the process there."""
    server.hold(step, where)
    async with started(*bench.words) as command:
        await server.reached()
        command.send(signal.SIGKILL)
        assert (await command.ended()).code == -signal.SIGKILL
    server.release()


async def resumed(bench: Bench) -> Ended:
    ended = await distill(*bench.words)
    assert ended.code == 0, ended.err
    return ended


STEPS = [
    ("upload", "before"),  # the intent is journalled, the file is not there
    ("upload", "after"),  # the file is there, its id was never heard
    ("create", "before"),  # the id is journalled, the batch is not made
    ("create", "after"),  # the batch is made, its id was never heard
    ("retrieve", "before"),  # watching
    ("content", "before"),  # about to read
    ("content", "middle"),  # half read
    ("content", "after"),
]


@pytest.mark.parametrize(("step", "where"), STEPS, ids=[" ".join(step) for step in STEPS])
async def test_a_kill_at_a_step_costs_nothing(tmp_path: Path, step: str, where: str) -> None:
    async with BatchServer().running() as server:
        bench = Bench(tmp_path, server)
        await killed(bench, server, step, where)
        await resumed(bench)
        assert_billed_once(server, bench.count)
        assert len(server.usable()) == 1
        assert len(server.uploads) == 1
        assert server.calls["upload"] == (2 if (step, where) == ("upload", "before") else 1)
    await assert_all_answered(bench)
    assert at_risk(bench) == 0


async def test_kills_at_every_step_of_one_run_cost_nothing(tmp_path: Path) -> None:
    async with BatchServer().running() as server:
        bench = Bench(tmp_path, server, 60, "--batch-requests", 20)
        for step, where in STEPS:
            await killed(bench, server, step, where)
        await resumed(bench)
        assert_billed_once(server, bench.count)
    await assert_all_answered(bench)
    assert at_risk(bench) == 0


async def test_a_batch_that_the_list_shows_late_is_not_made_again(tmp_path: Path) -> None:
    async with BatchServer(lag=1.0).running() as server:
        bench = Bench(tmp_path, server)
        bench.words += ["--batch-grace", 2.5]
        await killed(bench, server, "create", "after")
        await resumed(bench)
        assert len(server.made) == 1
        assert_billed_once(server, bench.count)
    await assert_all_answered(bench)


async def test_a_twin_that_the_list_shows_too_late_is_cancelled_before_it_has_run(tmp_path: Path) -> None:
    async with BatchServer(lag=1000, frozen=True, validation=2.0).running() as server:
        server.lose["create"] = ["after"]
        bench = Bench(tmp_path, server)
        async with started(*bench.words) as command:
            await until(lambda: len(server.made) == 2)
            server.lag = 0
            await until(lambda: server.made["batch_0"].status == "cancelled")
            server.frozen = False
            ended = await command.ended()
        assert ended.code == 0, ended.err
    await assert_all_answered(bench)


async def test_of_two_batches_for_one_intent_the_second_is_cancelled(tmp_path: Path) -> None:
    """The list lagged for longer than the grace: the batch was made again, and then both are seen."""
    async with BatchServer(lag=1000, frozen=True).running() as server:
        bench = Bench(tmp_path, server)
        await killed(bench, server, "create", "after")
        await killed(bench, server, "create", "after")
        assert len(server.made) == 2
        await until(lambda: all(made.status == "in_progress" for made in server.made.values()))
        server.lag = 0
        async with started(*bench.words) as command:
            await until(lambda: any(made.status == "cancelled" for made in server.made.values()))
            server.frozen = False
            ended = await command.ended()
        assert ended.code == 0, ended.err
        assert "exists twice" in ended.err
    await assert_all_answered(bench)


def stored(bench: Bench) -> int:
    ((count,),) = bench.sql("SELECT count(*) FROM responses")
    return int(count)


async def test_results_that_were_read_before_a_kill_are_not_stored_again(tmp_path: Path) -> None:
    async with BatchServer().running() as server:
        bench = Bench(tmp_path, server, 1500)
        server.hold("content", "middle")
        async with started(*bench.words) as command:
            await server.reached()
            await until(lambda: stored(bench) > 0)
            command.send(signal.SIGKILL)
            await command.ended()
        server.release()
        assert 0 < stored(bench) < 1500
        await resumed(bench)
        assert_billed_once(server, bench.count)
    assert stored(bench) == 1500
    await assert_all_answered(bench)


async def test_a_kill_while_a_batch_waits_for_room_in_the_queue_costs_nothing(tmp_path: Path) -> None:
    async with BatchServer(enqueued_limit=250, frozen=True).running() as server:
        bench = Bench(tmp_path, server, 40, "--batch-requests", 15)
        async with started(*bench.words) as command:
            await until(lambda: any(made.status == "failed" for made in server.made.values()))
            command.send(signal.SIGKILL)
            await command.ended()
        server.frozen = False
        await resumed(bench)
        assert_billed_once(server, bench.count)
        assert server.most_enqueued <= 250
    await assert_all_answered(bench)


async def test_an_expired_batch_survives_a_kill_while_its_rest_is_asked_again(tmp_path: Path) -> None:
    async with BatchServer(expire={0}).running() as server:
        bench = Bench(tmp_path, server)
        async with started(*bench.words) as command:
            await until(lambda: len(server.made) == 2)
            command.send(signal.SIGKILL)
            await command.ended()
        await resumed(bench)
        assert set(server.bills.questions.values()) == {1}
        assert len(server.bills.questions) == bench.count
    await assert_all_answered(bench)


async def test_an_interrupt_leaves_the_batches_where_they_are(tmp_path: Path) -> None:
    async with BatchServer(frozen=True).running() as server:
        bench = Bench(tmp_path, server)
        async with started(*bench.words) as command:
            await until(lambda: server.calls["retrieve"] >= 2)
            command.send(signal.SIGINT)
            ended = await command.ended(20)
        assert ended.code == 130, ended.err
        found = await status(bench.run)
        assert [b["status"] for b in found["batches"]] == ["in_progress"]
        assert found["unanswered"] == 0
        server.frozen = False
        await resumed(bench)
        assert len(server.made) == 1
        assert_billed_once(server, bench.count)
    await assert_all_answered(bench)


async def test_an_interrupt_waits_for_the_id_of_a_batch_that_is_being_made(tmp_path: Path) -> None:
    async with BatchServer().running() as server:
        bench = Bench(tmp_path, server)
        server.hold("create", "after")
        async with started(*bench.words) as command:
            await server.reached()
            command.send(signal.SIGINT)
            server.release()
            ended = await command.ended(20)
        assert ended.code == 130, ended.err
        assert bench.sql("SELECT remote FROM batches") == [("batch_0",)]
        await resumed(bench)
        assert server.calls["list"] == 0
        assert_billed_once(server, bench.count)
    await assert_all_answered(bench)
