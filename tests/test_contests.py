"""Answers of several models meet on their prompts, whatever shape and order they come in."""

from __future__ import annotations

import csv
import gzip
import io
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from store.answer_sets import Contests, judge_contests, score_contests
from store.answers import model_names
from store.errors import PoolError, UsageError
from store.records import BadRow, Contest

Rows = list[dict[str, Any]]


def lines(rows: Rows) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def table(rows: Rows) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: Rows) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def written(folder: Path, name: str, data: bytes | Rows) -> Path:
    path = folder / name
    path.write_bytes(lines(data) if isinstance(data, list) else data)
    return path


def alpaca(model: str, prompts: list[str], given: str = "") -> Rows:
    return [{"instruction": p, "input": given, "output": f"{model} on {p}"} for p in prompts]


def good(rows: Contests) -> list[Contest]:
    return [row for row in rows if isinstance(row, Contest)]


def bad(rows: Contests) -> list[BadRow]:
    return [row for row in rows if isinstance(row, BadRow)]


def said(contest: Contest) -> dict[str, str]:
    return dict(zip(contest.models, contest.answers, strict=True))


QUESTIONS: Rows = [
    {"question_id": 1, "text": "Add 2 and 2.", "category": "math"},
    {"question_id": 2, "text": "Name a comet.", "category": "generic"},
]


def fastchat(model: str, ids: list[int]) -> Rows:
    return [{"question_id": i, "text": f"{model} on {i}", "model_id": model} for i in ids]


# Scores: K files.


def test_answers_in_alpacas_shape_meet_on_instruction_and_input(tmp_path: Path) -> None:
    a = written(tmp_path, "a.jsonl", alpaca("a", ["p", "q"]) + alpaca("a", ["p"], "with input"))
    b = written(tmp_path, "b.jsonl", alpaca("b", ["p"], "with input") + alpaca("b", ["q", "p"]))
    contests = good(score_contests([a, b]))
    assert [(c.prompt, c.input) for c in contests] == [("p", ""), ("q", ""), ("p", "with input")]
    assert all(said(c) == {"a": f"a on {c.prompt}", "b": f"b on {c.prompt}"} for c in contests)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("b.json", orjson.dumps),
        ("b.jsonl.gz", lambda rows: gzip.compress(lines(rows))),
        ("b.csv", table),
        ("b.parquet", parquet),
    ],
)
def test_answers_may_lie_in_any_shape_of_a_pool(tmp_path: Path, name: str, pack: Any) -> None:
    a = written(tmp_path, "a.jsonl", alpaca("a", ["p", "q"]))
    b = written(tmp_path, name, pack(alpaca("b", ["q", "p"])))
    contests = good(score_contests([a, b]))
    assert [said(c) for c in contests] == [{"a": f"a on {p}", "b": f"b on {p}"} for p in "pq"]


def test_the_order_shown_says_whose_answer_stands_where(tmp_path: Path) -> None:
    names = ["x", "y", "z"]
    files = [written(tmp_path, f"{n}.jsonl", alpaca(n, [f"p{i}" for i in range(50)])) for n in names]
    for contest in good(score_contests(files)):
        assert contest.models == tuple(names[at] for at in contest.order)
        assert all(answer.startswith(model) for model, answer in said(contest).items())


def test_every_order_is_drawn_equally_often(tmp_path: Path) -> None:
    prompts = [f"p{i}" for i in range(3000)]
    files = [written(tmp_path, f"{n}.jsonl", alpaca(n, prompts)) for n in "xyz"]
    drawn = Counter(c.order for c in good(score_contests(files, seed=7)))
    assert len(drawn) == 6
    assert all(400 < count < 600 for count in drawn.values())


def shown(contests: Contests) -> dict[str, tuple[str, ...]]:
    return {c.prompt: c.answers for c in good(contests)}


def test_the_order_does_not_depend_on_where_a_row_stands_nor_on_file_names(tmp_path: Path) -> None:
    prompts = [f"p{i}" for i in range(40)]
    a, b = (written(tmp_path, f"{n}.jsonl", alpaca(n, prompts)) for n in "ab")
    before = shown(score_contests([a, b], seed=1))
    written(tmp_path, "a.jsonl", alpaca("a", ["new", *reversed(prompts)]))
    assert shown(score_contests([a, b], seed=1)) == before
    assert shown(score_contests([b, a], ["one", "two"], seed=1)) == before
    assert shown(score_contests([a, b], seed=2)) != before


def test_a_second_pass_gives_the_same_rows(tmp_path: Path) -> None:
    a = written(tmp_path, "a.jsonl", [*alpaca("a", ["p", "q"]), {"instruction": "r"}])
    b = written(tmp_path, "b.jsonl", alpaca("b", ["p", "q", "s"]))
    contests = score_contests([a, b])
    assert list(contests) == list(contests)
    assert contests.fraction == 1.0


def test_a_prompt_in_any_two_files_is_shown_and_one_in_one_file_is_reported(tmp_path: Path) -> None:
    a = written(tmp_path, "a.jsonl", alpaca("a", ["all"]))
    b = written(tmp_path, "b.jsonl", alpaca("b", ["all", "two", "alone"]))
    c = written(tmp_path, "c.jsonl", alpaca("c", ["two", "all"]))
    contests = score_contests([a, b, c])
    assert {x.prompt: sorted(x.order) for x in good(contests)} == {"all": [0, 1, 2], "two": [1, 2]}
    (row,) = bad(contests)
    assert row.line == 3
    assert "b.jsonl" in row.reason
    assert "only b has answered 'alone'" in row.reason


def test_the_nth_answer_to_a_prompt_meets_the_nth_of_the_other_files(tmp_path: Path) -> None:
    def twice(model: str) -> Rows:
        return [{"instruction": "p", "output": f"{model}{n}"} for n in (1, 2)]

    a = written(tmp_path, "a.jsonl", twice("a"))
    b = written(tmp_path, "b.jsonl", [*twice("b"), {"instruction": "p", "output": "b3"}])
    contests = score_contests([a, b])
    assert [said(c) for c in good(contests)] == [{"a": "a1", "b": "b1"}, {"a": "a2", "b": "b2"}]
    assert [row.line for row in bad(contests)] == [3]


def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    """LLaMA said nothing to one of Vicuna's questions, and GPT-4 was asked about it."""
    a = written(tmp_path, "a.jsonl", [*alpaca("a", ["p"]), {"instruction": "q", "output": ""}])
    b = written(tmp_path, "b.jsonl", alpaca("b", ["p", "q"]))
    assert said(good(score_contests([a, b]))[1]) == {"a": "", "b": "b on q"}


def test_a_number_is_an_answer_and_what_has_no_text_is_a_bad_row(tmp_path: Path) -> None:
    """Programs write 42 where a model said "42", and 0 is as good an answer as any."""
    values: list[Any] = [42, 0, 0.5, False, None, ["x"], {}]
    a = written(tmp_path, "a.jsonl", [{"id": n, "text": value} for n, value in enumerate(values)])
    b = written(tmp_path, "b.jsonl", [{"id": n, "text": ""} for n in range(len(values) - 1)] + [{"id": 6}])
    c = written(tmp_path, "c.jsonl", [{"id": n, "text": "c"} for n in range(len(values))])
    questions = written(tmp_path, "q.jsonl", [{"id": n, "instruction": f"q{n}"} for n in range(len(values))])
    contests = score_contests([a, c], questions=questions)
    assert [said(x)["a"] for x in good(contests)] == ["42", "0", "0.5"]
    assert [row.line for row in bad(contests) if "no answer: `text` is" in row.reason] == [4, 5, 6, 7]
    with pytest.raises(PoolError, match="every answer is empty"):
        list(score_contests([b, c], questions=questions))


def test_a_file_without_a_single_answer_is_refused(tmp_path: Path) -> None:
    """A pool that nobody has answered yet is not worth paying for."""
    a = written(tmp_path, "a.jsonl", alpaca("a", ["p"]))
    empty = written(tmp_path, "b.jsonl", [{"instruction": "p", "input": "", "output": ""}])
    with pytest.raises(PoolError, match=r"every answer is empty in .*b\.jsonl"):
        list(score_contests([a, empty]))


def test_bad_rows_say_file_and_line(tmp_path: Path) -> None:
    a = written(tmp_path, "a.jsonl", lines(alpaca("a", ["p", "q"])) + b'{"instruction": "torn')
    b = written(
        tmp_path, "b.jsonl", b'[1]\n{"instruction": "p"}\n{"x": 1}\n' + lines(alpaca("b", ["p", "q"]))
    )
    found = [
        (row.line, row.reason.partition(": ")[0][-7:], row.reason) for row in bad(score_contests([a, b]))
    ]
    assert [(line, file) for line, file, _ in found] == [
        (3, "a.jsonl"),
        (1, "b.jsonl"),
        (2, "b.jsonl"),
        (3, "b.jsonl"),
    ]
    assert "not JSON" in found[0][2]
    assert "no output; its columns are instruction" in found[2][2]


def test_nothing_in_common_is_no_pool(tmp_path: Path) -> None:
    a = written(tmp_path, "a.jsonl", alpaca("a", ["p"]))
    b = written(tmp_path, "b.jsonl", alpaca("b", ["q"]))
    with pytest.raises(PoolError, match="no prompt has the answers of two models"):
        list(score_contests([a, b]))


def test_answers_with_ids_alone_need_the_questions(tmp_path: Path) -> None:
    a, b = (written(tmp_path, f"{n}.jsonl", fastchat(n, [1, 2])) for n in "ab")
    with pytest.raises(PoolError, match="--questions"):
        list(score_contests([a, b]))
    questions = written(tmp_path, "q.jsonl", QUESTIONS)
    contests = good(score_contests([a, b], questions=questions))
    assert [(c.id, c.prompt, c.category) for c in contests] == [
        ("1", "Add 2 and 2.", "math"),
        ("2", "Name a comet.", "generic"),
    ]


# Names.


def test_a_model_is_called_as_its_file() -> None:
    files = ["x/gpt-3.5.jsonl.gz", "y/gpt-4.json", "vicuna-7b-v1.5", "Z.CSV"]
    assert model_names(files, None) == ["gpt-3.5", "gpt-4", "vicuna-7b-v1.5", "Z"]
    assert model_names(files[:2], ["one", "two"]) == ["one", "two"]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [(None, "two models are called 'a'"), (["x"], "1 names for 2"), (["x", "x"], "'x'")],
)
def test_models_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, names: list[str] | None, complaint: str
) -> None:
    (tmp_path / "other").mkdir()
    a = written(tmp_path, "a.jsonl", alpaca("a", ["p"]))
    b = written(tmp_path / "other", "a.jsonl", alpaca("b", ["p"]))
    with pytest.raises(UsageError, match=complaint):
        score_contests([a, b], names)


def test_one_file_is_no_contest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two or more"):
        score_contests([written(tmp_path, "a.jsonl", alpaca("a", ["p"]))])


def test_a_missing_file_is_told_before_anything_is_read(tmp_path: Path) -> None:
    a = written(tmp_path, "a.jsonl", alpaca("a", ["p"]))
    with pytest.raises(PoolError, match="cannot read"):
        score_contests([a, tmp_path / "none.jsonl"])


# Judgements: two files and the questions.


def test_a_judge_sees_a_first_and_with_both_orders_each_first_once(tmp_path: Path) -> None:
    questions = written(tmp_path, "q.jsonl", QUESTIONS)
    a, b = (written(tmp_path, f"{n}.jsonl", fastchat(n, [2, 1])) for n in "ab")
    once = good(judge_contests(questions, a, b))
    assert [(c.id, c.order, c.models) for c in once] == [("1", (0, 1), ("a", "b")), ("2", (0, 1), ("a", "b"))]
    both = good(judge_contests(questions, a, b, both_orders=True))
    assert [(c.id, c.order) for c in both] == [("1", (0, 1)), ("1", (1, 0)), ("2", (0, 1)), ("2", (1, 0))]
    assert both[1].models == ("b", "a")
    assert both[1].answers == ("b on 1", "a on 1")


def test_pool_rows_are_questions_too(tmp_path: Path) -> None:
    pool = [{"id": "x", "instruction": "Sum up.", "input": "A text.", "category": "writing"}]
    questions = written(tmp_path, "q.json", orjson.dumps(pool))
    a = written(tmp_path, "a.jsonl", [{"id": "x", "text": "by id"}])
    b = written(tmp_path, "b.jsonl", [{"instruction": "Sum up.", "input": "A text.", "output": "by prompt"}])
    (contest,) = good(judge_contests(questions, a, b))
    assert contest == Contest(
        "x", "Sum up.", "A text.", "writing", ("a", "b"), ("by id", "by prompt"), (0, 1)
    )


def test_a_question_without_both_answers_is_reported(tmp_path: Path) -> None:
    questions = written(tmp_path, "q.jsonl", QUESTIONS)
    a, b = (
        written(tmp_path, "a.jsonl", fastchat("a", [1, 2])),
        written(tmp_path, "b.jsonl", fastchat("b", [1])),
    )
    contests = judge_contests(questions, a, b, both_orders=True)
    assert len(good(contests)) == 2
    (row,) = bad(contests)
    assert row.line == 2
    assert "only a has answered 'Name a comet.'" in row.reason


def test_answers_to_no_question_are_reported_once_a_file(tmp_path: Path) -> None:
    questions = written(tmp_path, "q.jsonl", QUESTIONS)
    a = written(tmp_path, "a.jsonl", fastchat("a", [1, 2, 7, 8, 1]))
    b = written(tmp_path, "b.jsonl", fastchat("b", [1, 2]))
    (row,) = bad(judge_contests(questions, a, b))
    assert row.line == 3
    assert "3 answers, this the first, belong to none of the questions" in row.reason


@pytest.mark.slow
def test_memory_does_not_grow_with_the_answers(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        answers = [{"instruction": f"p{i}", "output": "x" * 400} for i in range(rows)]
        a, b = (written(tmp_path, f"{n}{rows}.jsonl", answers) for n in "ab")
        del answers
        tracemalloc.start()
        count = sum(1 for _ in score_contests([a, b]))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == rows
        return most

    assert peak(20_000) < peak(2_000) + 4 * 2**20
