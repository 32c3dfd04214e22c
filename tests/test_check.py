"""A damaged ledger: what is damaged is named and left out, counted, and pending again by one command."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.collect.upstream import Upstream, answers_at
from store.queries import connect_reader
from tests.support import zygote
from tests.support.cli import (
    ROOT,
    Ended,
    Row,
    distill,
    environment,
    export,
    generate,
    ledger,
    rows,
    status,
    write_pool,
)
from tests.support.ledgers import unpacked
from tests.support.provider import Provider

COUNT = 12


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.jsonl", rows(COUNT))


def change(run: Path, sql: str, *values: object) -> None:
    """As a disk would: nothing else is changed with it."""
    connection = sqlite3.connect(run / "ledger.db")
    with connection:
        assert connection.execute(sql, values).rowcount > 0
    connection.close()


async def check(run: Path, *flags: object) -> tuple[Ended, dict[str, Any]]:
    ended = await distill("check", run, "--json", *flags)
    found: dict[str, Any] = orjson.loads(ended.out)
    return ended, found


async def exported(run: Path, folder: Path, code: int = 0) -> tuple[list[Row], str]:
    out = folder / "exported.jsonl"
    ended = await distill("export", run, "--format", "alpaca", "--out", out)
    assert ended.code == code, ended.err
    return [orjson.loads(line) for line in out.read_bytes().splitlines()], ended.err


BODY = "UPDATE bodies SET raw = {} WHERE response = (SELECT answer FROM requests WHERE id = 4)"
LETTER = BODY.format("replace(raw, 'content', 'cOntent')")  # JSON still, and another key
BITS = BODY.format(
    "CAST(substr(CAST(raw AS BLOB), 1, 300) || x'ff' || substr(CAST(raw AS BLOB), 302) AS TEXT)"
)
GONE = "DELETE FROM bodies WHERE response = (SELECT answer FROM requests WHERE id = 4)"


@pytest.mark.parametrize(
    ("sql", "why"),
    [(LETTER, "checksum differs"), (BITS, "checksum differs"), (GONE, "missing")],
    ids=["letter", "bits", "gone"],
)
async def test_one_damaged_reply_is_left_out_named_and_asked_again(
    run: Path, pool: Path, tmp_path: Path, sql: str, why: str
) -> None:
    async with Provider().running() as p:
        assert (await generate(run, pool, p.base_url)).code == 0
        before = await export(run)
        change(run, sql)
        left, said = await exported(run, tmp_path, code=1)
        assert left == [row for row in before if row["id"] != "3"]
        assert f"{COUNT - 1} rows written" in said
        assert "stage 'generate': 1 answer is damaged and left out (row 3" in said
        assert why in said
        ended, found = await check(run)
        assert (ended.code, found["intact"], found["asked_again"]) == (1, False, 1)
        (named,) = found["named"]
        assert (named["stage"], named["position"], named["id"]) == ("generate", 3, "3")
        assert why in named["why"]
        ended, found = await check(run, "--repair")
        assert (ended.code, found["intact_now"], found["kept"]) == (0, True, None)
        assert (await status(run))["stages"]["generate"]["done"] == COUNT - 1
        assert (await check(run))[0].code == 0
        asked = p.counts.requests
        assert (await generate(run, pool, p.base_url)).code == 0
        assert p.counts.requests == asked + 1
        assert await export(run) == before
        # what is left of it is kept, and its cost stays
        assert ledger(run, "SELECT count(*) FROM responses WHERE outcome = 'malformed'") == [(1,)]
        assert ledger(run, "SELECT count(*) FROM bodies") == [(COUNT + 1,)]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("UPDATE rows SET item = replace(item, 'row 5', 'row 7') WHERE id = (1 << 40) + 5", 1),
        ("UPDATE rows SET item = substr(item, 2) WHERE id = (1 << 40) + 5", 1),
        ("DELETE FROM rows WHERE id = (1 << 40) + 5", 1),
        ("UPDATE samples SET request = 3 WHERE position = 5", 1),
        ("UPDATE samples SET request = 300000 WHERE position = 5", 1),
        ("DELETE FROM samples WHERE position = 5", 1),
        ("UPDATE requests SET key = substr(key, 1, 31) || x'00' WHERE id = 6", 0),
        ("UPDATE requests SET answer = 3 WHERE id = 6", 0),
        ("UPDATE requests SET answer = 99 WHERE id = 6", 0),
        ("DELETE FROM requests WHERE id = 6", 0),
        ("DELETE FROM responses WHERE id = 6", 0),
        ("UPDATE responses SET request = 2 WHERE id = 6", 0),
        ("DELETE FROM attempts WHERE id = 6", 0),
        ("DELETE FROM runs", 0),
        ("DELETE FROM stages", 0),
        ("DELETE FROM spending", 0),
        ("UPDATE spending SET spent_micro = -5", 0),
        ("UPDATE responses SET cost_micro = -5, completion_tokens = 1 << 50 WHERE id = 6", 0),
        ("UPDATE runs SET settings = replace(settings, '\"model\"', '\"model')", 0),
        ("UPDATE runs SET settings = 'all gone'", 0),
    ],
)
async def test_what_is_damaged_beside_a_reply_is_mended_and_nothing_is_asked(
    run: Path, pool: Path, tmp_path: Path, sql: str, rows: int
) -> None:
    """The pool and the replies know it all."""
    async with Provider().running() as p:
        assert (await generate(run, pool, p.base_url)).code == 0
        before = await export(run)
        change(run, sql)
        assert (await distill("status", run)).code == 0
        ended, found = await check(run)
        assert ended.code == 1, found
        assert (found["damaged"]["rows"], found["asked_again"]) == (rows, 0)
        ended, found = await check(run, "--repair")
        assert (ended.code, found["intact_now"]) == (0, True), found
        left, _ = await exported(run, tmp_path)
        assert left == [row for row in before if not (rows and row["id"] == "5")]
        asked = p.counts.requests
        assert (await generate(run, pool, p.base_url)).code == 0
        assert p.counts.requests == asked
        assert await export(run) == before
        assert (await check(run))[0].code == 0


@pytest.mark.parametrize("sql", ["item = replace(item, 'row 5', 'row 7')", "checksum = checksum + 1"])
async def test_a_row_whose_text_has_changed_is_left_out_of_what_is_read(
    run: Path, pool: Path, tmp_path: Path, sql: str
) -> None:
    """Also where nobody has run `check`: by an export, and by a stage that takes its rows from this one."""
    async with Provider().running() as p:
        assert (await generate(run, pool, p.base_url)).code == 0
        change(run, f"UPDATE rows SET {sql} WHERE id = (1 << 40) + 5")
        left, said = await exported(run, tmp_path, code=1)
        assert [row["id"] for row in left] == [str(n) for n in range(COUNT) if n != 5]
        assert "row 5: its text is damaged" in said
    damages: set[int] = set()
    upstream = Upstream("generate", lambda item, text: text)
    with contextlib.closing(connect_reader(run)) as reader:
        found = answers_at(reader, 1, upstream, range(COUNT), damages=damages)
    assert damages == {5}
    assert [position for position, one in found.items() if one.is_waiting or one.record is None] == [5]


@pytest.mark.parametrize(
    "sql",
    [
        'UPDATE bodies SET raw = replace(raw, \'"choices"\', \'"cho"ices"\') WHERE response = {}',
        "UPDATE bodies SET raw = CAST(x'ff' || CAST(raw AS BLOB) AS TEXT) WHERE response = {}",
    ],
)
async def test_replies_of_older_versions_without_a_checksum_must_be_readable(
    tmp_path: Path, sql: str
) -> None:
    folder = unpacked("plain", tmp_path)
    run = folder / "run"
    assert (await check(run))[0].code == 0
    ((response, position),) = ledger(
        run,
        "SELECT r.answer, a.position FROM samples a JOIN requests r ON r.id = a.request "
        "WHERE a.position = 2 AND a.sample = 1",
    )
    change(run, sql.format(response))
    _, said = await exported(run, tmp_path, code=1)
    assert f"row {position} (id 2)" in said
    ended, found = await check(run, "--repair")
    assert (ended.code, found["asked_again"], found["intact_now"]) == (0, 1, True)
    left, _ = await exported(run, tmp_path)
    before = [orjson.loads(line) for line in (folder / "alpaca.jsonl").read_bytes().splitlines()]
    assert left == [row for row in before if (row["id"], row["sample"]) != ("2", 1)]


async def test_the_others_who_read_replies_leave_out_what_is_damaged(tmp_path: Path) -> None:
    """The report, shares, a judge's figures, and what `retry` reads again."""
    folder = unpacked("recipe", tmp_path)
    run = folder / "run"
    assert (await distill("status", run)).code == 0  # brings it up to date
    of_stage = (
        "UPDATE bodies SET raw = '{' || raw WHERE response IN (SELECT r.answer FROM samples a "
        "JOIN requests r ON r.id = a.request WHERE a.stage = ? AND a.position BETWEEN 1 AND ?)"
    )
    change(run, of_stage, 1, 3)
    change(run, of_stage, 2, 1)
    last = "(SELECT max(id) FROM responses WHERE outcome = 'unparsed')"
    change(run, f"UPDATE bodies SET raw = x'00ff' WHERE response = {last}")
    out = tmp_path / "report.html"
    ended = await distill("report", run, "--out", out)
    assert ended.code == 0, ended.err
    assert "Damaged answers" in out.read_text()
    shares = await distill("evaluate", "shares", run, "--json")
    assert shares.code == 0
    assert orjson.loads(shares.out)["data"]["english"]["rows"] == 3
    assert "stage 'english': 3 answers are damaged" in shares.err
    judged = await distill("evaluate", "judge", "--run", run, "--json")
    assert judged.code == 0, judged.err
    assert "stage 'judged': 2 answers are damaged" in judged.err
    assert (await distill("retry", run)).code == 0


async def test_what_is_no_ledger_is_left_alone(tmp_path: Path) -> None:
    ended = await distill("check", tmp_path / "nowhere", "--repair")
    assert ended.code == 2
    assert not (tmp_path / "nowhere").exists()
    for content in (b"", b"not a ledger" * 5000):
        (tmp_path / "ledger.db").write_bytes(content)
        ended = await distill("check", tmp_path, "--repair")
        assert ended.code == 2, ended.err
        assert (tmp_path / "ledger.db").read_bytes() == content
    assert "restore it from a backup" in ended.err


async def test_a_ledger_of_a_newer_version_is_not_damaged(run: Path, pool: Path) -> None:
    async with Provider().running() as p:
        assert (await generate(run, pool, p.base_url)).code == 0
    version = ledger(run, "PRAGMA user_version")[0][0]
    connection = sqlite3.connect(run / "ledger.db")
    connection.execute(f"PRAGMA user_version = {version + 8}")
    connection.commit()
    ended, found = await check(run)
    assert (ended.code, found["asked_again"]) == (1, 0)  # a wrong bit: nothing has brought it there
    connection.execute("INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('distill', 'm999')")
    connection.commit()
    connection.close()
    before = (run / "ledger.db").read_bytes()
    ended = await distill("check", run, "--repair")
    assert ended.code == 2
    assert "newer distill" in ended.err
    assert (run / "ledger.db").read_bytes() == before


def commits(run: Path, count: int) -> None:
    """A process that is killed when it has made so many commits of ten answers."""
    code = f"""
import asyncio, os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.support.ledgers import Book, opened
async def main():
    async with opened(Path(sys.argv[1])) as ledger:
        book = Book(ledger)
        for number in range(1, {10 * count + 1}):
            book.add(number)
            if number % 10 == 0:
                await ledger.committed()
        os._exit(9)
asyncio.run(main())
"""
    run.mkdir()
    assert subprocess.run([sys.executable, "-P", "-c", code, str(run)], env=environment()).returncode == 9


async def test_commits_behind_a_damaged_part_of_the_write_ahead_log_are_saved(run: Path) -> None:
    """SQLite would drop them without a word."""
    commits(run, 30)
    log = run / "ledger.db-wal"
    raw = bytearray(log.read_bytes())
    raw[len(raw) // 2] ^= 4
    log.write_bytes(raw)
    ended, found = await check(run)
    assert (ended.code, found["sqlite"]) == (1, ["its write-ahead log is damaged"])
    ended, found = await check(run, "--repair")
    assert (ended.code, found["intact_now"], found["replies_checked"]) == (0, True, 300)
    assert ledger(run, "SELECT count(*) FROM answers") == [(300,)]
    assert Path(found["kept"]).with_name("ledger.db.damaged-1-wal").read_bytes() == raw


async def test_a_commit_that_was_being_written_is_not_damage(run: Path) -> None:
    commits(run, 30)
    log = run / "ledger.db-wal"
    raw = bytearray(log.read_bytes())
    raw[-5] ^= 4
    log.write_bytes(raw)
    ended, found = await check(run)
    assert (ended.code, found["replies_checked"]) == (0, 290)


# Bits that are flipped anywhere.


def flipped(raw: bytearray, dice: random.Random) -> None:
    for _ in range(20):
        place = dice.randrange(8 * len(raw))
        raw[place // 8] ^= 1 << place % 8


def zeroed(raw: bytearray, dice: random.Random) -> None:
    start = 4096 * dice.randrange(len(raw) // 4096)
    raw[start : start + 4096] = bytes(4096)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """A provider in a process of its own; its root URL."""
    provider = subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.support.provider"], stdout=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    assert provider.stdout
    yield provider.stdout.readline().split()[-1]
    provider.kill()
    provider.wait()
    provider.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_flipped_bits_end_no_command_and_lose_nothing_that_is_not_asked_again(
    tmp_path: Path, served: str, part: int
) -> None:
    """Forty copies with twenty bits each, and some with a block of zeros."""
    pool = write_pool(tmp_path / "pool.jsonl", rows(80))
    good, out = tmp_path / "good", tmp_path / "out.jsonl"
    asking = ("--base-url", served, "--model", "gpt-4", "--price-in", 0, "--price-out", 0, "--quiet")
    damages: list[Callable[[bytearray, random.Random], None]] = [*[flipped] * 10, *[zeroed] * 3]

    def run(*words: object, ends: tuple[int, ...]) -> str:
        code, said, err = zygote.run(words, environment())
        assert "Traceback" not in err
        assert "unexpected" not in err
        assert code in ends, f"{words}: {code} {said} {err}"
        return said

    run("generate", pool, "--run", good, *asking, ends=(0,))
    run("export", good, "--format", "alpaca", "--out", out, ends=(0,))
    wanted = out.read_bytes()
    for number, damage in enumerate(damages):
        dice, copy, other = random.Random(100 * part + number), tmp_path / "copy", tmp_path / "other"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(good, copy)
        raw = bytearray((copy / "ledger.db").read_bytes())
        damage(raw, dice)
        (copy / "ledger.db").write_bytes(raw)
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(copy, other)
        export = ("export", copy, "--format", "alpaca", "--stage", "generate", "--out", out)
        run("status", copy, ends=(0, 2))
        run(*export, ends=(0, 1, 2))
        run("check", copy, ends=(0, 1))
        run("generate", pool, "--run", other, *asking, ends=(0, 1, 2, 3))
        found = orjson.loads(run("check", copy, "--repair", "--json", ends=(0,)))
        if not found["intact"]:
            assert found["intact_now"]
        run("check", copy, ends=(0,))
        run(*export, ends=(0, 2))
        run("generate", pool, "--run", copy, *asking, ends=(0,))
        run(*export, ends=(0,))
        assert out.read_bytes() == wanted
        run("check", copy, ends=(0,))


async def test_a_checksum_is_that_of_the_bytes_that_came(run: Path, pool: Path) -> None:
    async with Provider().running() as p:
        assert (await generate(run, pool, p.base_url)).code == 0
    for raw, checksum in ledger(run, "SELECT CAST(raw AS BLOB), checksum FROM bodies"):
        assert zlib.crc32(raw) == checksum
