"""What is said twice is found, within a set and across sets, and no pair is claimed that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("datasketch", reason="the layer 'evaluate' is not installed")

from evaluators.data.contamination import measure as overlap
from evaluators.data.duplicates import measure, run_duplicates, shingles
from evaluators.records import data_sets
from store.errors import UsageError
from tests.support.cli import write_pool


def found(folder: Path, *texts: list[str], threshold: float = 0.7) -> dict[str, Any]:
    files = [
        write_pool(folder / f"set{n}.jsonl", [{"instruction": text, "output": "o"} for text in some])
        for n, some in enumerate(texts)
    ]
    return measure(data_sets(files), "prompt", threshold).as_json()


def numbered(*numbers: int) -> str:
    return " ".join(f"w{n}" for n in numbers)


def test_each_level_holds_the_one_before(tmp_path: Path) -> None:
    text = numbered(*range(20))
    told = found(tmp_path, [text, "other", text, text.upper() + "!", text + " w99", "", ""])
    assert [told[level]["extra"] for level in ("exact", "normalised", "near")] == [1, 2, 3]
    assert [told[level]["clusters"] for level in ("exact", "normalised", "near")] == [1, 1, 1]
    assert told["near"]["share"] == 3 / 7
    assert [row["line"] for row in told["near"]["examples"][0]["rows"]] == [1, 3, 4, 5]
    assert told["files"]["set0"]["empty"] == 2


def test_similarity_is_the_jaccard_of_word_trigrams(tmp_path: Path) -> None:
    """22 words have 20 trigrams. Another last word changes one: 19 of 21 in common; four words change
    four: 16 of 24."""
    text, one, four = (numbered(*range(22 - n), *range(100, 100 + n)) for n in (0, 1, 4))
    for threshold, pairs in ((19 / 21, 1), (19 / 21 + 0.001, 0)):
        assert found(tmp_path, [text, one], threshold=threshold)["near"]["clusters"] == pairs
    for threshold, pairs in ((16 / 24, 1), (16 / 24 + 0.001, 0)):
        assert found(tmp_path, [text, four], threshold=threshold)["near"]["clusters"] == pairs
    assert len(shingles(text.split())) == 20


def test_rows_of_different_sets_meet(tmp_path: Path) -> None:
    told = found(tmp_path, ["Name a fruit.", "unique one"], ["name a FRUIT", "Name a fruit.", "another"])
    assert told["exact"]["across"] == 1
    assert told["normalised"]["extra_by_file"] == {"set0": 0, "set1": 2}
    assert told["normalised"]["examples"][0]["files"] == {"set0": 1, "set1": 2}
    assert told["normalised"]["examples"][0]["rows"][1] == {
        "file": "set1", "id": "0", "line": 1, "text": "name a FRUIT"
    }  # fmt: skip


def test_all_clusters_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_pool(tmp_path / "d.jsonl", [{"instruction": "Say \x1b[2Jhi", "output": "o"}] * 2)
    run_duplicates([file], None, "prompt", 0.7, json=False, csv=None, out=tmp_path / "clusters.jsonl")
    lines = [orjson.loads(line) for line in (tmp_path / "clusters.jsonl").read_bytes().splitlines()]
    assert [line["level"] for line in lines] == ["exact", "normalised", "near"]
    assert lines[0]["rows"] == [{"file": "d", "line": 1}, {"file": "d", "line": 2}]
    assert "\x1b" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="--threshold"):
        measure(data_sets([file]), "prompt", 0)


def overlapping(folder: Path, train: list[str], test: list[str], n: int = 13) -> dict[str, Any]:
    one = write_pool(folder / "train.jsonl", [{"instruction": "i", "output": text} for text in train])
    other = write_pool(folder / "test.jsonl", [{"instruction": text} for text in test])
    told: dict[str, Any] = overlap(one, [other], n, ("prompt", "all")).as_json()["tests"]["test"]
    return told


def test_a_planted_13_gram_is_found_and_a_12_gram_is_not(tmp_path: Path) -> None:
    thirteen, twelve = numbered(*range(13)), numbered(*range(50, 62))
    train = [
        "nothing here to see",
        f"before {thirteen.upper()}, after",
        f"so {twelve} ends",
        f"{thirteen} again",
    ]
    test = [f"please read {thirteen} and go on", f"please read {twelve} and go on", "short one"]
    told = overlapping(tmp_path, train, test)
    assert (told["rows"], told["too_short"], told["contained"], told["share"]) == (3, 1, 1, 0.5)
    (hit,) = told["hits"]
    assert (hit["id"], hit["line"], hit["ngrams"], hit["train_rows"]) == ("0", 1, 1, 2)
    assert hit["ngram"] == thirteen
    assert hit["share"] == pytest.approx(1 / 6)  # 18 words have 6 13-grams
    assert hit["train"] == [{"id": "1", "line": 2}, {"id": "3", "line": 4}]
    assert overlapping(tmp_path, train, test, n=12)["contained"] == 2


def test_a_shorter_row_counts_where_all_of_it_stands(tmp_path: Path) -> None:
    told = overlapping(
        tmp_path, ["Q: how do magnets work? A: well."], ["How do magnets work today", "how do magnets work a"]
    )
    assert [hit["id"] for hit in told["hits"]] == ["1"]
    assert (told["whole"], told["mostly"]) == (1, 1)


def test_phrases_of_few_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--n must be at least 5"):
        overlapping(tmp_path, ["a"], ["b"], n=4)
