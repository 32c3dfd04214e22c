"""Several endpoints for one teacher: none stops the run while another works, and the ledger knows who."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.support.cli import (
    KEY,
    MODEL,
    Ended,
    asking,
    bare,
    belongs,
    distill,
    environment,
    export,
    ledger,
    rows,
    started,
    status,
    until,
    write_pool,
)
from tests.support.provider import Config, Provider
from tests.support.scripted import completion, scripted

WHO = (
    "SELECT e.url, count(*) FROM responses p JOIN attempts t ON t.id = p.attempt "
    "JOIN endpoints e ON e.id = t.endpoint WHERE p.outcome = 'stop' GROUP BY 1"
)


def and_slowly(value: object) -> Any:
    """One more of the same kind, for those who have time."""
    return pytest.param(value, marks=pytest.mark.slow)


def pool_of(folder: Path, count: int) -> Path:
    return write_pool(folder / "pool.jsonl", rows(count))


def words(pool: Path, run: Path, urls: list[str], *flags: object) -> list[object]:
    """`generate` at several addresses, with the instruction alone as the prompt."""
    more = [word for url in urls[1:] for word in ("--base-url", url)]
    return asking(pool, run, urls[0], *more, *bare(pool.parent), *flags)


async def ask(pool: Path, run: Path, urls: list[str], *flags: object, seconds: float = 150) -> Ended:
    return await distill(*words(pool, run, urls, *flags), seconds=seconds)


@contextlib.asynccontextmanager
async def providers(*configs: Config) -> AsyncIterator[list[Provider]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Provider(config).running()) for config in configs]


async def dead_address() -> tuple[str, int]:
    """Where nobody listens."""
    async with Provider().running() as p:
        url = p.base_url
    return url, int(url.split(":")[2].split("/")[0])


def who(run: Path) -> dict[str, int]:
    return dict(ledger(run, WHO))


async def assert_all_answered(run: Path, ended: Ended, count: int) -> None:
    assert ended.code == 0, ended.err
    exported = await export(run)
    assert len(exported) == count
    assert all(belongs(row["output"], row["instruction"]) for row in exported)
    assert ledger(run, "SELECT count(*) FROM failures") == [(0,)]
    assert ledger(run, "SELECT count(*) FROM unanswered") == [(0,)]
    assert ledger(run, "SELECT count(*) FROM attempts WHERE endpoint IS NULL") == [(0,)]


# Who gets the work


async def test_the_limits_of_both_are_used_and_the_ledger_knows_who_answered(
    run: Path, tmp_path: Path
) -> None:
    limits = [Config(rpm=rpm, bucket_seconds=1, latency=0.05) for rpm in (1200, 600)]
    pool = pool_of(tmp_path, 300)
    async with providers(*limits) as (a, b):
        ended = await ask(pool, run, [a.base_url, b.base_url])
        await assert_all_answered(run, ended, 300)
        found = await status(run)
        each = found["endpoints"]
        assert who(run) == {a.base_url: a.counts.billed, b.base_url: b.counts.billed}
        assert {url: e["answered"] for url, e in each.items()} == who(run)
        assert {url: e["cost_usd"] for url, e in each.items()} == {a.base_url: 0, b.base_url: 0}
        assert all(e["utilisation"]["requests"] > 0.85 for e in each.values()), each
        assert found["utilisation"]["requests"] > 0.85
        assert 1.7 < a.counts.billed / b.counts.billed < 2.3


async def test_a_fast_one_and_a_slow_one_without_limits_are_both_used(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 400)
    async with providers(Config(latency=0.1, knee=8), Config(latency=0.4, knee=8)) as (a, b):
        ended = await ask(pool, run, [a.base_url, b.base_url])
        await assert_all_answered(run, ended, 400)
        assert a.counts.billed > b.counts.billed > 40


async def test_a_slow_limit_does_not_hold_up_the_end(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 100)
    async with providers(Config(rpm=2, bucket_seconds=30), Config()) as (a, b):
        ended = await ask(pool, run, [a.base_url, b.base_url], seconds=20)
        await assert_all_answered(run, ended, 100)
        assert a.counts.billed <= 3


async def test_what_is_too_large_for_one_goes_to_the_other(run: Path, tmp_path: Path) -> None:
    long = [{"instruction": f"{n} " + "word " * 800} for n in range(5)]
    pool = write_pool(tmp_path / "pool.jsonl", [*rows(30), *long])
    async with providers(Config(latency=0.1, too_large_tokens=1000), Config(latency=0.1)) as (a, b):
        ended = await ask(pool, run, [a.base_url, b.base_url], "--concurrency", 2)
        await assert_all_answered(run, ended, 35)
        assert a.counts.billed > 5
        assert a.counts.rejected["too_large"] >= 1


# Dead ones


async def test_one_that_is_dead_from_the_start_costs_nothing(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 100)
    url, _ = await dead_address()
    async with Provider().running() as p:
        ended = await ask(pool, run, [url, p.base_url], "--attempts", 1, seconds=30)
        await assert_all_answered(run, ended, 100)
        assert p.counts.billed == 100
    ((tries,),) = ledger(run, "SELECT count(*) FROM errors")
    assert tries <= 8


async def test_one_that_comes_up_later_is_used(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 400)
    url, port = await dead_address()
    late = Provider(Config(latency=0.05))
    async with Provider(Config(latency=0.1)).running() as p:
        flags = ("--attempts", 1, "--concurrency", 4)
        async with started(*words(pool, run, [url, p.base_url], *flags)) as command:
            await until(lambda: p.counts.billed >= 20)
            async with late.running(port):
                ended = await command.ended()
        await assert_all_answered(run, ended, 400)
    assert late.counts.billed > 20


@pytest.mark.parametrize("how", ["refused", and_slowly("503"), and_slowly("drop")])
async def test_one_that_dies_half_way_and_comes_back_is_used_again(
    run: Path, tmp_path: Path, how: str
) -> None:
    pool = pool_of(tmp_path, 600)
    flags = ("--attempts", 2, "--concurrency", 8)  # a reply on its way may come after a failure
    sick = Provider(Config(latency=0.1))
    async with Provider(Config(latency=0.2)).running() as well, contextlib.AsyncExitStack() as life:
        await life.enter_async_context(sick.running())
        async with started(*words(pool, run, [sick.base_url, well.base_url], *flags)) as command:
            await until(lambda: sick.counts.billed >= 50)
            if how == "refused":
                await life.aclose()
            else:
                sick.control(outage=True, outage_kind=how)
            seen = well.counts.billed
            await until(lambda: well.counts.billed >= seen + 80)
            billed = sick.counts.billed
            if how == "refused":
                port = int(sick.base_url.split(":")[2].split("/")[0])
                await life.enter_async_context(sick.running(port))
            else:
                sick.control(outage=False)
            ended = await command.ended()
        assert ended.code == 0, ended.err
        assert sick.counts.billed > billed
    assert ledger(run, "SELECT count(*) FROM failures") == [(0,)]
    assert ledger(run, "SELECT count(*) FROM requests WHERE answer IS NULL") == [(0,)]


async def test_the_end_does_not_wait_for_one_that_is_dead(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 60)
    async with Provider(Config(latency=0.1)).running() as well:
        async with Provider(Config(latency=0.1)).running() as sick:
            urls = [sick.base_url, well.base_url]
            async with started(*words(pool, run, urls, "--concurrency", 4)) as command:
                await until(lambda: sick.counts.billed >= 10)
                sick.control(outage=True, outage_kind="drop")
                ended = await command.ended(20)
        assert ended.code == 0, ended.err


async def test_an_outage_of_all_costs_time_and_no_row(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 200)
    async with providers(Config(latency=0.1), Config(latency=0.1)) as both:
        urls = [p.base_url for p in both]
        flags = ("--attempts", 1, "--concurrency", 4)
        async with started(*words(pool, run, urls, *flags)) as command:
            await until(lambda: all(p.counts.billed >= 20 for p in both))
            for p in both:
                p.control(outage=True)
            await until(lambda: all(p.counts.faults["outage"] for p in both))
            await asyncio.sleep(2)  # so long are they down
            billed = [p.counts.billed for p in both]
            for p in both:
                p.control(outage=False)
            ended = await command.ended()
        await assert_all_answered(run, ended, 200)
        assert all(p.counts.billed > before for p, before in zip(both, billed, strict=True))


async def test_an_outage_of_all_without_end_is_given_up_and_resumable(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 100)
    async with providers(Config(latency=0.1), Config(latency=0.1)) as both:
        urls = [p.base_url for p in both]
        flags = ("--attempts", 1, "--concurrency", 4, "--give-up", 2)
        async with started(*words(pool, run, urls, *flags)) as command:
            await until(lambda: all(p.counts.billed >= 8 for p in both))
            for p in both:
                p.control(outage=True)
            ended = await command.ended(20)
        assert ended.code == 3, ended.err
        assert "The server is overloaded" in ended.err
        for p in both:
            p.control(outage=False)
        await assert_all_answered(run, await ask(pool, run, urls, *flags), 100)
        assert sum(p.counts.billed for p in both) == 100


async def test_all_dead_from_the_start_are_given_up(run: Path, tmp_path: Path) -> None:
    urls = [(await dead_address())[0] for _ in range(2)]
    ended = await ask(pool_of(tmp_path, 20), run, urls, "--give-up", 2, seconds=20)
    assert ended.code == 3, ended.err
    assert "cannot connect" in ended.err
    assert (await status(run))["stages"]["generate"]["failed"] == {}


# Those that refuse

REFUSALS: list[dict[str, Any]] = [
    {"bad_key": True},
    {"forbidden": True},
    {"quota_after": 0},
    {"dead_model": True},
    {"refuse_params": ["max_tokens"]},
]
SHORT = ["401", "403", "quota", "404", "400"]


@pytest.mark.parametrize("first", [True, and_slowly(False)])
@pytest.mark.parametrize("how", REFUSALS, ids=SHORT)
async def test_one_that_refuses_at_once_rests_and_no_row_fails(
    run: Path, tmp_path: Path, how: dict[str, Any], first: bool
) -> None:
    pool = pool_of(tmp_path, 60)
    async with providers(Config(**how), Config(latency=0.05)) as (bad, good):
        urls = [p.base_url for p in ((bad, good) if first else (good, bad))]
        ended = await ask(pool, run, urls, "--attempts", 1, "--concurrency", 4, seconds=30)
        await assert_all_answered(run, ended, 60)
        assert bad.counts.requests <= 2


@pytest.mark.parametrize("how", [h for h in REFUSALS if "refuse_params" not in h], ids=SHORT[:4])
async def test_one_that_refuses_later_rests_and_no_row_fails(
    run: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    pool = pool_of(tmp_path, 200)
    async with providers(Config(latency=0.1), Config(latency=0.1)) as (bad, good):
        urls = [bad.base_url, good.base_url]
        flags = ("--attempts", 1, "--concurrency", 6)
        async with started(*words(pool, run, urls, *flags)) as command:
            await until(lambda: bad.counts.billed >= 30)
            bad.control(**how)
            ended = await command.ended()
        await assert_all_answered(run, ended, 200)
        assert bad.counts.requests <= bad.counts.billed + 8


@pytest.mark.parametrize("how", REFUSALS, ids=SHORT)
async def test_when_all_refuse_the_run_stops_at_once_with_their_words(
    run: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    pool = pool_of(tmp_path, 60)
    async with providers(Config(**how), Config(**how)) as both:
        ended = await ask(pool, run, [p.base_url for p in both], seconds=20)
        assert ended.code == 3, ended.err
        assert "HTTP 4" in ended.err
        assert sum(p.counts.requests for p in both) <= 25
        assert (await status(run))["stages"]["generate"]["failed"] == {}


async def test_when_all_refuse_later_the_run_stops_at_once_and_goes_on_another_day(
    run: Path, tmp_path: Path
) -> None:
    pool = pool_of(tmp_path, 200)
    async with providers(Config(latency=0.2, quota_after=20), Config(latency=0.2, quota_after=50)) as both:
        urls = [p.base_url for p in both]
        ended = await ask(pool, run, urls, "--concurrency", 8, seconds=20)
        assert ended.code == 3, ended.err
        assert "quota" in ended.err
        assert (await status(run))["stages"]["generate"]["failed"] == {}
        for p in both:
            p.control(quota_after=None)
        await assert_all_answered(run, await ask(pool, run, urls, "--concurrency", 8), 200)
        assert sum(p.counts.billed for p in both) == 200


async def test_when_all_refuse_every_stage_that_shares_them_stops(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 60)
    async with providers(Config(latency=0.2), Config(latency=0.2)) as both:
        tables = [f'base_url = "{p.base_url}"\nconcurrency = 2\nprice_in = 0\nprice_out = 0' for p in both]
        path = recipe(tmp_path, pool, tables)
        more = f'[stage.more]\ntask = "generate"\nteacher = "gpt"\npool = "{pool}"\ntemperature = 0.5\n'
        path.write_text(path.read_text() + more)
        async with started("run", path, "--run", run) as command:
            await until(lambda: all(p.counts.billed >= 10 for p in both))
            for p in both:
                p.control(bad_key=True)
            ended = await command.ended(20)
        assert ended.code == 3, ended.err
        found = (await status(run))["stages"]
        assert all(stage["failed"] == {} for stage in found.values())
        for p in both:
            p.control(bad_key=False)
        assert (await distill("run", path, "--run", run)).code == 0
        assert sum(p.counts.billed for p in both) == 120


async def test_a_row_that_all_refuse_fails_alone(run: Path, tmp_path: Path) -> None:
    poisoned = [{"instruction": "Tell me about POISON."}, *rows(40), {"instruction": "More POISON."}]
    pool = write_pool(tmp_path / "pool.jsonl", poisoned)
    async with providers(Config(poison="POISON"), Config(poison="POISON")) as both:
        ended = await ask(pool, run, [p.base_url for p in both], "--concurrency", 4, seconds=30)
        assert ended.code == 1, ended.err
        found = (await status(run))["stages"]["generate"]
        assert (found["done"], found["failed"]) == (40, {"bad_request": 2})


async def test_replies_that_cannot_be_read_are_billed_to_their_endpoint_and_are_no_answers(
    run: Path, tmp_path: Path
) -> None:
    pool = pool_of(tmp_path, 60)
    money = ("--price-in", 10, "--price-out", 30, "--yes", "--concurrency", 4, "--attempts-empty", 20)
    async with providers(Config(p_empty=0.4, latency=0.02), Config(latency=0.02)) as both:
        ended = await ask(pool, run, [p.base_url for p in both], *money)
        await assert_all_answered(run, ended, 60)
        each = (await status(run))["endpoints"]
        for p in both:
            found, counts = each[p.base_url], p.counts
            assert found["answered"] == counts.billed - counts.faults["empty"]
            bill = 10 * counts.prompt_tokens + 30 * counts.completion_tokens
            assert found["cost_usd"] == pytest.approx(bill / 1e6)
        assert both[0].counts.faults["empty"] > 0


async def test_a_long_wait_at_one_holds_nobody(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 100)
    asked: list[int] = []

    async def busy(request: web.Request) -> web.Response:
        asked.append(1)
        body = orjson.dumps({"error": {"message": "Later.", "code": "rate_limit_exceeded"}})
        return web.Response(body=body, status=429, headers={"retry-after": "600"})

    async with scripted(busy) as url, Provider(Config(latency=0.05)).running() as p:
        ended = await ask(pool, run, [url, p.base_url], "--attempts", 1, "--rpm", 6000, seconds=30)
        await assert_all_answered(run, ended, 100)
    assert len(asked) == 1


async def test_at_most_one_request_goes_to_one_that_has_not_answered(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 100)
    async with providers(Config(latency=3), Config(latency=0.05)) as (slow, fast):
        async with started(*words(pool, run, [slow.base_url, fast.base_url], "--concurrency", 8)) as command:
            await until(lambda: fast.counts.billed >= 60)
            assert (slow.counts.requests, slow.counts.billed) == (1, 0)
            slow.control(latency=0.05)
            ended = await command.ended()
        await assert_all_answered(run, ended, 100)


# Stopping and going on


async def test_an_interrupt_lands_what_is_in_flight_at_all(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 200)
    async with providers(Config(latency=0.5), Config(latency=0.7)) as both:
        urls = [p.base_url for p in both]
        async with started(*words(pool, run, urls, "--concurrency", 5)) as command:
            await until(lambda: all(p.counts.billed >= 2 and p.counts.in_flight == 5 for p in both))
            command.send(signal.SIGINT)
            ended = await command.ended(15)
        assert ended.code == 130, ended.err
        assert sum(p.counts.faults["abandoned"] for p in both) == 0
        assert sum(who(run).values()) == sum(p.counts.billed for p in both)
        assert ledger(run, "SELECT count(*) FROM unanswered") == [(0,)]
        for p in both:
            p.control(latency=0)
        await assert_all_answered(run, await ask(pool, run, urls), 200)
        assert sum(p.counts.billed for p in both) == 200


async def test_an_interrupt_while_all_are_down_or_waited_for_ends_at_once(run: Path, tmp_path: Path) -> None:
    urls = [(await dead_address())[0] for _ in range(2)]
    async with started(*words(pool_of(tmp_path, 20), run, urls)) as command:
        await until(lambda: (run / "ledger.db").exists())
        await until(lambda: "errors" in str(ledger(run, "SELECT name FROM sqlite_master")))
        await until(lambda: ledger(run, "SELECT count(*) FROM errors")[0][0] >= 3)
        command.send(signal.SIGINT)
        ended = await command.ended(30)
    assert ended.code == 130, ended.err


async def test_what_a_kill_left_is_asked_again_and_nothing_else(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 150)
    async with providers(Config(latency=0.2), Config(latency=0.1)) as both:
        urls = [p.base_url for p in both]
        for wanted in (20, 70):
            async with started(*words(pool, run, urls, "--concurrency", 5)) as command:
                await until(lambda n=wanted: sum(p.counts.billed for p in both) >= n)
                command.send(signal.SIGKILL)
                await command.ended()
        ended = await ask(pool, run, urls, "--concurrency", 5)
        assert ended.code == 0, ended.err
        assert len(await export(run)) == 150
        assert sum(p.counts.billed for p in both) <= 150 + 2 * 10


async def test_daily_limits_are_each_endpoints_own_and_outlive_the_process(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 100)
    async with providers(Config(), Config()) as both:
        urls = [p.base_url for p in both]
        for left in (20, 0):
            before = sum(p.counts.billed for p in both)
            async with started(*words(pool, run, urls, "--rpd", 10)) as command:
                await until(lambda n=before + left: sum(p.counts.billed for p in both) >= n)
                await asyncio.sleep(2)  # nothing more comes
                command.send(signal.SIGINT)
                assert (await command.ended(15)).code == 130
            assert [p.counts.billed for p in both] == [10, 10]
        ended = await ask(pool, run, [*urls, urls[0].replace("127.0.0.1", "localhost")], "--rpd", 90)
        assert ended.code == 0, ended.err


# Keys, prices, old ledgers, usage


def recipe(folder: Path, pool: Path, tables: list[str], budget: float | None = None) -> Path:
    endpoints = "".join(f"[[teacher.gpt.endpoint]]\n{table}\n" for table in tables)
    text = (
        f'{"" if budget is None else f"budget = {budget}"}\n[teacher.gpt]\nmodel = "{MODEL}"\n{endpoints}'
        f'[stage.generate]\ntask = "generate"\nteacher = "gpt"\npool = "{pool}"\nmax_tokens = 60\n'
    )
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def test_each_key_goes_to_its_own_endpoint_and_nowhere_else(run: Path, tmp_path: Path) -> None:
    keys = {"KEY_A": "sk-aaaaaaaaaaaaaaaaaaaaaaaa", "KEY_B": "sk-bbbbbbbbbbbbbbbbbbbbbbbb"}
    heard: dict[str, Counter[str]] = {name: Counter() for name in keys}

    def echo(name: str) -> Callable[[web.Request], Any]:
        async def reply(request: web.Request) -> web.Response:
            key = request.headers["Authorization"]
            heard[name][key] += 1
            if heard[name].total() % 5 == 4:
                body = orjson.dumps({"error": {"message": f"{key} is slow", "type": "server_error"}})
                return web.Response(body=body, status=500)
            return web.Response(body=completion(f"You said {key}"), content_type="application/json")

        return reply

    pool = pool_of(tmp_path, 40)
    async with scripted(echo("KEY_A")) as a, scripted(echo("KEY_B")) as b:
        tables = [
            f'base_url = "{url}"\napi_key_env = "{name}"\nconcurrency = 2\nprice_in = 0\nprice_out = 0'
            for url, name in ((a, "KEY_A"), (b, "KEY_B"))
        ]
        path = recipe(tmp_path, pool, tables)
        ended = await distill("run", path, "--run", run, env=environment(**keys))
    assert ended.code == 0, ended.err
    for name, key in keys.items():
        assert set(heard[name]) == {f"Bearer {key}"}
        assert key not in ended.err + ended.out
    assert ledger(run, "SELECT count(*) FROM errors WHERE message LIKE '%is slow%'")[0][0] > 2
    kept = everything_in(run)
    assert not any(key.encode() in kept for key in (*keys.values(), KEY))


async def test_the_budget_holds_whoever_answers(run: Path, tmp_path: Path) -> None:
    pool, cap = pool_of(tmp_path, 200), 5.0
    prices = ((1000, 2000), (100, 300))  # USD a million tokens
    settings = Config(latency=0.05, exact_tokens=True, p_reset_after=0.05)
    async with providers(settings, settings) as both:
        tables = [
            f'base_url = "{p.base_url}"\nconcurrency = 4\nprice_in = {price_in}\nprice_out = {price_out}'
            for p, (price_in, price_out) in zip(both, prices, strict=True)
        ]
        path = recipe(tmp_path, pool, tables, cap)
        ended = await distill("run", path, "--run", run)
        assert ended.code == 3, ended.err
        assert "budget" in ended.err
        billed = [
            (p.counts.prompt_tokens * i + p.counts.completion_tokens * o) / 1e6
            for p, (i, o) in zip(both, prices, strict=True)
        ]
        assert 0.5 * cap < sum(billed) <= cap
        found = await status(run)
        for p, cost in zip(both, billed, strict=True):
            told = found["endpoints"][p.base_url]["cost_usd"]
            assert 0 < told <= cost + 1e-9
        assert found["spent_usd"] == pytest.approx(sum(e["cost_usd"] for e in found["endpoints"].values()))
        assert sum(billed) <= found["spent_usd"] + found["at_risk_usd"] + 1e-9


def to_version_1(run: Path) -> None:
    """Takes back what version 2 of the schema added (store/schema.py, BATCHES and ENDPOINTS)."""
    db = sqlite3.connect(run / "ledger.db")
    db.execute("ALTER TABLE attempts DROP COLUMN endpoint")
    for table in ("endpoints", "enqueued", "batches", "facts"):
        db.execute(f"DROP TABLE {table}")
    (table,) = db.execute("SELECT name FROM sqlite_master WHERE name LIKE '%migrations'").fetchone()
    db.execute(f"DELETE FROM {table} WHERE name = 'm002_batches_and_endpoints'")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()


async def test_a_ledger_of_version_1_is_brought_up_to_date(run: Path, tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 40)
    async with providers(Config(latency=0.05), Config(latency=0.05)) as (a, b):
        assert (await ask(pool, run, [a.base_url], "--limit", 20)).code == 0
        to_version_1(run)
        assert (await status(run))["stages"]["generate"]["done"] == 20  # it can be read as it is
        to_version_1(run)
        assert (await ask(pool, run, [a.base_url, b.base_url], "--concurrency", 2)).code == 0
        assert a.counts.billed + b.counts.billed == 40
        found = await status(run)
        assert found["stages"]["generate"]["done"] == 40
        assert sum(e["answered"] for e in found["endpoints"].values()) == 20
    assert len(await export(run)) == 40


async def test_the_same_address_twice_is_bad_usage(run: Path, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    for other in (url, url + "/"):
        ended = await ask(pool_of(tmp_path, 2), run, [url, other])
        assert ended.code == 2, ended.err
        assert "twice" in ended.err
