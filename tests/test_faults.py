"""A provider that fails in every way it can: each row ends answered, or failed under its own cause."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from tests.support.cli import (
    Ended,
    bare,
    belongs,
    distill,
    export,
    generate,
    ledger,
    rows,
    stage,
    status,
    write_pool,
)
from tests.support.provider import Config, Provider
from tests.support.scripted import completion, listening, scripted

COUNT = 30
CONCURRENCY = ("--concurrency", 16)
CAUSES = "SELECT cause, count(*) FROM errors GROUP BY 1"
OUTCOMES = "SELECT outcome, count(*) FROM responses GROUP BY 1"


class Told:
    """A run against a misbehaving provider, and what came of it."""

    def __init__(self, run: Path, ended: Ended, provider: Provider) -> None:
        self.run, self.ended, self.provider = run, ended, provider
        self.causes: dict[str, int] = dict(ledger(run, CAUSES))
        self.replies: dict[str, int] = dict(ledger(run, OUTCOMES))
        self.counts = provider.counts

    def bill(self, price_in: int, price_out: int) -> int:
        """What the provider has charged, in micro-dollars at USD a million tokens."""
        return self.counts.prompt_tokens * price_in + self.counts.completion_tokens * price_out


async def ask(folder: Path, config: Config, *flags: object, count: int = COUNT) -> Told:
    pool, run = write_pool(folder / "pool.jsonl", rows(count)), folder / "run"
    async with Provider(config).running() as p:
        ended = await generate(run, pool, p.base_url, "--quiet", *CONCURRENCY, *bare(folder), *flags)
    return Told(run, ended, p)


def assert_all_answered(told: Told, count: int = COUNT) -> None:
    assert told.ended.code == 0, told.ended.err
    found = ledger(told.run, "SELECT instruction, output FROM answers ORDER BY position")
    assert len(found) == count
    assert all(belongs(output or "", instruction) for instruction, output in found)


async def test_what_passes_is_asked_again_until_it_is_answered(tmp_path: Path) -> None:
    kinds = ("500", "503", "429", "reset_before", "reset_after")
    told = await ask(tmp_path, Config(**{f"p_{kind}": 0.06 for kind in kinds}, seed=4), count=80)
    assert_all_answered(told, 80)
    drawn = told.counts.faults
    assert all(drawn[kind] for kind in kinds)
    assert told.causes == {
        "server": drawn["500"] + drawn["503"],
        "rate_limit": drawn["429"],
        "connection": drawn["reset_before"] + drawn["reset_after"],
    }
    assert told.replies == {"stop": 80}


@pytest.mark.parametrize("headers", ["all", "none"])
async def test_limits_that_nobody_told_us_cost_no_row_and_no_attempt(tmp_path: Path, headers: Any) -> None:
    config = Config(rpm=600, bucket_seconds=1, headers=headers, retry_after="ms", latency=0.05)
    told = await ask(tmp_path, config, "--attempts", 1, count=25)
    assert_all_answered(told, 25)
    assert told.causes.get("rate_limit", 0) == told.counts.rejected.total()
    assert set(told.causes) <= {"rate_limit"}
    if headers == "none":
        assert told.counts.rejected.total() > 0


async def test_a_reply_that_does_not_come_in_time_is_given_up_and_asked_again(
    tmp_path: Path,
) -> None:
    told = await ask(tmp_path, Config(p_stall=0.15, stall_seconds=20, seed=1), "--timeout", 1)
    assert_all_answered(told)
    assert told.causes == {"timeout": told.counts.faults["stall"]}
    ((at_risk, worst),) = ledger(
        told.run,
        "SELECT (SELECT sum(at_risk_micro) FROM spending), (SELECT sum(worst_micro) FROM attempts a "
        "JOIN errors e ON e.attempt = a.id)",
    )
    assert at_risk == worst  # a reply that was not waited for may be billed


async def test_a_reply_that_cannot_be_read_is_stored_counted_and_asked_again(
    tmp_path: Path,
) -> None:
    kinds = ("truncate", "malformed", "empty")
    money = ("--price-in", 10, "--price-out", 30, "--yes")
    config = Config(**{f"p_{kind}": 0.1 for kind in kinds}, seed=4)
    told = await ask(tmp_path, config, "--attempts-empty", 8, *money)
    assert_all_answered(told)
    drawn = told.counts.faults
    assert all(drawn[kind] for kind in kinds)
    bad = drawn.total() - told.replies["empty"]
    assert told.replies == {"stop": COUNT, "malformed": bad, "empty": told.replies["empty"]}
    assert 0 < told.replies["empty"] <= drawn["empty"]
    assert told.causes == {"malformed": bad}
    raws = ledger(told.run, "SELECT raw FROM replies WHERE outcome = 'malformed'")
    assert all(raw.startswith('{"id":"chatcmpl-') for (raw,) in raws)
    ((spent, at_risk),) = ledger(told.run, "SELECT spent_micro, at_risk_micro FROM spending")
    assert spent <= told.bill(10, 30) <= spent + at_risk


async def test_an_empty_reply_is_billed_by_its_usage(tmp_path: Path) -> None:
    money = ("--price-in", 10, "--price-out", 30, "--yes")
    told = await ask(tmp_path, Config(p_empty=0.3, seed=4), "--attempts-empty", 8, *money)
    assert_all_answered(told)
    assert told.replies["stop"] == COUNT
    assert told.replies["empty"] > 0  # a text of nothing; a list of no choices is malformed
    assert told.replies["empty"] + told.replies["malformed"] == told.counts.faults["empty"]
    assert ledger(told.run, "SELECT spent_micro, at_risk_micro FROM spending") == [(told.bill(10, 30), 0)]


async def test_a_large_reply_is_an_answer(tmp_path: Path) -> None:
    told = await ask(tmp_path, Config(p_huge=0.3, huge_bytes=6 * 2**20, seed=3), count=8)
    assert_all_answered(told, 8)
    assert told.counts.faults["huge"] > 0


async def test_a_reply_without_end_is_cut_off_and_its_beginning_stored(tmp_path: Path) -> None:
    told = await ask(tmp_path, Config(p_huge=0.3, huge_bytes=40 * 2**20, seed=3), count=8)
    assert_all_answered(told, 8)
    assert told.replies["malformed"] == told.counts.faults["huge"] > 0
    ((longest,),) = ledger(told.run, "SELECT max(length(raw)) FROM bodies")
    assert longest < 2**20


async def test_what_the_teacher_will_not_say_is_an_outcome_and_is_not_asked_again(
    tmp_path: Path,
) -> None:
    told = await ask(tmp_path, Config(p_filter=0.1, p_filter_400=0.1, p_refusal=0.1, seed=4))
    assert told.ended.code == 0
    drawn = told.counts.faults
    filtered, refused = drawn["filter"] + drawn["filter_400"], drawn["refusal"]
    assert all(drawn[kind] for kind in ("filter", "filter_400", "refusal"))
    usable = COUNT - filtered - refused
    assert told.replies == {"stop": usable, "content_filter": filtered, "refusal": refused}
    assert told.counts.requests == COUNT
    exported = await export(told.run)
    assert len(exported) == usable
    assert all(belongs(row["output"], row["instruction"]) for row in exported)
    found = await stage(told.run)
    assert (found["done"], found["failed"], found["outcomes"]) == (COUNT, {}, told.replies)


async def test_an_answer_that_was_cut_is_kept_and_said_to_be(tmp_path: Path) -> None:
    told = await ask(tmp_path, Config(mean_tokens=60), "--max-tokens", 30)
    assert_all_answered(told)
    assert told.replies["length"] > 0
    assert told.replies["length"] + told.replies.get("stop", 0) == COUNT == told.counts.requests
    assert len(await export(told.run, "--outcome", "length")) == told.replies["length"]


async def test_all_faults_together_lose_nothing(tmp_path: Path) -> None:
    kinds = (
        "500",
        "503",
        "429",
        "reset_before",
        "reset_after",
        "truncate",
        "malformed",
        "empty",
        "filter",
        "refusal",
    )
    config = Config(**{f"p_{kind}": 0.02 for kind in kinds}, rpm=12_000, latency=0.02)
    money = ("--price-in", 10, "--price-out", 30, "--yes")
    told = await ask(tmp_path, config, *money, count=200)
    assert told.ended.code == 0, told.ended.err
    assert sum(told.replies[o] for o in ("stop", "content_filter", "refusal")) == 200
    ((spent, at_risk),) = ledger(told.run, "SELECT spent_micro, at_risk_micro FROM spending")
    assert spent <= told.bill(10, 30) <= spent + at_risk
    assert (await status(told.run))["unanswered"] == 0


# Rows that cannot succeed


async def test_a_row_that_always_fails_fails_alone_and_its_retry_can_succeed(
    tmp_path: Path,
) -> None:
    poisoned = [*rows(10), {"instruction": "Tell me about POISON."}, *rows(10, "thing")]
    pool, run = write_pool(tmp_path / "pool.jsonl", poisoned), tmp_path / "run"
    flags = ("--attempts", 3, *CONCURRENCY, *bare(tmp_path))
    async with Provider(Config(poison="POISON", poison_status=500)).running() as p:
        ended = await generate(run, pool, p.base_url, *flags)
        assert ended.code == 1, ended.err
        assert "server" in ended.err
        found = await stage(run)
        assert (found["done"], found["failed"]) == (20, {"server": 1})
        assert p.counts.faults["poison"] == 3
        assert p.counts.requests == 23

        ended = await generate(run, pool, p.base_url, *flags)  # without a retry it stays as it is
        assert ended.code == 1
        assert p.counts.requests == 23
        assert (await distill("retry", run, "--cause", "timeout")).code == 0
        assert (await stage(run))["failed"] == {"server": 1}

        assert (await distill("retry", run, "--cause", "server")).code == 0
        assert (await stage(run))["failed"] == {}
        await control(p, poison=None)
        assert (await generate(run, pool, p.base_url, *flags)).code == 0
        assert p.counts.requests == 24
    exported = await export(run)
    assert [row["instruction"] for row in exported] == [row["instruction"] for row in poisoned]
    assert all(belongs(row["output"], row["instruction"]) for row in exported)


async def control(p: Provider, **changes: Any) -> None:
    """As another process does it."""
    url, body = p.root_url + "/control", orjson.dumps(changes)
    async with aiohttp.ClientSession() as session, session.post(url, data=body) as response:
        assert response.status == 200


async def test_a_row_that_is_refused_fails_once_with_the_words_of_the_server(tmp_path: Path) -> None:
    causes = {400: "bad_request", 404: "not_found", 413: "too_large", 422: "bad_request"}
    asked: Counter[str] = Counter()

    async def reply(request: web.Request) -> web.Response:
        question = orjson.loads(await request.read())["messages"][-1]["content"]
        asked[question] += 1
        code = int(question) if question.isdigit() else 200
        error = orjson.dumps(
            {"error": {"message": f"No {question} for you.", "type": "invalid_request_error"}}
        )
        return web.Response(body=completion() if code == 200 else error, status=code)

    names = ["fine", *map(str, causes), "fine too"]
    pool = write_pool(tmp_path / "pool.jsonl", [{"instruction": name} for name in names])
    run = tmp_path / "run"
    async with scripted(reply) as url:
        ended = await generate(run, pool, url, *bare(tmp_path))
    assert ended.code == 1
    assert set(asked.values()) == {1}
    found = await stage(run)
    assert (found["done"], found["failed"]) == (2, {"bad_request": 2, "not_found": 1, "too_large": 1})
    failures = ledger(run, "SELECT status, cause, message FROM failures ORDER BY position")
    assert [(status, cause) for status, cause, _ in failures] == list(causes.items())
    assert all(f"No {status} for you." in message for status, _, message in failures)


@pytest.mark.parametrize("code", [400, 500])
async def test_a_bad_row_at_the_head_of_the_pool_does_not_hold_up_the_others(
    tmp_path: Path, code: int
) -> None:
    poisoned = [{"instruction": "Tell me about POISON."}, *rows(10)]
    pool, run = write_pool(tmp_path / "pool.jsonl", poisoned), tmp_path / "run"
    async with Provider(Config(poison="POISON", poison_status=code)).running() as p:
        ended = await generate(run, pool, p.base_url, "--attempts", 2, "--give-up", 8)
    assert ended.code == 1, ended.err
    found = await stage(run)
    assert found["done"] == 10
    assert found["failed"] == {"server" if code == 500 else "bad_request": 1}


async def test_a_bad_row_that_is_the_last_one_due_fails_after_its_attempts(tmp_path: Path) -> None:
    poisoned = [*rows(3), {"instruction": "Tell me about POISON."}]
    pool, run = write_pool(tmp_path / "pool.jsonl", poisoned), tmp_path / "run"
    flags = ("--attempts", 2, "--give-up", 8)
    async with Provider(Config(poison="POISON", poison_status=500)).running() as p:
        assert (await generate(run, pool, p.base_url, *flags)).code == 1
        assert (await distill("retry", run)).code == 0
        ended = await generate(run, pool, p.base_url, *flags)
    assert ended.code == 1, ended.err
    assert (await stage(run))["failed"] == {"server": 1}


# Replies that no specification foresees

ODD_REPLIES: dict[str, bytes] = {
    "half a pair in the model's name": completion(model="gpt-\ud83d"),
    "half a pair in the text": completion("half \ud83d a pair"),
    "half a pair in the reason": completion(finish_reason="stop\ud83d"),
    "numbers past 63 bits": completion(usage={"prompt_tokens": 2**63, "completion_tokens": 2**63}),
    "numbers past 64 bits": completion(usage={"prompt_tokens": 2**70, "completion_tokens": 2**70}),
    "numbers that are text": completion(usage={"prompt_tokens": "7", "completion_tokens": None}),
    "numbers below zero": completion(usage={"prompt_tokens": -7, "completion_tokens": -7}),
    "no usage": completion("half \ud83d a pair", usage=None),
    "a NUL": completion("nul \0 here").replace(b"\\u0000", b"\0"),
    "not UTF-8": completion("caf\xe9").replace(b"caf\\u00e9", b"caf\xe9"),
    "a list": b"[]",
    "nothing": b"",
    "nested past all bounds": b"[" * 100_000,
    "a web page": b"<!doctype html><title>Welcome</title>",
    "an error with half a pair": rb'{"error": {"message": "\ud83d"}}',
    "a choice that is a number": rb'{"choices": [7]}',
    "a text that is a list": rb'{"choices": [{"message": {"content": [{"text": "Hello"}]}}]}',
}


async def test_a_reply_of_any_shape_is_stored_and_stops_nothing(tmp_path: Path) -> None:
    """Each row but the first gets its odd reply once; asked again, all is well."""
    asked: Counter[str] = Counter()

    async def reply(request: web.Request) -> web.Response:
        question = orjson.loads(await request.read())["messages"][-1]["content"]
        asked[question] += 1
        odd = ODD_REPLIES.get(question) if asked[question] == 1 else None
        raw = completion(f"About: {question}") if odd is None else odd
        return web.Response(body=raw, content_type="application/json")

    names = ["an ordinary row", *ODD_REPLIES]
    pool = write_pool(tmp_path / "pool.jsonl", [{"instruction": name} for name in names])
    run = tmp_path / "run"
    async with scripted(reply) as url:
        ended = await generate(run, pool, url, *bare(tmp_path), seconds=20)
    assert ended.code == 0, ended.err
    assert (await stage(run))["done"] == len(names)
    ((replies,),) = ledger(run, "SELECT count(*) FROM bodies")
    assert replies == asked.total()
    assert [row["instruction"] for row in await export(run)] == names


async def test_an_error_of_any_words_is_recorded(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()
    message = rb'"half \ud83d a \u202e and \u001b[31m"'
    words = b'{"error": {"message": %b, "code": ["odd"], "type": {"a": 1}}}' % message
    codes = {
        "the row of 400": 400,
        "the row of 500": 500,
        "the row of 429": 429,
        "the row of 301": 301,
    }

    async def reply(request: web.Request) -> web.Response:
        question = orjson.loads(await request.read())["messages"][-1]["content"]
        asked[question] += 1
        if question in codes and asked[question] == 1:
            return web.Response(body=words, status=codes[question], content_type="application/json")
        return web.Response(body=completion(), content_type="application/json")

    names = ["an ordinary row", *codes]
    pool = write_pool(tmp_path / "pool.jsonl", [{"instruction": name} for name in names])
    run = tmp_path / "run"
    async with scripted(reply) as url:
        ended = await generate(run, pool, url, *bare(tmp_path), seconds=20)
    assert ended.code == 1, ended.err
    assert (await stage(run))["failed"] == {"bad_request": 2}
    said = [message for (message,) in ledger(run, "SELECT message FROM errors")]
    assert len(said) == 4
    assert all("half" in message for message in said)
    assert "\x1b" not in ended.err


async def test_a_server_that_does_not_speak_http_is_a_lost_connection(tmp_path: Path) -> None:
    asked = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(
            next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split()[
                1
            ]
        )
        await reader.readexactly(length)
        asked += 1
        good = completion("Fine.")
        answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(good) + good
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n" if asked == 2 else answer)
        await writer.drain()
        writer.close()

    pool, run = write_pool(tmp_path / "pool.jsonl", rows(4)), tmp_path / "run"
    async with listening(talk) as url:
        ended = await generate(run, pool, url, "--quiet", seconds=20)
    assert ended.code == 0, ended.err
    assert dict(ledger(run, CAUSES)) == {"connection": 1}
