"""Batches by the command line: results are stored as online replies are, what is lost is asked again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.batch_server import BatchServer
from tests.support.batching import (
    GRACE,
    MONEY,
    Bench,
    assert_all_answered,
    assert_billed_once,
    assert_books_balance,
    at_risk,
)
from tests.support.cli import (
    KEY,
    MODEL,
    bare,
    distill,
    export,
    generate,
    rows,
    started,
    status,
    until,
    write_pool,
)
from tests.support.provider import Provider

COST = "SELECT sum(cost_micro), sum(prompt_tokens), sum(completion_tokens) FROM responses"


async def test_a_pool_is_answered_in_batches_of_the_size_that_was_asked_for(tmp_path: Path) -> None:
    async with BatchServer(key=KEY).running() as server:
        bench = Bench(tmp_path, server, 50, "--batch-requests", 20)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert sorted(len(made.lines) for made in server.made.values()) == [10, 20, 20]
        assert {made.metadata["distill_batch"] for made in server.made.values()} == {"1", "2", "3"}
        assert len({made.metadata["distill_run"] for made in server.made.values()}) == 1
        assert_billed_once(server, 50)
        again = await distill(*bench.words)
        assert again.code == 0, again.err
        assert len(server.made) == 3
        assert KEY not in ended.err
    await assert_all_answered(bench)
    assert at_risk(bench) == 0
    ((cost, prompt, completion),) = bench.sql(COST)
    assert cost == prompt * 10 + completion * 30


async def test_the_price_of_a_listed_model_is_the_batch_price(tmp_path: Path) -> None:
    async with BatchServer().running() as server:
        pool = write_pool(tmp_path / "pool.jsonl", rows(12))
        flags = ("--batch", "--yes", "--model", "gpt-4o")
        ended = await generate(tmp_path / "run", pool, server.base_url, *flags)
        assert ended.code == 0, ended.err
    bench = Bench(tmp_path, server)
    ((cost, prompt, completion),) = bench.sql(COST)
    assert cost == pytest.approx(prompt * 1.25 + completion * 5, abs=12)  # half of $2.50 and $10


async def test_batches_and_online_runs_of_a_folder_complete_each_other(tmp_path: Path) -> None:
    async with BatchServer().running() as server, Provider().running() as provider:
        bench = Bench(tmp_path, server, 30)
        first = await distill(*bench.words, "--limit", 10)
        assert first.code == 0, first.err
        online = [provider.base_url if word == server.base_url else word for word in bench.online]
        second = await distill(*online, "--limit", 20)
        assert second.code == 0, second.err
        assert provider.counts.billed == 10
        third = await distill(*bench.words)
        assert third.code == 0, third.err
        assert sum(len(made.lines) for made in server.made.values()) == 20
        assert_billed_once(server, 20)
    await assert_all_answered(bench)


async def test_an_online_run_asks_nothing_while_a_batch_is_alive_and_then_collects_it(tmp_path: Path) -> None:
    async with BatchServer(frozen=True).running() as server:
        bench = Bench(tmp_path, server)
        async with started(*bench.words) as command:
            await until(lambda: server.calls["retrieve"] >= 1)
        refused = await distill(*bench.online)
        assert refused.code == 2
        assert "--batch" in refused.err
        elsewhere = ["http://127.0.0.1:9/v1" if word == server.base_url else word for word in bench.words]
        assert (await distill(*elsewhere)).code == 2
        server.frozen = False
        await until(lambda: all(not made.is_alive for made in server.made.values()))
        collected = await distill(*bench.online)  # the server knows no chat: it would fail
        assert collected.code == 0, collected.err
        assert_billed_once(server, bench.count)
        assert command.process.returncode != 0
    await assert_all_answered(bench)


async def test_what_a_cancelled_batch_has_left_is_asked_online_if_so_wanted(tmp_path: Path) -> None:
    async with BatchServer(frozen=True).running() as server, Provider().running() as provider:
        bench = Bench(tmp_path, server)
        async with started(*bench.words):
            await until(lambda: server.calls["retrieve"] >= 1)
        for made in server.made.values():
            made.cancelled = True
        await until(lambda: all(not made.is_alive for made in server.made.values()))
        refused = await distill(*bench.online)  # collects, and then finds no chat here: 404
        assert refused.code == 3
        assert len(await export(bench.run)) == 20
        online = [provider.base_url if word == server.base_url else word for word in bench.online]
        ended = await distill(*online)
        assert ended.code == 0, ended.err
        assert provider.counts.billed == 20
    await assert_all_answered(bench)


@pytest.mark.parametrize("how", ["expire", "cut"])
async def test_partial_results_are_kept_and_the_rest_goes_into_a_next_batch(tmp_path: Path, how: str) -> None:
    async with BatchServer(**{how: {0, 1}}).running() as server:
        bench = Bench(tmp_path, server)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert [len(made.lines) for made in server.made.values()] == [40, 20, 10]
        assert set(server.bills.questions.values()) == {1}
    await assert_all_answered(bench)
    assert at_risk(bench) == 0


async def test_errors_of_lines_follow_their_cause(tmp_path: Path) -> None:
    faults = {
        "row 1.": ["400"],
        "row 2.": ["500", "429"],
        "row 3.": ["empty"],
        "row 4.": ["torn"],
        "row 5.": ["text"],
        "row 6.": ["filter_400"],
        "row 7.": ["filter"],
        "row 8.": ["error"],
        "row 9.": ["no_usage"],
    }
    async with BatchServer(faults=faults).running() as server:
        bench = Bench(tmp_path, server, 20)
        ended = await distill(*bench.words)
        assert ended.code == 1, ended.err
        assert [len(made.lines) for made in server.made.values()] == [20, 5, 1]
    found = (await status(bench.run))["stages"]["generate"]
    assert found["failed"] == {"bad_request": 1}
    assert found["outcomes"] == {"content_filter": 2, "stop": 17}
    assert bench.sql("SELECT count(*) FROM responses WHERE outcome = 'malformed'") == [(3,)]
    assert bench.sql("SELECT cost_micro FROM responses WHERE cost_micro = 0 AND outcome <> 'malformed'") == [
        (0,)
    ]
    causes = dict(bench.sql("SELECT cause, count(*) FROM errors GROUP BY 1"))
    assert causes == {"bad_request": 1, "server": 2, "rate_limit": 1, "malformed": 3}
    assert_books_balance(bench)


async def test_a_row_that_fails_in_every_batch_fails_after_its_attempts(tmp_path: Path) -> None:
    async with BatchServer(faults={"row 1.": ["500"] * 9}).running() as server:
        bench = Bench(tmp_path, server, 5, "--attempts", 3)
        ended = await distill(*bench.words)
        assert ended.code == 1, ended.err
        assert len(server.made) == 3
    assert (await status(bench.run))["stages"]["generate"]["failed"] == {"server": 1}


async def test_a_result_that_never_came_stays_at_risk_and_is_asked_again(tmp_path: Path) -> None:
    async with BatchServer(faults={"row 1.": ["lost"]}).running() as server:
        bench = Bench(tmp_path, server, 10)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
    assert at_risk(bench) > 0
    await assert_all_answered(bench)


def _answers(name: str, count: int) -> list[dict[str, str]]:
    return [{**row, "output": f"{name} says so"} for row in rows(count)]


async def test_rows_that_are_all_refused_alike_stop_the_run_and_stay_due(tmp_path: Path) -> None:
    async with BatchServer(faults={"row": ["400"] * 30}).running() as server:
        bench = Bench(tmp_path, server, 30)
        ended = await distill(*bench.words)
        assert ended.code == 3
        assert "all refused" in ended.err
        assert (await status(bench.run))["stages"]["generate"]["failed"] == {}
        again = await distill(*bench.words)
        assert again.code == 0, again.err
    await assert_all_answered(bench)


async def test_a_batch_in_which_no_reply_can_be_read_is_not_asked_again_and_stays_due(tmp_path: Path) -> None:
    files = [write_pool(tmp_path / f"{name}.jsonl", _answers(name, 12)) for name in ("a", "b")]
    async with BatchServer().running() as server:
        bench = Bench(tmp_path, server)
        ended = await distill("score", *files, "--run", bench.run, "--base-url", server.base_url,
                              "--model", MODEL, *MONEY, "--quiet", "--batch", *GRACE)  # fmt: skip
        assert ended.code == 3, ended.err
        assert "the first 12 rows were all answered, but unreadable" in ended.err
        assert len(server.made) == 1
    assert bench.sql("SELECT count(*) FROM requests WHERE answer IS NULL AND failure IS NULL") == [(12,)]
    assert at_risk(bench) == 0


async def test_a_model_that_the_provider_does_not_know_stops_the_run_with_its_words(tmp_path: Path) -> None:
    async with BatchServer(models=("gpt-9",)).running() as server:
        bench = Bench(tmp_path, server)
        ended = await distill(*bench.words)
        assert ended.code == 3
        assert f"The provided model '{MODEL}' is not supported" in ended.err
        assert len(server.made) == 1
        assert at_risk(bench) == 0
        server.models = ()
        assert (await distill(*bench.words)).code == 0
    await assert_all_answered(bench)


LOSSES = {
    "upload": ["before", "503", "after"],
    "create": ["before", "500", "after"],
    "retrieve": ["before", "500", "429"],
    "content": ["tear", "tear"],
    "list": ["before"],
    "files": ["500"],
}


async def test_lost_connections_and_passing_faults_cost_nothing(tmp_path: Path) -> None:
    async with BatchServer(frozen=True).running() as server:
        server.lose.update({step: list(ways) for step, ways in LOSSES.items()})
        bench = Bench(tmp_path, server)
        async with started(*bench.words) as command:
            await until(lambda: not server.lose["retrieve"])
            server.frozen = False
            ended = await command.ended()
        assert ended.code == 0, ended.err
        assert not any(server.lose.values())
        assert_billed_once(server, bench.count)
        assert len(server.made) == 1
        assert len(server.uploads) == 1
    await assert_all_answered(bench)


async def test_a_key_that_is_refused_stops_the_run_at_once_and_is_not_shown(tmp_path: Path) -> None:
    async with BatchServer(key="another").running() as server:
        bench = Bench(tmp_path, server)
        ended = await distill(*bench.words)
        assert ended.code == 3
        assert "401" in ended.err
        assert KEY not in ended.err
        assert KEY.encode() not in (bench.run / "ledger.db").read_bytes()
        server.key = KEY
        assert (await distill(*bench.words)).code == 0
        assert_billed_once(server, bench.count)
    await assert_all_answered(bench)


@pytest.mark.parametrize("tell", [True, False])
async def test_a_full_queue_holds_batches_back_and_splits_what_is_too_large(
    tmp_path: Path, tell: bool
) -> None:
    async with BatchServer(enqueued_limit=400, tell_limit=tell, work=0.3).running() as server:
        bench = Bench(tmp_path, server, 100)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert "split" in ended.err
        assert server.most_enqueued <= 400
        assert_billed_once(server, bench.count)
    await assert_all_answered(bench)
    assert at_risk(bench) == 0


async def test_several_batches_are_under_way_within_the_tokens_that_were_allowed(tmp_path: Path) -> None:
    async with BatchServer(work=0.5).running() as server:
        bench = Bench(tmp_path, server, 60, "--batch-requests", 10, "--batch-tokens", 450)
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert len(server.made) == 6
        assert 200 < server.most_enqueued <= 800
    await assert_all_answered(bench)


async def test_the_budget_bounds_what_is_enqueued_and_stops_the_run_when_it_is_reached(
    tmp_path: Path,
) -> None:
    async with BatchServer().running() as server:
        bench = Bench(tmp_path, server, 40, "--max-tokens", 100)
        worst = 14 * 10 + 100 * 30  # micro-dollars of a row
        flags = ("--budget", 6 * worst / 1e6)
        ended = await distill(*bench.words, *flags)
        assert ended.code == 3, ended.err
        assert "budget" in ended.err
        ((spent,),) = bench.sql("SELECT sum(spent_micro) FROM spending")
        assert spent <= 6 * worst
        assert at_risk(bench) == 0
        assert len(server.bills.questions) > 6  # what the first batch did not use went into a second
        assert (await distill(*bench.words)).code == 0
        assert_billed_once(server, 40)
    await assert_all_answered(bench)


async def test_equal_rows_share_one_request_and_samples_do_not(tmp_path: Path) -> None:
    async with BatchServer().running() as server:
        pool = write_pool(tmp_path / "pool.jsonl", [*rows(5), *rows(5)])
        flags = ("--batch", "--samples", 2, *bare(tmp_path), *MONEY, *GRACE)
        ended = await generate(tmp_path / "run", pool, server.base_url, *flags)
        assert ended.code == 0, ended.err
        assert [len(made.lines) for made in server.made.values()] == [10]
    assert (await status(tmp_path / "run"))["stages"]["generate"]["done"] == 20


async def test_settings_that_changed_leave_an_unsent_batch_and_collect_a_sent_one(tmp_path: Path) -> None:
    async with BatchServer(frozen=True).running() as server:
        bench = Bench(tmp_path, server, 20)
        server.hold("upload", "after")
        async with started(*bench.words):
            await server.reached()
        server.release()
        warmer = [*bench.words, "--temperature", 0.5]
        async with started(*warmer):
            await until(lambda: server.calls["retrieve"] >= 1)
        assert len(server.made) == 1
        assert all(line["body"]["temperature"] == 0.5 for line in server.made["batch_0"].lines)
        server.frozen = False
        ended = await distill(*bench.words)
        assert ended.code == 0, ended.err
        assert len(server.made) == 2
        assert (await distill(*warmer)).code == 0
        assert len(server.made) == 2
    assert bench.sql("SELECT count(*) FROM responses") == [(40,)]


async def test_estimate_and_help_know_batches(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(3))
    ended = await distill("estimate", pool, "--model", "gpt-4o", "--batch")
    assert ended.code == 0, ended.err
    assert "as a batch" in ended.out
