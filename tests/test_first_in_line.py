"""Rows that a server refuses or chokes on, first in line: they fail alone, and all others are asked."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from tests.support.cli import Ended, distill, generate, ledger, rows, stage, write_pool
from tests.support.scripted import completion, scripted


def refuse(status: int, words: str = "No.") -> web.Response:
    return web.json_response({"error": {"message": words}}, status=status)


class Server:
    """Answers each row but those `bad`, to which it replies with a status. Counts what it is asked."""

    def __init__(self, bad: Callable[[str], bool], status: int) -> None:
        self.bad, self.status, self.asked = bad, status, Counter[str]()
        self.good_latency, self.bad_latency = 0.0, 0.0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        row = orjson.loads(await request.read())["messages"][-1]["content"]
        self.asked[row] += 1
        if self.bad(row):
            await asyncio.sleep(self.bad_latency)
            return refuse(self.status)
        await asyncio.sleep(self.good_latency)
        return web.Response(body=completion("Fine."), content_type="application/json")


def number(row: str) -> int:
    """Of a row that `cli.rows` made."""
    found = re.search(r"about row (\d+)", row)
    assert found
    return int(found[1])


async def failures(run: Path) -> Counter[str]:
    return Counter((await stage(run))["failed"])


@pytest.mark.parametrize("status", [403, 400, 404, 405, 410])
async def test_refused_rows_that_are_retried_first_do_not_stop_the_next_start(
    tmp_path: Path, status: int
) -> None:
    server, run = Server(lambda row: 10 <= number(row) < 34, status), tmp_path / "run"
    pool = write_pool(tmp_path / "pool.jsonl", rows(300))
    async with scripted(server.answer) as url:
        first = await generate(run, pool, url, "--concurrency", 8)
        assert first.code == 1, first.err
        assert sum((await failures(run)).values()) == 24
        await distill("retry", run)
        more = write_pool(tmp_path / "pool.jsonl", rows(400))
        second = await generate(run, more, url, "--concurrency", 8)
    assert second.code == 1, second.err
    assert ledger(run, "SELECT count(*) FROM answers") == [(376,)]
    assert sum((await failures(run)).values()) == 24


async def test_refused_rows_that_are_all_that_is_left_fail_again(tmp_path: Path) -> None:
    server, run = Server(lambda row: 10 <= number(row) < 34, 403), tmp_path / "run"
    pool = write_pool(tmp_path / "pool.jsonl", rows(100))
    async with scripted(server.answer) as url:
        await generate(run, pool, url, "--concurrency", 4)
        await distill("retry", run)
        again = await generate(run, pool, url, "--concurrency", 4)
    assert again.code == 1, again.err
    assert sum((await failures(run)).values()) == 24


async def test_a_server_that_begins_to_refuse_everybody_stops_the_run(tmp_path: Path) -> None:
    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", rows(300))
    server = Server(lambda row: sum(server.asked.values()) > 100, 403)
    async with scripted(server.answer) as url:
        ended = await generate(run, pool, url, "--concurrency", 8)
    assert ended.code == 3, ended.err
    assert await failures(run) == {}
    assert sum(server.asked.values()) < 150


@pytest.mark.parametrize(
    ("bad", "count", "good_latency", "bad_latency", "concurrency"),
    [(range(300, 330), 400, 0.5, 0.0, 64), (range(50, 150), 600, 0.0, 0.2, 100)],
    ids=["while answers are in flight that come after them", "all in flight together"],
)
async def test_a_block_of_refused_rows_does_not_speak_for_the_run(
    tmp_path: Path, bad: range, count: int, good_latency: float, bad_latency: float, concurrency: int
) -> None:
    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", rows(count))
    server = Server(lambda row: number(row) in bad, 403)
    server.good_latency, server.bad_latency = good_latency, bad_latency
    async with scripted(server.answer) as url:
        ended = await generate(run, pool, url, "--concurrency", concurrency)
    assert ended.code == 1, ended.err
    assert sum((await failures(run)).values()) == len(bad)
    assert ledger(run, "SELECT count(*) FROM answers") == [(count - len(bad),)]


@pytest.mark.parametrize("status", [500, 409])
@pytest.mark.parametrize("concurrency", [2, 8, 64])
async def test_rows_that_break_the_server_fail_and_are_no_outage(
    tmp_path: Path, status: int, concurrency: int
) -> None:
    server, run = Server(lambda row: number(row) < 24, status), tmp_path / "run"
    pool = write_pool(tmp_path / "pool.jsonl", rows(200))
    flags = ("--concurrency", concurrency, "--attempts", 3, "--give-up", 20)
    async with scripted(server.answer) as url:
        ended = await generate(run, pool, url, *flags)
        assert ended.code == 1, ended.err
        assert await failures(run) == {"server": 24}
        assert ledger(run, "SELECT count(*) FROM answers") == [(176,)]
        await distill("retry", run)
        again = await generate(run, pool, url, *flags)
    assert again.code == 1, again.err
    assert await failures(run) == {"server": 24}


@pytest.mark.parametrize("count", [1, 5, 40])
async def test_a_server_that_stays_silent_is_an_outage_in_any_pool(tmp_path: Path, count: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return refuse(500)

    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", rows(count))
    async with scripted(answer) as url:
        ended: Ended = await generate(run, pool, url, "--timeout", 0.2, "--attempts", 3, "--give-up", 1)
    assert ended.code == 3, ended.err
    assert await failures(run) == {}
