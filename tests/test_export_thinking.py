"""Thinking is data: exported apart, before the answer, or not at all; rows that are left out are counted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from store.records import Response, Usage
from tests.support.cli import Ended, Row, asking, distill, ledger, status, write_pool
from tests.support.ledgers import Book, opened
from tests.support.recipe_files import run_recipe, write_recipe
from tests.support.scripted import scripted

THOUGHT = "First this,\nthen that."
DIALECTS: dict[str, dict[str, Any]] = {  # how servers tell thinking and answer apart
    "reasoning_content": {"content": "Fine.", "reasoning_content": THOUGHT},
    "reasoning": {"content": "Fine.", "reasoning": THOUGHT},
    "think marks": {"content": f"<think>\n{THOUGHT}\n</think>\n\nFine."},
    "a closing mark alone": {"content": f"{THOUGHT}\n</think>\n\nFine."},
    "parts": {"content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": "Fine."}]},
    "reasoning_details": {
        "content": "Fine.",
        "reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}],
    },
    "none": {"content": "Fine."},
    "an empty one": {"content": "", "reasoning_content": THOUGHT},
    "a filtered one": {"content": "Half", "finish_reason": "content_filter"},
    "a refused one": {"content": None, "refusal": "I will not."},
    "marks inside a text": {"content": "Write <think> and </think> around it."},
}
THINKING = [name for name in DIALECTS if not name.startswith(("none", "a", "an ", "marks"))]
THINKING.append("a closing mark alone")
INLINE = f"<think>\n{THOUGHT}\n</think>\n\nFine."


async def say(request: web.Request) -> web.Response:
    name = (await request.json())["messages"][-1]["content"]
    message = {"role": "assistant", **DIALECTS[name]}
    finish = message.pop("finish_reason", "stop")
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return web.json_response({"model": "t", "choices": [choice], "usage": usage})


@pytest.fixture
async def run(tmp_path: Path) -> Path:
    """A run whose rows are called as the dialects are."""
    pool = write_pool(tmp_path / "pool.jsonl", [{"instruction": name} for name in DIALECTS])
    (tmp_path / "bare.txt").write_text("{instruction}")
    async with scripted(say) as url:
        words = asking(pool, tmp_path / "run", url, "--prompt", tmp_path / "bare.txt", "--model", "gpt-4")
        ended = await distill(*words, "--price-in", 1, "--price-out", 1, "--yes")
    assert ended.code == 1, ended.err
    return tmp_path / "run"


async def written(run: Path, out: Path, *flags: object, format: str = "alpaca") -> Ended:
    ended = await distill("export", run, "--format", format, "--out", out, *flags)
    assert ended.code == 0, ended.err
    return ended


def read(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        rows: list[Row] = pq.read_table(path).to_pylist()
        return rows
    data = path.read_bytes()
    return (
        orjson.loads(data) if path.suffix == ".json" else [orjson.loads(line) for line in data.splitlines()]
    )


async def test_thinking_is_left_out_unless_it_is_asked_for(run: Path, tmp_path: Path) -> None:
    await written(run, tmp_path / "x.jsonl")
    await written(run, tmp_path / "same.jsonl", "--reasoning", "drop")
    assert (tmp_path / "x.jsonl").read_bytes() == (tmp_path / "same.jsonl").read_bytes()
    rows = {row["instruction"]: row for row in read(tmp_path / "x.jsonl")}
    for name in (*THINKING, "none"):
        assert rows[name] == {"instruction": name, "input": "", "output": "Fine.", "id": rows[name]["id"]}
    await written(run, tmp_path / "x.parquet", format="parquet")
    assert "reasoning" not in read(tmp_path / "x.parquet")[0]
    await written(run, tmp_path / "chat.jsonl", format="chat")
    assert all(set(row["messages"][-1]) == {"role", "content"} for row in read(tmp_path / "chat.jsonl"))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet"])
async def test_kept_thinking_has_a_field_in_every_row(run: Path, tmp_path: Path, name: str) -> None:
    format = "parquet" if name.endswith("parquet") else "alpaca"
    await written(run, tmp_path / name, "--reasoning", "keep", format=format)
    rows = {row["instruction"]: (row["output"], row["reasoning"]) for row in read(tmp_path / name)}
    for dialect in THINKING:
        assert rows[dialect] == ("Fine.", THOUGHT), dialect
    assert rows["none"] == ("Fine.", "")
    assert rows["marks inside a text"] == (DIALECTS["marks inside a text"]["content"], "")


async def test_in_a_chat_thinking_is_the_message_s_reasoning_content(run: Path, tmp_path: Path) -> None:
    await written(run, tmp_path / "x.jsonl", "--reasoning", "keep", format="chat")
    rows = {row["messages"][0]["content"]: row["messages"][-1] for row in read(tmp_path / "x.jsonl")}
    wanted = {"role": "assistant", "content": "Fine.", "reasoning_content": THOUGHT}
    assert all(rows[name] == wanted for name in THINKING)
    assert rows["none"] == {**wanted, "reasoning_content": ""}


@pytest.mark.parametrize("format", ["alpaca", "chat", "parquet"])
async def test_inline_thinking_stands_in_marks_before_the_answer(
    run: Path, tmp_path: Path, format: str
) -> None:
    out = tmp_path / f"x.{'parquet' if format == 'parquet' else 'jsonl'}"
    await written(run, out, "--reasoning", "inline", format=format)
    if format == "chat":
        rows = {row["messages"][0]["content"]: row["messages"][-1]["content"] for row in read(out)}
    else:
        rows = {row["instruction"]: row["output"] for row in read(out)}
    assert all(rows[name] == INLINE for name in THINKING)
    assert rows["none"] == "Fine."
    assert not any("reasoning" in row for row in read(out))


async def test_what_has_no_place_for_thinking_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    for flags in (("candidates", "keep"), ("candidates", "inline")):
        ended = await distill(
            "export", run, "--format", flags[0], "--out", tmp_path / "x", "--reasoning", flags[1]
        )
        assert (ended.code, (tmp_path / "x").exists()) == (2, False)
        assert "candidates hold no thinking" in ended.err
    ended = await distill("export", run, "--format", "alpaca", "--out", tmp_path / "x", "--reasoning", "yes")
    assert ended.code == 2
    assert "--reasoning yes: unknown; choose from drop, keep, inline" in ended.err


async def test_rows_left_out_are_counted_by_outcome(run: Path, tmp_path: Path) -> None:
    counts = (await status(run))["stages"]["generate"]["outcomes"]
    assert (counts["empty"], counts["content_filter"], counts["refusal"]) == (1, 1, 1)
    ended = await written(run, tmp_path / "x.jsonl")
    assert "8 rows written" in ended.err
    assert "3 rows left out: content_filter 1, empty 1, refusal 1" in ended.err
    assert all(row["output"] for row in read(tmp_path / "x.jsonl"))
    ended = await written(run, tmp_path / "x.jsonl", "--outcome", "stop,refusal,content_filter")
    assert "10 rows written" in ended.err
    assert "1 row left out: empty 1" in ended.err
    ended = await written(run, tmp_path / "x.jsonl", "--outcome", ",".join(counts), "--reasoning", "keep")
    assert "left out" not in ended.err
    rows = {row["instruction"]: row for row in read(tmp_path / "x.jsonl")}
    assert (rows["an empty one"]["output"], rows["an empty one"]["reasoning"]) == ("", THOUGHT)


async def test_a_step_of_a_recipe_says_what_becomes_of_thinking(run: Path, tmp_path: Path) -> None:
    tables: dict[str, dict[str, Any]] = {
        "teacher.t": {"model": "gpt-4", "base_url": "http://127.0.0.1:1/v1", "price_in": 1, "price_out": 1},
        "stage.generate": {
            "task": "generate", "teacher": "t", "pool": str(tmp_path / "pool.jsonl"), "prompt": "bare.txt",
        },
        "step.lengths": {"run": "evaluate lengths"},
    }  # fmt: skip
    for reasoning, words in (
        ("keep", None),
        ("inline", None),
        ("loud", "--reasoning loud: unknown"),
        ("keep", "candidates"),
    ):
        format = "candidates" if words == "candidates" else "alpaca"
        given = f'[{{ stage = "generate", format = "{format}", reasoning = "{reasoning}" }}]'
        recipe = write_recipe(tmp_path, tables)
        recipe.write_text(recipe.read_text() + f"files = {given}\n")
        ended = await run_recipe(recipe, run, "--only", "lengths")
        exported = run / "steps" / "lengths.in" / "files" / "generate.jsonl"
        if words:
            assert ended.code == 2
            assert words in ended.err
            continue
        (row,) = (row for row in read(exported) if row["instruction"] == "parts")
        assert row["output"] == (INLINE if reasoning == "inline" else "Fine.")
        assert row.get("reasoning") == (THOUGHT if reasoning == "keep" else None)


ODD = {  # stored as answers by older versions, or damaged since
    "half an answer": b'{"choices":[{"message":{"content":"Half"},"finish_reason":"error"}]}',
    "an error beside a choice": b'{"choices":[{"message":{"content":"x"},"error":{"code":502,"message":"m"},'
    b'"finish_reason":"error"}]}',
    "an error in place of choices": b'{"error":{"code":502,"message":"upstream"},"choices":null}',
    "no JSON": b'{"choices":[{"message":',
    "bytes": b"\xff\xfe\x00garbage",
    "a page": b"<html><body>Bad gateway</body></html>",
    "nothing": b"",
    "a list": b"[1, 2, 3]",
    "no message": b'{"choices":[{}]}',
    "an empty answer": b'{"choices":[{"message":{"content":""},"finish_reason":"length"}]}',
    "only thinking": b'{"choices":[{"message":{"content":null,"reasoning":"Hm."},"finish_reason":"stop"}]}',
}


async def test_a_stored_body_that_is_no_answer_does_not_end_an_export(tmp_path: Path) -> None:
    """Nor does it become one."""
    run = tmp_path / "run"
    run.mkdir()
    async with opened(run) as ledger_:
        book = Book(ledger_, settings={"model": "gpt-4", "task": "generate"})
        for number, raw in enumerate(ODD.values(), 2):
            book.add(number, Response("stop", "stop", Usage(5, 5), raw, 10, 0.1))
        book.add(1)
    for format, out in (("alpaca", "x.jsonl"), ("chat", "x.jsonl"), ("parquet", "x.parquet")):
        ended = await written(run, tmp_path / out, "--reasoning", "keep", format=format)
        assert "1 row written" in ended.err
        rows = read(tmp_path / out)
        assert len(rows) == 1
        assert "Answer 1." in str(rows[0])
    told = {name: int(n) for n, name in _counted(ended.err)}
    assert sum(told.values()) == len(ODD)
    assert ledger(run, "SELECT count(*) FROM answers") == [(len(ODD) + 1,)]
    for command in (("status", run), ("report", run, "--out", tmp_path / "r.html")):
        assert (await distill(*command)).code == 0


def _counted(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(\d+) (replies could not be read|rows? left out)", text)
