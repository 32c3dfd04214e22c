"""Score, compare and judge from files to data sets, at a teacher that answers as judges do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.cli import FREE, MODEL, Ended, distill, ledger, started, until, write_pool
from tests.support.judging import Judge
from tests.support.recipe_files import export, stage_told
from tests.support.scripted import completion, scripted

QUESTIONS = [f"What is {word}?" for word in ("rain", "snow", "hail", "dew", "fog")]
SAID = {"short": "No.", "middle": "Maybe.", "long": "Perhaps it is."}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return answers_to(QUESTIONS, tmp_path)


def answers_to(questions: list[str], folder: Path) -> list[Path]:
    """Answers of three models, one file each."""
    return [
        write_pool(folder / f"{name}.jsonl", ({"instruction": q, "output": text} for q in questions))
        for name, text in SAID.items()
    ]


async def ask(command: str, run: Path, url: str, *words: object) -> Ended:
    flags = ("--run", run, "--base-url", url, "--model", MODEL, "--quiet", *FREE)
    return await distill(command, *words, *flags)


def bodies(run: Path) -> list[tuple[str, str, int]]:
    """(outcome, raw, request) of every stored reply, in order."""
    sql = (
        "SELECT p.outcome, b.raw, p.request FROM responses p JOIN bodies b ON b.response = p.id ORDER BY p.id"
    )
    return [(str(outcome), str(raw), int(request)) for outcome, raw, request in ledger(run, sql)]


async def test_scores_of_three_models_become_comparisons_and_rankings(run: Path, files: list[Path]) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        assert (await ask("score", run, url, *files)).code == 0
        assert (await ask("score", run, url, *files)).code == 0
    assert len(judge.asked) == 5
    rankings = export(run, format="scores")
    assert [line["prompt"] for line in rankings] == QUESTIONS
    for line in rankings:
        assert [(a["model"], a["text"], a["score"]) for a in line["answers"]] == [
            ("short", "No.", 3), ("middle", "Maybe.", 6), ("long", "Perhaps it is.", 10),
        ]  # fmt: skip
        shown = [line["answers"][i]["text"] for i in line["order"]]
        text = next(text for _, text in judge.asked if line["prompt"] in text)
        assert sorted(shown, key=text.index) == shown
    pairs = export(run, format="comparisons")
    assert len(pairs) == 15
    assert {(p["completion_a"], p["completion_b"], p["margin"]) for p in pairs} == {
        ("Maybe.", "No.", 3), ("Perhaps it is.", "No.", 7), ("Perhaps it is.", "Maybe.", 4),
    }  # fmt: skip
    assert len(export(run, "comparisons", min_margin=4)) == 10
    refused = await distill("export", run, "--format", "alpaca", "--out", run / "x.jsonl")
    assert refused.code == 2
    assert "comparisons or scores" in refused.err


async def test_a_comparison_is_asked_in_both_orders_and_kept_where_they_agree(
    run: Path, files: list[Path]
) -> None:
    judge = Judge()
    biased = QUESTIONS[2]
    judge.says = lambda text: "[[A]]\nThe first." if biased in text else None
    async with scripted(judge.answer) as url:
        ended = await ask("compare", run, url, "--answers", files[0], "--against", files[2])
    assert (ended.code, len(judge.asked)) == (0, 10)
    pairs = export(run, format="comparisons")
    assert [pair["user_input"] for pair in pairs] == [q for q in QUESTIONS if q != biased]
    assert {tuple(pair["models"]) for pair in pairs} == {("long", "short")}


async def test_a_judgement_is_stored_for_each_order_and_scores_follow_the_model(
    run: Path, files: list[Path]
) -> None:
    judge = Judge()
    async with scripted(judge.answer) as url:
        both = ("--answers", files[2], "--against", files[1], "--both-orders")
        assert (await ask("judge", run, url, *both)).code == 0
    reviews = export(run, format="reviews")
    assert len(reviews) == len(judge.asked) == 10
    assert {(*review["models"], *review["score"]) for review in reviews} == {("long", "middle", 10, 6)}
    assert [review["order"] for review in reviews] == [[0, 1], [1, 0]] * 5


async def test_a_reply_that_cannot_be_read_is_asked_again_so_many_times_and_is_never_a_score(
    run: Path, files: list[Path]
) -> None:
    judge = Judge()
    bad, late = QUESTIONS[1], QUESTIONS[3]

    def says(text: str) -> str | None:
        if bad in text:
            return f"Both have merits ({judge.count(bad)})."
        return "Hm." if late in text and judge.count(late) < 3 else None

    judge.says = says
    async with scripted(judge.answer) as url:
        ended = await ask("score", run, url, *files, "--attempts-parse", 3)
        assert ended.code == 1
        assert (await ask("score", run, url, *files, "--attempts-parse", 3)).code == 1
    assert (judge.count(bad), judge.count(late)) == (4, 3)
    assert len(set(judge.keys)) == len(judge.keys) == 4 + 3 + 3
    stored = bodies(run)
    assert [f"({n})" in raw for n, (_, raw, _) in enumerate((b for b in stored if "merits" in b[1]), 1)] == [
        True
    ] * 4
    assert sorted(outcome for outcome, _, _ in stored) == ["stop"] * 4 + ["unparsed"] * 6
    found = stage_told(run, "score")
    assert (found["done"], found["failed"], found["outcomes"]) == (4, {"unparsed": 1}, {"stop": 4})
    assert bad not in str(export(run, format="scores")) + str(export(run, format="comparisons"))


async def test_with_no_further_ask_one_reply_is_all(run: Path, files: list[Path]) -> None:
    judge = Judge()
    judge.says = lambda text: "Both."
    async with scripted(judge.answer) as url:
        assert (await ask("score", run, url, *files, "--attempts-parse", 0)).code == 1
    assert len(judge.asked) == 5
    assert stage_told(run, "score")["failed"] == {"unparsed": 5}


async def test_a_judge_whom_nobody_can_read_ends_the_run_after_ten_rows_and_they_stay_due(
    run: Path, tmp_path: Path
) -> None:
    questions = [f"What is {n} and {n}?" for n in range(60)]
    files = answers_to(questions, tmp_path)
    judge = Judge()
    judge.says = lambda text: "Both \x1b[2Jhave merits."
    async with scripted(judge.answer) as url:
        ended = await ask("score", run, url, *files, "--attempts-parse", 1)
        assert ended.code == 3
        assert "rows were all answered, but unreadable" in ended.err
        assert r"'Both \x1b[2Jhave merits.'" in ended.err
        assert len({text for _, text in judge.asked}) < 20
        assert stage_told(run, "score")["failed"] == {}
        judge.says = None
        assert (await ask("score", run, url, *files)).code == 0
    assert stage_told(run, "score")["done"] == 60
    assert len(set(judge.keys)) == len(judge.keys)  # no ask is answered by an earlier bad reply


async def test_many_hard_rows_of_a_judge_that_was_read_before_fail_one_by_one(
    run: Path, tmp_path: Path
) -> None:
    questions = [f"What is {n} and {n}?" for n in range(15)]
    files = answers_to(questions, tmp_path)
    judge = Judge()
    judge.says = lambda text: None if questions[0] in text else "Both."
    async with scripted(judge.answer) as url:
        assert (await ask("score", run, url, *files, "--attempts-parse", 0, "--concurrency", 1)).code == 1
        await distill("retry", run, "--cause", "unparsed")
        assert (await ask("score", run, url, *files, "--attempts-parse", 0)).code == 1
    found = stage_told(run, "score")
    assert (found["done"], found["failed"]) == (1, {"unparsed": 14})
    assert len(judge.asked) == 15 + 14


async def test_what_was_in_flight_at_a_kill_is_asked_under_the_same_number(
    run: Path, files: list[Path]
) -> None:
    """A gateway that knows the key may answer with what was paid for."""
    judge = Judge()
    judge.hold["rain"] = asyncio.Event()
    async with scripted(judge.answer) as url:
        flags = ("--run", run, "--base-url", url, "--model", MODEL, "--quiet", *FREE)
        async with started("score", *files, *flags) as command:
            await until(lambda: judge.keys)
            command.process.kill()
        judge.hold["rain"].set()
        assert (await ask("score", run, url, *files)).code == 0
    assert judge.keys.count(judge.keys[0]) == 2
    assert len(judge.keys) == len(QUESTIONS) + 1


async def test_one_reply_that_can_be_read_speaks_for_the_judge(run: Path, tmp_path: Path) -> None:
    questions = [f"What is {n} and {n}?" for n in range(40)]
    files = answers_to(questions, tmp_path)
    judge = Judge()
    judge.says = lambda text: None if "What is 4 " in text else "Both."
    async with scripted(judge.answer) as url:
        assert (await ask("score", run, url, *files, "--attempts-parse", 1)).code == 1
    told = stage_told(run, "score")
    assert (told["done"], told["failed"]) == (1, {"unparsed": 39})


async def test_a_reply_that_was_cut_off_is_not_bought_again(run: Path, files: list[Path]) -> None:
    judge = Judge()
    judge.says = lambda text: completion("Both have", finish_reason="length")
    async with scripted(judge.answer) as url:
        assert (await ask("score", run, url, *files)).code == 0
    assert len(judge.asked) == 5
    assert stage_told(run, "score")["outcomes"] == {"length": 5}
    assert export(run, format="scores") == []


async def test_retry_reads_stored_replies_again_and_asks_only_what_still_cannot_be_read(
    run: Path, files: list[Path]
) -> None:
    """A better parser: here the ledger is made to say that an older one could not read two replies."""
    judge = Judge()
    judge.says = lambda text: "Both." if QUESTIONS[0] in text else None
    async with scripted(judge.answer) as url:
        assert (await ask("score", run, url, *files, "--attempts-parse", 0)).code == 1
        unread(run, 2)
        assert stage_told(run, "score")["failed"] == {"unparsed": 3}
        ended = await distill("retry", run, "--cause", "unparsed")
        assert "2 stored replies can be read now" in ended.err
        assert "1 failed requests are pending again: run the same command to send them" in ended.err
        found = stage_told(run, "score")
        assert (found["done"], found["failed"]) == (4, {})
        judge.says = None
        assert (await ask("score", run, url, *files)).code == 0
    assert len(judge.asked) == 6
    assert len(export(run, format="scores")) == 5


def unread(run: Path, count: int) -> None:
    """Makes the last answers what they would be if no parser had been able to read them."""
    import sqlite3

    db = sqlite3.connect(run / "ledger.db")
    with db:
        some = db.execute(
            "SELECT id, answer FROM requests WHERE answer IS NOT NULL ORDER BY id DESC LIMIT ?", (count,)
        ).fetchall()
        for request, response in some:
            db.execute("UPDATE responses SET outcome = 'unparsed' WHERE id = ?", (response,))
            (attempt,) = db.execute("SELECT attempt FROM responses WHERE id = ?", (response,)).fetchone()
            failure = db.execute(
                "INSERT INTO errors (attempt, request, cause, status, message, at) "
                "VALUES (?, ?, 'unparsed', 200, 'the reply cannot be read', 0)",
                (attempt, request),
            ).lastrowid
            db.execute("UPDATE requests SET answer = NULL, failure = ? WHERE id = ?", (failure, request))
    db.close()


async def test_a_schema_is_sent_where_asked_for_and_is_part_of_the_key(run: Path, files: list[Path]) -> None:
    judge = Judge()
    grades: dict[str, Any] = {"score_1": 3, "score_2": 6, "score_3": 9.5, "reasons": "Well."}
    async with scripted(judge.answer) as url:
        assert (await ask("score", run, url, *files)).code == 0
        judge.says = lambda text: orjson.dumps(grades).decode()
        assert (await ask("score", run, url, *files, "--structured", "--replace")).code == 0
    plain, structured = judge.bodies[:5], judge.bodies[5:]
    assert len(structured) == 5
    assert all("response_format" not in body for body in plain)
    for body in structured:
        shape = body["response_format"]
        assert shape["type"] == "json_schema"
        assert shape["json_schema"]["strict"] is True
        assert list(shape["json_schema"]["schema"]["properties"]) == list(grades)
    assert len({key.rpartition("-")[0] for key in judge.keys}) == 10
    for line in export(run, format="scores"):
        assert sorted(answer["score"] for answer in line["answers"]) == [3, 6, 9.5]


async def test_the_schema_alone_makes_another_request(run: Path, files: list[Path]) -> None:
    """With a system message and prompts that are the same, too."""
    from engine.collect.request_key import Sealer

    messages = [{"role": "user", "content": "Score."}]
    sealer = Sealer(MODEL, {"temperature": 0.2})
    plain, keys = sealer.seal(messages, 1, None)
    shaped, others = sealer.seal(messages, 1, {"type": "json_object"})
    assert keys != others
    assert orjson.loads(shaped) == {**orjson.loads(plain), "response_format": {"type": "json_object"}}


async def test_what_a_role_has_no_use_for_is_refused(run: Path, files: list[Path], tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{instruction}")
    for flag in (("--prompt", prompt), ("--sample", 3)):
        ended = await ask("score", run, "http://127.0.0.1:9/v1", *files, *flag)
        assert ended.code == 2
        assert str(flag[0]) in ended.err


async def test_a_sample_is_drawn_by_its_seed_and_keeps_the_pools_order(tmp_path: Path, run: Path) -> None:
    pool = write_pool(tmp_path / "pool.jsonl", ({"instruction": f"Say {n}."} for n in range(60)))
    judge = Judge()
    async with scripted(judge.answer) as url:
        for seed, asked in ((7, 9), (7, 9), (8, None)):
            assert (await ask("generate", run, url, pool, "--sample", 9, "--seed", seed)).code == 0
            drawn = [int(row["instruction"][4:-1]) for row in export(run)]
            assert (len(drawn), drawn) == (9, sorted(drawn))
            assert asked in (None, len(judge.asked))
            if seed == 7:
                first = drawn
    assert drawn != first
    assert len(judge.asked) == len({*first, *drawn})
