"""Rows made of stages' answers, without a teacher: where they stand, what they wait for, what is gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.collect.rows import Gone, Reach
from engine.collect.upstream import PAGE, StageRows, Upstream
from store.queries import connect_reader
from store.records import Instruction
from store.schema import STAGE_SHIFT, connect_writer


@dataclass
class Book:
    """A ledger that tests fill by hand."""

    run: Path
    db: sqlite3.Connection
    stages: dict[str, int] = field(default_factory=dict)

    def stage(self, name: str, exit_code: int | None = None) -> None:
        number = self.stages[name] = len(self.stages) + 1
        self.db.execute("INSERT INTO stages (id, name, task) VALUES (?, ?, 'generate')", (number, name))
        self.db.execute(
            "INSERT INTO runs (stage, started, pid, settings, exit_code) VALUES (?, 0, 0, '{}', ?)",
            (number, exit_code),
        )

    def row(self, name: str, position: int, answer: str | None = None, outcome: str = "stop") -> None:
        stage, item = self.stages[name], orjson.dumps({"id": str(position)}).decode()
        self.db.execute(
            "INSERT OR REPLACE INTO rows (id, item, plan) VALUES (?, ?, 0)", (row_id(stage, position), item)
        )
        number = self.db.execute(
            "INSERT INTO requests (key, sample, prompt_tokens) VALUES (zeroblob(32), 0, 1)"
        ).lastrowid
        self.db.execute("INSERT OR REPLACE INTO samples VALUES (?, ?, 0, ?)", (stage, position, number))
        if answer is not None:
            self.answer(name, position, answer, outcome)

    def answer(self, name: str, position: int, text: str, outcome: str = "stop") -> None:
        request = self._request(name, position)
        response = self.db.execute(
            "INSERT INTO responses (attempt, request, outcome, finish_reason, model, prompt_tokens, "
            "completion_tokens, cached_tokens, reasoning_tokens, cost_micro, latency, received_at) "
            "VALUES (1, ?, ?, 'stop', 'm', 1, 1, 0, 0, 0, 0, 0)",
            (request, outcome),
        ).lastrowid
        raw = orjson.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).decode()
        self.db.execute("INSERT INTO bodies (response, raw) VALUES (?, ?)", (response, raw))
        self.db.execute("UPDATE requests SET answer = ? WHERE id = ?", (response, request))

    def fail(self, name: str, position: int) -> None:
        self.db.execute("UPDATE requests SET failure = 1 WHERE id = ?", (self._request(name, position),))

    def _request(self, name: str, position: int) -> int:
        sql = "SELECT request FROM samples WHERE stage = ? AND position = ?"
        return int(self.db.execute(sql, (self.stages[name], position)).fetchone()[0])


def row_id(stage: int, position: int) -> int:
    return (stage << STAGE_SHIFT) + position


@dataclass
class Going:
    """How far an upstream stage is, as tests say."""

    reach: Reach = field(default_factory=Reach)
    is_over: bool = False


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    db = connect_writer(tmp_path)
    db.execute("PRAGMA foreign_keys = OFF")
    yield Book(tmp_path, db)
    db.close()


def made(records: Any) -> list[Instruction]:
    return [Instruction("", "+".join(record or "-" for record in records), "")]


def rows_of(
    *stages: str, each: int = 1, limit: int | None = None, incomplete: Collection[str] = ()
) -> StageRows:
    upstream = [
        Upstream(name, lambda row, text: text or None, is_whole=name not in incomplete) for name in stages
    ]
    return StageRows(upstream, lambda records: made(records) * each, each, limit)


class Reading:
    """What rows bring, one pass at a time: position -> its text, None where it is gone."""

    def __init__(self, book: Book, rows: StageRows) -> None:
        self._rows = rows
        self._reader = connect_reader(book.run)
        self._iterator = rows.placed(self._reader)

    def __call__(self) -> dict[int, str | None]:
        found: dict[int, str | None] = {}
        for row in self._iterator:
            if row is None:
                return found
            if isinstance(row, Gone):
                found[row.position] = None
            else:
                assert isinstance(row, tuple)
                assert isinstance(row[1], Instruction)
                found[row[0]] = row[1].instruction
        self.is_over = True
        self._reader.close()
        return found

    is_over = False


def follow(rows: StageRows, name: str) -> Going:
    going = Going()
    rows.follow(name, going)
    return going


def test_a_stage_that_does_not_run_is_taken_as_it_lies(book: Book) -> None:
    book.stage("a", exit_code=1)
    for position, outcome in enumerate(["stop", "length", "content_filter", "refusal", "stop"]):
        book.row("a", position, f"said {position}", outcome)
    book.row("a", 5)  # no answer yet
    book.row("a", 6)
    book.fail("a", 6)
    reading = Reading(book, rows_of("a"))
    assert reading() == {0: "said 0", 1: "said 1", 2: None, 3: None, 4: "said 4", 6: None}
    assert reading.is_over


def test_answers_are_taken_as_they_come_and_stand_where_their_rows_stand(book: Book) -> None:
    book.stage("a")
    rows = rows_of("a")
    going, reading = follow(rows, "a"), Reading(book, rows)
    assert reading() == {}
    for position in range(4):
        book.row("a", position)
    going.reach = Reach(3)
    assert reading() == {}
    assert rows.pending == {0, 1, 2}
    book.answer("a", 2, "two")
    book.answer("a", 3, "three")  # which is beyond the frontier
    assert reading() == {2: "two"}
    assert rows.pending == {0, 1}
    book.fail("a", 0)
    book.answer("a", 1, "one")
    going.reach = Reach(4)
    assert reading() == {0: None, 1: "one", 3: "three"}
    going.is_over = True
    assert reading() == {}
    assert reading.is_over


def test_what_may_still_come_to_an_earlier_stage_is_waited_for_though_something_old_lies_there(
    book: Book,
) -> None:
    book.stage("b")
    for position in range(5):
        book.row("b", position, f"old {position}")
    rows = rows_of("b")
    going, reading = follow(rows, "b"), Reading(book, rows)
    going.reach = Reach(4, frozenset({1, 2}))
    assert reading() == {0: "old 0", 3: "old 3"}
    book.row("b", 1, "new 1")
    going.reach = Reach(5, frozenset({2}))
    assert reading() == {1: "new 1", 4: "old 4"}
    going.is_over = True  # it was stopped, and 2 never came
    assert reading() == {}
    assert reading.is_over
    assert rows.pending == {2}


def test_of_several_stages_all_must_have_ended_with_a_row(book: Book) -> None:
    for name in "ab":
        book.stage(name)
        for position in range(4):
            book.row(name, position)
    rows = rows_of("a", "b")
    a, b, reading = follow(rows, "a"), follow(rows, "b"), Reading(book, rows)
    a.reach = Reach(4)
    for position in range(3):
        book.answer("a", position, f"a{position}")
    assert reading() == {}  # b has placed nothing
    b.reach = Reach(4, frozenset({3}))
    book.answer("b", 0, "b0")
    book.fail("b", 1)
    assert reading() == {0: "a0+b0", 1: "a1+-"}
    book.fail("a", 3)
    b.reach = Reach(4)
    book.fail("b", 3)
    assert reading() == {3: None}
    assert rows.pending == {2}


def test_of_a_stage_that_ended_early_a_row_that_is_missing_may_come_yet(book: Book) -> None:
    book.stage("a", exit_code=0)
    book.stage("b", exit_code=3)
    for position in range(3):
        book.row("a", position, f"a{position}")
    book.row("b", 1, "b1")
    assert Reading(book, rows_of("a", "b", incomplete=["b"]))() == {1: "a1+b1"}
    assert Reading(book, rows_of("a", "b"))() == {0: "a0+-", 1: "a1+b1", 2: "a2+-"}


def test_several_rows_of_one_stand_beside_each_other_and_a_limit_cuts_them(book: Book) -> None:
    book.stage("a", exit_code=0)
    for position in range(4):
        book.row("a", position, f"a{position}")
    assert list(Reading(book, rows_of("a", each=2))()) == list(range(8))
    assert list(Reading(book, rows_of("a", each=2, limit=5))()) == list(range(5))


def test_a_limit_ends_the_rows_while_the_stage_goes_on(book: Book) -> None:
    book.stage("a")
    rows = rows_of("a", limit=2)
    going, reading = follow(rows, "a"), Reading(book, rows)
    for position in range(3):
        book.row("a", position)
    going.reach = Reach(3)
    book.answer("a", 1, "one")
    book.answer("a", 2, "two")
    assert reading() == {1: "one"}
    book.answer("a", 0, "zero")
    assert reading() == {0: "zero"}
    assert reading.is_over


def test_many_rows_are_read_page_by_page_in_any_order_of_answers(book: Book) -> None:
    count = 3 * PAGE + 7
    book.stage("a")
    book.db.execute("BEGIN")
    for position in range(count):
        book.row("a", position)
    book.db.execute("COMMIT")
    rows = rows_of("a")
    going, reading = follow(rows, "a"), Reading(book, rows)
    found: dict[int, str | None] = {}
    for third in range(3):
        going.reach = Reach(count if third else 2 * PAGE)
        book.db.execute("BEGIN")
        for position in range(third, count, 3):
            book.answer("a", position, str(position))
        book.db.execute("COMMIT")
        some = reading()
        assert not found.keys() & some.keys()
        found |= some
        assert len(rows.pending) == (going.reach.frontier - len(found))
    assert found == {position: str(position) for position in range(count)}
