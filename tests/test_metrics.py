"""`--metrics-port`: what Prometheus scrapes while a run goes is what the ledger says in the end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from engine.collect.stats import LATENCY_BOUNDS, RunState
from engine.limits.budget import Budget
from engine.limits.endpoints import Teacher
from engine.run.metrics import COUNTERS, GAUGES, LATENCY, Board, MeteredStage, serving
from engine.run.progress import View
from store.errors import UsageError
from tests.support.cli import (
    ROOT,
    Command,
    asking,
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

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Scraped = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str, parse: Any = plain) -> Scraped:
    """{(name, labels but stage and model): value}."""
    return {
        (s.name, frozenset((k, v) for k, v in s.labels.items() if k not in ("stage", "model"))): s.value
        for family in parse(text)
        for s in family.samples
    }


def value(scraped: Scraped, name: str, **labels: str) -> float | None:
    """The sample with these labels; there is one server only, whose label nobody names."""
    found = [
        number
        for (n, pairs), number in scraped.items()
        if n == name and {(k, v) for k, v in pairs if k != "endpoint"} == set(labels.items())
    ]
    return found[0] if found else None


async def scrape(url: str, accept: str = "") -> str:
    async with aiohttp.ClientSession() as session, session.get(url, headers={"Accept": accept}) as found:
        assert found.status == 200
        assert found.content_type in ("text/plain", "application/openmetrics-text")
        return await found.text()


async def address(command: Command) -> str:
    await until(lambda: b"/metrics\n" in command.err)
    found = re.search(rb"metrics: (http://127\.0\.0\.1:\d+/metrics)", command.err)
    assert found
    return found[1].decode()


FAULTS = Config(
    p_500=0.05, p_429=0.1, p_empty=0.05, p_malformed=0.03, p_filter=0.03, p_refusal=0.03, poison="number 7",
    retry_after="ms", headers="none",
)  # fmt: skip


async def test_a_scrape_agrees_with_status_and_the_provider(tmp_path: Path) -> None:
    """The pool comes through a pipe that stays open, so that the run waits while it is looked at."""
    pool = write_pool(tmp_path / "pool.jsonl", rows(128, "number"))
    run = tmp_path / "run"
    words = asking("-", run, "", "--metrics-port", 0, "--tpm", 10_000_000, "--price-in", 1, "--price-out", 2,
                   "--budget", 9, "--attempts", 20, "--concurrency", 16)  # fmt: skip
    async with Provider(FAULTS).running() as provider:
        words[words.index("")] = provider.base_url
        async with started(*words, stdin=asyncio.subprocess.PIPE) as command:
            assert command.process.stdin
            command.process.stdin.write(pool.read_bytes())
            url = await address(command)
            async with asyncio.timeout(60):
                while True:
                    scraped = read(await scrape(url))
                    settled = value(scraped, "distill_rows_done") or 0
                    settled += sum(v for (n, _), v in scraped.items() if n == "distill_rows_failed")
                    if settled == 128:
                        break
                    await asyncio.sleep(0.02)
            exact = read(await scrape(url, OPENMETRICS), openmetrics)
            found = await stage(run)
            command.process.stdin.close()
            ended = await command.ended()
    assert ended.code == 1, ended.err
    empty = found["outcomes"].pop("empty", 0)  # rows that were answered twice with nothing
    assert found["done"] == value(scraped, "distill_rows_done") == 128 - sum(found["failed"].values()) - empty
    for outcome, count in found["outcomes"].items():
        assert value(scraped, "distill_requests_total", result=outcome) == count
    unusable = found["unusable"]
    assert unusable["replies"] >= max(1, 2 * empty)
    for outcome, count in unusable["outcomes"].items():
        assert value(scraped, "distill_unusable_replies_total", outcome=outcome) == count
        assert value(scraped, "distill_requests_total", result=outcome) == count
    assert value(scraped, "distill_unusable_cost_usd_total") == pytest.approx(unusable["cost_usd"])
    assert value(scraped, "distill_estimated_replies_total") == found["billed"]["estimated_replies"]
    for cause, count in found["failed"].items():
        assert value(scraped, "distill_rows_failed", cause=cause) == count
    for kind in ("prompt", "completion"):
        assert value(scraped, "distill_tokens_total", kind=kind) == found[f"{kind}_tokens"]
    assert value(scraped, "distill_cost_usd_total") == pytest.approx(found["cost_usd"])
    assert value(scraped, "distill_spent_usd") == pytest.approx(found["cost_usd"])
    assert value(scraped, "distill_at_risk_usd") == pytest.approx(found["at_risk_usd"])
    assert value(scraped, "distill_budget_usd") == 9
    assert value(scraped, "distill_requests_in_flight") == value(scraped, "distill_requests_queued") == 0
    assert value(scraped, "distill_breaker_open") == 0
    assert value(scraped, "distill_rate_limited_total") == sum(provider.counts.rejected.values()) > 0
    assert value(scraped, "distill_requests_sent_total") == provider.counts.requests
    assert (
        sum(v for (n, _), v in scraped.items() if n == "distill_requests_total") == provider.counts.requests
    )
    replies = found["done"] + unusable["replies"]
    assert value(scraped, f"{LATENCY}_count") == replies == value(scraped, f"{LATENCY}_bucket", le="+Inf")
    seconds = ledger(run, "SELECT sum(latency) FROM responses WHERE outcome <> 'malformed'")[0][0]
    assert value(scraped, f"{LATENCY}_sum") == pytest.approx(seconds)
    assert value(scraped, "distill_limit_per_minute", limit="tokens") == 10_000_000
    assert 0 < (value(scraped, "distill_limit_utilisation_ratio", limit="tokens") or 0) <= 1
    assert (value(scraped, "process_resident_memory_bytes") or 0) > 10_000_000
    assert (value(scraped, "distill_ledger_bytes") or 0) > 10_000
    ours = {key for key in scraped if key[0].startswith("distill_")}
    assert ours <= exact.keys()


async def test_requests_in_flight_are_seen_while_they_are(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(40))
    async with Provider(Config(latency=0.3)).running() as provider:
        words = asking(
            pool, tmp_path / "run", provider.base_url, "--metrics-port", 0, "--quiet", "--concurrency", 8
        )
        async with started(*words) as command:
            url = await address(command)
            most = 0.0
            with contextlib.suppress(aiohttp.ClientError):  # the run has ended
                while True:
                    scraped = read(await scrape(url))
                    most = max(most, value(scraped, "distill_requests_in_flight") or 0)
                    assert value(scraped, "distill_rows") in (None, 40)
            assert (await command.ended()).code == 0
    assert 1 < most <= 8


async def test_a_port_in_use_ends_it_before_anything_is_asked(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(3))
    async with Provider().running() as provider:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            ended = await generate(tmp_path / "run", pool, provider.base_url, "--metrics-port", port)
        assert ended.code == 2
        assert f"--metrics-port {port}: the port is in use" in ended.err
        assert provider.counts.requests == 0
        again = await generate(tmp_path / "run", pool, provider.base_url, "--metrics-port", port)
        assert again.code == 0, again.err
        assert f"http://127.0.0.1:{port}/metrics" in again.err


@pytest.mark.parametrize("port", [-1, 65536])
async def test_a_port_that_is_none_is_a_usage_error(tmp_path: Path, port: int) -> None:
    ended = await generate(tmp_path / "run", write_pool(tmp_path / "p.jsonl", rows(1)), "http://127.0.0.1:1/v1",
                           "--metrics-port", port)  # fmt: skip
    assert ended.code == 2
    assert "--metrics-port" in ended.err


def test_who_asks_for_no_port_pays_nothing() -> None:
    program = "import sys, engine.run.session; print({'prometheus_client', 'aiohttp.web'} & set(sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment(), capture_output=True, text=True, cwd=ROOT
    )
    assert ended.stdout.strip() == "set()", ended.stderr


# The board by itself.


def source(name: str = "generate", **counted: Any) -> MeteredStage:
    view = View(name, RunState(**counted), Teacher([]), Budget(None, 0, 0))
    return MeteredStage(name, "gpt-4", view, Path("none.db"))


async def test_latencies_fall_into_the_buckets_that_hold_them() -> None:
    board, one = Board(), source()
    board.add(one)
    for seconds in (0.05, 0.1, 0.11, 7.0, 1000.0):
        one.view.state.spread.add(seconds)
    (family,) = (f for f in board.collect() if f.name == LATENCY)
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert (buckets["0.1"], buckets["0.25"], buckets["5.0"], buckets["10.0"]) == (2, 3, 3, 4)
    assert (buckets["300.0"], buckets["+Inf"], len(buckets)) == (4, 5, len(LATENCY_BOUNDS) + 1)


async def test_stages_stand_side_by_side() -> None:
    board = Board()
    board.add(source("one", done=1))
    board.add(source("two", done=2))
    (family,) = (f for f in board.collect() if f.name == "distill_rows_done")
    assert [(s.labels, s.value) for s in family.samples] == [
        ({"stage": "one", "model": "gpt-4"}, 1),
        ({"stage": "two", "model": "gpt-4"}, 2),
    ]


async def test_hostile_labels_survive_the_way() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    board, registry = Board(), CollectorRegistry(auto_describe=False)
    board.add(source('a "b"\nc\\d é', done=3))
    registry.register(board)
    labels = [s.labels for f in plain(generate_latest(registry).decode()) for s in f.samples]
    assert {found["stage"] for found in labels} == {'a "b"\nc\\d é'}


def test_names_follow_the_conventions() -> None:
    """https://prometheus.io/docs/practices/naming: base units, `_total` for counters alone."""
    for family in (*COUNTERS, *GAUGES):
        assert re.fullmatch(r"distill_[a-z]+(_[a-z]+)*", family.name)
        assert not family.name.endswith(("_total", "_count", "_sum", "_ms", "_info", "_bucket"))
        assert family.help
        assert not family.help.endswith(".")
    names = [family.name for family in (*COUNTERS, *GAUGES)]
    assert len(set(names)) == len(names)


async def test_a_port_is_given_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="is in use"):
            async with serving(port):
                pass
    for _ in range(2):
        async with serving(port):
            assert "process_" in await scrape(f"http://127.0.0.1:{port}/metrics")
