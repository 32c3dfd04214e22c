"""ROUGE is rouge-score's, joined to the right references, the same however many processes share it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("rouge_score", reason="the layer 'evaluate' is not installed")

from rouge_score.rouge_scorer import RougeScorer

from evaluators.data.rouge import RougeOptions, bucket_of, measure, run_rouge
from evaluators.data.rouge_scores import (
    METRICS,
    Joining,
    Pair,
    joined,
    read_references,
    score,
    scorer,
    scoring,
    tokens_for,
)
from store.errors import PoolError, UsageError
from store.pool import Pool
from tests.support.cli import distill, write_pool

Rows = list[dict[str, Any]]


def measured(folder: Path, predictions: Rows, references: Rows, **told: Any) -> dict[str, Any]:
    own = write_pool(folder / "own.jsonl", predictions)
    return measure([own], write_pool(folder / "references.jsonl", references), RougeOptions(**told)).as_json()


def test_scores_are_those_of_rouge_score_with_its_stemmer() -> None:
    pairs = [
        ("The cats were running home.", "A cat runs home"),
        ("one two three", "three two one"),
        ("", "x"),
    ]
    for stemmer in (True, False):
        theirs = RougeScorer(list(METRICS), use_stemmer=stemmer)
        for target, prediction in pairs:
            expected = theirs.score(target, prediction)
            found = score(Pair([target], prediction, "default", stemmer))
            assert found == tuple(expected[metric].fmeasure for metric in METRICS)


def test_a_case_by_hand() -> None:
    """Reference of 4 words, prediction of 3: 'the' and 'cat' in common and in order, one pair of words."""
    one, two, longest = score(Pair(["the cat sat down"], "the cat ran", "default", True))
    assert one == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert two == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert longest == pytest.approx(one)


def test_of_several_references_the_best_counts(tmp_path: Path) -> None:
    rows = [{"id": 1, "references": ["wholly other words", "blue sky"]}]
    assert (
        measured(tmp_path, [{"id": 1, "prediction": "blue sky"}], rows)["models"]["own"]["all"]["rougeL"] == 1
    )
    apart = [{"id": 1, "target": "wholly other words"}, {"id": 1, "target": "blue sky"}]
    found = measured(tmp_path, [{"id": 1, "prediction": "blue sky"}], apart)
    assert found["models"]["own"]["all"]["rougeL"] == 1
    assert found["references"]["rows"] == 1


@pytest.mark.parametrize(
    ("words", "bucket"),
    [(0, "0-2"), (2, "0-2"), (3, "3-5"), (5, "3-5"), (6, "6-10"), (10, "6-10"), (11, ">10"), (200, ">10")],
)
def test_where_the_lengths_begin_and_end(words: int, bucket: str) -> None:
    assert bucket_of(" ".join(["word,"] * words)) == bucket
    assert bucket_of("字" * words) == bucket


def test_length_is_the_references_and_all_is_the_mean_of_rows(tmp_path: Path) -> None:
    references = [{"id": 1, "target": "yes"}, {"id": 2, "target": "a b c d e f g h i j k"}]
    predictions = [{"id": 1, "prediction": "yes yes yes"}, {"id": 2, "prediction": "none"}]
    parts = measured(tmp_path, predictions, references)["models"]["own"]
    assert [parts[name]["n"] for name in ("all", "0-2", "3-5", "6-10", ">10")] == [2, 1, 0, 0, 1]
    assert parts["0-2"]["rouge1"] == pytest.approx(0.5)
    assert parts["all"]["rouge1"] == pytest.approx(0.25)
    assert parts["3-5"]["rougeL"] is None
    assert parts["3-5"]["low"]["rougeL"] is None
    assert [row["id"] for row in parts["all"]["examples"]] == ["2", "1"]  # the lowest first


def test_processes_change_no_number(tmp_path: Path) -> None:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "cats", "sleep"]
    pairs = [
        Pair([" ".join(words[n % 5 : n % 11 + 2])], " ".join(words[n % 7 :][::-1]), "default", True)
        for n in range(200)
    ]
    with scoring(1) as alone, scoring(2) as together:
        assert list(alone(pairs)) == list(together(pairs))


def test_rows_are_joined_by_id_else_by_prompt_else_by_line(tmp_path: Path) -> None:
    references = [
        {"id": "a", "instruction": "Add.", "input": "1 2", "output": "three"},
        {"id": "b", "instruction": "Add.", "input": "2 2", "output": "four"},
    ]
    by_id = [{"id": "b", "prediction": "four"}, {"id": "a", "prediction": "three"}]
    by_prompt = [
        {"id": None, "instruction": "Add.\n", "input": "2 2", "prediction": "four"},
        {"instruction": "Add.", "input": "1 2 ", "prediction": "three"},
    ]
    by_line = [{"prediction": "three"}, {"prediction": "four"}]
    for how, rows in (("id", by_id), ("prompt", by_prompt), ("line", by_line)):
        found = measured(tmp_path, rows, references)
        assert found["models"]["own"]["all"]["rouge1"] == 1, how
        assert {k: n for k, n in found["joined"]["own"].items() if n} == {how: 2}


def test_an_id_does_not_join_rows_that_ask_different_things(tmp_path: Path) -> None:
    references = [
        {"id": 0, "instruction": "Spell two.", "output": "two"},
        {"id": 1, "instruction": "x", "output": "y"},
    ]
    predictions = [{"id": 1, "instruction": "Spell two.", "input": "", "prediction": "two"}]
    found = measured(tmp_path, predictions, references)
    assert found["joined"]["own"] == {"id": 0, "prompt": 1, "line": 0}
    assert found["models"]["own"]["all"]["rouge1"] == 1


def test_rows_without_a_partner_are_counted_and_named(tmp_path: Path) -> None:
    references = [{"id": n, "target": "x"} for n in range(5)]
    predictions = [{"id": 0, "prediction": "x"}, {"id": "q", "prediction": "x"}, {"id": 3, "prediction": 7}]
    found = measured(tmp_path, predictions, references)
    told = found["unmatched"]["own"]
    assert (told["predictions"], told["references"], found["bad_rows"]["own"]) == (1, 4, 1)
    assert told["examples"] == [{"id": "q", "line": 2}]
    with pytest.raises(PoolError, match="none of its 1 predictions"):
        measured(tmp_path, [{"id": "q", "prediction": "x"}], references)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"\xff\xfe", "line 1: not UTF-8"),
        (b'{"a": 1}\n', "line 1: none of the"),
    ],
)
def test_files_in_which_nothing_can_be_used_are_told_with_the_reason(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(PoolError, match=f"no reference in .*: {why}"):
        read_references(Pool(tmp_path / "bad.jsonl"))
    good = read_references(Pool(write_pool(tmp_path / "good.jsonl", [{"target": "x"}])))
    with pytest.raises(PoolError, match=f"no prediction: {why}"):
        list(joined(Pool(tmp_path / "bad.jsonl"), good, Joining()))


def test_chinese_is_compared_by_characters_and_said(tmp_path: Path) -> None:
    references = [{"id": 1, "target": "我喜欢 Python 编程"}, {"id": 2, "target": "plain café"}]
    predictions = [{"id": 1, "prediction": "我喜欢编程"}, {"id": 2, "prediction": "plain café"}]
    found = measured(tmp_path, predictions, references)
    assert found["tokenizer"]["used"] == {"default": 1, "unicode": 1}
    only = measured(tmp_path, predictions[:1], references[:1])["models"]["own"]["all"]
    assert only["rouge1"] == pytest.approx(2 * 1 * (5 / 6) / (1 + 5 / 6))  # 5 of 5, 5 of 6
    forced = measured(tmp_path, predictions[:1], references[:1], tokenizer="default")
    assert forced["models"]["own"]["all"]["rouge1"] == 0


def test_on_english_both_kinds_of_tokens_are_the_same() -> None:
    text = "Don't stop: the 3 runners' shoes (size_10) weren't running well-heeled.\n"
    both = [scorer(kind, True)._tokenizer.tokenize(text) for kind in ("default", "unicode")]
    assert both[0] == both[1]
    assert tokens_for(["naïve déjà vu"], "auto") == "default"
    assert tokens_for(["Привет"], "auto") == "unicode"


def test_a_difference_is_paired(tmp_path: Path) -> None:
    """Both models vary much from row to row, their difference not at all."""
    references = [{"id": n, "target": "a b c d"} for n in range(40)]
    base = [{"id": n, "prediction": "a b c d" if n % 2 else "a x y z"} for n in range(40)]
    mine = [{"id": n, "prediction": row["prediction"]} for n, row in enumerate(base)]
    mine[0]["prediction"] = "a b c d"
    files = [write_pool(tmp_path / "mine.jsonl", mine), write_pool(tmp_path / "base.jsonl", base)]
    found = measure(
        files, write_pool(tmp_path / "r.jsonl", references), RougeOptions(against="base")
    ).as_json()
    gap, own = found["differences"]["mine"]["all"]["rouge1"], found["models"]["mine"]["all"]
    assert gap["difference"] == pytest.approx(0.75 / 40)
    assert gap["low"] >= 0
    assert gap["high"] - gap["low"] < (own["high"]["rouge1"] - own["low"]["rouge1"]) / 3
    assert list(found["differences"]) == ["mine"]


def test_bad_wishes_are_refused(tmp_path: Path) -> None:
    rows = [{"id": 1, "target": "x", "prediction": "x"}]
    for told, words in (
        ({"against": "no"}, "no such model"),
        ({"tokenizer": "bpe"}, "unknown"),
        ({"processes": 0}, "1"),
    ):
        with pytest.raises(UsageError, match=words):
            measured(tmp_path, rows, rows, **told)


def test_tables_and_rows_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "=1+1", "target": "x", "prediction": "x"}]
    file = write_pool(tmp_path / "=evil\x1b[31m.jsonl", rows)
    csv, out = tmp_path / "t.csv", tmp_path / "rows.jsonl"
    run_rouge([file], file, RougeOptions(), json=False, csv=csv, out=out)
    assert "\x1b" not in capsys.readouterr().out
    assert "'=evil" in csv.read_text()
    assert orjson.loads(out.read_bytes())["rougeL"] == 1


async def test_the_command_takes_several_files_and_exits_2_on_nonsense(tmp_path: Path) -> None:
    references = write_pool(tmp_path / "r.jsonl", [{"id": 1, "target": "x"}])
    files = [write_pool(tmp_path / f"m{n}.jsonl", [{"id": 1, "prediction": "x"}]) for n in range(2)]
    words = ("evaluate", "rouge", "--predictions", *files, "--references", references, "--json")
    ended = await distill(*words)
    assert ended.code == 0, ended.err
    found = orjson.loads(ended.out)["models"]
    assert list(found) == ["m0", "m1"]
    assert set(found["m0"]) == {"all", "0-2", "3-5", "6-10", ">10"}
    missing = await distill("evaluate", "rouge", "--predictions", tmp_path / "no", "--references", references)
    assert missing.code == 2
    assert "cannot read" in missing.err


def test_published_figures_of_all_rows_are_the_means_of_the_lengths(tmp_path: Path) -> None:
    """Which our `all` is, too; to the fourth digit, for the published ones are medians of resamples."""
    folder = os.environ.get("DISTILL_DATA")
    if not folder:
        pytest.skip("DISTILL_DATA is not set")
    rows = [
        orjson.loads(line)
        for line in (Path(folder) / "unnatural_rouge_published.jsonl").read_bytes().splitlines()
    ]
    for model in {row["Model"] for row in rows}:
        parts = [row for row in rows if row["Model"] == model and row["Length"] != "ALL"]
        (whole,) = (row for row in rows if row["Model"] == model and row["Length"] == "ALL")
        for metric in METRICS:
            mean = sum(row[metric] * row["NumInstance"] for row in parts) / 9000
            assert mean == pytest.approx(whole[metric], abs=5e-4)


def test_real_predictions_are_all_joined(tmp_path: Path) -> None:
    folder = os.environ.get("DISTILL_DATA")
    if not folder:
        pytest.skip("DISTILL_DATA is not set")
    own = Path(folder) / "user_oriented_252"
    found = measure(
        [own / "predictions/text-davinci-003.jsonl"], own / "instructions.jsonl", RougeOptions()
    ).as_json()
    theirs = RougeScorer(["rougeL"], use_stemmer=True)
    rows = [
        orjson.loads(line) for line in (own / "predictions/text-davinci-003.jsonl").read_bytes().splitlines()
    ]
    forced = measure(
        [own / "predictions/text-davinci-003.jsonl"],
        own / "instructions.jsonl",
        RougeOptions(tokenizer="default"),
    ).as_json()["models"]["text-davinci-003"]["all"]
    expected = sum(theirs.score(row["target"], row["prediction"])["rougeL"].fmeasure for row in rows) / len(
        rows
    )
    assert found["joined"]["text-davinci-003"] == {"id": 0, "prompt": 252, "line": 0}
    assert forced["rougeL"] == pytest.approx(expected, abs=1e-12)
