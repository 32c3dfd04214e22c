"""What the command line says a model costs, and what it then pays: prices seen from the front door."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.support.cli import MODEL, distill, ledger, rows, started, status, write_pool
from tests.support.scripted import completion, scripted

USAGE = {"prompt_tokens": 400, "completion_tokens": 100, "total_tokens": 500}
TAKEN_AS_FREE = "taken as free: a local server"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.jsonl", rows(20))


async def fine(_: web.Request) -> web.Response:
    return web.Response(body=completion("Fine.", usage=USAGE), content_type="application/json")


def asking(pool: object, run: Path, url: str, model: str, *flags: object) -> Sequence[object]:
    return ["generate", pool, "--run", run, "--base-url", url, "--model", model, "--concurrency", 2, *flags]


async def told(pool: Path, url: str, model: str, *flags: object) -> dict[str, Any]:
    ended = await distill("estimate", pool, "--base-url", url, "--model", model, "--json", *flags)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = orjson.loads(ended.out)
    return found


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "openai/gpt-4o", "gemini-2.5-pro"])
async def test_a_budget_holds_at_a_gateway_on_this_machine(run: Path, pool: Path, model: str) -> None:
    async with scripted(fine) as url:
        ended = await distill(*asking(pool, run, url, model, "--budget", 0.02, "--thinking-tokens", 0))
    assert ended.code == 3, ended.err
    assert "the budget of $0.02 is reached" in ended.err
    assert TAKEN_AS_FREE not in ended.err
    assert 0 < (await status(run))["spent_usd"] <= 0.02


async def test_a_gateway_on_this_machine_costs_money_that_must_be_agreed_to(run: Path, pool: Path) -> None:
    asked = 0

    async def reply(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return await fine(request)

    async with scripted(reply) as url:
        for model in ("claude-sonnet-4-5", "gpt4o-prod"):
            ended = await distill(*asking(pool, run, url, model))
            assert ended.code == 2
        assert "--price-as" in ended.err
        ended = await distill(*asking(pool, run, url, "gpt4o-prod", "--budget", 5))
        assert ended.code == 2
        assert "--price-as" in ended.err
    assert asked == 0


async def test_a_local_model_is_said_to_be_taken_as_free_once(run: Path, pool: Path) -> None:
    async with scripted(fine) as url:
        found = await told(pool, url, "meta-llama/Llama-3.1-8B-Instruct")
        assert found["price_source"] == "free: local server"
        ended = await distill(*asking(pool, run, url, "llama-3"))
        assert ended.code == 0, ended.err
        assert ended.err.count(TAKEN_AS_FREE) == 1


async def test_it_is_said_too_when_the_rows_come_through_a_pipe(run: Path) -> None:
    async with (
        scripted(fine) as url,
        started(*asking("-", run, url, "llama-3"), stdin=asyncio.subprocess.PIPE) as command,
    ):
        assert command.process.stdin
        command.process.stdin.write(b'{"instruction": "Say something."}\n')
        command.process.stdin.close()
        ended = await command.ended()
    assert ended.code == 0, ended.err
    assert ended.err.count(TAKEN_AS_FREE) == 1


async def test_an_estimate_says_where_its_price_is_from(pool: Path) -> None:
    url = "http://127.0.0.1:9/v1"
    for model, flags, source in (
        ("gpt-4o", (), "listed"),
        ("gpt-4o", ("--price-in", 1, "--price-out", 2), "given"),
        ("my-deployment", ("--price-as", "gpt-4o-mini"), "listed: gpt-4o-mini"),
        ("gpt-9", (), "unknown"),
    ):
        found = await told(pool, url, model, *flags)
        assert found["price_source"] == source
        assert (found["cost_usd"] is None) == (source == "unknown")
    ended = await distill("estimate", pool, "--base-url", url, "--model", "gemini-2.5-pro")
    assert "$1.25 in, $10.00 out a million tokens" in ended.out
    assert "prompts over 200,000 tokens" in ended.out


async def test_an_estimate_prices_long_prompts_as_such(tmp_path: Path) -> None:
    words = [{"instruction": "word " * 250_000}, {"instruction": "Hello."}]
    pool = write_pool(tmp_path / "pool.jsonl", words)
    found = await told(pool, "http://127.0.0.1:9/v1", "gemini-2.5-pro")
    prompts, mean = found["prompt_tokens"], found["completion_tokens"]["expected"] / 2
    dearer = (prompts - 50) * 2.5 + mean * 15 + mean * 10
    assert found["cost_usd"]["expected"] == pytest.approx(dearer / 1e6, rel=0.001)


# --price-as


async def test_a_deployment_is_billed_at_the_price_of_the_model_that_is_named(run: Path, pool: Path) -> None:
    async with scripted(fine) as url:
        words = asking(pool, run, url, "my-deployment", "--price-as", "gpt-4o-mini", "--budget", 1)
        ended = await distill(*words)
        assert ended.code == 0, ended.err
        assert (await status(run))["spent_usd"] == pytest.approx(20 * (400 * 0.15 + 100 * 0.6) / 1e6)


async def test_another_price_asks_nothing_again(run: Path, pool: Path) -> None:
    asked = 0

    async def reply(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return await fine(request)

    async with scripted(reply) as url:
        for price in (("--price-as", "gpt-4o"), ("--price-as", "gpt-4o-mini"), ("--price-in", 1), ()):
            ended = await distill(*asking(pool, run, url, "my-deployment", "--yes", *price))
            assert ended.code == 0, ended.err
    assert asked == 20
    assert (await status(run))["changed"] == {}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--price-as", "gpt-4o-minni"), "did you mean gpt-4o, gpt-4o-mini"),
        (("--price-as", "gpt-4o", "--price-in", 1), "leave out --price-in"),
        (("--price-as", ""), "--price-as"),
        (("--budget", "inf"), "--budget"),
        (("--price-out", "nan"), "--price-out"),
        (("--param", "service_tier=priority", "--budget", 1), "in tier 'priority'"),
    ],
)
async def test_a_price_that_cannot_be_is_bad_usage(
    run: Path, pool: Path, flags: Sequence[object], words: str
) -> None:
    ended = await distill(*asking(pool, run, "http://127.0.0.1:9/v1", MODEL, "--yes", *flags))
    assert ended.code == 2
    assert words in ended.err


async def test_a_recipe_names_the_price_of_its_teacher(tmp_path: Path, run: Path, pool: Path) -> None:
    recipe = tmp_path / "recipe.toml"

    def write(url: str, price: str) -> None:
        recipe.write_text(
            f'budget = 1\n[teacher.t]\nmodel = "my-deployment"\nbase_url = "{url}"\nprice_as = "{price}"\n'
            f'[stage.s]\ntask = "generate"\nteacher = "t"\npool = "{pool}"\n'
        )

    async with scripted(fine) as url:
        write(url, "gpt-4o-minni")
        ended = await distill("run", recipe, "--run", run)
        assert ended.code == 2
        assert f"{recipe}, line 6: stage.s" in ended.err
        assert "gpt-4o-mini" in ended.err
        write(url, "gpt-4o-mini")
        ended = await distill("run", recipe, "--run", run, "--dry-run", "--json")
        assert orjson.loads(ended.out)["stages"]["s"]["price_source"] == "listed: gpt-4o-mini"
        ended = await distill("run", recipe, "--run", run)
        assert ended.code == 0, ended.err
    assert (await status(run))["spent_usd"] == pytest.approx(20 * (400 * 0.15 + 100 * 0.6) / 1e6)


async def test_a_plan_says_whose_teacher_is_taken_as_free(tmp_path: Path, run: Path, pool: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[teacher.mine]\nmodel = "llama-3"\nbase_url = "http://127.0.0.1:9/v1"\n'
        f'[stage.s]\ntask = "generate"\nteacher = "mine"\npool = "{pool}"\n'
    )
    ended = await distill("run", recipe, "--run", run, "--dry-run")
    assert ended.code == 0, ended.err
    assert f"{TAKEN_AS_FREE}: mine" in ended.out


# Small amounts


async def test_a_budget_of_a_tenth_of_a_cent_is_told_as_such(run: Path, pool: Path) -> None:
    async with scripted(fine) as url:
        ended = await distill(*asking(pool, run, url, "gpt-4o-mini", "--budget", 0.001))
    assert ended.code == 3
    assert "the budget of $0.001 is reached" in ended.err
    spent = ledger(run, "SELECT sum(cost_micro) FROM responses")[0][0]
    assert f"${spent / 1e6:.6f}".rstrip("0") + " spent" in ended.err
