"""Replies that are paid for and hold no answer: never called done, never exported, bought a few times,
and a run that gets nothing else ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from tests.support.cli import bare, distill, export, generate, ledger, stage, status, write_pool
from tests.support.scripted import scripted

USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 512,
    "completion_tokens_details": {"reasoning_tokens": 512},
}
PRICE = ("--price-in", 10, "--price-out", 30, "--yes")
A_REPLY = 20 * 10 + 512 * 30  # micro-dollars

Body = dict[str, Any]


def thought(finish: str = "length") -> Body:
    """A reply that is all thinking."""
    message = {"role": "assistant", "content": "", "reasoning_content": "Let me see."}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": USAGE}


def said(text: str | None, finish: str = "stop", **message: Any) -> Body:
    content = {"role": "assistant", "content": text, **message}
    usage = {"prompt_tokens": 20, "completion_tokens": 5}
    return {"choices": [{"message": content, "finish_reason": finish}], "usage": usage}


class Teacher:
    """Answers each row as a function of its instruction; counts what it is asked."""

    def __init__(self, reply: Callable[[str], Body]) -> None:
        self._reply, self.asked, self.bodies = reply, Counter[str](), list[Body]()

    async def answer(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        row = body["messages"][-1]["content"]
        self.asked[row] += 1
        self.bodies.append(body)
        return web.Response(body=orjson.dumps(self._reply(row)), content_type="application/json")


def pool_of(folder: Path, *rows: str) -> Path:
    return write_pool(folder / "pool.jsonl", [{"instruction": row} for row in rows])


async def test_a_row_without_an_answer_is_bought_twice_and_not_called_done(tmp_path: Path) -> None:
    teacher = Teacher(lambda row: thought() if row == "hard" else said("Fine."))
    pool, run = pool_of(tmp_path, "easy", "hard", "easy too"), tmp_path / "run"
    async with scripted(teacher.answer) as url:
        ended = await generate(run, pool, url, *bare(tmp_path), *PRICE)
        assert ended.code == 1
        assert "empty 1" in ended.err
        assert teacher.asked["hard"] == 2
        found = await stage(run)
        assert (found["done"], found["total"]) == (2, 3)
        assert found["outcomes"] == {"empty": 1, "stop": 2}
        assert found["unusable"] == {"replies": 2, "cost_usd": 2 * A_REPLY / 1e6, "outcomes": {"empty": 2}}
        assert [row["instruction"] for row in await export(run)] == ["easy", "easy too"]
        assert [row["output"] for row in await export(run, "--outcome", "empty")] == [""]
        (reasoning,) = ledger(run, "SELECT reasoning FROM answers WHERE outcome = 'empty'")
        assert reasoning == ("Let me see.",)
        again = await generate(run, pool, url, *bare(tmp_path), *PRICE)  # nothing is bought again
        assert again.code == 1
        assert teacher.asked["hard"] == 2


async def test_how_often_it_is_bought_can_be_said_and_retry_asks_again(tmp_path: Path) -> None:
    replies = {"hard": thought()}
    teacher = Teacher(lambda row: replies.get(row, said("Fine.")))
    pool, run = pool_of(tmp_path, "easy", "hard"), tmp_path / "run"
    async with scripted(teacher.answer) as url:
        await generate(run, pool, url, *bare(tmp_path), *PRICE, "--attempts-empty", 1)
        assert teacher.asked["hard"] == 1
        replies.clear()
        retried = await distill("retry", run, "--cause", "empty")
        assert "1 failed requests" in retried.err
        ended = await generate(run, pool, url, *bare(tmp_path), *PRICE)
        assert ended.code == 0, ended.err
    assert (await stage(run))["outcomes"] == {"stop": 2}
    assert ledger(run, "SELECT count(*) FROM responses") == [(3,)]  # the empty reply is kept


async def test_filtered_and_cut_answers_are_asked_again_only_when_they_are_named(tmp_path: Path) -> None:
    replies = {"bad": said("", "content_filter"), "long": said("It goes on", "length")}
    teacher = Teacher(lambda row: replies.get(row, said("Fine.")))
    pool, run = pool_of(tmp_path, "easy", "bad", "long"), tmp_path / "run"
    async with scripted(teacher.answer) as url:
        await generate(run, pool, url, *bare(tmp_path), *PRICE)
        assert "0 failed requests" in (await distill("retry", run)).err
        assert "1 failed requests" in (await distill("retry", run, "--cause", "content_filter")).err
        assert "1 failed requests" in (await distill("retry", run, "--cause", "length")).err
        replies.clear()
        ended = await generate(run, pool, url, *bare(tmp_path), *PRICE)
        assert ended.code == 0, ended.err
    assert teacher.asked == {"easy": 1, "bad": 2, "long": 2}
    assert (await stage(run))["outcomes"] == {"stop": 3}
    assert "choose from" in (await distill("retry", run, "--cause", "stop")).err


async def test_a_call_of_a_tool_is_asked_for_once(tmp_path: Path) -> None:
    call = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
    teacher = Teacher(lambda row: said(None, "tool_calls", **call) if row == "tool" else said("Fine."))
    pool, run = pool_of(tmp_path, "easy", "tool"), tmp_path / "run"
    async with scripted(teacher.answer) as url:
        ended = await generate(run, pool, url, *bare(tmp_path), *PRICE)
    assert ended.code == 1
    assert teacher.asked["tool"] == 1
    assert (await stage(run))["outcomes"] == {"stop": 1, "tool_calls": 1}


async def test_an_end_that_nobody_knows_is_not_exported(tmp_path: Path) -> None:
    teacher = Teacher(lambda row: said("Half of it", "pause_turn") if row == "odd" else said("Fine."))
    pool, run = pool_of(tmp_path, "easy", "odd"), tmp_path / "run"
    async with scripted(teacher.answer) as url:
        ended = await generate(run, pool, url, *bare(tmp_path), *PRICE)
    assert ended.code == 1
    assert teacher.asked["odd"] == 2
    assert [row["instruction"] for row in await export(run)] == ["easy"]


async def test_a_first_row_that_is_all_thinking_ends_the_run_and_says_what_to_change(tmp_path: Path) -> None:
    teacher = Teacher(lambda _: thought())
    pool, run = pool_of(tmp_path, *(f"row {n}" for n in range(50))), tmp_path / "run"
    async with scripted(teacher.answer) as url:
        ended = await generate(run, pool, url, *bare(tmp_path), *PRICE)
    assert ended.code == 3
    assert teacher.asked.total() == 2
    for flag in ("--thinking-tokens", "--max-tokens", "--reasoning-effort"):
        assert flag in ended.err
    found = await stage(run)
    assert (found["done"], found["outcomes"]) == (0, {})
    assert found["unusable"]["replies"] == 2


async def test_empty_replies_without_a_thought_are_the_run_s_fault_after_three_rows(tmp_path: Path) -> None:
    teacher = Teacher(lambda _: said(""))
    pool, run = pool_of(tmp_path, *(f"row {n}" for n in range(50))), tmp_path / "run"
    async with scripted(teacher.answer) as url:
        ended = await generate(run, pool, url, *bare(tmp_path), *PRICE)
        assert ended.code == 3
        assert len(teacher.asked) == 3
        on = await generate(run, pool, url, *bare(tmp_path), *PRICE, "--give-up-share", 1)
        assert on.code == 1
    assert (await stage(run))["outcomes"] == {"empty": 50}


async def test_a_stage_that_mostly_buys_nothing_ends(tmp_path: Path) -> None:
    teacher = Teacher(lambda row: said("Fine.") if int(row.split()[1]) < 20 else thought())
    pool, run = pool_of(tmp_path, *(f"row {n}" for n in range(400))), tmp_path / "run"
    async with scripted(teacher.answer) as url:
        ended = await generate(run, pool, url, *bare(tmp_path), *PRICE, "--concurrency", 4)
    assert ended.code == 3
    assert "of the last 100 replies" in ended.err
    assert "empty" in ended.err
    assert teacher.asked.total() < 140
    assert (await status(run))["stages"]["generate"]["done"] == 20


async def test_refused_rows_first_in_line_do_not_end_a_run_that_has_answers(tmp_path: Path) -> None:
    """A folder with answers is usable whatever rows stand first in it."""
    fine: set[str] = set()

    async def reply(request: web.Request) -> web.Response:
        row = orjson.loads(await request.read())["messages"][-1]["content"]
        if row.startswith("bad") and row not in fine:
            error = {"error": {"message": "I will not take this.", "type": "invalid_request_error"}}
            return web.json_response(error, status=400)
        return web.json_response(said("Fine."))

    bad, good = [f"bad {n}" for n in range(24)], [f"good {n}" for n in range(40)]
    pool, run = pool_of(tmp_path, *bad, *good), tmp_path / "run"
    flags = (*bare(tmp_path), "--concurrency", 1)
    async with scripted(reply) as url:
        first = await generate(run, pool, url, *flags)  # canaries are drawn from further away
        assert first.code == 1, first.err
        assert (await stage(run))["failed"] == {"bad_request": 24}
        await distill("retry", run)
        again = await generate(run, pool, url, *flags)
        assert again.code == 1, again.err
        await distill("retry", run)
        fine.update(bad)
        last = await generate(run, pool, url, *flags)
        assert last.code == 0, last.err
    assert (await stage(run))["done"] == 64


async def test_what_is_forbidden_for_some_rows_fails_these(tmp_path: Path) -> None:
    async def reply(request: web.Request) -> web.Response:
        row = orjson.loads(await request.read())["messages"][-1]["content"]
        if int(row.split()[1]) % 7 == 3:
            return web.json_response({"error": {"message": "Forbidden."}}, status=403)
        return web.json_response(said("Fine."))

    pool, run = pool_of(tmp_path, *(f"row {n}" for n in range(40))), tmp_path / "run"
    async with scripted(reply) as url:
        ended = await generate(run, pool, url, *bare(tmp_path))
    assert ended.code == 1
    assert (await stage(run))["failed"] == {"auth": 6}


async def test_a_server_that_begins_to_forbid_everything_ends_the_run_and_fails_no_row(
    tmp_path: Path,
) -> None:
    asked = Counter[str]()

    async def reply(request: web.Request) -> web.Response:
        asked[orjson.loads(await request.read())["messages"][-1]["content"]] += 1
        if asked.total() > 15:
            return web.json_response({"error": {"message": "Access was withdrawn."}}, status=403)
        return web.json_response(said("Fine."))

    pool, run = pool_of(tmp_path, *(f"row {n}" for n in range(300))), tmp_path / "run"
    async with scripted(reply) as url:
        ended = await generate(run, pool, url, *bare(tmp_path), "--concurrency", 3)
    assert ended.code == 3
    assert "Access was withdrawn." in ended.err
    assert asked.total() < 45
    found = await stage(run)
    assert (found["done"], found["failed"]) == (15, {})
