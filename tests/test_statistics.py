"""Lengths, scores and shares: what is counted, what is left out and said, on common scales."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

pytest.importorskip("numpy", reason="the layer 'evaluate' is not installed")

from engine.tasks.language_check import language_of
from evaluators.data import lengths
from evaluators.data.shares import measure_scores, measure_shares, score_sheets
from evaluators.records import Record, data_sets, plain_words, row_of, word_count
from evaluators.tables import Sheet, Span, print_sheets, write_sheet
from store.errors import PoolError, UsageError
from tests.support.cli import distill, write_pool
from tests.support.ledgers import Book, opened, reply


def words(count: int) -> str:
    return " ".join(["word"] * count)


def test_words_are_counted_between_spaces_and_by_character_where_there_are_none() -> None:
    assert word_count("Hello,  world — again") == 4
    assert word_count("你好，世界") == 4
    assert word_count("用 Python 3 写代码。") == 6
    assert word_count("") == 0
    assert plain_words("Don't STOP, ﬁne—你好!") == ["don", "t", "stop", "fine", "你", "好"]


def test_rows_of_every_published_shape_are_read() -> None:
    shapes: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
        ({"instruction": "i", "input": "n", "output": "o"}, ("i", "n", "o")),
        ({"instruction": "i", "instances": [{"input": "n", "output": "o"}]}, ("i", "n", "o")),
        ({"instruction": "i", "input": "", "prediction": "p", "target": "t"}, ("i", "", "p")),
        ({"question_id": 1, "text": "q", "category": "math"}, ("q", "", "")),
        ({"question_id": 1, "text": "a", "model_id": "m"}, ("", "", "a")),
        (
            {"messages": [{"role": "user", "content": "i"}, {"role": "assistant", "content": "o"}]},
            ("i", "", "o"),
        ),
    ]
    for raw, expected in shapes:
        row = row_of(raw, 3, 0)
        assert isinstance(row, Record)
        assert (row.instruction, row.input, row.output) == expected
    assert isinstance(row_of({"x": 1}, 1, 0), str)


def test_lengths_are_exact_and_on_common_bins(tmp_path: Path) -> None:
    short = write_pool(
        tmp_path / "short.jsonl", [{"instruction": "i", "output": words(n)} for n in (0, 1, 2, 3)]
    )
    long = write_pool(tmp_path / "long.jsonl", [{"instruction": "i", "output": words(n)} for n in range(100)])
    found = lengths.measure(data_sets([short, long]), "output", "gpt-4").as_json()
    one, other = found["data"]["short"], found["data"]["long"]
    assert (one["rows"], one["empty"]) == (4, 1)
    assert one["words"]["mean"] == 1.5
    assert one["words"]["sd"] == pytest.approx((5 / 3) ** 0.5)
    assert one["words"]["quantiles"]["50"] == 1
    assert other["words"]["quantiles"]["99"] == 98
    edges = found["units"]["words"]["edges"]
    assert len(edges) == len(one["words"]["histogram"]) == len(other["words"]["histogram"])
    assert sum(other["words"]["histogram"]) == 100
    assert other["words"]["histogram"][0] == edges[1]
    assert [row["length"] for row in other["words"]["examples"]["longest"]] == [99, 98, 97]
    assert one["words"]["examples"]["shortest"][0] == {"id": "0", "line": 1, "length": 0}
    assert one["tokens"]["max"] == 3


THOUGHTFUL: list[dict[str, Any]] = [
    {"instruction": "i", "output": words(3), "reasoning": words(30)},
    {"instruction": "i", "output": f"<think>\n{words(10)}\n</think>\n\n{words(2)}"},
    {"instruction": "i", "output": "", "reasoning": words(20)},
    {
        "messages": [
            {"role": "user", "content": "i"},
            {"role": "assistant", "content": words(1), "reasoning_content": words(40)},
        ]
    },
    {"instruction": "i", "output": words(4), "reasoning": None},
    {"instruction": "i", "output": 0},
]


def test_thinking_is_measured_apart_from_answers(tmp_path: Path) -> None:
    thinks = write_pool(tmp_path / "thinks.jsonl", THOUGHTFUL)
    plain = write_pool(tmp_path / "plain.jsonl", [{"instruction": "i", "output": words(5)}])
    found = lengths.measure(data_sets([thinks, plain]), "output", "gpt-4").as_json()
    one = found["data"]["thinks"]
    assert (one["rows"], one["empty"], one["words"]["total"]) == (6, 1, 11)
    thinking = found["reasoning"]["data"]
    assert (thinking["thinks"]["rows"], thinking["thinks"]["of"], thinking["plain"]["rows"]) == (4, 6, 0)
    assert (thinking["thinks"]["words"]["total"], thinking["thinks"]["words"]["max"]) == (100, 40)
    assert thinking["thinks"]["tokens"]["total"] == 100
    assert thinking["plain"]["words"]["mean"] is None
    sheets = lengths.sheets(found)
    assert [sheet.title for sheet in sheets] == ["Lengths", "Lengths of the thinking"]
    asked = lengths.measure(data_sets([thinks]), "instruction").as_json()
    assert asked["reasoning"] is None  # it is no part of an instruction
    assert lengths.measure(data_sets([plain]), "output").as_json()["reasoning"] is None


def test_a_value_that_is_no_text_is_no_empty_answer(tmp_path: Path) -> None:
    values = [0, 7, ["x"], {"a": 1}, True, None, ""]
    path = write_pool(tmp_path / "d.jsonl", [{"instruction": "i", "output": value} for value in values])
    found = lengths.measure(data_sets([path]), "output").as_json()
    one = found["data"]["d"]
    assert (one["rows"], one["bad_rows"], one["empty"], one["words"]["total"]) == (4, 3, 2, 2)
    assert "d: 3 bad rows are left out." in lengths.sheets(found)[0].notes
    (tally,) = measure_shares(path)["data"].values()
    assert (tally["rows"], tally["bad_rows"], tally["empty"]["n"]) == (4, 3, 2)


def test_shares_tell_how_many_rows_think_and_how_many_are_empty(tmp_path: Path) -> None:
    (one,) = measure_shares(write_pool(tmp_path / "d.jsonl", THOUGHTFUL))["data"].values()
    assert (one["rows"], one["reasoning"]["n"], one["empty"]["n"]) == (6, 4, 1)
    assert one["reasoning"]["share"] == pytest.approx(4 / 6)
    assert one["reasoning"]["examples"][0] == {"id": "0", "line": 1}


def test_what_is_longer_than_the_last_bin_is_in_it() -> None:
    assert lengths.histogram({0: 1, 4: 1, 5: 2, 999: 3}, [0, 5, 10]) == [2, 2, 3]


def test_scores_outside_of_the_scale_are_no_scores(tmp_path: Path) -> None:
    answers = [{"model": "a", "text": "t", "score": 9}, {"model": "b", "text": "t", "score": None}]
    lists = {"model": "a", "scores": [8, 8.5, 10, 0, 11]}
    file = write_pool(
        tmp_path / "s.jsonl", [{"prompt": "p", "answers": answers, "order": [0, 1]}, lists, {"x": 1}]
    )
    found = measure_scores([file])
    assert [sheet.title for sheet in score_sheets(found)] == ["Scores"]
    a, b = found["data"]["a"], found["data"]["b"]
    assert (a["n"], a["outside"], a["unscored"]) == (4, {"0": 1, "11": 1}, 0)
    assert a["mean"] == pytest.approx(35.5 / 4)
    assert a["median"] == 8.75
    assert a["shares"] == {"8": 0.25, "8.5": 0.25, "9": 0.25, "10": 0.25}
    assert a["histogram"] == [0, 0, 0, 0, 0, 0, 0, 2, 1, 1]
    assert a["examples"]["8.5"] == [{"file": str(file), "line": 2, "id": "1"}]
    assert (b["n"], b["mean"], b["unscored"], found["bad_rows"]) == (0, None, 1, 1)


def test_a_file_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="no scores in"):
        measure_scores([write_pool(tmp_path / "s.jsonl", [{"instruction": "i"}])])


def test_the_published_scores(tmp_path: Path) -> None:
    folder = os.environ.get("DISTILL_DATA")
    if not folder:
        pytest.skip("DISTILL_DATA is not set")
    found = measure_scores([Path(folder) / "gpt4_scores.jsonl.gz"])["data"]
    assert {name: sum(one["outside"].values()) + one["n"] for name, one in found.items()} == {
        "gpt4": 51445, "text-davinci-003": 51183, "icm-1.3b": 51428
    }  # fmt: skip
    assert found["gpt4"]["mean"] > found["text-davinci-003"]["mean"] > found["icm-1.3b"]["mean"]


def test_shares_of_a_file_know_no_outcomes_unless_told(tmp_path: Path) -> None:
    english = "The weather will be fine and warm tomorrow in most parts of the country."
    rows = [
        {"instruction": "i", "output": english},
        {"instruction": "i", "output": "I’m sorry, but I cannot help with that."},
        {"instruction": "i", "output": ""},
        {"instruction": "i", "output": "今天天气很好，我们一起去公园散步吧。"},
    ]
    (one,) = measure_shares(write_pool(tmp_path / "d.jsonl", rows))["data"].values()
    assert (one["outcomes"], one["truncated"], one["failed"]) == (None, None, None)
    assert (one["refused_in_words"]["n"], one["empty"]["n"]) == (1, 1)
    assert one["refused_in_words"]["share"] == 0.25
    assert one["refused_in_words"]["examples"] == [{"id": "1", "line": 2}]
    assert {name: part["n"] for name, part in one["languages"].items()} == {"en": 2, "zh": 1}
    told = write_pool(tmp_path / "t.jsonl", [row | {"outcome": "length"} for row in rows[:1]])
    (one,) = measure_shares(told)["data"].values()
    assert one["truncated"]["share"] == 1
    with pytest.raises(UsageError, match="stages are in a run folder"):
        measure_shares(told, "generate")


async def test_shares_of_a_run_tell_of_thinking_and_of_empty_answers(tmp_path: Path) -> None:
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number, (text, outcome) in enumerate(
            [("A tea.", "stop"), ("<think>\nhm\n</think>\n\nA hill.", "stop"), ("", "empty")], 1
        ):
            book.add(number, reply(text, outcome))
    (one,) = measure_shares(tmp_path)["data"].values()
    assert (one["rows"], one["reasoning"]["n"], one["empty"]["n"]) == (3, 1, 1)
    assert one["outcomes"] == {"stop": 2, "empty": 1}


async def test_shares_of_a_run_are_the_ledgers(tmp_path: Path) -> None:
    english = "The weather will be fine and warm tomorrow in most parts of the country."
    async with opened(tmp_path) as ledger:
        book = Book(ledger)
        for number, outcome in enumerate(("stop", "length", "content_filter", "stop"), 1):
            book.add(number, reply(english, outcome))
        book.place(5)
        book.fail(5)
        Book(ledger, "later").add(6, reply("抱歉，我无法回答这个问题，请换一个问题。"))
    found = measure_shares(tmp_path)["data"]
    one, other = found["generate"], found["later"]
    assert (one["rows"], one["failed"]) == (4, {"bad_request": 1})
    assert one["outcomes"] == {"stop": 2, "length": 1, "content_filter": 1}
    assert (one["truncated"]["share"], one["content_filter"]["n"], one["refusal"]["n"]) == (0.25, 1, 0)
    assert one["truncated"]["examples"] == [{"id": "row 2", "line": None, "position": 1}]
    assert one["truncated"]["low"] < 0.25 < one["truncated"]["high"]
    assert (other["refused_in_words"]["n"], list(other["languages"])) == (1, ["zh"])
    assert list(measure_shares(tmp_path, "later")["data"]) == ["later"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The weather will be fine and warm tomorrow.", "en"),
        ("Das Wetter wird morgen schön und warm, sagt der Bericht.", "de"),
        ("今天天气很好，我们去公园吧。", "zh"),
        ("今日はとても天気がいいので公園に行きましょう。", "ja"),
        ("오늘은 날씨가 좋으니 공원에 갑시다 라고 말했다.", "ko"),
        ("42", ""),
        ("def f(x):\n    return x + 1", ""),
    ],
)
def test_the_language_of_a_text(text: str, language: str) -> None:
    assert language_of(text) == language


def test_a_table_on_a_narrow_terminal_shows_every_number_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ["model", "n", *(f"share {n}" for n in range(12)), "note"]
    rows = [
        [f"model {name} " * 4, 51_234, *(Span(n / 13, 0.1, 0.9) for n in range(12)), "9.5%"] for name in "ab"
    ]
    print_sheets([Sheet("t", columns, rows)])
    assert len(capsys.readouterr().out.splitlines()) == 4  # a pipe gets a line a row
    monkeypatch.setattr("evaluators.tables.console_of", lambda: Console(width=80, highlight=False))
    print_sheets([Sheet("t", columns, rows)])
    shown = capsys.readouterr().out
    assert all(shown.count(f"{n / 13:.3f} [0.100, 0.900]") == 2 for n in range(12))
    assert (shown.count("51,234"), shown.count("9.5%")) == (2, 2)
    assert "model b" in shown.split("share 11")[1]  # each part begins with the words that name its rows
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "it is empty"), (b"\xff\xfe", "line 1: not UTF-8"), (b'{"a": 1}\n', "expected")],
)
def test_a_file_in_which_nothing_can_be_used_is_told_with_the_reason(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    with pytest.raises(PoolError, match=f"no scores in .*{why}"):
        measure_scores([path])
    with pytest.raises(UsageError, match=f"no usable row in .*{why}"):
        measure_shares(path)
    with pytest.raises(PoolError, match=f"no usable row in .*{why}"):
        lengths.measure(data_sets([path]), "output", None)


def test_a_score_beyond_all_numbers_is_none(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(f'{{"model": "a", "scores": [7, 1{"0" * 400}, -1e400, NaN]}}\n')
    told = measure_scores([tmp_path / "s.jsonl"])["data"]["a"]
    assert (told["n"], told["mean"], told["unscored"]) == (1, 7.0, 3)


def test_tables_are_safe_and_csv_has_every_digit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = Sheet(
        "t\x1b[2J",
        ["name", "mean"],
        [["[red]\x1b[31m=x", Span(1 / 3, 0.1, 0.5)], ["=cmd()", Span(None, None, None)]],
    )
    print_sheets([sheet])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[red]" in shown
    write_sheet(tmp_path / "t.csv", sheet)
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == "name,mean,mean low,mean high"
    assert "0.3333333333333333,0.1,0.5" in (tmp_path / "t.csv").read_text()
    assert "'=cmd()" in (tmp_path / "t.csv").read_text()


@pytest.mark.parametrize("command", ["lengths", "scores", "duplicates", "shares"])
async def test_a_file_that_is_not_there_is_exit_2(command: str, tmp_path: Path) -> None:
    ended = await distill("evaluate", command, tmp_path / "none.jsonl", "--json")
    assert (ended.code, ended.out) == (2, "")
    assert "none.jsonl" in ended.err
