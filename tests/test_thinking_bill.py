"""What a teacher that thinks will cost is told before, and what it has cost after: all attempts, answered or
not, in tokens and money."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.cli import Ended, asking, distill, ledger, rows, stage, status, write_pool
from tests.support.provider import Config, Provider
from tests.support.thinking import Server, Thinker, teaching

MODEL = ("--model", "gpt-5-mini")
PRICE = (0.25, 2.0)  # of MODEL, USD a million tokens
EMPTYING = Thinker(median=120, sigma=0.8, empty=0.15)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.jsonl", rows(160))


async def estimated(pool: Path, run: Path, url: str, *flags: object) -> dict[str, Any]:
    ended = await distill(*asking(pool, run, url, "--json", *MODEL, *flags, command="estimate"))
    assert ended.code == 0, ended.err
    found: dict[str, Any] = orjson.loads(ended.out)
    return found


async def asked(pool: Path, run: Path, url: str, *flags: object) -> Ended:
    return await distill(*asking(pool, run, url, *MODEL, "--yes", *flags))


def held(told: Mapping[str, float], came: float) -> bool:
    return told["low"] <= came <= told["high"]


def cost(prompt: float, completion: float) -> float:
    return (prompt * PRICE[0] + completion * PRICE[1]) / 1e6


def numbers(label: str, text: str) -> list[int]:
    """All whole numbers in the line with this label, without commas; times and money are left out."""
    *_, line = re.findall(rf"^ *{label}  (.*)$", text, re.MULTILINE)
    return [int(n.replace(",", "")) for n in re.findall(r"(?<![\w.$])\d[\d,]*(?![\w.%])", line)]


# Before anything is paid.


async def test_an_estimate_shows_effort_bound_and_what_is_not_sent(pool: Path) -> None:
    words = ("estimate", pool, "--base-url", "http://127.0.0.1:1/v1", *MODEL, "--temperature", 0.3)
    ended = await distill(*words, "--reasoning-effort", "low")
    assert ended.code == 0, ended.err
    text = " ".join(ended.out.split())
    assert "gpt-5-mini, thinking at effort low" in text
    assert "512 for the answer + 8,192 to think" in text
    assert "temperature 0.3: this model refuses it" in text
    assert "thinking tokens" in text
    assert "OpenAI's reasoning guide" in text
    roomy = await distill(*words, "--thinking-tokens", 3000, "--max-tokens", 700)
    assert "700 for the answer + 3,000 to think" in " ".join(roomy.out.split())
    plain = (await distill(*words[:-4], "--model", "gpt-4o", "--temperature", 0.3)).out
    for word in ("thinking", "effort", "not sent"):
        assert word not in plain
    assert "512 tokens" in plain


async def test_the_json_of_an_estimate_tells_thinking_apart(pool: Path, run: Path) -> None:
    url = "http://127.0.0.1:1/v1"
    told = await estimated(pool, run, url, "--top-p", 0.5)
    assert told["effort"] == "medium"
    assert told["bound"] == {"answer": 512, "thinking": 16384, "sent": 16896}
    assert told["not_sent"] == {"top_p": 0.5}
    thinking, completion = told["thinking_tokens"], told["completion_tokens"]
    assert 0 < thinking["low"] < thinking["expected"] < thinking["high"]
    assert all(completion[k] > thinking[k] for k in ("expected", "low", "high"))
    wanted = cost(told["prompt_tokens"], completion["expected"])
    assert told["cost_usd"]["expected"] == pytest.approx(wanted, rel=1e-3)
    assert told["batch_cost_usd"]["expected"] == pytest.approx(wanted / 2, rel=1e-3)
    plain = await estimated(pool, run, url, "--model", "gpt-4o")
    assert (plain["thinking_tokens"], plain["effort"], plain["not_sent"]) == (None, None, {})
    assert plain["bound"] == {"answer": 512, "thinking": 0, "sent": 512}
    assert plain["seconds"]["expected"] < told["seconds"]["expected"]  # thinking takes its time


async def test_a_pilot_s_empty_replies_are_in_the_estimate_and_its_interval_holds_the_bill(
    pool: Path, run: Path
) -> None:
    async with teaching(EMPTYING) as server:
        told = await estimated(pool, run, server.url, "--pilot", 50, "--yes", "--thinking-tokens", 2000)
        paid = server.bill.copy()
        assert told["requests"] == 110
        assert told["completion_from"] == f"a pilot: {paid['replies']} paid replies to 50 requests"
        assert told["replies_per_request"] == pytest.approx(paid["replies"] / 50)
        assert paid["replies"] > 50
        assert told["completion_tokens"]["expected"] == pytest.approx(110 * paid["completion"] / 50, abs=1)
        prompts = paid["prompt"] / 50  # fewer than we count
        assert told["billed_prompt_tokens"] == pytest.approx(110 * prompts, rel=0.02)
        assert told["billed_prompt_tokens"] < 0.99 * told["prompt_tokens"] * told["replies_per_request"]
        assert told["thinking_tokens"]["expected"] == pytest.approx(110 * paid["reasoning"] / 50, abs=1)
        again = await estimated(pool, run, server.url, "--thinking-tokens", 2000)
        assert again["completion_from"] == f"{paid['replies']} paid replies to 50 requests of this run"
        assert server.bill == paid  # an estimate asks nobody
        ended = await asked(pool, run, server.url, "--thinking-tokens", 2000)
    assert ended.code in (0, 1), ended.err
    came = server.bill - paid
    assert held(told["completion_tokens"], came["completion"])
    assert held(told["thinking_tokens"], came["reasoning"])
    assert held(told["cost_usd"], cost(came["prompt"], came["completion"]))


@pytest.mark.parametrize(
    "flags",
    [
        ("--reasoning-effort", "high"),
        ("--thinking-tokens", 9000),
        ("--param", 'reasoning={"effort":"high"}'),
        ("--model", "gpt-5-nano"),
    ],
)
async def test_replies_that_were_asked_in_another_way_say_nothing(
    pool: Path, run: Path, flags: tuple[object, ...]
) -> None:
    async with teaching(Thinker(median=20)) as server:
        assert (await asked(pool, run, server.url, "--limit", 20)).code == 0
        seen = await estimated(pool, run, server.url)
        other = await estimated(pool, run, server.url, *flags)
    assert "20 requests of this run" in seen["completion_from"]
    assert "the task's prior" in other["completion_from"]
    assert other["completion_tokens"]["expected"] > 3 * seen["completion_tokens"]["expected"]


async def test_imported_answers_do_not_tell_how_much_is_thought(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/v1"
    paid = write_pool(tmp_path / "paid.jsonl", [row | {"output": "Fine."} for row in rows(20)])
    more = write_pool(tmp_path / "more.jsonl", rows(40))
    for model, source in (("gpt-5-mini", "the task's prior"), ("gpt-4o", "paid replies to 20 requests")):
        run = tmp_path / model
        ended = await distill(*asking(paid, run, url, "--model", model, command="import"))
        assert ended.code == 0, ended.err
        assert source in (await estimated(more, run, url, "--model", model))["completion_from"]


async def test_a_recipe_s_plan_and_end_tell_of_thinking(tmp_path: Path, run: Path) -> None:
    write_pool(tmp_path / "pool.jsonl", rows(30))
    async with teaching(Thinker(median=40, empty=0.2, seed=1)) as server:
        recipe = tmp_path / "r.toml"
        recipe.write_text(f"""
            [teacher.t]
            model = "gpt-5-mini"
            base_url = "{server.url}"
            reasoning_effort = "low"
            [stage.english]
            task = "generate"
            teacher = "t"
            pool = "pool.jsonl"
            [stage.german]
            task = "translate"
            teacher = "t"
            from = "english"
            to = "German"
            thinking_tokens = 2000
        """)
        plan = await distill("run", recipe, "--run", run, "--dry-run")
        told = orjson.loads((await distill("run", recipe, "--run", run, "--dry-run", "--json")).out)
        ended = await distill("run", recipe, "--run", run, "--yes")
        result = orjson.loads((await distill("run", recipe, "--run", run, "--yes", "--json")).out)
    assert "stage english: model: gpt-5-mini, thinking at effort low" in plan.out
    assert "512 for the answer + 8,192 to think" in plan.out
    assert "1,024 for the answer + 2,000 to think" in plan.out
    for name in ("english", "german"):
        assert told["stages"][name]["thinking_tokens"]["expected"] > 0
    assert ended.code in (0, 1), ended.err
    counts = await status(run)
    for name in ("english", "german"):
        found, empty = counts["stages"][name], counts["stages"][name]["outcomes"].get("empty", 0)
        replies = found["unusable"]["replies"]
        words = rf"empty {empty} \({replies} repl" if empty else f"in {replies} repl"
        assert re.search(rf"stage {name}: no answer: {words}", ended.err)
        assert f"{found['completion_tokens']:,}" in ended.err
    assert counts["spent_usd"] == pytest.approx(
        cost(server.bill["prompt"], server.bill["completion"]), abs=1e-4
    )
    first = "SELECT min(json_extract(estimate, '$.thinking_tokens.expected')) FROM runs WHERE id <= 2"
    assert ledger(run, first)[0][0] > 0  # also of a stage that reads another
    assert result["stages"]["english"]["billed"]["cost_usd"] == 0  # nothing was left to ask


# After it.


def assert_billed(found: Mapping[str, Any], server: Server) -> None:
    """Every reply of the server is in the counts, whatever came of it."""
    bill = found["billed"]
    assert bill["replies"] == server.bill["replies"]
    assert bill["prompt_tokens"] == found["prompt_tokens"] == server.bill["prompt"]
    assert bill["completion_tokens"] == found["completion_tokens"] == server.bill["completion"]
    assert bill["reasoning_tokens"] == server.bill["reasoning"]
    assert bill["cost_usd"] == found["cost_usd"]
    assert bill["cost_usd"] == pytest.approx(cost(server.bill["prompt"], server.bill["completion"]), abs=2e-4)


async def test_the_bill_at_the_end_counts_the_replies_that_held_no_answer(pool: Path, run: Path) -> None:
    async with teaching(EMPTYING) as server:
        ended = await asked(pool, run, server.url, "--thinking-tokens", 2000)
    assert ended.code == 1, ended.err
    found = await stage(run)
    assert_billed(found, server)
    rows_empty, replies = found["outcomes"]["empty"], server.bill["empty"]
    assert found["done"] == 160 - rows_empty
    assert found["unusable"]["replies"] == replies > rows_empty > 0
    assert found["unusable"]["outcomes"] == {"empty": replies}
    *_, billed = numbers("completion tokens", ended.err)
    assert billed == server.bill["completion"]
    *_, billed = numbers("thinking tokens", ended.err)
    assert billed == server.bill["reasoning"]
    wasted = ledger(run, "SELECT sum(cost_micro) FROM responses WHERE outcome = 'empty'")[0][0] / 1e6
    assert found["unusable"]["cost_usd"] == pytest.approx(wasted)
    words = rf"no answer +empty {rows_empty} \({replies} replies, \${wasted:.4f}\)"
    assert re.search(words, ended.err)
    assert re.search(r"failed +.*empty", ended.err) is None  # said once
    shown = (await distill("status", run)).out
    assert f"no answer: empty {rows_empty} ({replies} replies, ${wasted:.4f})" in shown
    assert f"{server.bill['reasoning']:,} of the tokens out were thinking" in shown


async def test_estimate_and_bill_are_of_the_same_requests(pool: Path, run: Path) -> None:
    """A complete run's estimate is the one from before; of a part, so much of it."""
    async with teaching(Thinker(median=100)) as server:
        told = await estimated(pool, run, server.url)
        ended = await asked(pool, run, server.url)
    assert ended.code == 0, ended.err
    before, after = ended.err.rpartition("done  ")[::2]
    expected = told["completion_tokens"]["expected"]
    assert numbers("completion tokens", before)[0] == expected
    assert numbers("completion tokens", after)[0] == expected
    assert f"estimated ${told['cost_usd']['expected']:.4f}" in after
    assert f"billed ${(await stage(run))['cost_usd']:.4f}" in after
    assert_billed(await stage(run), server)


async def test_tokens_that_the_server_does_not_tell_are_said_to_be_our_own_count(
    tmp_path: Path, run: Path
) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", [*rows(20), *rows(5, "no usage")])
    async with teaching(Thinker(median=30)) as server:
        ended = await asked(pool, run, server.url)
    assert ended.code == 0, ended.err
    words = "the tokens of 5 replies were counted by distill: the server did not report them"
    assert words in ended.err
    assert words in (await distill("status", run)).out
    assert (await stage(run))["billed"]["estimated_replies"] == 5
    assert ledger(run, "SELECT sum(estimated) FROM responses") == [(5,)]


async def test_a_server_that_does_not_tell_thinking_apart_is_said_not_to(pool: Path, run: Path) -> None:
    async with teaching(Thinker(median=30, tells=False)) as server:
        ended = await asked(pool, run, server.url)
        told = await estimated(write_pool(pool, rows(300)), run, server.url)
    assert "the server does not report them apart" in ended.err
    assert (told["thinking_tokens"], told["effort"]) == (None, "medium")
    assert "160 requests of this run" in told["completion_from"]


async def test_a_run_that_is_stopped_by_empty_canaries_says_what_they_cost(pool: Path, run: Path) -> None:
    async with teaching(Thinker(empty=1.0)) as server:
        ended = await asked(pool, run, server.url, "--thinking-tokens", 500)
    assert ended.code == 3, ended.err
    found = await stage(run)
    assert_billed(found, server)
    assert re.search(rf"no answer +in {server.bill['replies']} ", ended.err)
    assert re.search(r"cost +billed \$", ended.err)
    assert "--thinking-tokens" in ended.err


FAULTS = Config(
    p_500=0.05, p_429=0.05, p_empty=0.1, p_malformed=0.05, p_truncate=0.05, p_filter=0.03, p_filter_400=0.03,
    p_refusal=0.03, p_reset_after=0.05, p_stall=0.02, stall_seconds=1.5, poison="row 7", retry_after="ms",
    latency=0.02,
)  # fmt: skip


async def test_the_ledger_s_sums_are_the_sums_of_its_replies(pool: Path, run: Path) -> None:
    """Whatever goes wrong: spending, replies, `status`, and the end of the run say the same."""
    async with Provider(FAULTS).running() as provider:
        words = asking(pool, run, provider.base_url, "--price-in", 10, "--price-out", 30, "--yes")
        ended = await distill(*words, "--attempts", 20, "--timeout", 1, "--concurrency", 16)
    assert ended.code == 1, ended.err
    sums = "SELECT sum(prompt_tokens), sum(completion_tokens), sum(cost_micro), count(*) FROM responses"
    ((prompt, completion, micro, replies),) = ledger(run, sums)
    spending = "SELECT prompt_tokens, completion_tokens, spent_micro, at_risk_micro FROM spending"
    ((*spent, at_risk),) = ledger(run, spending)
    assert spent == [prompt, completion, micro]
    found = await stage(run)
    assert (found["billed"]["prompt_tokens"], found["billed"]["completion_tokens"]) == (prompt, completion)
    assert found["billed"]["cost_usd"] == found["cost_usd"] == pytest.approx(micro / 1e6)
    assert found["billed"]["replies"] == replies
    for kind, outcomes in (
        ("unusable", "'empty', 'other', 'tool_calls'"),
        ("unread", "'malformed', 'unparsed'"),
    ):
        of_kind = f"SELECT count(*), sum(cost_micro) FROM responses WHERE outcome IN ({outcomes})"
        ((count, cost_micro),) = ledger(run, of_kind)
        assert found[kind]["replies"] == sum(found[kind]["outcomes"].values()) == count > 0
        assert found[kind]["cost_usd"] == pytest.approx(cost_micro / 1e6)
    *_, billed = numbers("completion tokens", ended.err.rpartition("done  ")[2])
    assert billed == completion
    assert f"billed ${micro / 1e6:.4f}" in ended.err
    assert f"at most ${at_risk / 1e6:.4f} more" in ended.err
    errors = "SELECT sum(at_risk_micro) FROM errors"
    assert ledger(run, errors) == [(at_risk,)]
