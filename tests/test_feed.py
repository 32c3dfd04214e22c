"""The feed turns a pool into what is still to be asked: nothing known is asked again."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

import engine.collect.feed
import store.key_index
from engine.collect.feed import Chunk, Feed, FeedThread, Placement
from engine.collect.plan import Plan, PromptTokens, plan_of
from engine.collect.rows import Numbered
from engine.collect.settings import Settings
from engine.provider.tokens import Tokenizer, tokenizer_for
from engine.run.estimate import survey
from store.errors import PoolError
from store.key_index import ANSWERED, FAILED, known_keys
from store.pool import Pool
from store.records import BadRow, Message, Request, Response, Usage
from store.schema import connect_writer
from tests.support.ledgers import Book, chat, opened, rows

PATIENCE = 2.0  # seconds until a test says that the feed hangs


def settings(**more: Any) -> Settings:
    return Settings(
        **{"model": "gpt-4", "base_url": "http://127.0.0.1:1/v1", "prompt": "{instruction}", **more}
    )


def asked(request: Request) -> str:
    return str(orjson.loads(request.body)["messages"][-1]["content"])


@dataclass
class Pass:
    """What one pass over a pool came to."""

    due: list[Request] = field(default_factory=list)
    known: Counter[int] = field(default_factory=Counter)
    shared: int = 0
    placed: list[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    rows: int = 0

    @property
    def asked(self) -> list[str]:
        return [asked(request) for request in self.due]


class Run:
    """A run folder and its pool. `go` reads the pool once, as the runner does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.folder.mkdir()
        connect_writer(self.folder).close()
        self.pool = folder / "pool.jsonl"

    def write(self, *texts: str) -> Run:
        self.pool.write_bytes(b"".join(orjson.dumps({"instruction": text}) + b"\n" for text in texts))
        return self

    async def go(
        self, answers: int = 1000, fails: tuple[str, ...] = (), only: Any = None, **more: Any
    ) -> Pass:
        """Answers the first so many due requests, fails some by name, leaves the others due."""
        chosen = settings(**more)
        plan = dataclasses.replace(plan_of(chosen, tokenizer_for("gpt-4")), only=only)
        found = Pass()
        async with opened(self.folder) as ledger:
            book = Book(ledger, chosen.stage, chosen.samples)

            def place(placements: Sequence[Placement]) -> None:
                for p in placements:
                    ledger.place(book.stage, p.position, p.item, plan.fingerprint, p.requests, p.new)
                    found.placed.append(p.position)

            thread = FeedThread(self.folder, known_keys(self.folder))
            feed = Feed(Numbered(Pool(self.pool)), plan, book.stage, thread, place)
            ended = False
            while not ended:
                chunk = await feed.chunk(8)
                self._keep(chunk, found)
                for request in chunk.due:
                    if asked(request) in fails:
                        book.fail(request.id)
                        feed.index.mark(request.id, FAILED)
                    elif answers > 0:
                        answers -= 1
                        raw = chat(f"Answer to {asked(request)}")
                        book.answer(request.id, Response("stop", "stop", Usage(1, 1), raw, 0, 0.1))
                        feed.index.mark(request.id, ANSWERED)
                ended = chunk.ended
            thread.close()
        return found

    def _keep(self, chunk: Chunk, found: Pass) -> None:
        found.due += chunk.due
        found.known += chunk.known
        found.shared += chunk.shared.total()
        found.bad += chunk.bad
        found.rows += chunk.rows

    def answers(self) -> list[tuple[Any, ...]]:
        return rows(self.folder, "SELECT instruction, output FROM answers ORDER BY stage, position, sample")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


TEXTS = [f"Question {n}?" for n in range(20)]


# The first time.


async def test_every_row_is_due_once_in_pool_order(run: Run) -> None:
    found = await run.write(*TEXTS).go()
    assert found.asked == TEXTS
    assert [request.id for request in found.due] == list(range(1, 21))
    assert found.placed == list(range(20))
    assert run.answers() == [(text, f"Answer to {text}") for text in TEXTS]


async def test_a_request_carries_what_is_sent_and_what_it_may_cost(run: Run) -> None:
    found = await run.write("Name a comet.").go(system="Be brief.", max_tokens=99)
    (request,) = found.due
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a comet."}]
    assert orjson.loads(request.body) == {
        "model": "gpt-4",
        "messages": messages,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 99,
    }
    assert request.max_tokens == 99
    assert request.prompt_tokens == tokenizer_for("gpt-4").count_messages(messages)
    params = {"max_tokens": 99, "temperature": 1, "top_p": 1}
    told = {"messages": messages, "model": "gpt-4", "params": params, "sample": 0}
    wanted = orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
    assert request.key == hashlib.sha256(wanted).digest()


async def test_equal_rows_share_one_request(run: Run) -> None:
    found = await run.write("a", "b", "a", "a", "b").go()
    assert found.asked == ["a", "b"]
    assert found.shared + found.known[ANSWERED] == 3
    assert run.answers() == [(t, f"Answer to {t}") for t in ("a", "b", "a", "a", "b")]


async def test_rows_that_differ_only_in_what_is_not_sent_share_one_request(run: Run) -> None:
    rows_ = [{"instruction": "a", "id": n, "output": f"old {n}"} for n in range(3)]
    run.pool.write_bytes(b"\n".join(map(orjson.dumps, rows_)))
    assert (await run.go()).asked == ["a"]
    assert len(run.answers()) == 3


async def test_each_sample_is_a_request_of_its_own(run: Run) -> None:
    found = await run.write("a", "b").go(samples=3)
    assert [(asked(r), r.sample) for r in found.due] == [(t, s) for t in "ab" for s in range(3)]
    assert len({request.key for request in found.due}) == 6
    assert len({request.body for request in found.due}) == 2


async def test_bad_rows_are_handed_over_with_their_lines_and_the_rest_goes_on(run: Run) -> None:
    run.pool.write_bytes(b'{"instruction":"a"}\noops\n{}\n{"instruction":"b"}\n')
    found = await run.go()
    assert found.asked == ["a", "b"]
    assert [bad.line for bad in found.bad] == [2, 3]
    assert (found.rows, found.placed) == (2, [0, 1])


async def test_a_pool_that_breaks_off_is_told_after_the_rows_before(run: Run) -> None:
    run.pool.write_bytes(
        gzip.compress(b"".join(b'{"instruction":"%d%s"}\n' % (n, b"x" * 5000) for n in range(600)))[:-200]
    )
    with pytest.raises(PoolError):
        await run.go(answers=0)
    assert len(rows(run.folder, "SELECT id FROM requests")) > 100


# The second time.


async def test_the_same_pool_asks_and_writes_nothing(run: Run) -> None:
    await run.write(*TEXTS, "Question 3?").go()
    found = await run.go()
    assert (found.due, found.placed, found.known[ANSWERED]) == ([], [], 21)


async def test_a_reordered_pool_asks_nothing(run: Run) -> None:
    await run.write(*TEXTS).go()
    found = await run.write(*reversed(TEXTS)).go()
    assert (found.due, found.known[ANSWERED]) == ([], 20)
    assert run.answers() == [(text, f"Answer to {text}") for text in reversed(TEXTS)]


async def test_added_rows_are_all_that_is_asked(run: Run) -> None:
    await run.write(*TEXTS).go()
    found = await run.write("first", *TEXTS[:10], "middle", *TEXTS[10:], "last").go()
    assert found.asked == ["first", "middle", "last"]
    assert [text for text, _ in run.answers()] == ["first", *TEXTS[:10], "middle", *TEXTS[10:], "last"]


async def test_a_shrunk_pool_asks_nothing(run: Run) -> None:
    await run.write(*TEXTS).go()
    found = await run.write(*TEXTS[:3]).go()
    assert (found.due, found.rows, found.known[ANSWERED]) == ([], 3, 3)
    found = await run.write(*TEXTS).go()  # and back: its answers were kept
    assert found.due == []


async def test_what_was_not_answered_is_due_again_under_its_old_number(run: Run) -> None:
    await run.write(*TEXTS).go(answers=7)
    found = await run.go(answers=5)
    assert (found.asked, found.known[ANSWERED]) == (TEXTS[7:], 7)
    assert [request.id for request in found.due] == list(range(8, 21))
    found = await run.write(*reversed(TEXTS)).go()
    assert sorted(found.asked) == sorted(TEXTS[12:])
    assert rows(run.folder, "SELECT count(*) FROM requests") == [(20,)]


async def test_equal_rows_that_were_not_answered_still_share_one_request(run: Run) -> None:
    await run.write("a", "b", "a").go(answers=0)
    found = await run.go()
    assert found.asked == ["a", "b"]
    assert len(run.answers()) == 3


async def test_failed_rows_are_not_due_until_they_are_retried(run: Run) -> None:
    await run.write("a", "b", "c").go(fails=("b",))
    found = await run.go()
    assert (found.due, found.known) == ([], {ANSWERED: 2, FAILED: 1})
    writer = connect_writer(run.folder)
    writer.execute("UPDATE requests SET failure = NULL")  # what `retry` does
    writer.close()
    assert (await run.go()).asked == ["b"]


async def test_another_temperature_asks_all_again_and_the_old_one_nothing(run: Run) -> None:
    await run.write(*TEXTS[:5]).go()
    assert (await run.go(temperature=0.5)).asked == TEXTS[:5]
    assert (await run.go()).due == []
    assert (await run.go(temperature=0.5)).due == []


async def test_another_stage_asks_nothing(run: Run) -> None:
    await run.write(*TEXTS[:5]).go(stage="first")
    found = await run.go(stage="second")
    assert (found.due, found.known[ANSWERED]) == ([], 5)
    assert len(run.answers()) == 10


async def test_more_samples_ask_for_the_new_ones_only_and_fewer_for_none(run: Run) -> None:
    await run.write("a", "b").go(samples=1)
    found = await run.go(samples=3)
    assert [(asked(r), r.sample) for r in found.due] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert (await run.go(samples=2)).due == []
    assert (await run.go(samples=3)).due == []


async def test_a_changed_row_is_asked_and_its_neighbours_are_not(run: Run) -> None:
    await run.write("a", "b", "c").go()
    assert (await run.write("a", "B", "c").go()).asked == ["B"]
    assert (await run.write("a", "b", "c").go()).due == []


async def test_a_changed_id_is_remembered_and_nothing_is_asked(run: Run) -> None:
    await run.write("a").go()
    run.pool.write_bytes(b'{"instruction":"a","id":"new"}\n')
    found = await run.go()
    assert (found.due, found.placed) == ([], [0])
    assert rows(run.folder, "SELECT id FROM answers") == [("new",)]


# Parts of a pool.


async def test_a_limit_is_the_first_rows_answered_or_not(run: Run) -> None:
    run.write(*TEXTS)
    assert (await run.go(limit=3)).asked == TEXTS[:3]
    assert (await run.go(limit=3)).due == []
    assert (await run.go(limit=5)).asked == TEXTS[3:5]
    assert (await run.go()).asked == TEXTS[5:]


async def test_a_pilot_asks_its_positions_only_and_they_are_not_asked_again(run: Run) -> None:
    run.write(*TEXTS)
    found = await run.go(only=frozenset({2, 7, 19}))
    assert (found.asked, found.placed) == ([TEXTS[2], TEXTS[7], TEXTS[19]], [2, 7, 19])
    found = await run.go()
    assert found.asked == [text for n, text in enumerate(TEXTS) if n not in (2, 7, 19)]
    assert run.answers() == [(text, f"Answer to {text}") for text in TEXTS]


@pytest.mark.parametrize("only", [None, frozenset({1, 6, 10})])
async def test_pages_of_the_ledger_join_without_a_seam(
    run: Run, monkeypatch: pytest.MonkeyPatch, only: Any
) -> None:
    monkeypatch.setattr(engine.collect.feed, "PAGE", 4)
    first = await run.write(*TEXTS[:11]).go(only=only)
    found = await run.go(only=only)
    assert (found.due, found.placed) == ([], [])
    assert found.known[ANSWERED] == len(first.due) == (3 if only else 11)


def feed_of(run: Run, pool: Pool, plan: Plan) -> tuple[Feed, FeedThread]:
    """A feed of stage 1 that nobody places."""
    thread = FeedThread(run.folder, known_keys(run.folder))
    return Feed(Numbered(pool), plan, 1, thread, lambda placements: None), thread


# Keys that the ledger does not hold yet, and keys that only look alike.


async def test_equal_rows_far_apart_share_a_request_before_and_after_it_is_committed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.key_index, "FRESH_KEPT", 4)
    found = await run.write(*TEXTS, *TEXTS, *reversed(TEXTS)).go(answers=0)
    assert found.asked == TEXTS
    plan = plan_of(settings(temperature=0.3), tokenizer_for("gpt-4"))
    feed, thread = feed_of(run, Pool(run.pool), plan)
    chunk = await feed.chunk(100)  # nothing of it is committed
    thread.close()
    assert [asked(request) for request in chunk.due] == TEXTS


async def test_a_key_with_an_equal_fingerprint_is_told_apart(run: Run) -> None:
    run.write("a")
    first = plan_of(settings(), tokenizer_for("gpt-4")).sealer.seal([{"role": "user", "content": "a"}], 1)[1][
        0
    ]
    alike = Request(1, first[:8] + bytes(24), 0, b"{}", 1, 1)
    async with opened(run.folder) as ledger:
        Book(ledger, "other")
        ledger.add([alike])
        await ledger.committed()
    found = await run.go()
    assert [(request.id, request.key) for request in found.due] == [(2, first)]


# Standard input.


class Pipe:
    """Standard input that the test writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reading, self._writing = os.pipe()
        self._stdin = os.fdopen(reading)
        monkeypatch.setattr(sys, "stdin", self._stdin)

    def write(self, *texts: str) -> None:
        os.write(self._writing, b"".join(b'{"instruction":"%s"}\n' % text.encode() for text in texts))

    def close(self) -> None:
        os.close(self._writing)

    def done(self) -> None:
        self._stdin.close()


async def test_a_row_from_a_pipe_is_due_before_the_next_one_is_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe(monkeypatch)
    feed, thread = feed_of(run, Pool("-"), plan_of(settings(), tokenizer_for("gpt-4")))
    for text in ("a", "b", "c"):
        pipe.write(text)
        chunk = await asyncio.wait_for(feed.chunk(64), PATIENCE)
        assert [asked(request) for request in chunk.due] == [text]
    pipe.close()
    assert (await asyncio.wait_for(feed.chunk(64), PATIENCE)).ended
    thread.close()
    pipe.done()


async def test_a_limit_ends_a_pipe_without_waiting_for_a_further_row(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipe(monkeypatch)
    plan = plan_of(settings(limit=1), tokenizer_for("gpt-4"))
    feed, thread = feed_of(run, Pool("-"), plan)
    pipe.write("a")
    chunk = await asyncio.wait_for(feed.chunk(64), PATIENCE)
    assert [asked(request) for request in chunk.due] == ["a"]
    last = feed.chunk(64)
    try:
        assert (await asyncio.wait_for(last, PATIENCE)).ended
    finally:
        pipe.close()
        thread.close()
        pipe.done()


# What the estimate has counted


async def test_prompts_that_the_estimate_has_counted_are_not_counted_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"Tell me {'more ' * (number % 7)}about {number}." for number in range(200)]
    run.write(*texts)
    plan = plan_of(settings(samples=2), tokenizer_for("gpt-4"))
    survey(Pool(run.pool), plan, known_keys(None).copy())
    changed = {20: "Something else.", 150: "Something else again."}
    run.write(*[changed.get(number, text) for number, text in enumerate(texts)])
    counted: list[str] = []
    count = Tokenizer.count_messages

    def counting(tokenizer: Tokenizer, messages: Sequence[Message]) -> int:
        counted.append(messages[-1]["content"])
        return count(tokenizer, messages)

    monkeypatch.setattr(Tokenizer, "count_messages", counting)
    feed, thread = feed_of(run, Pool(run.pool), plan)
    chunk = await feed.chunk(1000)
    thread.close()
    assert counted == list(changed.values())
    assert len(chunk.due) == 400
    tokenizer = tokenizer_for("gpt-4")
    for request in chunk.due:
        assert request.prompt_tokens == count(tokenizer, orjson.loads(request.body)["messages"])


def test_counts_of_another_pool_are_let_go() -> None:
    counted, keys = PromptTokens(), [hashlib.sha256(b"%d" % n).digest() for n in range(300)]
    for key in keys[:100]:
        counted.note(key, 7)
    assert [counted.take(key) for key in keys[:3]] == [7, 7, 7]
    assert [counted.take(key) for key in keys[200:300]] == [None] * 100
    assert counted.take(keys[3]) is None
