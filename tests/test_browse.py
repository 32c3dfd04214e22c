"""`browse` shows the ledger as one wants to read it: whole, escaped, fast, and never written."""

from __future__ import annotations

import asyncio
import html
import os
import re
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio

from tests.support.cli import distill, started, until
from tests.support.ledgers import Book, chat, opened, reply, rows

pytest.importorskip("datasette", reason="the extra `browse` is not installed; bin/test installs it")

from engine.browse import pages
from engine.browse.app import build
from engine.browse.queries import QUESTIONS
from store.records import Fault, Response, Usage
from store.run_folder import held
from store.schema import STAGE_SHIFT
from store.stage_rows import note_stop

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="alert(3)'
ARABIC = "مرحبا بالعالم \u202e reversed"
LONG = "A line of some length.\n" * 900  # 20 KB
UNDONE = re.compile(r"<script>alert|<img src=x|\sonmouseover=\"alert")


async def fill(run: Path) -> None:
    """A ledger with all that can befall a row."""
    async with opened(run) as ledger:
        book = Book(ledger, samples=2, settings={"model": "gpt-4", "params": {"temperature": 1.0}})
        ledger.note("UPDATE stages SET total = 12 WHERE id = ?", book.stage)
        book.place(1, f"Say {HOSTILE}")
        book.answer(1, reply(f"first line\nsecond line {HOSTILE}"))
        book.place(2, ARABIC)
        book.answer(2, reply(ARABIC, cost=9_000_000))
        book.place(3, "Write at length.")
        book.answer(3, reply(LONG, "length"))
        book.place(4, "Something bad.")
        filtered = Response("content_filter", "", Usage(), b'{"error": {"message": "filtered"}}', 0, 0.1, "")
        book.answer(4, filtered)
        book.place(5, "What the server will not take.")
        book.fail(5, words=f"HTTP 400: {HOSTILE}")
        book.place(6, "Lost.")
        book.ask(6)
        book.place(7, "Unreadable at first.")
        torn = Response("malformed", "", Usage(5, 6), b"\xff{" + HOSTILE.encode(), 3, 0.0, "")
        attempt = book.ask(7)
        ledger.put(book.stage, attempt, 7, torn, 0, final=False)
        ledger.error(book.stage, attempt, 7, Fault("malformed", 200, "the reply was cut off"), 0, ended=False)
        book.answer(7)
        both = Book(ledger, "both", samples=2)
        ledger.place(
            both.stage,
            0,
            orjson.dumps({"id": "q", "instruction": "Twice?", "input": "in"}),
            7,
            [(0, 1), (1, 2)],
        )


@pytest_asyncio.fixture
async def run(tmp_path: Path) -> Path:
    (tmp_path / "my run").mkdir()
    await fill(tmp_path / "my run")
    return tmp_path / "my run"


@pytest_asyncio.fixture
async def site(run: Path) -> AsyncIterator[Any]:
    found = build(run)
    yield found
    found.databases["ledger"].close()
    found.executor.shutdown()


async def page(site: Any, path: str, status: int = 200) -> str:
    found = await site.client.get(path)
    assert found.status_code == status, found.text
    return str(found.text)


async def test_the_front_page_tells_the_state_of_each_stage_and_every_question(site: Any) -> None:
    text = await page(site, "/")
    assert "my run" in text
    assert re.search(r">5</a> of 12", text)
    assert "bad_request 1" in text
    assert "$9.0" in text
    assert "content_filter 1" in text
    for question in QUESTIONS:
        assert f"/ledger/{question.path or question.name}" in text.replace("&amp;", "&")


@pytest.mark.parametrize("question", [q for q in QUESTIONS if q.name != "search"], ids=lambda q: q.name)
async def test_every_question_has_its_answer(site: Any, question: Any) -> None:
    path = f"/ledger/{question.path or question.name}"
    text = await page(site, path)
    assert "message-error" not in text
    found = (
        await site.client.get(path.partition("?")[0] + ".json?_shape=array&" + path.partition("?")[2])
    ).json()
    wanted = {
        "all": 7, "latest": 6, "failures-by-cause": 1, "cut": 1, "filtered": 1, "slowest": 6, "costliest": 6,
        "spending": 2, "disagreements": 1, "score-disagreements": 0, "never-answered": 1, "malformed": 1,
        "errors-by-cause": 2, "runs-and-settings": 2, "no-answer": 0,
    }  # fmt: skip
    assert len(found) == wanted[question.name], found


async def test_judgements_that_differ_come_first_where_they_differ_most(tmp_path: Path) -> None:
    scores = [("8 6", "6 8"), ("9 2", "9 2"), ("5 5", "no idea")]  # in the order shown
    async with opened(tmp_path) as ledger:
        book = Book(ledger, "judged", settings={"model": "gpt-4"})
        ledger.note("UPDATE stages SET task = 'judge' WHERE id = ?", book.stage)
        for position in range(6):
            number, order = position + 1, (position % 2, 1 - position % 2)
            book.place(number, f"Question {position // 2}")
            contest = {"id": str(position // 2), "instruction": f"Question {position // 2}", "order": order}
            ledger.place(book.stage, position, orjson.dumps(contest), 7, [(0, number)])
            book.answer(number, reply(f"{scores[position // 2][position % 2]}\nbecause"))
    site = build(tmp_path)
    found = (await site.client.get("/ledger/score-disagreements.json?_shape=array")).json()
    site.databases["ledger"].close()
    site.executor.shutdown()
    assert [(row["instruction"], row["disagreement"]) for row in found] == [("Question 1", 14.0)]
    assert (found[0]["scores"], found[0]["other_scores"]) == ("9.0 : 2.0", "2.0 : 9.0")


async def test_search_finds_words_in_answers(site: Any) -> None:
    assert "second line" in await page(site, "/ledger/search?words=SECOND+line")
    assert "None." in await page(site, "/ledger/search?words=nowhere")
    assert "zero-results" not in await page(site, "/ledger/search")


async def test_hostile_words_are_text_on_every_page(site: Any, run: Path) -> None:
    paths = ["/", "/ledger", "/ledger/search?words=alert"]
    paths += [f"/ledger/{q.path or q.name}" for q in QUESTIONS]
    paths += [f"/-/row?stage=generate&position={n}" for n in range(7)] + ["/-/row?stage=both&position=0"]
    for table in ("rows", "bodies", "responses", "errors", "requests", "runs", "attempts", "stages"):
        paths.append(f"/ledger/{table}")
        paths += [f"/ledger/{table}/{number}" for (number,) in rows(run, f"SELECT rowid FROM {table}")]
    seen = ""
    for path in paths:
        text = await page(site, path)
        assert not UNDONE.search(text), path
        seen += text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in seen


async def test_a_hostile_stage_is_linked_to_and_shown_as_text(tmp_path: Path) -> None:
    name = f"a/b&c=d {HOSTILE}"
    async with opened(tmp_path) as ledger:
        Book(ledger, name).add(1)
    site = build(tmp_path)
    listed = await page(site, "/ledger/answers")
    (link,) = set(re.findall(r'<a class="page" href="([^"]+)"', listed))
    text = await page(site, link.replace("&amp;", "&"))
    assert "Answer 1." in text
    for found in (listed, text, await page(site, "/")):
        assert not UNDONE.search(found)
    site.databases["ledger"].close()


async def test_a_row_s_page_shows_all_of_it(site: Any) -> None:
    text = await page(site, "/-/row?stage=generate&position=2")
    assert LONG.strip() in text  # uncut, line breaks and all
    assert 'class="text words" dir="auto"' in text
    assert "&#34;finish_reason&#34;: &#34;stop&#34;" in text  # the raw reply, indented
    retried = await page(site, "/-/row?stage=generate&position=6")
    assert "Asked 2 times" in retried
    assert "the reply was cut off" in retried
    failed = await page(site, "/-/row?stage=generate&position=4")
    assert "HTTP 400" in failed
    two = await page(site, "/-/row?stage=both&position=0")
    assert two.count('<section class="sample">') == 2
    assert "second line" in two
    assert "مرحبا" in two


@pytest.mark.parametrize(
    "query",
    ["", "?stage=generate", "?stage=generate&position=-1", "?stage=generate&position=99",
     "?stage=no&position=1", "?stage=generate&position=" + "9" * 40],
)  # fmt: skip
async def test_a_row_that_is_not_there_is_a_plain_404(site: Any, query: str) -> None:
    assert "Error 404" in await page(site, f"/-/row{query}", 404)


async def test_a_list_cuts_long_texts_and_leads_to_the_rest(site: Any) -> None:
    text = await page(site, "/ledger/answers?outcome__exact=length")
    assert LONG[:400] in text
    assert LONG not in text
    assert f"… {len(LONG):,} characters" in text
    assert "/-/row?stage=generate&amp;position=2" in text


async def test_one_row_of_a_table_is_shown_whole(site: Any, run: Path) -> None:
    ((number,),) = rows(run, "SELECT response FROM bodies ORDER BY length(raw) DESC LIMIT 1")
    text = await page(site, f"/ledger/bodies/{number}")
    assert 'class="one-row"' in text
    assert len(text) > len(LONG)
    assert "&#34;choices&#34;: [" in text


async def test_nothing_can_be_written_or_taken_away_whole(site: Any, run: Path) -> None:
    before = rows(run, "SELECT count(*) FROM responses")
    for sql in (
        "delete from responses",
        "drop view answers",
        "PRAGMA user_version = 9",
        "attach 'x.db' as x",
    ):
        await page(site, "/ledger?sql=" + sql.replace(" ", "+"), 400)
    assert (await site.client.get("/ledger.db")).status_code == 403
    with pytest.raises(PermissionError):
        await site.databases["ledger"].execute_write("DELETE FROM responses")
    assert rows(run, "SELECT count(*) FROM responses") == before


async def test_only_this_machine_s_names_are_answered(site: Any) -> None:
    for host, status in (("127.0.0.1:8001", 200), ("localhost", 200), ("evil.example:8001", 403), ("", 403)):
        found = await site.client.get("/", headers={"host": host})
        assert found.status_code == status, host
    policy = (await site.client.get("/")).headers["content-security-policy"]
    assert "default-src 'self'" in policy


async def test_a_run_goes_on_beneath_it(run: Path, site: Any) -> None:
    """What is written while it is open shows, and its readers keep no checkpoint from happening: when
    the run has ended, `ledger.db` is whole."""
    assert "row 7" not in await page(site, "/ledger/latest")
    async with opened(run) as ledger:
        book = Book(ledger)
        for number in range(8, 40):
            book.add(number, reply(f"written meanwhile {number}"))
            await ledger.committed()
            if number % 8 == 0:
                assert f"written meanwhile {number}" in await page(site, "/ledger/latest")
    alone = sqlite3.connect(f"{(run / 'ledger.db').as_uri()}?immutable=1", uri=True)  # without the WAL
    assert alone.execute("SELECT count(*) FROM responses").fetchone()[0] > 32
    alone.close()
    assert (run / "ledger.db-wal").stat().st_size == 0


async def test_a_count_that_takes_too_long_is_left_out(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`count(*)` over a view of millions of rows must not keep the page waiting."""
    seen: dict[str, Any] = {}
    database = site.databases["ledger"]
    inner = type(database).__mro__[1].execute

    async def execute(self: Any, sql: str, params: Any = None, **more: Any) -> Any:
        seen[sql] = more.get("custom_time_limit")
        return await inner(self, sql, params, **more)

    monkeypatch.setattr(type(database).__mro__[1], "execute", execute)
    await page(site, "/ledger/answers")
    assert seen["select count(*) from answers "] == 400


def test_a_value_is_shown_by_its_column_s_name() -> None:
    row = {"stage": "s p", "position": 3}
    assert pages.show(row, 0.000045, "cost_usd", None) == '<span class="number">$0.000045</span>'
    assert (
        pages.show(row, 3, "position", "answers")
        == '<a class="page" href="/-/row?stage=s+p&amp;position=3">3</a>'
    )
    assert pages.show({}, 5, "request", "samples") == '<a href="/ledger/requests/5">5</a>'
    assert pages.show({}, "5", "request", "samples") is None
    assert pages.show({}, None, "output", "answers") is None
    assert "abcdef" in str(pages.show({}, bytes.fromhex("abcdef" + "00" * 29), "key", "requests"))
    assert pages.show({}, '{"a": 1}', "params", None) == pages.text('{"a": 1}', kind="json")
    assert pages.show({}, b"\xff", "raw", "bodies") == pages.text("\\xff", kind="json")
    assert "stage__exact=s+p" in str(pages.show(row, "timeout", "cause", None))
    assert pages.show(row, "timeout", "cause", "failures") is None
    assert pages.pretty(chat("x")).count("\n") > 3
    assert pages.pretty(b"\xff{") == "\\xff{"
    assert pages.money(1234.5) == "$1,234.50"
    assert pages.whole({}, b"\x00\xff", "key", "requests") == pages.text("00ff", kind="json")


def test_rows_are_found_by_the_shift_of_the_schema() -> None:
    assert STAGE_SHIFT == 40  # stands in queries.py and pages.py


# From outside.


async def get(url: str, path: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url.rstrip("/") + path) as found:
        assert found.status == 200
        return await found.text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_says_where_it_is_and_ends_when_it_is_told(run: Path, number: signal.Signals) -> None:
    async with started("browse", run, "--port", 0) as command:
        await until(lambda: b"Ctrl-C" in command.out)
        found = re.search(rb"http://127\.0\.0\.1:\d+/", command.out)
        assert found
        url = found[0].decode()
        assert "my run" in await get(url, "/")
        assert "second line" in await get(url, "/ledger/answers")
        assert ".text" in await get(url, "/assets/browse.css")
        command.send(number)
        ended = await command.ended(15)
        assert ended.code in (0, 130)
        assert ended.err == ""


async def test_a_port_in_use_is_a_sentence(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = await distill("browse", run, "--port", port)
    assert (ended.code, ended.out) == (2, "")
    assert f"port {port} is in use" in ended.err


@pytest.mark.parametrize("port", [-1, 65536])
async def test_a_port_that_is_none_is_a_sentence(run: Path, port: int) -> None:
    ended = await distill("browse", run, "--port", port)
    assert ended.code == 2
    assert "must be from 0" in ended.err


async def test_a_folder_without_a_ledger_is_a_sentence(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        ended = await distill("browse", folder, "--port", 0)
        assert ended.code == 2
        assert "it is not a run folder" in ended.err


async def test_what_is_no_ledger_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"This is no database at all. " * 100)
    ended = await distill("browse", tmp_path, "--port", 0)
    assert ended.code == 2
    assert "is not a ledger" in ended.err


async def test_two_can_look_at_once(run: Path) -> None:
    async with started("browse", run, "--port", 0) as one, started("browse", run, "--port", 0) as two:
        for command in (one, two):
            await until(lambda command=command: b"Ctrl-C" in command.out)
        urls = [re.search(rb"http://\S+", c.out)[0].decode() for c in (one, two)]  # type: ignore[index]
        texts = await asyncio.gather(*(get(url, "/ledger/answers") for url in urls))
        assert all("second line" in text for text in texts)


async def test_thinking_and_replies_without_an_answer_are_shown(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.place(1, "Think hard.")
        message = {"content": "", "reasoning_content": f"Hm, {HOSTILE}"}
        thought = orjson.dumps({"choices": [{"message": message}]})
        empty = Response(
            "empty", "length", Usage(10, 512, 0, 512), thought, 2_000_000, 0.5, "m", estimated=True
        )
        ledger.put(book.stage, book.ask(1), 1, empty, 5000, final=False)
        parts = b'{"choices":[{"message":{"content":[{"type":"thinking","thinking":"Aha."},"Fine."]}}]}'
        book.answer(1, Response("stop", "stop", Usage(10, 20, 0, 15), parts, 1000, 0.5, "m", "Fine.", "Aha."))
        book.place(2, "Think in vain.")
        book.answer(2, empty)
    site = build(tmp_path)
    text = await page(site, "/")
    assert "empty 2</a>" in text
    assert "$4.0" in text
    assert "1,039 thinking" in text
    assert "2 replies counted by distill" in text
    found = (await site.client.get("/ledger/no-answer.json?_shape=array")).json()
    assert [(row["position"], row["outcome"], row["is_last"]) for row in found] == [
        (1, "empty", 1),
        (0, "empty", 0),
    ]
    answered = await page(site, "/-/row?stage=generate&position=0")
    assert '<div class="text words" dir="auto">Fine.</div>' in answered
    assert "Thinking, 4 characters" in answered
    assert "Aha." in answered
    vain = await page(site, "/-/row?stage=generate&position=1")
    assert "No words in this reply (empty, finish_reason length)" in vain
    assert "Hm, " in vain
    assert "512 of them thinking (counted by distill)" in vain
    latest = (await site.client.get("/ledger/latest.json?_shape=array")).json()
    assert "Fine." in [row["output"] for row in latest]
    for path in ("/", "/ledger/no-answer", "/ledger/spending", "/-/row?stage=generate&position=1"):
        assert not UNDONE.search(await page(site, path)), path
    site.databases["ledger"].close()
    site.executor.shutdown()


async def test_a_csv_holds_every_row_of_a_view_and_not_the_first_2000(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number in range(1, 2102):
            book.add(number)
    site = build(tmp_path)
    try:
        for path in ("/ledger/answers.csv", "/ledger/answers.csv?_size=max", "/ledger/responses.csv"):
            text = await page(site, path)
            assert len(text.splitlines()) == 2102, path
        assert len((await page(site, "/ledger/latest.csv")).splitlines()) > 100  # a query is as it was
        text = await page(site, "/ledger?sql=select+id+from+responses")
        assert "The first 2,000 rows. The CSV has all of them" in text
        (link,) = re.findall(r'href="(/ledger\.csv\?sql=[^"]+)"', text)
        whole = (await page(site, html.unescape(link))).splitlines()
        assert whole == ["id", *map(str, range(1, 2102))]
        assert "The first" not in await page(site, "/ledger?sql=select+id+from+responses+limit+9")
    finally:
        site.databases["ledger"].close()
        site.executor.shutdown()


async def test_sql_as_csv_reads_only_and_says_what_is_wrong_with_it(site: Any) -> None:
    asked = "/ledger.csv?sql=select+%3Aname+as+name,+x'c3bc'+as+bytes&name=a,+b"
    assert await page(site, asked) == 'name,bytes\r\n"a, b",ü\r\n'
    assert await page(site, f"{asked}&_header=off") == '"a, b",ü\r\n'
    assert await page(site, "/ledger.csv?sql=select+x'00ff'+as+key") == "key\r\n00ff\r\n"
    saved = await site.client.get(f"{asked}&_dl=1")
    assert saved.headers["content-disposition"] == 'attachment; filename="ledger.csv"'
    for sql, told in (
        ("delete from rows", "must be a SELECT"),
        ("select nix", "no such column: nix"),
        ("select 1; select 2", "one statement at a time"),
        ("", "SELECT"),
    ):
        refused = await site.client.get("/ledger.csv", params={"sql": sql})
        assert (refused.status_code, told in refused.text) == (400, True), refused.text


async def test_sql_that_finds_no_row_in_time_is_stopped(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "sql_time_limit_ms", 50)
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select i from n where i < 0"
    refused = await site.client.get("/ledger.csv", params={"sql": endless})
    assert (refused.status_code, "interrupted" in refused.text) == (400, True)


async def test_the_front_page_says_why_a_stage_was_stopped_and_what_is_pending(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book, other = Book(ledger), Book(ledger, "other")
        ledger.note("UPDATE stages SET total = 30")
        ledger.note("UPDATE runs SET ended = 2, exit_code = 3 WHERE id = ?", book.run)
        ledger.note(*note_stop(book.stage, book.run, "the budget <b>is reached</b>"))
        book.place(1)
        book.ask(1)
        ledger.note("UPDATE runs SET pid = ? WHERE id = ?", os.getpid(), other.run)
    site = build(tmp_path)
    try:
        text = await page(site, "/")
        assert "the budget &lt;b&gt;is reached&lt;/b&gt;" in text
        assert re.search(r"pending</dt><dd>30<", text)
        assert "lost, without an answer" in text
        assert "The process was killed or crashed." in text  # though a process has its number
        with held(tmp_path):
            text = await page(site, "/")
            assert "The process was killed" not in text
            assert "state-running" in text
    finally:
        site.databases["ledger"].close()
        site.executor.shutdown()


async def test_the_pages_have_colours_for_the_dark(site: Any) -> None:
    css = await page(site, "/assets/browse.css")
    assert "prefers-color-scheme: dark" in css
    light, _, rest = css.partition("@media (prefers-color-scheme: dark)")
    assert "color-scheme: light dark" in light
    named = set(re.findall(r"(--[a-z-]+):", light))
    assert named == set(re.findall(r"(--[a-z-]+):", rest)) >= set(re.findall(r"var\((--[a-z-]+)\)", css))
