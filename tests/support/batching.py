"""A run in batches against a Batch server on loopback, for tests: how it is asked, what must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.batch_server import BatchServer
from tests.support.cli import asking, bare, belongs, export, ledger, rows, write_pool

MONEY = ("--price-in", 10, "--price-out", 30, "--yes")
GRACE = ("--batch-grace", 0.3)


class Bench:
    """A pool of `count` rows, a run folder, and the words that ask for it in batches."""

    def __init__(self, folder: Path, server: BatchServer, count: int = 40, *flags: object) -> None:
        self.run, self.count = folder / "run", count
        self.pool = write_pool(folder / "pool.jsonl", rows(count))
        self.common = (*bare(folder), *MONEY, *flags)
        self.online = asking(self.pool, self.run, server.base_url, *self.common)
        self.words = [*self.online, "--batch", *GRACE]

    def sql(self, text: str, *values: object) -> list[tuple[Any, ...]]:
        return ledger(self.run, text, *values)


def assert_billed_once(server: BatchServer, count: int) -> None:
    """Nothing was paid for twice, and no request stood in two batches that the provider took."""
    assert len(server.bills.questions) == count
    assert set(server.bills.questions.values()) == {1}
    assert set(server.bills.accepted.values()) == {1}


async def assert_all_answered(bench: Bench) -> None:
    found = await export(bench.run)
    assert [row["instruction"] for row in found] == [row["instruction"] for row in rows(bench.count)]
    assert all(belongs(row["output"], row["instruction"]) for row in found)
    assert_books_balance(bench)


def assert_books_balance(bench: Bench) -> None:
    """The account is the sum of what it is made of, and nothing is left in a batch."""
    ((cost, prompt, completion),) = bench.sql(
        "SELECT ifnull(sum(cost_micro), 0), ifnull(sum(prompt_tokens), 0), ifnull(sum(completion_tokens), 0) "
        "FROM responses"
    )
    ((spent, prompts, completions, sent, ended),) = bench.sql(
        "SELECT sum(spent_micro), sum(prompt_tokens), sum(completion_tokens), sum(sent), sum(ended) "
        "FROM spending"
    )
    assert (spent, prompts, completions) == (cost, prompt, completion)
    ((attempts,),) = bench.sql("SELECT count(*) FROM attempts")
    ((unanswered,),) = bench.sql("SELECT count(*) FROM unanswered")
    assert (sent, sent - ended) == (attempts, unanswered)
    assert bench.sql("SELECT count(*) FROM enqueued") == [(0,)]
    assert bench.sql("SELECT count(*) FROM batches WHERE closed_at IS NULL") == [(0,)]
    twice = "SELECT request FROM responses WHERE outcome <> 'malformed' GROUP BY 1 HAVING count(*) > 1"
    assert bench.sql(twice) == []
    assert bench.sql("PRAGMA integrity_check") == [("ok",)]
    assert bench.sql("PRAGMA foreign_key_check") == []
    assert list((bench.run / "batches").glob("*")) == []


def at_risk(bench: Bench) -> int:
    ((risk,),) = bench.sql("SELECT sum(at_risk_micro) FROM spending")
    return int(risk)
