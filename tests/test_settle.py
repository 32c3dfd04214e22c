"""What may have been billed without an answer is shown by row, and settled by hand."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.batch_server import BatchServer
from tests.support.batching import Bench
from tests.support.cli import (
    MODEL,
    Ended,
    asking,
    bare,
    distill,
    generate,
    ledger,
    rows,
    started,
    status,
    until,
    write_pool,
)
from tests.support.ledgers import unpacked
from tests.support.provider import Config, Provider

PRICES = ("--model", MODEL, "--price-in", 1000, "--price-out", 1000)
FLAGS = (*PRICES, "--max-tokens", 100, "--yes")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.jsonl", rows(6))


async def settle(run: Path, *flags: object) -> Ended:
    return await distill("settle", run, *flags)


async def doubtful(run: Path, *flags: object) -> dict[str, Any]:
    ended = await settle(run, "--json", *flags)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = orjson.loads(ended.out)
    assert found["at_risk_usd"] == pytest.approx(
        sum(one["most_usd"] for one in found["attempts"]) + sum(found["earlier_usd"].values())
    )
    return found


async def money(run: Path) -> tuple[float, float, int]:
    """(spent, at risk, unanswered)."""
    found = await status(run)
    return found["spent_usd"], found["at_risk_usd"], found["unanswered"]


async def timed_out(run: Path, pool: Path, tmp_path: Path) -> None:
    """Six rows, each billed once and never heard of, none with an answer."""
    async with Provider(Config(p_stall=1, stall_seconds=30)).running() as p:
        flags = ("--timeout", 1, "--attempts", 1, *bare(tmp_path))
        ended = await generate(run, pool, p.base_url, *FLAGS, *flags)
        assert ended.code in (1, 3), ended.err


async def test_time_outs_are_listed_by_row_with_the_most_they_can_cost(
    run: Path, pool: Path, tmp_path: Path
) -> None:
    await timed_out(run, pool, tmp_path)
    found = await doubtful(run)
    assert found["earlier_usd"] == {}
    assert sorted(one["id"] for one in found["attempts"]) == [str(n) for n in range(6)]
    for one in found["attempts"]:
        assert (one["stage"], one["sample"], one["cause"]) == ("generate", 0, "timeout")
        assert one["most_usd"] > 0.1  # 100 tokens at $1,000 a million, and the prompt
        assert "no reply in 1 s" in one["why"]
    _, at_risk, _ = await money(run)
    assert found["at_risk_usd"] == pytest.approx(at_risk)
    shown = await settle(run)
    assert "timeout: no reply in 1 s" in shown.out
    assert "--lost" in shown.out


async def test_lost_releases_billed_books_and_nothing_is_settled_twice(
    run: Path, pool: Path, tmp_path: Path
) -> None:
    await timed_out(run, pool, tmp_path)
    before, at_risk, _ = await money(run)
    first, *others = (await doubtful(run))["attempts"]
    ended = await settle(run, "--lost", "--id", first["id"])
    assert ended.code == 0, ended.err
    assert "1 request settled" in ended.err
    spent, left, _ = await money(run)
    assert spent == before
    assert left == pytest.approx(at_risk - first["most_usd"])
    assert (await settle(run, "--billed", "--attempt", others[0]["attempt"])).code == 0
    spent, _, _ = await money(run)
    assert spent == pytest.approx(before + others[0]["most_usd"])
    again = await settle(run, "--billed", "--id", first["id"])
    assert again.code == 2
    assert f"nothing is in doubt for row {first['id']}" in again.err
    assert (await settle(run, "--lost")).code == 0
    assert (await money(run))[1] == 0
    assert (await doubtful(run))["attempts"] == []
    assert "nothing is in doubt" in (await settle(run)).out


async def test_dollars_from_the_bill_are_shared_out_to_the_last_micro_dollar(
    run: Path, pool: Path, tmp_path: Path
) -> None:
    await timed_out(run, pool, tmp_path)
    before, at_risk, _ = await money(run)
    too_much = await settle(run, "--usd", at_risk + 0.01)
    assert too_much.code == 2
    assert "together at most" in too_much.err
    assert (await settle(run, "--usd", 0.100003)).code == 0
    assert ledger(run, "SELECT sum(billed_micro) FROM settlements") == [(100_003,)]
    spent, left, _ = await money(run)
    assert (spent, left) == (pytest.approx(before + 0.100003), 0)


async def test_a_budget_has_room_again_for_what_was_not_billed(run: Path, pool: Path, tmp_path: Path) -> None:
    await timed_out(run, pool, tmp_path)
    _, at_risk, _ = await money(run)
    await distill("retry", run)
    cap = ("--budget", round(at_risk + 0.001, 4), *bare(tmp_path))
    async with Provider().running() as p:
        assert (await generate(run, pool, p.base_url, *FLAGS, *cap)).code == 3
        assert p.counts.requests == 0
        assert (await settle(run, "--lost")).code == 0
        ended = await generate(run, pool, p.base_url, *FLAGS, *cap)
        assert p.counts.billed > 0, ended.err


async def test_what_a_kill_left_unanswered_is_in_doubt_until_it_is_settled(
    run: Path, pool: Path, tmp_path: Path
) -> None:
    async with Provider(Config(latency=60)).running() as p:
        async with started(*asking(pool, run, p.base_url, *FLAGS)) as command:
            await until(lambda: p.counts.in_flight == 1)
            held = await settle(run, "--lost")
            assert held.code == 2
            assert "in use by process" in held.err
            going = await doubtful(run)
            assert going["running"]
            command.send(signal.SIGKILL)
            await command.ended()
        (one,) = (await doubtful(run))["attempts"]
        assert (one["id"], one["cause"]) == ("0", "unanswered")
        assert (await money(run))[2] == 1
        assert (await settle(run, "--billed")).code == 0
        assert await money(run) == (pytest.approx(one["most_usd"]), 0, 0)
        assert ledger(run, "SELECT * FROM unanswered") == []
        p.control(latency=0)
        ended = await generate(run, pool, p.base_url, *FLAGS)
        assert ended.code == 0, ended.err
        assert ledger(run, "SELECT count(*) FROM answers") == [(6,)]


async def test_what_waits_in_a_batch_is_not_in_doubt(tmp_path: Path) -> None:
    async with BatchServer(frozen=True).running() as server:
        bench = Bench(tmp_path, server)
        async with started(*bench.words) as command:
            await until(lambda: server.calls["retrieve"] >= 2)
            command.send(signal.SIGINT)
            await command.ended(20)
        found = await doubtful(bench.run)
        assert (found["attempts"], found["earlier_usd"]) == ([], {})


async def test_sums_of_an_older_version_are_settled_as_sums(tmp_path: Path) -> None:
    run = unpacked("plain", tmp_path) / "run"
    before, at_risk, _ = await money(run)
    found = await doubtful(run)
    assert len(found["attempts"]) == 1  # a kill; the time-outs left a sum
    assert found["earlier_usd"]["generate"] == pytest.approx(at_risk - found["attempts"][0]["most_usd"])
    assert "earlier versions" in (await settle(run)).out
    assert (await settle(run, "--usd", 0.03)).code == 0
    assert await money(run) == (pytest.approx(before + 0.03), 0, 0)
    assert (await doubtful(run))["earlier_usd"] == {}


async def test_what_contradicts_itself_or_is_not_there_is_told(run: Path, pool: Path, tmp_path: Path) -> None:
    await timed_out(run, pool, tmp_path)
    before = await money(run)
    for flags, words in (
        (("--lost", "--billed"), "--lost means"),
        (("--lost", "--usd", 1), "--lost means"),
        (("--usd", -1), "0 or more"),
        (("--usd", "nan"), "--usd nan: must be a finite number"),
        (("--lost", "--stage", "other"), "no stage 'other'"),
        (("--lost", "--id", "nobody"), "row nobody"),
        (("--billed", "--attempt", 999), "attempt 999"),
    ):
        ended = await settle(run, *flags)
        assert ended.code == 2, flags
        assert words in ended.err
    nowhere = await settle(tmp_path / "nowhere", "--lost")
    assert nowhere.code == 2
    assert not (tmp_path / "nowhere").exists()
    assert await money(run) == before
