"""Addresses as people paste them are understood; what answers there and is no API is told at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.cli import bare, generate, ledger, stage
from tests.support.scripted import completion, scripted


@pytest.mark.parametrize(
    "pasted", ["{url}/", " {url} ", "{url}/chat/completions", "{url}/chat/completions/", "{url}#top"]
)
async def test_an_address_is_understood_as_it_is_pasted(tmp_path: Path, pool: Path, pasted: str) -> None:
    async def reply(request: web.Request) -> web.Response:
        return web.Response(body=completion(), content_type="application/json")

    async with scripted(reply) as url:
        ended = await generate(tmp_path / "run", pool, pasted.format(url=url), *bare(tmp_path))
        assert ended.code == 0, ended.err
        assert ledger(tmp_path / "run", "SELECT url FROM endpoints") == [(url,)]


async def test_a_query_stays_behind_the_path(tmp_path: Path, pool: Path) -> None:
    seen = set()

    async def reply(request: web.Request) -> web.Response:
        seen.add(request.path_qs)
        return web.Response(body=completion(), content_type="application/json")

    async with scripted(reply) as url:
        ended = await generate(tmp_path / "run", pool, f"{url}?api-version=2026-01-01", *bare(tmp_path))
    assert ended.code == 0, ended.err
    assert seen == {"/v1/chat/completions?api-version=2026-01-01"}


@pytest.mark.parametrize("name", ["key", "api_key", "subscription-key", "access_token", "sig"])
async def test_a_key_in_an_address_is_refused(tmp_path: Path, pool: Path, name: str) -> None:
    ended = await generate(tmp_path / "run", pool, f"http://127.0.0.1:9/v1?{name}=s3cret")
    assert ended.code == 2
    assert "--api-key-env" in ended.err
    assert "s3cret" not in ended.err


async def test_a_page_in_the_place_of_an_api_is_told_at_the_first_reply(tmp_path: Path, pool: Path) -> None:
    asked = 0

    async def reply(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(text="<!DOCTYPE html><html>Welcome</html>", content_type="text/html")

    async with scripted(reply) as url:
        ended = await generate(tmp_path / "run", pool, url, "--price-in", 1, "--price-out", 1, "--budget", 1)
    assert ended.code == 3
    assert url in ended.err
    assert "/v1" in ended.err
    assert asked == 1
    assert ledger(tmp_path / "run", "SELECT spent_micro, at_risk_micro FROM spending") == [(0, 0)]


async def test_a_redirect_is_named_and_the_key_is_not_sent_on(tmp_path: Path, pool: Path) -> None:
    other: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        other.append(request.headers.get("Authorization", ""))
        return web.Response(body=completion(), content_type="application/json")

    async with scripted(elsewhere) as there:

        async def reply(request: web.Request) -> web.Response:
            return web.Response(status=308, headers={"Location": f"{there}/chat/completions"})

        async with scripted(reply) as url:
            ended = await generate(tmp_path / "run", pool, url)
    assert ended.code == 3
    assert f"--base-url {there}" in ended.err
    assert other == []


async def test_a_handshake_that_never_ends_is_an_outage_and_fails_no_row(tmp_path: Path, pool: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        flags = ("--timeout", 1, "--give-up", 2, "--attempts", 2)
        ended = await generate(tmp_path / "run", pool, f"https://127.0.0.1:{port}/v1", *flags)
    assert ended.code == 3
    assert "no connection" in ended.err
    assert (await stage(tmp_path / "run"))["failed"] == {}


async def test_limits_that_never_end_end_the_run_in_the_server_s_words(tmp_path: Path, pool: Path) -> None:
    async def reply(request: web.Request) -> web.Response:
        error = {"error": {"message": "The cluster is drained until Monday.", "code": "rate_limit_exceeded"}}
        return web.json_response(error, status=429, headers={"Retry-After": "0.2"})

    started = time.monotonic()
    async with scripted(reply) as url:
        ended = await generate(tmp_path / "run", pool, url, "--give-up", 3)
    assert ended.code == 3
    assert "The cluster is drained until Monday." in ended.err
    assert time.monotonic() - started < 60
    assert (await stage(tmp_path / "run"))["failed"] == {}


async def test_a_huge_refusal_is_a_fault_of_the_server(tmp_path: Path, pool: Path) -> None:
    asked = 0

    async def reply(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 1:
            return web.Response(status=503, body=b"Try later. " + b"x" * 40_000_000)
        return web.Response(body=completion(), content_type="application/json")

    async with scripted(reply) as url:
        ended = await generate(tmp_path / "run", pool, url, *bare(tmp_path))
    assert ended.code == 0, ended.err
    assert ledger(tmp_path / "run", "SELECT cause, status FROM errors") == [("server", 503)]
    assert ledger(tmp_path / "run", "SELECT DISTINCT outcome FROM responses") == [("stop",)]


@pytest.mark.parametrize("status", [201, 206])
async def test_a_whole_answer_is_read_whatever_its_2xx(tmp_path: Path, pool: Path, status: int) -> None:
    async def reply(request: web.Request) -> web.Response:
        return web.Response(status=status, body=completion(), content_type="application/json")

    async with scripted(reply) as url:
        ended = await generate(tmp_path / "run", pool, url, *bare(tmp_path))
    assert ended.code == 0, ended.err
    assert (await stage(tmp_path / "run"))["outcomes"] == {"stop": 12}
