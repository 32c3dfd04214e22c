"""`kill -9` at any moment: what is stored stays, what is paid is kept, what is asked again is little."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.support.cli import (
    ROOT,
    Command,
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

CONCURRENCY = 16
MONEY = ("--price-in", 10, "--price-out", 30, "--yes")
DONE = "SELECT json_extract(w.item, '$.instruction') FROM samples a " \
       "JOIN rows w ON w.id = (a.stage << 40) + a.position " \
       "JOIN requests r ON r.id = a.request WHERE r.answer IS NOT NULL"  # fmt: skip


@dataclass
class Counted:
    """A provider in a process of its own, that writes a line for all that it bills."""

    url: str
    file: Path
    session: aiohttp.ClientSession
    names: dict[str, str] = field(default_factory=dict)  # content -> question

    async def counts(self, contents: bool = False) -> dict[str, Any]:
        address = f"{self.url.removesuffix('/v1')}/counts?contents={int(contents)}"
        async with self.session.get(address) as response:
            return dict(orjson.loads(await response.read()))

    async def idle(self) -> None:
        """Waits until it has noticed that nobody listens any more."""
        async with asyncio.timeout(10):
            while (await self.counts())["in_flight"]:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.01)

    def lines(self) -> int:
        return self.file.read_bytes().count(b"\n")

    async def billed(self) -> Counter[str]:
        """How often each question was billed."""
        contents = [orjson.loads(line)["content"] for line in self.file.read_bytes().splitlines()]
        if any(content not in self.names for content in contents):
            seen = (await self.counts(contents=True))["contents"]
            self.names.update({key: content["question"] for key, content in seen.items()})
        return Counter(self.names[content] for content in contents)


@asynccontextmanager
async def counting(folder: Path, **config: Any) -> AsyncIterator[Counted]:
    settings, file = folder / "provider.json", folder / "billed.jsonl"
    settings.write_bytes(orjson.dumps(config))
    file.touch()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.provider", "--config", settings, "--counts", file,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout
        url = (await process.stdout.readline()).decode().split()[-1]
        async with aiohttp.ClientSession() as session:
            yield Counted(url, file, session)
    finally:
        process.kill()
        await process.communicate()


def moments(seed: int, early: int, late: int) -> list[tuple[str, float]]:
    """When to kill: so many seconds after the start, or after so many more bills and a blink."""
    dice = random.Random(seed)
    found = [("seconds", dice.uniform(0.05, 1.6)) for _ in range(early)]
    found += [("bills", dice.randrange(45) + dice.uniform(0.0, 0.99)) for _ in range(late)]
    dice.shuffle(found)
    return found


async def kill_at(command: Command, provider: Counted, kind: str, amount: float) -> None:
    if kind == "seconds":
        await asyncio.sleep(amount)
    else:
        wanted = provider.lines() + int(amount)
        await until(lambda: provider.lines() > wanted or command.process.returncode is not None, every=0.002)
        await asyncio.sleep(0.05 * (amount % 1))  # anywhere between two replies
    assert command.process.returncode is None, command.err.decode()
    command.send(signal.SIGKILL)
    assert (await command.ended()).code == -signal.SIGKILL


def stored(run: Path) -> tuple[int, int]:
    """(replies, requests sent without an end): what the ledger knows now."""
    if not ledger_has_tables(run):
        return 0, 0
    ((replies,),) = ledger(run, "SELECT count(*) FROM responses")
    ((unanswered,),) = ledger(run, "SELECT ifnull(sum(sent - ended), 0) FROM spending")
    return replies, unanswered


def ledger_has_tables(run: Path) -> bool:
    if not (run / "ledger.db").exists():
        return False
    return bool(ledger(run, "SELECT 1 FROM sqlite_master WHERE name = 'spending'"))


def done(run: Path) -> set[str]:
    return {name for (name,) in ledger(run, DONE)} if ledger_has_tables(run) else set()


def assert_books_balance(run: Path) -> None:
    """The account is the sum of what it is made of; no request has two answers that count."""
    ((prompt, completion, cost),) = ledger(
        run,
        "SELECT sum(prompt_tokens), sum(completion_tokens), sum(cost_micro) FROM responses",
    )
    ((spent, at_risk, prompts, completions, sent, ended),) = ledger(
        run,
        "SELECT sum(spent_micro), sum(at_risk_micro), sum(prompt_tokens), sum(completion_tokens), "
        "sum(sent), sum(ended) FROM spending",
    )
    assert (spent, prompts, completions) == (cost, prompt, completion)
    assert cost > 0
    ((attempts,),) = ledger(run, "SELECT count(*) FROM attempts")
    ((unanswered, worst),) = ledger(
        run, "SELECT count(*), ifnull(sum(round(worst_usd * 1e6)), 0) FROM unanswered"
    )
    assert (sent, sent - ended) == (attempts, unanswered)
    assert at_risk >= worst
    no_answers = "('malformed', 'empty')"
    twice = f"SELECT request FROM responses WHERE outcome NOT IN {no_answers} GROUP BY 1 HAVING count(*) > 1"
    assert ledger(run, twice) == []
    assert ledger(run, "PRAGMA integrity_check") == [("ok",)]
    assert ledger(run, "PRAGMA foreign_key_check") == []


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
