"""Decisions about batches, without I/O: packing, the queue, the next step, the meaning of a line."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch.client import Remote
from engine.batch.files import body_of, input_line
from engine.batch.packer import MOST_ALIVE, BatchLimits, Load, Queue, told_limit
from engine.batch.submit import best_of, next_step, poll_seconds, refusal, state_of
from engine.provider.errors import BatchRefused, QuotaExhausted
from store import provider_batches as batches
from store.provider_batches import BatchRow
from store.queries import connect_reader
from store.schema import TABLES, VERSION, VIEWS, connect_writer
from tests.support.ledgers import opened

KEY = hashlib.sha256(b"one").digest()
ROW = BatchRow(1, 1, 1, 7, "http://127.0.0.1/v1", "[]", 10, 1000, 100, 5000, 0.0)
REMOTE = Remote("batch_1", "in_progress", "file_1", None, None, 0, 10, (), ())


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 50)), min_size=1),
    st.integers(1, 20), st.integers(100, 2000), st.integers(20, 300),
)  # fmt: skip
def test_no_batch_passes_a_limit_unless_one_request_does(
    lines: list[tuple[int, int]], requests: int, size: int, tokens: int
) -> None:
    limits, load = BatchLimits(requests, size, tokens), Load()
    for line_size, line_tokens in lines:
        if not load.takes(line_size, line_tokens, limits):
            load = Load()
        load.add(line_size, line_tokens, 1)
        within = load.requests <= requests and load.bytes <= size and load.tokens <= tokens
        assert within or load.requests == 1


def test_the_queue_has_room_for_one_and_for_what_its_limit_takes() -> None:
    queue = Queue(limit=100)
    assert queue.has_room(500)
    queue.alive[1] = 60
    assert queue.has_room(40)
    assert not queue.has_room(41)
    queue.limit = float("inf")
    queue.alive.update(dict.fromkeys(range(MOST_ALIVE), 1))
    assert not queue.has_room(1)


@pytest.mark.parametrize(
    ("alive", "tokens", "requests", "words", "split", "limit"),
    [
        ({}, 1000, 10, "Enqueued token limit reached. Limit: 400 enqueued tokens.", True, 400),
        (
            {},
            300,
            10,
            "Enqueued token limit reached. Limit: 400 enqueued tokens.",
            False,
            400,
        ),  # others' fault
        ({1: 200}, 300, 10, "Limit: 2,000,000 enqueued tokens.", False, 2_000_000),
        ({1: 200}, 300, 10, "no number", False, 499),
        ({}, 1000, 10, "no number", True, 500),
        ({}, 1000, 1, "no number", False, float("inf")),
    ],
)
def test_the_limit_is_learnt_from_a_refusal(
    alive: dict[int, int], tokens: int, requests: int, words: str, split: bool, limit: float
) -> None:
    queue = Queue(alive=alive)
    assert queue.refused(tokens, requests, words) is split
    assert queue.limit == limit


def test_a_limit_is_read_from_the_words_of_a_refusal() -> None:
    assert (
        told_limit("reached for gpt-4 in organization org-x. Limit: 2,000,000 enqueued tokens.") == 2_000_000
    )
    assert told_limit("Limit reached.") is None


def test_the_next_step_follows_from_what_the_ledger_has() -> None:
    assert next_step(ROW) == "upload"
    assert next_step(replace(ROW, input_file="file_1")) == "create"
    assert next_step(replace(ROW, input_file="file_1", tried_at=1.0)) == "look"
    assert next_step(replace(ROW, input_file="file_1", tried_at=1.0, remote="batch_1")) == "follow"


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling", "queued"])
def test_a_batch_is_alive_until_it_has_ended(status: str) -> None:
    assert state_of(replace(REMOTE, status=status)) == "alive"


def test_what_a_batch_has_come_to() -> None:
    for status in ("completed", "expired", "cancelled"):
        assert state_of(replace(REMOTE, status=status)) == "results"
    failed = replace(REMOTE, status="failed")
    assert state_of(failed) == "refused"
    assert state_of(replace(failed, problems=(("token_limit_exceeded", "Full."),))) == "full"
    assert state_of(replace(failed, error_file="file_2")) == "results"


def test_a_refusal_says_what_the_provider_said() -> None:
    problems = tuple(("model_not_found", f"No such model (line {n})") for n in range(1, 6))
    told = refusal(replace(REMOTE, status="failed", problems=problems))
    assert isinstance(told, BatchRefused)
    assert "No such model (line 1)" in str(told)
    assert "2 more" in str(told)
    quota = replace(REMOTE, status="failed", problems=(("billing_hard_limit_reached", "No money."),))
    assert isinstance(refusal(quota), QuotaExhausted)


def test_of_several_batches_for_one_intent_the_furthest_is_kept_and_a_failed_one_is_none() -> None:
    early, late = replace(REMOTE, id="a", status="validating"), replace(REMOTE, id="b", status="completed")
    dead = replace(REMOTE, id="c", status="failed")
    cut = replace(REMOTE, id="d", status="cancelled")
    assert best_of([early, late, dead, cut]) == late
    assert best_of([cut, early]) == early
    assert best_of([dead]) is None
    assert best_of([]) is None


def test_polling_slows_down_to_minutes_and_hurries_at_the_end() -> None:
    waits = [poll_seconds(n, "in_progress") for n in range(100)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.5, 120.0)
    assert poll_seconds(99, "finalizing") == 5.0


def test_an_input_line_is_what_the_api_wants_and_is_read_back() -> None:
    body = orjson.dumps({"messages": [{"role": "user", "content": 'a "}\n quoted'}], "model": "gpt-4"})
    line = input_line(KEY, body)
    told = orjson.loads(line)
    assert told == {
        "custom_id": KEY.hex(), "method": "POST", "url": "/v1/chat/completions", "body": orjson.loads(body),
    }  # fmt: skip
    assert len(told["custom_id"]) == 64
    assert body_of(line) == (KEY, body)


def test_an_old_ledger_is_brought_up_to_date_and_gets_an_id_of_its_own(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    import sqlite_utils
    from sqlite_utils.migrations import Migrations

    migrations = Migrations("distill")

    @migrations()
    def m001_ledger(db: sqlite_utils.Database) -> None:
        for statement in (TABLES + VIEWS).split(";\n"):
            if statement.strip():
                db.execute(statement)

    migrations.apply(sqlite_utils.Database(old))
    old.execute("INSERT INTO stages (name, task) VALUES ('generate', 'generate')")
    old.execute("PRAGMA user_version = 1")
    old.close()
    connect_writer(tmp_path).close()
    reader = connect_reader(tmp_path)
    assert reader.execute("PRAGMA user_version").fetchone() == (VERSION,)
    first = batches.folder_id(reader)
    assert len(first) == 16
    assert reader.execute("SELECT name FROM stages").fetchall() == [("generate",)]
    reader.close()
    connect_writer(tmp_path).close()
    reader = connect_reader(tmp_path)
    assert batches.folder_id(reader) == first
    reader.close()


async def test_a_batch_that_is_withdrawn_leaves_no_trace_in_the_account(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        stage, run = ledger.begin("generate", "generate", 1, {})
        row = replace(ROW, stage=stage, run=run)
        batches.intend(ledger, row, [(1, 2000, 0), (2, 3000, 0)])
        await ledger.committed()
        reader = connect_reader(tmp_path)
        account = "SELECT sent, ended, at_risk_micro FROM spending"
        assert reader.execute(account).fetchall() == [(2, 0, 5000)]
        assert batches.open_batches(reader) == [row]
        assert batches.enqueued_count(reader, stage) == 2
        batches.withdraw(ledger, row)
        await ledger.committed()
        assert reader.execute(account).fetchall() == [(0, 0, 0)]
        assert reader.execute("SELECT count(*) FROM attempts").fetchone() == (0,)
        assert batches.open_batches(reader) == []
        assert batches.enqueued_count(reader, stage) == 0
        reader.close()
