"""`status` tells what a run folder holds, and why its keys differ from an earlier run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.collect.settings import Settings
from engine.run.status import differences, status_of
from store.errors import RunFolderError
from store.records import Usage
from tests.support.ledgers import PLAN, Book, item, opened, reply

LOCAL = "http://127.0.0.1:1/v1"


def public(**settings: Any) -> dict[str, Any]:
    return Settings(**{"model": "gpt-4", "base_url": LOCAL, **settings}).public()


async def test_a_stage_is_told_with_done_failed_outcomes_tokens_and_cost(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        ledger.note("UPDATE stages SET total = ?, bad_rows = ? WHERE id = ?", 9, 2, book.stage)
        book.add(1, reply(cost=1_000_000, usage=Usage(100, 50)))
        book.add(2, reply(cost=500_000, usage=Usage(10, 5)))
        book.add(3, reply("cut", "length", cost=250_000))
        for number, cause in ((4, "bad_request"), (5, "timeout"), (6, "timeout")):
            book.place(number)
            book.fail(number, cause)
        book.place(7)
        book.ask(7, worst=30_000)
    found = status_of(tmp_path)
    last = found["stages"]["generate"].pop("last_run")
    assert last.pop("started")
    assert last == {"ended": None, "exit_code": None, "running": False, "reason": None}
    assert found["stages"] == {
        "generate": {
            "total": 9,
            "pending": 3,
            "done": 3,
            "failed": {"bad_request": 1, "timeout": 2},
            "outcomes": {"length": 1, "stop": 2},
            "prompt_tokens": 210,
            "completion_tokens": 105,
            "cost_usd": 1.75,
            "at_risk_usd": 0.03,
            "unanswered": 1,
            "bad_rows": 2,
            "damaged": 0,
            "billed": {
                "replies": 3,
                "prompt_tokens": 210,
                "completion_tokens": 105,
                "reasoning_tokens": 0,
                "cost_usd": 1.75,
                "estimated_replies": 0,
            },
            "unusable": {"replies": 0, "cost_usd": 0, "outcomes": {}},
            "unread": {"replies": 0, "cost_usd": 0, "outcomes": {}},
        }
    }
    assert (found["spent_usd"], found["at_risk_usd"], found["unanswered"]) == (1.75, 0.03, 1)
    assert found["utilisation"] == {"requests": None, "tokens": None}
    assert orjson.loads(orjson.dumps(found)) == found


async def test_shared_answers_and_failures_count_where_they_are_used(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        one, two = Book(ledger, "one"), Book(ledger, "two")
        one.add(1)
        one.place(2)
        one.fail(2)
        for position, number in ((1, 1), (2, 2)):
            ledger.place(one.stage, position + 1, item(9), PLAN, [(0, number)])
        ledger.place(two.stage, 0, item(9), PLAN, [(0, 1)])
    stages = status_of(tmp_path)["stages"]
    assert (stages["one"]["done"], stages["one"]["failed"]) == (2, {"bad_request": 2})
    assert (stages["two"]["done"], stages["two"]["failed"]) == (1, {})
    assert (stages["one"]["cost_usd"], stages["two"]["cost_usd"]) == (0.0015, 0)  # it was paid once


async def test_a_failed_row_that_was_answered_in_the_end_is_done(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.place(1)
        book.fail(1)
        book.answer(1)
    stage = status_of(tmp_path)["stages"]["generate"]
    assert (stage["done"], stage["failed"]) == (1, {})


async def test_malformed_replies_cost_money_and_are_not_done(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        book.place(1)
        ledger.put(book.stage, book.ask(1), 1, reply("?", "malformed", cost=7_000_000), 5000, final=False)
    found = status_of(tmp_path)
    assert (found["stages"]["generate"]["done"], found["spent_usd"], found["unanswered"]) == (0, 7.0, 0)


async def test_a_run_that_has_only_begun_has_an_unknown_total(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        Book(ledger)
    stage = status_of(tmp_path)["stages"]["generate"]
    assert (stage["total"], stage["done"], stage["failed"], stage["cost_usd"]) == (None, 0, {}, 0)


async def test_a_ledger_without_a_run_is_empty_and_no_error(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    found = status_of(tmp_path)
    assert (found["stages"], found["spent_usd"], found["unanswered"]) == ({}, 0, 0)


async def test_utilisation_and_estimate_are_the_newest_run_s(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        sql = "UPDATE runs SET utilisation = ?, estimate = ? WHERE id = ?"
        for share, book in ((0.5, Book(ledger, "b")), (0.75, Book(ledger, "a"))):
            ledger.note(sql, f'{{"requests": {share}, "tokens": null}}', '{"requests": 3}', book.run)
    found = status_of(tmp_path)
    assert found["utilisation"] == {"requests": 0.75, "tokens": None}
    assert found["estimate"] == {"requests": 3}


def test_a_folder_without_a_ledger_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="it is not a run folder"):
        status_of(tmp_path)


# Why keys differ.


async def test_it_is_told_why_the_keys_of_the_last_two_runs_differ(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        for temperature in (0.2, 1.0, 0.7):
            Book(ledger, settings=public(temperature=temperature))
        for _ in range(2):
            Book(ledger, "same", settings=public())
    assert status_of(tmp_path)["changed"] == {"generate": ["temperature: 1.0 -> 0.7"]}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({}, {}, []),
        ({}, {"model": "gpt-4o"}, ["model: gpt-4 -> gpt-4o"]),
        ({}, {"system": "Be brief."}, ["system: not sent -> Be brief."]),
        ({"omit": ("top_p",)}, {}, ["top_p: not sent -> 1.0"]),
        (
            {"param": {"seed": 1}},
            {"param": {"stop": ["\n"]}},
            ["seed: 1 -> not sent", "stop: not sent -> ['\\n']"],
        ),
        ({"temperature": 1}, {"temperature": 1.0}, []),
        ({"max_tokens": 5}, {"max_tokens": 6}, ["max_tokens: 5 -> 6"]),
        # what is not sent cannot change a key
        ({"rpm": 5, "stage": "a", "samples": 2}, {"tpm": 6, "stage": "b", "timeout": 7, "limit": 8}, []),
    ],
)
def test_only_what_is_sent_is_a_difference(old: dict[str, Any], new: dict[str, Any], said: list[str]) -> None:
    assert differences(public(**old), public(**new)) == said


def test_long_values_are_cut() -> None:
    (line,) = differences(
        public(prompt="{instruction}" + "a" * 500), public(prompt="{instruction}" + "b" * 500)
    )
    assert len(line) < 150


def test_no_secret_is_among_the_settings_that_are_kept() -> None:
    kept = orjson.dumps(public(api_key="sk-secret", proxy="http://user:pass@proxy:1")).decode()
    assert "secret" not in kept
    assert "pass" not in kept
