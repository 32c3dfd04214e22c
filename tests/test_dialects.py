"""Whatever a server with a chat API sends: no empty answer counts as done in silence, no row is lost, no
money is counted wrong, and nothing that is refused is asked over and over.

The behaviours are data (dialects.py and what it names). Where they are of single rows, one run asks them all.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from engine.provider.client import redacted
from tests.support.cli import (
    BARE,
    KEY,
    Ended,
    asking,
    distill,
    environment,
    export,
    stage,
    status,
    write_pool,
)
from tests.support.dialects import (
    COST,
    PRICE_IN,
    PRICE_OUT,
    Asked,
    Row,
    Sent,
    Serve,
    Server,
    after,
    always,
    anthropic,
    by_row,
    error,
    good,
    refusal,
    reply,
    says,
    serving,
    used,
)
from tests.support.dialects_faults import PAGE, REPLIES
from tests.support.dialects_money import LISTED, MONEY
from tests.support.dialects_refusals import REFUSALS
from tests.support.dialects_runs import ADDRESSES, KNOWN_MODELS, UNKNOWN_MODELS, WAITS, Unknown, Wait, strict
from tests.support.dialects_stops import (
    DAILY,
    DAY_WITH_A_SHORT_WAIT,
    FIRST_FILTERED,
    MISTAKES,
    REFUSED_BY_ALL,
    STOPS,
    Stop,
)

PRICED = ("--price-in", PRICE_IN, "--price-out", PRICE_OUT, "--yes")
UNUSABLE = ("empty", "other", "tool_calls")
MODEL = "gpt-4"  # its vocabulary loads fast, and it does not think

# A run, and what its ledger and its server say of each row.

ANSWERS = "SELECT * FROM answers ORDER BY position"
FAILURES = "SELECT * FROM failures"
COSTS = """SELECT a.position, sum(p.cost_micro) AS cost, max(p.listed_micro) AS listed,
    max(p.estimated) AS counted
  FROM samples a JOIN replies p ON p.request = a.request GROUP BY 1"""
RETRIED = "SELECT DISTINCT a.position, e.cause FROM samples a JOIN errors e ON e.request = a.request"


@dataclass
class Found:
    """What became of a row; a row of which nothing is known is pending."""

    outcome: str = "pending"  # or "!" and the cause of the failure
    output: str | None = None
    reasoning: str | None = None
    message: str = ""
    cost: int = 0
    listed: int | None = None
    counted: bool = False
    retried: set[str] = field(default_factory=set)


@dataclass
class Told:
    run: Path
    ended: Ended
    server: Server
    rows: list[str]

    def __post_init__(self) -> None:
        self.err = " ".join(self.ended.err.split())
        self.found = {name: Found() for name in self.rows}
        if (self.run / "ledger.db").exists():
            self._read()

    def _read(self) -> None:
        for row in table(self.run, ANSWERS):
            found = self.at(row)
            found.outcome, found.output = row["outcome"], row["output"]
            found.reasoning = row.get("reasoning")
        for row in table(self.run, FAILURES):
            self.at(row).outcome, self.at(row).message = "!" + row["cause"], row["message"]
        for row in table(self.run, COSTS):
            found = self.at(row)
            found.cost, found.listed, found.counted = row["cost"], row["listed"], bool(row["counted"])
        for row in table(self.run, RETRIED):
            self.at(row).retried.add(row["cause"])

    def at(self, row: dict[str, Any]) -> Found:
        return self.found[self.rows[row["position"]]]

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(found.outcome for found in self.found.values())

    @property
    def spent(self) -> tuple[float, float]:
        """USD that are known to be spent, and that are at risk."""
        ((known, risk),) = (
            (row["spent_usd"], row["at_risk_usd"]) for row in table(self.run, "SELECT * FROM costs")
        )
        return known, risk


def table(run: Path, sql: str) -> list[dict[str, Any]]:
    reader = sqlite3.connect(f"{(run / 'ledger.db').resolve().as_uri()}?mode=ro", uri=True)
    reader.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in reader.execute(sql)]
    finally:
        reader.close()


async def ask(
    folder: Path, serve: Serve, rows: list[str] | int, *flags: object, seconds: float = 60, run: str = "run"
) -> Told:
    """`distill generate` on a pool, at a server of its own, with a prompt that is the row's text alone."""
    async with serving(serve) as server:
        return await ask_at(server, folder, rows, *flags, seconds=seconds, run=run)


async def ask_at(
    server: Server,
    folder: Path,
    rows: list[str] | int,
    *flags: object,
    seconds: float = 60,
    run: str = "run",
    url: str | None = None,
) -> Told:
    names = [f"row {n}" for n in range(rows)] if isinstance(rows, int) else rows
    pool = write_pool(folder / "pool.jsonl", ({"instruction": name} for name in names))
    bare = folder / "bare.txt"
    bare.write_text(BARE)
    model = () if "--model" in flags else ("--model", MODEL)
    money = () if {"--price-in", "--yes", "--budget"} & set(flags) else PRICED
    words = asking(pool, folder / run, url or server.url, "--prompt", bare, *model, *money, *flags)
    try:
        ended = await distill(*words, seconds=seconds)
    except TimeoutError as late:  # it is killed, and what it has done so far can be looked at
        ended = Ended(-1, "", str(late))
    return Told(folder / run, ended, server, names)


def mismatches(row: Row, told: Told) -> list[str]:
    """What is not as wanted of a row, in words."""
    found, asked = told.found[row.text], told.server.asked[row.text]
    return [
        *differ("outcome", found.outcome, row.outcome, is_among(found.outcome, row.outcome)),
        *differ("requests", asked, row.asked, within(asked, row.asked)),
        *differ("output", found.output, row.output, row.output in (None, found.output)),
        *differ("thinking", found.reasoning, row.reasoning, is_thought(found.reasoning, row.reasoning)),
        *differ("micro-dollars", found.cost, row.cost, row.cost is None or within(found.cost, row.cost)),
        *differ("by our price", found.listed, row.listed, row.listed in (None, found.listed)),
        *differ("our count", found.counted, row.counted, row.counted in (None, found.counted)),
        *differ("tried for", found.retried, row.retried, row.retried is None or row.retried in found.retried),
        *differ("says", found.message, row.says, row.says is None or row.says in found.message),
    ]


def differ(what: str, came: object, wanted: object, right: bool) -> Iterator[str]:
    if not right:
        yield f"{what}: wanted {wanted!r}, came {came!r}"


def is_among(outcome: str, wanted: str) -> bool:
    return any(outcome == one or (one == "!" and outcome[0] == "!") for one in wanted.split("|"))


def is_thought(found: str | None, wanted: str | None) -> bool:
    return wanted is None or (found is not None and found.strip() == wanted)


def within(number: float, wanted: float | tuple[float, float]) -> bool:
    least, most = wanted if isinstance(wanted, tuple) else (wanted, wanted)
    return least <= number <= most


def named(rows: list[Any]) -> list[Any]:
    return [pytest.param(row, id=row.name) for row in rows]


TOLD: dict[str, Told] = {}  # runs that several tests look at


async def told_of(name: str, rows: list[Row], folder: pytest.TempPathFactory, *flags: object) -> Told:
    """One run of all the rows, each with an ordinary one before it."""
    if name not in TOLD:
        pool = [text for n, row in enumerate(rows) for text in (f"An ordinary row {n}", row.text)]
        TOLD[name] = await ask(folder.mktemp("dialects"), by_row(rows), pool, "--concurrency", 8, *flags)
    return TOLD[name]


# Rows


@pytest.mark.parametrize("row", named(REPLIES))
async def test_a_reply_means_what_it_says(row: Row, tmp_path_factory: pytest.TempPathFactory) -> None:
    wrong = mismatches(row, await told_of("replies", REPLIES, tmp_path_factory))
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("row", named(REFUSALS))
async def test_a_refused_row_is_filtered_or_fails_under_its_cause(
    row: Row, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wrong = mismatches(row, await told_of("refusals", REFUSALS, tmp_path_factory))
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("row", named(MONEY))
async def test_usage_is_believed_where_it_can_be(row: Row, tmp_path_factory: pytest.TempPathFactory) -> None:
    wrong = mismatches(row, await told_of("money", MONEY, tmp_path_factory))
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("name", LISTED)
async def test_a_reply_costs_what_the_list_says_of_its_kind(name: str, tmp_path: Path) -> None:
    flags, rows = LISTED[name]
    told = await ask(tmp_path, by_row(rows), [row.text for row in rows], "--yes", *flags)
    assert told.ended.code == 0, told.err
    wrong = {row.name: found for row in rows if (found := mismatches(row, told))}
    assert not wrong, wrong


async def test_odd_replies_leave_every_ordinary_row_answered(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    for name, rows, code in (("replies", REPLIES, 1), ("refusals", REFUSALS, 1), ("money", MONEY, 0)):
        told = await told_of(name, rows, tmp_path_factory)
        assert told.ended.code == code, told.err
        ordinary = [text for text in told.rows if text.startswith("An ordinary row")]
        assert Counter(told.found[text].outcome for text in ordinary) == {"stop": len(rows)}
        assert {told.server.asked[text] for text in ordinary} == {1}
        assert told.outcomes["pending"] == 0


async def test_only_usable_answers_are_exported(tmp_path_factory: pytest.TempPathFactory) -> None:
    told = await told_of("replies", REPLIES, tmp_path_factory)
    usable = [name for name, found in told.found.items() if found.outcome in ("stop", "length")]
    exported = await export(told.run)
    assert [row["instruction"] for row in exported] == usable
    assert [row["output"] for row in exported] == [told.found[name].output for name in usable]
    assert all(row["output"].strip() for row in exported)

    others = await export(told.run, "--outcome", ",".join(UNUSABLE))
    wanted = [name for name, found in told.found.items() if found.outcome in UNUSABLE]
    assert [row["instruction"] for row in others] == wanted
    assert len(wanted) > 10


async def test_status_counts_rows_by_outcome_and_by_cause(tmp_path_factory: pytest.TempPathFactory) -> None:
    told = await told_of("replies", REPLIES, tmp_path_factory)
    found = await stage(told.run)
    failed = {cause: n for cause, n in told.outcomes.items() if cause.startswith("!")}
    assert found["outcomes"] == {o: n for o, n in told.outcomes.items() if o not in failed}
    assert found["failed"] == {cause[1:]: n for cause, n in failed.items()}
    unusable = sum(told.outcomes[outcome] for outcome in UNUSABLE)
    assert found["done"] == len(told.rows) - sum(failed.values()) - unusable
    assert {"empty", "other", "tool_calls", "refusal", "content_filter"} <= set(found["outcomes"])


@pytest.mark.parametrize("status", [201, 204, 206])
async def test_the_status_of_a_reply_that_cannot_be_read_is_kept(status: int, tmp_path: Path) -> None:
    empty = error(status, lambda: b"")
    told = await ask(tmp_path, lambda asked: good(asked) if asked.times else empty, ["One."], *PRICED)
    assert told.ended.code == 0, told.err
    with sqlite3.connect(told.run / "ledger.db") as db:
        assert db.execute("SELECT cause, status FROM errors").fetchall() == [("malformed", status)]


# Answers that are none


def empties(every: int, of: int) -> Serve:
    """Of each `of` rows so many are always empty, from the last."""

    def serve(asked: Asked) -> Sent:
        return reply("") if int(asked.row.split()[1]) % of >= of - every else good(asked)

    return serve


THOUGHT_ONLY = reply("", "length", usage=used(10, 512, completion_tokens_details={"reasoning_tokens": 512}))
SILENT = reply("", message={"reasoning_content": "Let me think."})


@pytest.mark.parametrize(
    ("sent", "flags", "tries"),
    [
        pytest.param(THOUGHT_ONLY, (), 2, id="thinking took the bound"),
        pytest.param(SILENT, (), 2, id="reasoning_content and no text"),
        pytest.param(reply(None, "MAX_TOKENS"), (), 2, id="MAX_TOKENS and no text (Gemini)"),
        pytest.param(THOUGHT_ONLY, ("--attempts-empty", 3), 3, id="three tries"),
        pytest.param(THOUGHT_ONLY, ("--attempts-empty", 1), 1, id="one try"),
    ],
)
async def test_a_first_answer_that_is_empty_stops_the_run_and_says_what_to_raise(
    tmp_path: Path, sent: Sent, flags: tuple[object, ...], tries: int
) -> None:
    told = await ask(tmp_path, always(sent), 12, *flags)
    assert told.ended.code == 3, told.err
    assert len(told.server.log) == tries
    cut = sent is not SILENT  # at the bound; else a higher bound would not help
    for flag in ("--thinking-tokens", "--reasoning-effort", *["--max-tokens"] * cut):
        assert flag in told.err
    assert told.outcomes["pending"] >= 11
    usage = sent.body["usage"]  # type: ignore[index, call-overload]
    bill = tries * (10 * PRICE_IN + usage["completion_tokens"] * PRICE_OUT)
    assert told.spent == (pytest.approx(bill / 1e6), 0)


async def test_a_stage_whose_paid_replies_are_unusable_stops(tmp_path: Path) -> None:
    told = await ask(tmp_path, empties(7, of=10), 160, "--concurrency", 4)
    assert told.ended.code == 3, told.err
    assert "--give-up-share" in told.err
    assert 0 < told.outcomes["pending"] < 160
    assert len(told.server.log) <= 130
    again = await ask(tmp_path, good, 160)
    assert again.outcomes["pending"] == 0


async def test_a_stage_with_some_empty_answers_ends_and_says_what_they_cost(tmp_path: Path) -> None:
    price = ("--price-in", 1000, "--price-out", 3000, "--yes")  # 25,000 micro-dollars a reply
    told = await ask(tmp_path, empties(2, of=10), 150, "--concurrency", 8, *price)
    assert told.ended.code == 1, told.err
    assert told.outcomes == {"stop": 120, "empty": 30}
    assert len(told.server.log) == 120 + 2 * 30
    assert "empty" in told.err
    assert "$1.50" in told.err
    found = await stage(told.run)
    assert found["outcomes"] == {"stop": 120, "empty": 30}
    assert found["cost_usd"] == pytest.approx(180 * 0.025)


async def test_the_share_that_stops_a_stage_can_be_set(tmp_path: Path) -> None:
    told = await ask(tmp_path, empties(7, of=10), 160, "--concurrency", 4, "--give-up-share", 1)
    assert told.ended.code == 1, told.err
    assert told.outcomes == {"stop": 48, "empty": 112}


async def test_empty_answers_are_not_bought_again_by_the_next_start(tmp_path: Path) -> None:
    assert (await ask(tmp_path, empties(2, of=10), 20)).outcomes == {"stop": 16, "empty": 4}
    told = await ask(tmp_path, good, 20)
    assert len(told.server.log) == 0
    assert told.ended.code == 1, told.err


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(reply(None, "content_filter"), 0, id="content_filter"),
        pytest.param(reply(None, message={"refusal": "No."}), 0, id="refusal"),
        pytest.param(refusal(400, "No.", "content_filter"), 0, id="content_filter as a 400"),
        pytest.param(SILENT, 1, id="empty"),
        pytest.param(reply("Half", "tired"), 1, id="other"),
        pytest.param(reply(None, "tool_calls", message={"tool_calls": [{"id": "1"}]}), 1, id="tool_calls"),
    ],
)
async def test_rows_without_a_usable_answer_show_in_the_exit_code(
    tmp_path: Path, sent: Sent, code: int
) -> None:
    told = await ask(tmp_path, by_row([Row("row 3", (sent,))]), 6)
    assert told.ended.code == code, told.err
    assert told.outcomes["stop"] == 5
    assert told.outcomes["pending"] == 0
    (outcome,) = set(told.outcomes) - {"stop"}
    assert outcome in told.err


# Thinking


async def test_thinking_is_left_out_kept_or_written_into_the_answer_at_export(tmp_path: Path) -> None:
    rows = [
        Row("row 1", (reply("One.", message={"reasoning_content": "First."}),)),
        Row("row 2", (reply("<think>Second.</think>\n\nTwo."),)),
    ]
    told = await ask(tmp_path, by_row(rows), 3)
    assert told.ended.code == 0, told.err
    assert [row["output"] for row in await export(told.run)] == ["Fine: row 0", "One.", "Two."]
    assert not any("First." in str(row) for row in await export(told.run, format="chat"))

    kept = await export(told.run, "--reasoning", "keep", format="chat")
    said = [row["messages"][-1] for row in kept]
    assert [message["content"] for message in said] == ["Fine: row 0", "One.", "Two."]
    assert [message.get("reasoning_content") or "" for message in said] == ["", "First.", "Second."]

    inline = await export(told.run, "--reasoning", "inline")
    for row, thought, answer in zip(inline[1:], ("First.", "Second."), ("One.", "Two."), strict=True):
        assert re.fullmatch(rf"<think>\s*{thought}\s*</think>\s*{answer}", row["output"])
    assert inline[0]["output"] == "Fine: row 0"

    out = tmp_path / "out.parquet"
    words = ("export", told.run, "--format", "parquet", "--reasoning", "keep", "--out", out)
    ended = await distill(*words)
    assert ended.code == 0, ended.err
    column = pq.read_table(out).column("reasoning").to_pylist()
    assert [thought or "" for thought in column] == ["", "First.", "Second."]


# What ends a run, and what does not


@pytest.mark.parametrize("stop", named(STOPS))
async def test_an_empty_account_or_a_retired_model_stops_a_run_that_was_going_well(
    tmp_path: Path, stop: Stop
) -> None:
    told = await ask(tmp_path, after(3, stop.sent), 30, "--concurrency", 2, seconds=20)
    assert told.ended.code == 3, told.err
    assert told.outcomes == {"stop": 3, "pending": 27}
    assert len(told.server.log) <= 3 + 2 + 2  # three answers, and what was in flight
    assert stop.says.lower() in told.err.lower()
    assert told.spent == (pytest.approx(3 * COST / 1e6), 0)


# In the last hour of a Pacific day, Google's quota comes back soon enough to be waited for by default.
HOURS_ARE_TOO_LONG = ("--concurrency", 2, "--give-up", 60)


@pytest.mark.parametrize("stop", named(DAILY))
async def test_a_daily_quota_stops_the_run_and_says_when_it_comes_back(tmp_path: Path, stop: Stop) -> None:
    told = await ask(tmp_path, after(3, stop.sent), 30, *HOURS_ARE_TOO_LONG, seconds=20)
    assert told.ended.code == 3, told.err
    assert told.outcomes == {"stop": 3, "pending": 27}
    assert stop.says in told.err
    own = told.err.replace("5h12m3.6s", "")  # not the server's own words
    assert re.search(r"\d{1,2}:\d\d|\b[45] ?h", own), told.err


async def test_a_daily_quota_is_not_waited_for_by_the_minute(tmp_path: Path) -> None:
    told = await ask(tmp_path, after(3, DAY_WITH_A_SHORT_WAIT.sent), 30, *HOURS_ARE_TOO_LONG, seconds=15)
    assert told.ended.code == 3, told.err
    assert told.outcomes == {"stop": 3, "pending": 27}


@pytest.mark.parametrize("stop", named(FIRST_FILTERED))
async def test_filters_at_the_head_of_a_pool_are_outcomes_of_their_rows(tmp_path: Path, stop: Stop) -> None:
    rows = [Row(f"row {n}", (stop.sent,)) for n in range(12)]
    told = await ask(tmp_path, by_row(rows), 20)
    assert told.ended.code == 0, told.err
    assert told.outcomes == {"content_filter": 12, "stop": 8}
    assert len(told.server.log) == 20


async def test_a_pool_that_begins_with_rows_that_are_too_long_is_asked_on(tmp_path: Path) -> None:
    sent = refusal(400, "Too long.", "context_length_exceeded")
    told = await ask(tmp_path, by_row([Row(f"row {n}", (sent,)) for n in range(12)]), 20)
    assert told.ended.code == 1, told.err
    assert told.outcomes == {"!too_large": 12, "stop": 8}


async def test_refused_rows_at_the_head_do_not_stop_a_folder_that_has_answers(tmp_path: Path) -> None:
    serve = by_row([Row(f"row {n}", (anthropic(400, "invalid_request_error", "Odd."),)) for n in range(12)])
    first = await ask(tmp_path, serve, 24)
    assert first.ended.code == 1, first.err
    assert first.outcomes == {"!bad_request": 12, "stop": 12}
    assert (await distill("retry", first.run)).code == 0
    second = await ask(tmp_path, serve, 24)
    assert second.ended.code == 1, second.err
    assert second.outcomes == first.outcomes
    assert len(second.server.log) == 12


async def test_rows_that_are_forbidden_one_after_the_other_stop_the_run(tmp_path: Path) -> None:
    told = await ask(tmp_path, after(3, error(403, says("Not for you."))), 60, "--concurrency", 2)
    assert told.ended.code == 3, told.err
    assert "Not for you." in told.err
    assert len(told.server.log) <= 3 + 10 + 10 + 2  # ten in a row, and as many from over the pool
    assert told.outcomes["pending"] >= 60 - 3 - 22


@pytest.mark.parametrize("stop", named(REFUSED_BY_ALL))
async def test_a_server_that_begins_to_refuse_everybody_with_the_same_words_stops_the_run(
    tmp_path: Path, stop: Stop
) -> None:
    told = await ask(tmp_path, after(3, stop.sent), 60, "--concurrency", 2)
    assert told.ended.code == 3, told.err
    assert stop.says in told.err
    assert told.outcomes == {"stop": 3, "pending": 57}
    assert len(told.server.log) <= 3 + 10 + 10 + 2  # ten in a row, and as many from over the pool


@pytest.mark.parametrize(("sent", "lost"), [(REFUSED_BY_ALL[1].sent, 10), (REFUSED_BY_ALL[2].sent, 0)])
async def test_one_of_two_servers_that_begins_to_refuse_everybody_rests(
    tmp_path: Path, sent: Sent, lost: int
) -> None:
    async with serving(after(3, sent)) as refusing, serving(good) as fine:
        told = await ask_at(fine, tmp_path, 60, "--base-url", refusing.url, "--concurrency", 4)
    assert told.outcomes["pending"] == 0, told.err
    assert told.outcomes["!bad_request"] <= lost
    assert len(refusing.log) <= 3 + 10 + 4


async def test_odd_rows_at_the_end_of_a_pool_fail(tmp_path: Path) -> None:
    rows = [Row(f"row {n}", (refusal(400, "Odd."),)) for n in range(28, 40)]
    told = await ask(tmp_path, by_row(rows), 40, "--concurrency", 4)
    assert told.ended.code == 1, told.err
    assert told.outcomes == {"stop": 28, "!bad_request": 12}


async def test_a_wall_before_the_server_is_not_a_filter(tmp_path: Path) -> None:
    wall = error(403, "Your request was blocked by our security policy", "text/plain")
    told = await ask(tmp_path, always(wall), 20)
    assert told.ended.code == 3, told.err
    assert told.outcomes == {"pending": 20}


async def test_a_key_that_is_forbidden_from_the_first_row_stops_the_run(tmp_path: Path) -> None:
    told = await ask(tmp_path, always(error(403, says("Not for you."))), 20)
    assert told.ended.code == 3, told.err
    assert told.outcomes["pending"] == 20
    assert len(told.server.log) <= 10


@pytest.mark.parametrize("stop", named(MISTAKES))
async def test_an_address_without_an_api_is_named(tmp_path: Path, stop: Stop) -> None:
    async with serving(always(stop.sent)) as server:
        told = await ask_at(server, tmp_path, 20, seconds=20, url=server.root + "/chat")
    assert told.ended.code == 3, told.err
    assert server.root in told.err
    assert stop.says in told.err
    assert len(told.server.log) <= 10
    assert told.outcomes == {"pending": 20}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_where_an_address_points_is_named_and_the_key_does_not_go_there(
    tmp_path: Path, status: int
) -> None:
    async with serving(good) as other:
        sent = Sent(PAGE, status, {"Location": f"{other.root}/moved/chat/completions"}, "text/html")
        told = await ask(tmp_path, always(sent), 20, seconds=20)
        assert told.ended.code == 3, told.err
        assert f"{other.root}/moved" in told.err
        assert other.log == []
        assert told.outcomes == {"pending": 20}
        assert KEY not in told.ended.err


# Waits


@pytest.mark.parametrize("group", [WAITS[0::3], WAITS[1::3], WAITS[2::3]], ids=["first", "second", "third"])
async def test_a_wait_that_a_server_asks_for_is_obeyed(tmp_path: Path, group: list[Wait]) -> None:
    told = await ask(
        tmp_path, by_row(wait.row for wait in group), ["A row", *(wait.name for wait in group)],
        "--concurrency", 1,
    )  # fmt: skip
    assert told.ended.code == 0, told.err
    wrong = {}
    for wait in group:
        limited = next(n for n, asked in enumerate(told.server.log) if asked.row == wait.name)
        passed = told.server.log[limited + 1].at - told.server.log[limited].at
        if not 0.93 * wait.seconds <= passed <= wait.seconds + 8:
            wrong[wait.name] = f"wanted {wait.seconds} s, waited {passed:.2f} s"
    assert not wrong, wrong


# Parameters


@pytest.mark.parametrize("model", KNOWN_MODELS)
async def test_what_a_known_model_refuses_is_not_sent(tmp_path: Path, model: str) -> None:
    refused = KNOWN_MODELS[model]
    told = await ask(tmp_path, strict(refused), 4, "--model", model, "--yes")
    assert told.ended.code == 0, told.err
    assert told.outcomes == {"stop": 4}
    assert len(told.server.log) == 4
    if "max_tokens" in refused:  # thinking takes room within the bound
        assert all(asked.body["max_completion_tokens"] > 1000 for asked in told.server.log)


async def test_a_model_that_takes_them_is_sent_the_usual_parameters(tmp_path: Path) -> None:
    told = await ask(tmp_path, good, 2, "--model", "gpt-4o", "--yes")
    (sent, _) = (asked.body for asked in told.server.log)
    assert (sent["temperature"], sent["top_p"]) == (1.0, 1.0)
    assert sent.get("max_tokens", sent.get("max_completion_tokens")) == 512


@pytest.mark.parametrize("model", named(UNKNOWN_MODELS))
async def test_what_an_unknown_model_refuses_is_told_with_the_flag(tmp_path: Path, model: Unknown) -> None:
    told = await ask(tmp_path, model.serve, 20, "--model", "my-model", *PRICED)
    assert told.ended.code == 3, told.err
    assert any(flag in told.err for flag in model.flags), told.err
    assert len(told.server.log) <= 10
    assert told.outcomes == {"pending": 20}


async def test_a_run_goes_on_when_the_flag_is_given(tmp_path: Path) -> None:
    model = UNKNOWN_MODELS[0]
    for flags, code in (((), 3), (("--omit", "top_p"), 0)):
        told = await ask(tmp_path, model.serve, 20, "--model", "my-model", *PRICED, *flags)
        assert told.ended.code == code, told.err
    assert told.outcomes == {"stop": 20}


# Addresses


@pytest.mark.parametrize("name", ADDRESSES)
async def test_an_address_is_understood_as_people_write_it(tmp_path: Path, name: str) -> None:
    url, path = ADDRESSES[name]
    async with serving(good) as server:
        told = await ask_at(server, tmp_path, 2, url=url.format(root=server.root))
    assert told.ended.code == 0, told.err
    assert {asked.path for asked in told.server.log} == {path}


async def test_an_address_of_the_environment_is_understood_alike(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", [{"instruction": "row"}])
    async with serving(good) as server:
        words = ("generate", pool, "--run", tmp_path / "run", "--model", MODEL, *PRICED)
        ended = await distill(*words, env=environment(OPENAI_BASE_URL=server.root + "/v1/ "))
    assert ended.code == 0, ended.err
    assert [asked.path for asked in server.log] == ["/v1/chat/completions"]


# Money


async def test_a_cap_holds_when_thinking_is_told_only_in_the_total(tmp_path: Path) -> None:
    """405 tokens at $0.001 a reply, which say that they are 5, of a model of which nothing is known."""
    sent = reply("Fine.", usage=used(10, 5) | {"total_tokens": 415})
    price = ("--price-in", 0, "--price-out", 1000, "--budget", 2, "--max-tokens", 50)
    told = await ask(tmp_path, always(sent), 60, "--concurrency", 4, "--model", "my-model", *price)
    bill = len(told.server.log) * 0.405
    assert told.ended.code == 3, told.err
    assert bill <= 2 + 0.405
    assert told.spent == (pytest.approx(bill), 0)
    assert told.outcomes["pending"] > 0


async def test_a_claim_that_cannot_be_true_does_not_block_a_folder(tmp_path: Path) -> None:
    claims = [used(10, 10**9), used(10**9, 5), used(10, 5) | {"total_tokens": 10**12}, used(10, 5, cost=1e6)]
    rows = [Row(f"row {n}", (reply(usage=usage),)) for n, usage in enumerate(claims, 1)]
    told = await ask(tmp_path, by_row(rows), 20, *PRICED[:4], "--budget", 5)
    assert told.ended.code == 0, told.err
    assert told.outcomes == {"stop": 20}
    assert sum(told.spent) < 1


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(Sent({"error": {"code": 429, "message": "Busy"}}), id="429 in a 200"),
        pytest.param(Sent({"error": {"code": 502, "message": "Down"}}), id="502 in a 200"),
        pytest.param(Sent({"error": {"code": 400, "message": "Odd"}}), id="400 in a 200"),
        pytest.param(error(503, "<html>Down</html>", "text/html"), id="503"),
    ],
)
async def test_an_error_without_usage_puts_nothing_at_risk(tmp_path: Path, sent: Sent) -> None:
    rows = [Row(f"row {n}", (sent, reply("Fine."))) for n in (2, 4)]
    told = await ask(tmp_path, by_row(rows), 6)
    answered = told.outcomes["stop"]
    assert answered == (4 if "400" in str(sent.body) else 6), told.err
    assert told.spent == (pytest.approx(answered * COST / 1e6), 0)


async def test_what_odd_usage_cost_is_what_status_says(tmp_path_factory: pytest.TempPathFactory) -> None:
    told = await told_of("money", MONEY, tmp_path_factory)
    found = await status(told.run)
    rows = sum(found.cost for found in told.found.values())
    assert found["spent_usd"] == pytest.approx(rows / 1e6)
    assert found["at_risk_usd"] == 0


@pytest.mark.parametrize(("key", "changed"), [("x", False), ("none", False), ("sk-0123456789abcdef", True)])
def test_a_key_is_no_secret_where_it_is_short_enough_to_be_a_word(key: str, changed: bool) -> None:
    """Local servers take any key; `EMPTY`, `none` and `x` stand in many an answer."""
    raw = b'{"index": 0, "finish_reason": "max_tokens", "content": "none of sk-0123456789abcdef"}'
    assert (redacted(raw, key.encode()) != raw) is changed
    assert (key.encode() in redacted(raw, key.encode())) is not changed
