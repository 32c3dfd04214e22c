"""`kill -9` at any moment: what is stored stays, what is paid is kept, what is asked again is little."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.support.cli import (
    asking,
    bare,
    belongs,
    distill,
    export,
    ledger,
    rows,
    started,
    status,
    until,
    write_pool,
)
from tests.support.killing import assert_books_balance, counting, kill_at, ledger_has_tables, moments, stored

CONCURRENCY = 16
MONEY = ("--price-in", 10, "--price-out", 30, "--yes")
DONE = "SELECT json_extract(w.item, '$.instruction') FROM samples a " \
       "JOIN rows w ON w.id = (a.stage << 40) + a.position " \
       "JOIN requests r ON r.id = a.request WHERE r.answer IS NOT NULL"  # fmt: skip


def done(run: Path) -> set[str]:
    return {name for (name,) in ledger(run, DONE)} if ledger_has_tables(run) else set()


@pytest.mark.slow
async def test_after_21_kills_every_row_is_answered_once_and_only_what_was_in_flight_is_billed_again(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    pool = write_pool(tmp_path / "pool.jsonl", [*rows(850), *rows(50)])  # fifty of them equal
    names = {row["instruction"] for row in rows(850)}
    async with counting(tmp_path, latency=0.06, latency_sigma=0.3) as provider:
        words = asking(
            pool,
            run,
            provider.url,
            "--concurrency",
            CONCURRENCY,
            "--quiet",
            *bare(tmp_path),
            *MONEY,
        )
        extra = unanswered = 0
        finished: dict[str, int] = {}  # question -> how often it had been billed when it was done
        for kind, amount in moments(seed=20230406, early=4, late=17):
            async with started(*words) as command:
                await kill_at(command, provider, kind, amount)
            await provider.idle()
            billed = await provider.billed()
            replies, waiting = stored(run)
            lost = billed.total() - replies
            assert 0 <= lost - extra <= waiting - unanswered <= CONCURRENCY
            for name in finished:
                assert billed[name] == finished[name], f"{name} was done, and was billed again"
            finished |= {name: billed[name] for name in done(run)}
            assert len(finished) <= replies
            extra, unanswered = lost, waiting

        told = await status(run)
        assert told["stages"]["generate"]["done"] >= len(finished) > 100
        assert told["unanswered"] == unanswered
        ended = await distill(*words)
        assert ended.code == 0, ended.err
        billed = await provider.billed()

    assert set(billed) == names
    assert {name: billed[name] for name in finished} == finished
    assert billed.total() == len(names) + extra
    assert extra <= unanswered
    exported = await export(run)
    assert [row["instruction"] for row in exported] == [r["instruction"] for r in [*rows(850), *rows(50)]]
    assert all(belongs(row["output"], row["instruction"]) for row in exported)
    assert_books_balance(run)
    told = await status(run)
    assert told["stages"]["generate"]["done"] == told["stages"]["generate"]["total"] == 900
    assert told["unanswered"] == unanswered
    assert told["spent_usd"] > 0


@pytest.mark.slow
async def test_the_books_balance_after_kills_among_faults(tmp_path: Path) -> None:
    run, pool = tmp_path / "run", write_pool(tmp_path / "pool.jsonl", rows(200))
    faults = dict.fromkeys(("p_500", "p_reset_after", "p_malformed", "p_empty", "p_429"), 0.04)
    async with counting(tmp_path, latency=0.04, **faults) as provider:
        words = asking(
            pool,
            run,
            provider.url,
            "--concurrency",
            CONCURRENCY,
            "--quiet",
            "--attempts-empty",
            8,
            *bare(tmp_path),
            *MONEY,
        )
        finished: Counter[str] = Counter()
        for kind, amount in moments(seed=7, early=0, late=2):
            async with started(*words) as command:
                await kill_at(command, provider, kind, amount)
            await provider.idle()
            billed = await provider.billed()
            assert {name: billed[name] for name in finished} == finished
            finished |= Counter({name: billed[name] for name in done(run)})
        ended = await distill(*words)
        assert ended.code == 0, ended.err
    exported = await export(run)
    assert len(exported) == 200
    assert all(belongs(row["output"], row["instruction"]) for row in exported)
    assert_books_balance(run)


@pytest.mark.slow
async def test_a_kill_while_the_data_set_is_written_leaves_the_old_one_whole(
    tmp_path: Path,
) -> None:
    run, pool = tmp_path / "run", tmp_path / "pool.jsonl"
    answers = [row | {"output": "An answer. " * 200} for row in rows(3000)]
    write_pool(pool, answers)
    ended = await distill(*asking(pool, run, "http://127.0.0.1:9/v1", command="import"))
    assert ended.code == 0, ended.err
    out = tmp_path / "sft.json"
    words = ("export", run, "--format", "alpaca", "--out", out)
    assert (await distill(*words)).code == 0
    whole = out.read_bytes()
    killed = 0
    for _ in range(20):
        async with started(*words) as command:
            await until(
                lambda: (
                    any(p.stat().st_size for p in parts(tmp_path)) or command.process.returncode is not None
                ),
                every=0.001,
            )
            if command.process.returncode is None:
                command.send(signal.SIGKILL)
            killed += (await command.ended()).code == -signal.SIGKILL
        assert out.read_bytes() == whole
        if killed == 2:
            break
        for part in parts(tmp_path):
            part.unlink()
    assert killed


def parts(folder: Path) -> list[Path]:
    return list(folder.glob(".sft.json.*"))
