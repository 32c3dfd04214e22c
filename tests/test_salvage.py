"""What can be read of a damaged file goes into a fresh one: everything that an intact one holds, and no
record under another's number."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from store.salvage import places, salvage
from store.schema import connect_writer
from tests.support.ledgers import VERSIONS, Book, opened, reply, unpacked

TABLES = (
    "stages", "runs", "rows", "samples", "requests", "attempts", "responses", "bodies", "errors", "spending",
    "facts", "batches", "enqueued", "endpoints", "settlements",
)  # fmt: skip


def table(path: Path, name: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"SELECT * FROM {name}").fetchall()
    finally:
        connection.close()


def equal(damaged: Path, fresh: Path) -> None:
    for name in TABLES:
        assert table(fresh, name) == table(damaged, name), name


async def test_an_intact_ledger_is_salvaged_whole(tmp_path: Path) -> None:
    """Records of every table, and bodies that flow over many pages."""
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        server = ledger.endpoint("http://127.0.0.1:1/v1")
        for number in range(1, 400):
            book.place(number)
            if number % 7:
                book.answer(number, reply("long " * (number * 37 % 9000), cost=number))
            else:
                book.fail(number)
        attempt = ledger.journal(book.run, book.stage, 1, 5000, server)
        ledger.note("INSERT INTO settlements VALUES (?, 17, 2.5)", attempt)
        ledger.note("INSERT INTO enqueued VALUES (?, 3, 1, 0)", attempt)
        ledger.note(
            "INSERT INTO batches VALUES (3, ?, ?, 7, 'http://127.0.0.1:1/v1', '{}', 1, 2, 3, 4, 5.5, NULL, "
            "NULL, NULL, 'intended', NULL)",
            book.run, book.stage,
        )  # fmt: skip
        await ledger.committed()
    fresh = tmp_path / "fresh.db"
    assert salvage(tmp_path / "ledger.db", fresh).unreadable == 0
    for name in TABLES:
        assert table(fresh, name), name
    equal(tmp_path / "ledger.db", fresh)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["plain", "recipe"])
def test_a_ledger_of_an_older_version_is_salvaged_into_one_of_today(
    tmp_path: Path, name: str, version: int
) -> None:
    run = unpacked(name, tmp_path, version) / "run"
    fresh = tmp_path / "fresh.db"
    salvage(run / "ledger.db", fresh)
    connect_writer(run).close()  # brings it up to date
    equal(run / "ledger.db", fresh)


async def test_without_the_page_above_them_all_leaves_are_read(tmp_path: Path) -> None:
    """SQLite would give up on the whole table."""
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number in range(1, 301):
            book.add(number, reply("words " * 300))
    path = tmp_path / "ledger.db"
    before = table(path, "bodies")
    connection = sqlite3.connect(path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'bodies'").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        assert file.read(1) == b"\5"  # an inner page of a table
        file.seek((root - 1) * size)
        file.write(bytes(size))
    with pytest.raises(sqlite3.DatabaseError):
        table(path, "bodies")
    salvage(path, tmp_path / "fresh.db")
    assert table(tmp_path / "fresh.db", "bodies") == before


async def test_deleted_records_do_not_come_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number in range(1, 2001):
            book.add(number)
        await ledger.committed()
        ledger.note("DELETE FROM rows WHERE id > ?", (book.stage << 40) + 20)
        ledger.note("DELETE FROM samples WHERE position > 20")
    salvage(tmp_path / "ledger.db", tmp_path / "fresh.db")
    equal(tmp_path / "ledger.db", tmp_path / "fresh.db")


@pytest.mark.parametrize(
    ("rowids", "bounds", "expected"),
    [
        ([1, 2, 3], (0, 3), [(1, True), (2, True), (3, True)]),
        ([21, 54, 23], (20, 23), [(21, True), (22, True), (23, True)]),  # a wrong bit, and one place left
        ([54], (21, 22), [(22, True)]),  # alone on its leaf: the bounds tell
        ([54, 23], (21, 23), [(22, True), (23, True)]),
        ([21, 54, 23, 24], None, [(21, True), (22, True), (23, True), (24, True)]),
        ([21, 54, 23], None, [(21, True), (None, False), (None, False)]),  # either may be the wrong one
        ([21, 9, 30], None, [(None, False), (None, False), (30, True)]),
        ([19, 21, 21, 22], None, [(19, True), (20, True), (21, True), (22, True)]),
        ([5, 6, 7], (0, 2), [(5, True), (6, True), (7, True)]),  # it is the bounds that are wrong
        ([5, 6, 9], (4, 7), [(5, True), (6, True), (7, True)]),
        ([5, 6], (9, 3), [(5, True), (6, True)]),
        ([5, 6, 70], (4, None), [(5, True), (6, True), (70, True)]),
        ([], (0, 3), []),
    ],
)  # fmt: skip
def test_a_wrong_number_is_put_right_only_where_one_place_is_left(
    rowids: list[int], bounds: tuple[int, int | None] | None, expected: list[tuple[int | None, bool]]
) -> None:
    assert places(rowids, bounds) == expected
