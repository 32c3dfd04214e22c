"""What people are shown: tables that are never cut, a line a stage, one sentence for one cause, and the rows
that failed with the server's messages."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from rich.console import Console

from engine.collect.stats import RunState
from engine.limits.budget import Budget
from engine.run.progress import View, display
from engine.run.status import status_of
from engine.terminal import Column, compact, print_columns
from store.queries import connect_reader
from store.stage_rows import alike, failures, note_stop
from tests.support.cli import MODEL, asking, distill, environment, generate, rows, started, until, write_pool
from tests.support.ledgers import Book, opened, reply
from tests.support.provider import Config, Provider
from tests.support.terminals import on_terminal

MOVES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (9_999, "9,999"),
        (10_000, "10k"),
        (15_552, "15.5k"),
        (19_999, "19.9k"),  # of 20,000: never more complete than it is
        (999_999, "999k"),
        (2_769_123, "2.76M"),
        (2_000_000, "2M"),
        (123_456_789_012, "123B"),
        (4.5e12, "4.5T"),
    ],
)
def test_large_counts_are_shortened(count: float, text: str) -> None:
    assert compact(count) == text


COLUMNS = [
    Column("stage", is_text=True),
    Column("tokens in"),
    Column("tokens out"),
    Column("spare", is_spare=True),
]
ROW = ["a" * 30, 2_769_123, 1_234_567_890, "x" * 30]


def test_a_pipe_gets_every_digit_and_one_line_a_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_columns([*COLUMNS, Column("failed", is_text=True, wraps=True)], [[*ROW, "bad_request 12, " * 20]])
    _, line = capsys.readouterr().out.splitlines()
    assert "2,769,123" in line
    assert "1,234,567,890" in line
    assert line.count("bad_request 12") == 20
    assert line == line.rstrip()


@pytest.mark.parametrize(
    ("width", "numbers", "spare"),
    [
        (120, ("2,769,123", "1,234,567,890"), True),
        (80, ("2.76M", "1.23B"), True),
        (50, ("2.76M", "1.23B"), False),
    ],
)
def test_a_narrow_terminal_gets_short_numbers_and_never_half_of_one(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: int,
    numbers: tuple[str, ...],
    spare: bool,
) -> None:
    terminal = Console(width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr("engine.terminal.console_of", lambda stderr=False: terminal)
    print_columns(COLUMNS, [ROW])
    out = capsys.readouterr().out
    assert all(number in out for number in numbers)
    assert "…" not in out
    assert ("x" * 30 in out) == spare
    assert max(map(len, out.splitlines())) <= width


def view(name: str, budget: Budget, **state: Any) -> View:
    teacher: Any = SimpleNamespace(
        utilisation=lambda: {"requests": None, "tokens": None}, endpoints=[], is_one=True
    )
    return View(name, RunState(**state), teacher, budget, rate=45.0)


def drawn(views: list[View], width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(display(views, width, height))
    return captured.get().splitlines()


def test_five_stages_have_a_line_each_on_80_columns_and_no_line_is_full() -> None:
    budget = Budget(200_000, 150_000, 0)
    views = [
        view(f"english-answers-to-all-{n}", budget, total=20_000, done=433, cost_micro=25_600, in_flight=9)
        for n in range(5)
    ]
    lines = drawn(views)
    assert sum("433 of 20k" in line for line in lines) == 5
    assert len(lines) == 7  # with heads, and all together
    assert max(len(line.rstrip()) for line in lines) < 78
    assert not any("…" in line[20:] for line in lines)
    assert "together $0.1280, 45 in flight; budget $0.1500 of $0.20" in lines[-1]


def test_more_stages_than_lines_show_those_that_move() -> None:
    budget = Budget(None, 0, 0)
    idle = [view(f"idle-{n}", budget, total=5, done=5) for n in range(30)]
    lines = drawn([*idle, view("busy", budget, total=9, done=1, in_flight=1)])
    assert len(lines) <= 23
    assert any("busy" in line for line in lines)
    assert any("more stages" in line for line in lines)


def test_what_a_stage_has_spent_is_told_apart_from_its_folder() -> None:
    folder = Budget(2_000_000, 1_500_000, 0)
    parts = dict(view("judge", folder, total=9, done=1, cost_micro=250_000, ended=1).parts())
    assert parts["spent"].startswith("$0.2500")
    assert parts["budget"] == "$1.50 of $2.00 spent in the folder"
    own = Budget(1_000, 400, 0, above=folder)
    assert dict(view("judge", own).parts())["budget"] == "$0.000400 of $0.001 spent in the stage"
    assert "in the folder" in dict(view("judge", Budget(None, 7, 0)).parts())["spent"]


async def test_ctrl_c_says_one_sentence_for_all_stages_and_leaves_no_piece_of_the_display(
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "r.toml"
    write_pool(tmp_path / "pool.jsonl", rows(2000))
    async with Provider(Config(latency=0.2)).running() as p:
        head = 'task = "generate"\nteacher = "t"\npool = "pool.jsonl"\n'
        stages = "".join(f'[stage.s{n}]\n{head}system = "{n}"\n' for n in range(5))
        recipe.write_text(
            f'[teacher.t]\nmodel = "{MODEL}"\nbase_url = "{p.base_url}"\nprice_in = 0\nprice_out = 0\n'
            f"concurrency = 20\n{stages}"
        )
        env = environment(TERM="xterm", COLUMNS="80", LINES="24")
        async with on_terminal("run", recipe, "--run", tmp_path / "run", "--yes", env=env) as command:
            await until(lambda: b"together" in command.shown)
            command.process.send_signal(signal.SIGINT)
            assert await command.ended() == 130
            text = MOVES.sub(b"", bytes(command.shown)).decode()
    assert text.count("stopped by SIGINT") == 1
    assert "╭" not in text
    assert "╰" not in text


async def test_lines_in_a_pipe_begin_with_a_clock(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(400))
    async with Provider(Config(latency=0.2)).running() as p:
        words = asking(pool, tmp_path / "run", p.base_url, "--concurrency", 8)
        async with started(*words) as command:
            await until(lambda: b" generate: done " in command.err)
            command.send(signal.SIGINT)
            ended = await command.ended()
    assert re.search(r"^\d\d:\d\d:\d\d generate: done \d+ of 400; failed 0;", ended.err, re.MULTILINE)


# Rows that failed.


async def test_failures_are_told_with_the_servers_message_counts_and_ids(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.add(1)
        for number in range(2, 9):
            book.place(number)
            book.fail(number, "too_large", f"HTTP 400: {4000 + number} tokens are too many.")
        book.place(9)
        book.fail(9, "timeout", "no reply in 60 s")
        book.add(10, reply("", "empty"))
    reader = connect_reader(tmp_path)
    try:
        groups = alike(failures(reader, 1))
    finally:
        reader.close()
    assert [(one.cause, one.rows) for one in groups] == [("too_large", 7), ("timeout", 1), ("empty", 1)]
    assert groups[0].ids == ["row 2", "row 3", "row 4", "row 5", "row 6"]
    shown = (await distill("status", tmp_path)).out
    assert "too_large 7: HTTP 400: 4002 tokens are too many.  (rows row 2, row 3" in shown
    assert "and 2 more)" in shown
    assert f"distill failures --run {tmp_path}" in shown

    listed = (await distill("failures", tmp_path, "--cause", "too_large")).out
    assert listed.count("tokens are too many.") == 7
    assert "timeout" not in listed
    told = orjson.loads((await distill("failures", tmp_path, "--json")).out)["failures"]
    assert [one["id"] for one in told] == [f"row {n}" for n in range(2, 11)]
    assert told[-1]["cause"] == "empty"
    assert told[0] | {"at": 0} == {
        "stage": "generate", "position": 1, "sample": 0, "id": "row 2", "instruction": "Question 2?",
        "cause": "too_large", "status": 400, "message": "HTTP 400: 4002 tokens are too many.", "at": 0,
    }  # fmt: skip


async def test_failures_of_nothing_and_of_unknown_causes(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        Book(ledger).add(1)
    ended = await distill("failures", tmp_path)
    assert (ended.code, ended.out, ended.err) == (0, "", "no row has failed\n")
    assert orjson.loads((await distill("failures", tmp_path, "--json")).out) == {"failures": []}
    assert (await distill("failures", tmp_path, "--cause", "bad luck")).code == 2
    assert (await distill("failures", tmp_path, "--stage", "none")).code == 2


async def test_a_run_that_fails_rows_says_why_at_its_end(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", [*rows(3), {"instruction": "The poison."}])
    async with Provider(Config(poison="poison")).running() as p:
        ended = await generate(tmp_path / "run", pool, p.base_url)
    assert ended.code == 1
    assert re.search(r"failed: bad_request 1: HTTP 400: .*\(row 3\)", ended.err), ended.err
    assert f"all of them: distill failures --run {tmp_path / 'run'}" in ended.err


# Why a run was stopped, and what became of what was in flight.


async def test_status_says_why_a_stage_was_stopped_and_what_is_pending(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", rows(50))
    run = tmp_path / "run"
    async with Provider(Config()).running() as p:
        money = ("--price-in", 1, "--price-out", 1, "--budget", 0.001, "--concurrency", 1)
        ended = await generate(run, pool, p.base_url, *money)
        assert ended.code == 3
        told = status_of(run)["stages"]["generate"]
        assert told["last_run"]["exit_code"] == 3
        assert told["last_run"]["reason"].startswith("the budget of $0.001 is reached")
        assert told["pending"] == 50 - told["done"]
        shown = (await distill("status", run)).out
        assert f"stage generate ({told['pending']} pending): the budget of $0.001 is reached" in shown
        assert (await generate(run, pool, p.base_url, *money[:4], "--yes")).code == 0
    assert "budget" not in (await distill("status", run)).out
    assert status_of(run)["stages"]["generate"]["last_run"]["reason"] is None


async def test_the_lock_tells_what_is_in_flight_from_what_is_lost(tmp_path: Path) -> None:
    pool, run = write_pool(tmp_path / "pool.jsonl", rows(9)), tmp_path / "run"
    async with (
        Provider(Config(latency=30)).running() as p,
        started(*asking(pool, run, p.base_url)) as command,
    ):
        await until(lambda: p.counts.requests)
        assert status_of(run)["running"] is True
        shown = (await distill("status", run)).out
        assert "): running" in shown
        assert re.search(r"requests? in flight now", shown)
        command.send(signal.SIGKILL)
        await command.ended()
    shown = (await distill("status", run)).out
    assert "its process was killed or crashed; run the same command to continue" in shown
    assert "lost when the process ended: without an answer, and pending again" in shown
    assert status_of(run)["running"] is False


async def test_a_reason_is_of_the_run_that_was_stopped_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        ledger.note(*note_stop(book.stage, book.run, "no more money"))
        ledger.note("UPDATE runs SET ended = 1, exit_code = 3 WHERE id = ?", book.run)
    assert status_of(tmp_path)["stages"]["generate"]["last_run"]["reason"] == "no more money"
    async with opened(tmp_path) as ledger:
        later = Book(ledger)
        ledger.note("UPDATE runs SET ended = 2, exit_code = 130 WHERE id = ?", later.run)
    assert status_of(tmp_path)["stages"]["generate"]["last_run"]["reason"] is None
