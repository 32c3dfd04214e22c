"""The ledger keeps what it was given: through kills, full disks and hostile replies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.errors import DiskFull, DistillError, RunFolderError, StorageError
from store.files import RESERVE
from store.ledger import Ledger
from store.queries import connect_reader, stage_status
from store.records import Fault, Response, Usage
from store.run_folder import give_up_reserve, held, ledger_path, make_reserve
from store.schema import VERSION, connect_writer
from tests.support.ledgers import PLAN, Book, chat, item, opened, reply, request, rows

ROOT = Path(__file__).parent.parent
PATIENCE = 2.0  # seconds that a commit may take before a test calls it hung


def started(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def lines_of(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout
    return [process.stdout.readline().strip() for _ in range(count)]


def killed(process: subprocess.Popen[str]) -> list[str]:
    """Kills it; returns what else it had said."""
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    return out.splitlines()


# A kill.

FILLS = """
import asyncio, sys
from pathlib import Path
from tests.support.ledgers import Book, opened

async def main():
    async with opened(Path(sys.argv[1])) as ledger:
        book = Book(ledger)
        async def one(number):
            book.add(number)
            await ledger.committed()
            print(number, flush=True)
        for start in range(1, 1_000_000, 10):
            await asyncio.gather(*(one(n) for n in range(start, start + 10)))

asyncio.run(main())
"""


def test_what_is_committed_is_there_after_a_kill(tmp_path: Path) -> None:
    process = started(FILLS, tmp_path)
    said = [*lines_of(process, 300), *killed(process)]
    numbers = [int(line) for line in said if line]
    assert len(numbers) >= 300
    stored = dict(rows(tmp_path, "SELECT position + 1, output FROM answers"))
    assert {number: stored.get(number) for number in numbers} == {n: f"Answer {n}." for n in numbers}
    assert rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    process = started(FILLS, tmp_path)
    lines_of(process, 50)
    killed(process)
    async with opened(tmp_path) as ledger:
        number = ledger.last_request + 1
        assert number > 50
        Book(ledger).add(number)
    assert rows(tmp_path, "SELECT output FROM answers WHERE position = ?", number - 1) == [
        (f"Answer {number}.",)
    ]
    ids = [n for (n,) in rows(tmp_path, "SELECT id FROM requests ORDER BY id")]
    assert ids == list(range(1, number + 1))


SENDS = """
import asyncio, sys
from pathlib import Path
from tests.support.ledgers import Book, opened

async def main():
    async with opened(Path(sys.argv[1])) as ledger:
        book = Book(ledger)
        for number in range(1, 6):
            book.place(number)
        book.answer(1)
        for number in (2, 3, 4):
            book.ask(number, worst=700)
        await ledger.committed()
        print("sent", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_after_a_kill_it_is_known_what_was_sent_and_not_answered(tmp_path: Path) -> None:
    process = started(SENDS, tmp_path)
    assert lines_of(process, 1) == ["sent"]
    killed(process)
    assert [r for (r,) in rows(tmp_path, "SELECT request FROM unanswered ORDER BY request")] == [2, 3, 4]
    assert rows(tmp_path, "SELECT at_risk_usd, unanswered FROM costs") == [(2100 / 1e6, 3)]


# Batches.


async def test_what_queues_while_a_commit_is_under_way_goes_into_the_next_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book, commits = Book(ledger), []
        ledger._connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        slow = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        slow.execute("BEGIN IMMEDIATE")  # the first commit has to wait for this

        async def one(number: int) -> None:
            book.add(number)
            await ledger.committed()

        first = asyncio.ensure_future(one(1))
        for _ in range(20):
            await asyncio.sleep(0.001)
        rest = []
        for number in range(2, 402):
            rest.append(asyncio.ensure_future(one(number)))
            await asyncio.sleep(0)
        assert not first.done()
        slow.execute("ROLLBACK")
        slow.close()
        await asyncio.gather(first, *rest)
        assert len(commits) == 2
        ledger._connection.set_trace_callback(None)
    assert rows(tmp_path, "SELECT count(*) FROM answers") == [(401,)]


async def test_a_reply_counts_only_when_its_commit_has_returned(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        slow = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        slow.execute("BEGIN IMMEDIATE")
        book.add(1)
        waiting = asyncio.ensure_future(ledger.committed())
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        assert rows(tmp_path, "SELECT * FROM responses") == []
        slow.execute("ROLLBACK")
        slow.close()
        await waiting
        assert rows(tmp_path, "SELECT count(*) FROM responses") == [(1,)]


async def test_what_was_put_and_not_waited_for_is_stored_at_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        Book(ledger).add(1)
    assert rows(tmp_path, "SELECT output FROM answers") == [("Answer 1.",)]


async def test_commits_are_synchronous(tmp_path: Path) -> None:
    """A commit that has returned survives a power cut, not only a kill."""
    connection = connect_writer(tmp_path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    connection.close()


# What is kept.

RAW = [
    b"{}",
    b"",
    b"\xff\xfe\x00",
    b"a\x00b",
    "\ufeffمرحبا 😀".encode(),
    b'"\\ud83d"',
    b"\xed\xa0\x80",
    b"x" * 10**6,
]


async def test_a_body_is_kept_byte_for_byte(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number, raw in enumerate(RAW, 1):
            book.add(number, Response("stop", "stop", Usage(1, 1), raw, 0, 0.1))
    found = [raw for (raw,) in rows(tmp_path, "SELECT raw FROM bodies ORDER BY response")]
    assert [raw.encode() if isinstance(raw, str) else raw for raw in found] == RAW
    assert isinstance(found[0], str)  # so that plain SQL can look into it


async def test_a_reply_is_kept_with_all_that_it_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        Book(ledger).add(1, Response("length", "length", Usage(9, 8, 7, 6), b"{}", 1234, 0.5, "gpt-4-0613"))
    sql = (
        "SELECT outcome, finish_reason, model, prompt_tokens, completion_tokens, cached_tokens, "
        "reasoning_tokens, cost_micro, latency FROM replies"
    )
    assert rows(tmp_path, sql) == [("length", "length", "gpt-4-0613", 9, 8, 7, 6, 1234, 0.5)]


async def test_a_malformed_reply_is_kept_and_is_no_answer(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.place(1)
        attempt = book.ask(1)
        ledger.put(book.stage, attempt, 1, reply("?", "malformed"), 0, final=False)
        ledger.error(book.stage, attempt, 1, Fault("malformed", 200, "no text"), 0, ended=False)
    assert rows(tmp_path, "SELECT outcome FROM responses") == [("malformed",)]
    assert rows(tmp_path, "SELECT * FROM answers") == []
    assert rows(tmp_path, "SELECT sent, unanswered FROM costs") == [(1, 0)]


async def test_every_attempt_is_journalled_before_its_answer(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.place(1)
        attempts = [book.ask(1, worst) for worst in (10, 20, 30)]
        ledger.error(book.stage, attempts[0], 1, Fault("server", 503, "HTTP 503: busy"), 10)
        ledger.withdraw(book.stage, attempts[1], 20)
        ledger.put(book.stage, attempts[2], 1, reply(), 30, final=True)
    assert rows(tmp_path, "SELECT id, run, request, worst_micro FROM attempts") == [
        (1, 1, 1, 10),
        (3, 1, 1, 30),
    ]
    assert rows(tmp_path, "SELECT attempt, cause, status, message FROM errors") == [
        (1, "server", 503, "HTTP 503: busy")
    ]
    assert rows(tmp_path, "SELECT sent, unanswered, at_risk_usd FROM costs") == [(2, 0, 0.0)]


async def test_a_failure_stands_until_an_answer_comes(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.place(1)
        book.fail(1)
        await ledger.committed()
        sql = "SELECT position, cause, status, message FROM failures"
        assert rows(tmp_path, sql) == [(0, "bad_request", 400, "HTTP 400: No.")]
        book.answer(1)
    assert rows(tmp_path, sql) == []
    assert rows(tmp_path, "SELECT output FROM answers") == [("Answer 1.",)]


async def test_spending_is_exact_and_in_whole_micro_dollars(tmp_path: Path) -> None:
    source = random.Random(3)
    costs = [source.randrange(10**7) for _ in range(500)]
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number, cost in enumerate(costs, 1):
            book.add(number, reply(cost=cost, usage=Usage(number, 2 * number)))
            if number % 50 == 0:
                await ledger.committed()
        book.ask(1, worst=333)
        other = Book(ledger, "second")
        other.answer(2, reply(cost=10))
    kinds = "typeof(spent_micro), typeof(at_risk_micro), typeof(prompt_tokens), typeof(sent)"
    assert set(rows(tmp_path, f"SELECT {kinds} FROM spending")) == {("integer",) * 4}
    total = len(costs) * (len(costs) + 1) // 2
    columns = "spent_micro, at_risk_micro, prompt_tokens, completion_tokens, sent, ended"
    assert rows(tmp_path, f"SELECT {columns} FROM spending ORDER BY stage") == [
        (sum(costs), 333, total, 2 * total, 501, 500),
        (10, 0, 100, 50, 1, 1),
    ]


async def test_a_stage_has_one_number_and_each_run_of_it_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        first, again = Book(ledger, "generate"), Book(ledger, "generate", samples=3)
        other = Book(ledger, "score")
    assert (first.stage, again.stage, other.stage) == (1, 1, 2)
    assert (first.run, again.run, other.run) == (1, 2, 3)
    assert rows(tmp_path, "SELECT name, samples FROM stages") == [("generate", 3), ("score", 1)]
    assert rows(tmp_path, "SELECT pid FROM runs WHERE id = 1") == [(os.getpid(),)]


async def test_a_row_that_is_placed_again_is_replaced(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.add(1)
        book.add(2)
        ledger.place(book.stage, 0, item(2), PLAN, [(0, 2)])
    assert rows(tmp_path, "SELECT position, id, output FROM answers ORDER BY position") == [
        (0, "row 2", "Answer 2."),
        (1, "row 2", "Answer 2."),
    ]


async def test_values_that_sqlite_cannot_hold_do_not_hang_the_run(tmp_path: Path) -> None:
    """What a server says must never kill the writer: everybody would wait for it for ever."""
    for number, hostile in enumerate(
        (
            Response("stop", "stop", Usage(2**63, 1), chat("x"), 0, 0.1),
            Response("stop", "stop", Usage(1, 1), chat("x"), 2**70, 0.1),
            Response("stop", "st\ud83d", Usage(1, 1), chat("x"), 0, 0.1),
            Response("stop", "stop", Usage(1, 1), chat("x"), 0, 0.1, "model \ud83d"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        ledger = Ledger(folder)
        Book(ledger).add(1, hostile)
        try:
            await asyncio.wait_for(ledger.committed(), PATIENCE)
        except StorageError:
            pass  # an error is an answer
        else:
            assert rows(folder, "SELECT count(*) FROM bodies") == [(1,)]
        await ledger.close()


async def test_words_that_sqlite_cannot_hold_do_not_hang_the_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    book = Book(ledger)
    book.place(1)
    book.fail(1, words="HTTP 400: too long: \ud83d")
    try:
        await asyncio.wait_for(ledger.committed(), PATIENCE)
    except StorageError:
        pass
    else:
        ((words,),) = rows(tmp_path, "SELECT message FROM failures")
        assert words.startswith("HTTP 400: too long: ")
    await ledger.close()


async def test_a_commit_that_failed_is_told_to_whoever_waits_after_it(tmp_path: Path) -> None:
    """Else a later commit that succeeds would count what the earlier one lost."""
    ledger = Ledger(tmp_path)
    book = Book(ledger)
    ledger.add([request(1), request(1)])  # SQLite refuses the second
    book.answer(1)
    await asyncio.sleep(0)  # the batch is on its way before anybody waits for it
    with pytest.raises(StorageError):
        await ledger.committed()
    await ledger.close()
    assert rows(tmp_path, "SELECT count(*) FROM responses") == [(0,)]


# Plain SQL.


async def test_every_view_can_be_read_with_plain_sqlite_while_a_run_writes(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.add(1, reply("مرحبا"))
        for number in (2, 3, 4):
            book.place(number)
        book.fail(2)
        book.ask(3)
        book.add(5, Response("stop", "stop", Usage(1, 1), b"\xff no JSON", 0, 0.1))
        book.add(6, Response("content_filter", "content_filter", Usage(), b'{"error":{}}', 0, 0.1))
        await ledger.committed()
        assert rows(tmp_path, "SELECT position, id, output, cost_usd FROM answers ORDER BY position") == [
            (0, "row 1", "مرحبا", 0.0015),
            (4, "row 5", None, 0.0),
            (5, "row 6", None, 0.0),
        ]
        assert rows(tmp_path, "SELECT instruction, cause FROM failures") == [("Question 2?", "bad_request")]
        assert rows(tmp_path, "SELECT request, worst_usd FROM unanswered") == [(3, 0.005)]
        assert rows(tmp_path, "SELECT stage, spent_usd, sent FROM costs") == [("generate", 0.0015, 5)]
        assert rows(tmp_path, "SELECT count(*) FROM replies") == [(3,)]
        names = {name for (name,) in rows(tmp_path, "SELECT name FROM sqlite_master WHERE type = 'view'")}
        assert names == {"answers", "failures", "unanswered", "costs", "replies"}


async def test_the_wal_is_folded_in_at_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        Book(ledger).add(1)
    assert os.listdir(tmp_path) == ["ledger.db"]


# Migrations.


def test_a_new_ledger_is_made_and_an_old_one_left_as_it_is(tmp_path: Path) -> None:
    connect_writer(tmp_path).close()
    assert rows(tmp_path, "PRAGMA user_version") == [(VERSION,)]
    schema = rows(tmp_path, "SELECT sql FROM sqlite_master ORDER BY name")
    before = (tmp_path / "ledger.db").read_bytes()
    connect_writer(tmp_path).close()
    assert rows(tmp_path, "SELECT sql FROM sqlite_master ORDER BY name") == schema
    assert (tmp_path / "ledger.db").read_bytes() == before


INTERRUPTED = """
import os, sqlite3, sys
from pathlib import Path
from store import schema
from store.schema import connect_writer

for stop in range(1, 41, 3):
    run = Path(sys.argv[1], str(stop))
    run.mkdir()
    if (child := os.fork()) == 0:
        connection = sqlite3.connect(run / "ledger.db", isolation_level=None)
        seen = 0
        def count(sql):
            global seen
            seen += 1
            if seen == stop:
                os._exit(9)
        connection.set_trace_callback(count)
        schema.migrate(connection)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection = connect_writer(run)
        connection.execute("SELECT * FROM answers").fetchall()
        connection.close()
        print(code, "ok")
    except Exception as error:
        print(code, stop, error)
"""


def test_a_kill_in_the_middle_of_a_migration_is_mended_by_the_next_start(tmp_path: Path) -> None:
    process = started(INTERRUPTED, tmp_path)
    out, _ = process.communicate()
    ended = out.splitlines()
    assert ended.count("9 ok") >= 10  # killed in the middle, and whole again
    assert set(ended) <= {"9 ok", "0 ok"}


# One process at a time.

HOLDS = """
import sys, time
from pathlib import Path
from store.run_folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_holds_is_refused_with_its_number(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert lines_of(process, 1) == ["held"]
        with pytest.raises(RunFolderError, match=f"in use by process {process.pid};"), held(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()
    with held(tmp_path):  # the lock went with the process
        pass


def test_a_folder_is_made_when_it_is_missing(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b") as run:
        assert run.is_dir()


def test_a_folder_without_a_ledger_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="it is not a run folder"):
        ledger_path(tmp_path)
    with pytest.raises(RunFolderError, match="it is not a run folder"):
        connect_reader(tmp_path / "nowhere")


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot write run folder"), held(tmp_path / "file" / "run"):
        pass
    with pytest.raises(RunFolderError, match="cannot open"):
        connect_writer(tmp_path / "file")


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"my notes" * 1000)
    with pytest.raises(RunFolderError, match=r"cannot open .*ledger\.db"):
        connect_writer(tmp_path)
    assert (tmp_path / "ledger.db").read_bytes() == b"my notes" * 1000


def test_reading_a_file_that_is_no_ledger_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"my notes" * 1000)
    with pytest.raises(DistillError):
        stage_status(connect_reader(tmp_path), 1)


# The reserve, and a full disk.


def test_the_reserve_takes_real_room_and_gives_it_back(tmp_path: Path) -> None:
    assert make_reserve(tmp_path, 1 << 20) == 1 << 20
    assert (tmp_path / RESERVE).stat().st_blocks * 512 >= 1 << 20
    assert give_up_reserve(tmp_path)
    assert not give_up_reserve(tmp_path)


def mount(*arguments: object) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=3m", "distill-test", path):
        pytest.skip("mounting a small disk is not permitted here; as root it is")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


async def fill(book: Book, size: int, stored: list[int], stop: list[bool] | None = None) -> None:
    """Answers until the disk is full; `stored` are those whose commit has returned."""
    for number in range(1, 1000):
        book.add(number, reply("x" * size))
        await book.ledger.committed()
        stored.append(number)
        if stop:
            return


async def test_when_the_disk_is_full_the_batch_in_hand_lands_in_the_reserve_s_room(disk: Path) -> None:
    assert make_reserve(disk, 4 << 20) == pytest.approx(3 * 2**20 / 4, rel=0.1)
    calls: list[bool] = []
    stored: list[int] = []
    async with opened(disk, lambda: calls.append(True)) as ledger:
        await fill(Book(ledger), 20_000, stored, calls)
        assert calls == [True]
        assert not (disk / RESERVE).exists()
        for number in range(stored[-1] + 1, stored[-1] + 6):  # paid replies that were in flight
            Book(ledger).add(number)
            await ledger.committed()
            stored.append(number)
    assert [p + 1 for (p,) in rows(disk, "SELECT position FROM answers ORDER BY position")] == stored
    assert rows(disk, "PRAGMA integrity_check") == [("ok",)]


async def test_when_the_reserve_is_used_up_too_all_that_was_stored_stays_readable(disk: Path) -> None:
    make_reserve(disk, 1 << 19)
    calls: list[bool] = []
    ledger = Ledger(disk, lambda: calls.append(True))
    stored: list[int] = []
    book = Book(ledger)
    with pytest.raises(DiskFull, match="nothing stored is lost"):
        await fill(book, 20_000, stored)
    with pytest.raises(DiskFull):
        await ledger.committed()
    await ledger.close()
    assert calls
    assert [p + 1 for (p,) in rows(disk, "SELECT position FROM answers ORDER BY position")] == stored


async def test_after_room_was_made_the_run_goes_on(disk: Path) -> None:
    async with opened(disk) as ledger:
        with pytest.raises(DiskFull):
            await fill(Book(ledger), 50_000, [])
    assert mount("-o", "remount,size=20m", disk)
    async with opened(disk) as ledger:
        before = ledger.last_request
        Book(ledger).add(before + 1)
    assert rows(disk, "SELECT count(*) FROM answers") == [(before + 1,)]
    assert rows(disk, "PRAGMA integrity_check") == [("ok",)]


async def test_after_a_failed_commit_nothing_is_stored_that_points_at_nothing(disk: Path) -> None:
    """What comes later may fit where a large batch did not, and must not land without it."""
    ledger = Ledger(disk)
    book = Book(ledger)
    for number in range(1, 101):
        ledger.place(
            book.stage, number - 1, item(number, "x" * 50_000), PLAN, [(0, number)], [request(number)]
        )
    with pytest.raises(DiskFull):
        await ledger.committed()
    book.place(101)
    book.answer(7)
    for _ in range(20):
        await asyncio.sleep(0.005)
    await ledger.close()
    ids = [n for (n,) in rows(disk, "SELECT id FROM requests ORDER BY id")]
    assert ids == list(range(1, len(ids) + 1))
    assert set(rows(disk, "SELECT request FROM attempts UNION SELECT request FROM samples")) <= {
        (n,) for n in ids
    }


async def test_a_folder_on_a_read_only_disk_is_refused(disk: Path) -> None:
    async with opened(disk) as ledger:
        Book(ledger).add(1)
    assert mount("-o", "remount,ro", disk)
    with pytest.raises(RunFolderError, match="cannot write run folder"), held(disk):
        pass
    with pytest.raises(RunFolderError, match="cannot open"):
        connect_writer(disk)
    with pytest.raises(RunFolderError, match="cannot write in run folder"):
        make_reserve(disk, 1024)


async def test_a_finished_run_on_a_read_only_disk_can_be_read(disk: Path) -> None:
    async with opened(disk) as ledger:
        Book(ledger).add(1)
    assert mount("-o", "remount,ro", disk)
    reader = connect_reader(disk)
    try:
        assert stage_status(reader, 1)["done"] == 1
    finally:
        reader.close()
