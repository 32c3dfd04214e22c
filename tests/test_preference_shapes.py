"""Comparisons in the shapes that are published, and those that teach nothing: read, or left out and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

from store.errors import PoolError
from tests.support import tiny
from trainers.comparisons import Read, as_pairs, read_groups
from trainers.config import RewardRecipe
from trainers.reward_data import prepared

pytestmark = pytest.mark.filterwarnings("default")


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def assistant(content: object) -> dict[str, object]:
    return {"role": "assistant", "content": content}


QUESTION, GOOD, BAD = [user("Q?")], [assistant("good")], [assistant("bad")]
SAME = [
    {"user_input": "Q?", "completion_a": "good", "completion_b": "bad"},
    {"prompt": "Q?", "chosen": "good", "rejected": "bad"},
    {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    {"chosen": QUESTION + GOOD, "rejected": QUESTION + BAD},
    {"prompt": "Q?", "chosen": QUESTION + GOOD, "rejected": QUESTION + BAD},
    {"prompt": [user([{"type": "text", "text": "Q?"}])], "chosen": GOOD, "rejected": BAD},
    {"chosen": "\n\nHuman: Q?\n\nAssistant: good", "rejected": "\n\nHuman: Q?\n\nAssistant: bad"},
    {"prompt": "Q?", "answers": [{"text": "bad", "score": 1}, {"text": "good", "score": 2}]},
]


@pytest.mark.parametrize("raw", SAME)
def test_every_published_shape_is_the_same_comparison(raw: dict[str, Any]) -> None:
    found = as_pairs(raw, Read())
    assert not isinstance(found, str)
    prompt, ((better, worse, _),) = found
    assert (prompt, better, worse) == ("Q?", "good", "bad")


@pytest.mark.parametrize(("good", "bad", "told"), [(42, 41, ("42", "41")), (0, "1", ("0", "1"))])
def test_a_number_is_an_answer_and_so_is_nothing(good: object, bad: object, told: tuple[str, str]) -> None:
    for shape in (("user_input", "completion_a", "completion_b"), ("prompt", "chosen", "rejected")):
        found = as_pairs(dict(zip(shape, ("Q?", good, bad), strict=True)), Read())
        assert found == ("Q?", [(*told, None)])
        assert as_pairs(dict(zip(shape, ("Q?", good, ""), strict=True)), Read()) == (
            "Q?",
            [(told[0], "", None)],
        )
    ranked = {"prompt": "Q?", "answers": [{"text": bad, "score": 1}, {"text": good, "score": 2}]}
    assert as_pairs(ranked, Read()) == ("Q?", [(*told, 1.0)])


SEVERAL = "several turns or a system message: only one question and its two answers can be read"
OTHER = "chosen and rejected answer different prompts"
NO_TEXT = "a message of chosen or rejected has no text"
SHAPES = (
    "not a comparison: expected prompt with answers, or prompt with chosen and rejected, or user_input with "
    "completion_a and completion_b"
)
ELSE = "\n\nHuman: c\n\nAssistant: d"
TALK = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"chosen": QUESTION + GOOD + QUESTION + GOOD, "rejected": QUESTION + BAD}, SEVERAL),
        ({"prompt": [{"role": "system", "content": "s"}], "chosen": GOOD, "rejected": BAD}, SEVERAL),
        ({"chosen": TALK + "d", "rejected": TALK + "e"}, SEVERAL),
        ({"chosen": GOOD, "rejected": BAD}, SEVERAL),
        ({"prompt": [], "chosen": [], "rejected": []}, SEVERAL),
        (
            {"chosen": [user("a"), *GOOD], "rejected": [user("b"), *BAD]},
            OTHER,
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": ELSE},
            OTHER,
        ),
        ({"chosen": "good", "rejected": "bad"}, "chosen and rejected without a prompt"),
        (
            {"prompt": QUESTION, "chosen": [assistant(None)], "rejected": BAD},
            "a message of chosen or rejected",
        ),
        ({"prompt": QUESTION, "chosen": ["good"], "rejected": BAD}, NO_TEXT),
        ({"prompt": "Q?", "chosen": {"a": "good"}, "rejected": "bad"}, "chosen is not text: {'a': 'good'}"),
        ({"prompt": "Q?", "chosen": True, "rejected": "bad"}, "chosen is not text: True"),
        ({"user_input": "Q?", "completion_a": "a", "completion_b": None}, "completion_b is not text: None"),
        ({"chosen": 1, "rejected": 2}, SHAPES),
        ({"prompt": " ", "chosen": "good", "rejected": "bad"}, "no prompt"),
        (
            {"question": "Q?", "response_0": "a"},
            f"{SHAPES}; it has question, response_0",
        ),
    ],
)
def test_a_shape_that_is_not_read_is_refused_in_a_sentence(raw: dict[str, Any], reason: str) -> None:
    found = as_pairs(raw, Read())
    assert isinstance(found, str)
    assert found.startswith(reason)


# What teaches nothing.


def pair(prompt: str, better: str, worse: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": better, "rejected": worse}


def recipe(path: Path, **more: Any) -> RewardRecipe:
    given = {"template": "chat", "max_length": 60, "held_out": 0} | more
    return RewardRecipe(data=path, model="m", out=path.parent / "out", **given)


LONG = "the same beginning " * 4


def test_pairs_that_are_the_same_after_the_cut_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [pair("p", LONG + "good", LONG + "bad"), pair("p", "good", LONG + "bad"), pair("q", "a", "b")]
    path = tiny.write(tmp_path / "rows.jsonl", rows)
    found, counts, _ = prepared(recipe(path), tiny.tokenizer())
    assert (counts.alike, counts.pairs, counts.prompts) == (1, 2, 2)
    assert sum(map(len, map(found.pairs_of, range(len(found))))) == 2
    _, counts, _ = prepared(recipe(path, max_length=300), tiny.tokenizer())
    assert (counts.alike, counts.pairs) == (0, 3)


def test_pairs_given_both_ways_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [pair("p", "a", "b"), pair("p", "b", "a"), pair("p", "a", "c"), pair("q", "b", "a")]
    groups, read = read_groups(tiny.write(tmp_path / "rows.jsonl", rows))
    assert read.both_ways == 2
    assert [(g.prompt, [(g.answers[b], g.answers[w]) for b, w in g.pairs]) for g in groups] == [
        ("p", [("a", "c")]),
        ("q", [("b", "a")]),
    ]


def test_so_are_those_that_are_so_only_after_the_cut(tmp_path: Path) -> None:
    rows = [pair("p", LONG + "1", "b"), pair("p", "b", LONG + "2"), pair("p", "b", "c"), pair("q", "a", "b")]
    path = tiny.write(tmp_path / "rows.jsonl", rows)
    _, counts, _ = prepared(recipe(path), tiny.tokenizer())
    assert (counts.both_ways, counts.read.both_ways, counts.pairs) == (2, 0, 2)
    _, counts, held = prepared(recipe(path, held_out=0.5), tiny.tokenizer())
    assert sum(len(group.pairs) for group in held) == 1  # they are not measured on either


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [pair("p", LONG + "1", LONG + "2"), pair("q", LONG + "1", LONG + "2")],
            "2 pairs left out",
        ),
        ([pair("p", "a", "b"), pair("p", "b", "a")], "2 pairs are given both ways"),
        ([pair("p", "a", "a")], "all are ties, equal answers or have one answer only"),
        ([{"chosen": TALK + "d", "rejected": TALK + "e"}], f"line 1: {SEVERAL}"),
    ],
)
def test_where_no_pair_is_left_training_is_refused(pupil: Path, tmp_path: Path, rows: Any, told: str) -> None:
    path = tiny.write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(PoolError, match=told):
        prepared(recipe(path), tiny.tokenizer())
    code, _, said = tiny.distill(*command(path, pupil, tmp_path / "out"))
    assert code == 2
    assert told in said
    assert said.count("\n") <= 2 + said.count("GiB of RAM")


def command(data: Path, model: Path, out: Path) -> list[str]:
    words = tiny.words(data, model, out, "--template", "chat", kind="reward")
    words[words.index("--max-length") + 1] = "60"
    return words[words.index("train") :]


def test_what_was_left_out_is_said_and_is_on_the_card(pupil: Path, tmp_path: Path) -> None:
    rows = [pair(f"p{n}", "good", "bad") for n in range(10)]
    rows += [
        pair("q", LONG + "1", LONG + "2"),
        pair("r", "a", "b"),
        pair("r", "b", "a"),
        pair("s", "a</s>", ""),
    ]
    path = tiny.write(tmp_path / "rows.jsonl", rows)
    code, _, said = tiny.distill(*command(path, pupil, tmp_path / "out"))
    assert code == 0, said
    assert "11 pairs among 22 answers to 11 prompts" in said
    assert "1 pairs left out: both answers are the same within 60 tokens" in said
    assert "2 pairs left out: given both ways" in said
    assert "1 answers with control tokens in their texts, read as text: </s>" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| pairs left out, given both ways | 2 |" in card


def test_a_measurement_says_what_it_left_out_and_what_no_model_can_tell(reward: Path, tmp_path: Path) -> None:
    rows = [pair("p", "a", ""), pair("q", "a", "b"), pair("q", "b", "a"), pair("r", "x" * 400, "x" * 401)]
    data = tiny.write(tmp_path / "rows.jsonl", rows)
    code, out, said = tiny.distill("evaluate", "reward", "--reward", reward, "--data", data, "--json")
    report = orjson.loads(out)
    assert code == 0
    assert (report["pairs"], report["both_ways"], report["alike"]) == (2, 2, 1)
    assert "2 pairs are given both ways and left out" in said


def test_empty_candidates_are_ranked_like_the_others_and_control_tokens_are_said(
    reward: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ranked.jsonl"
    rows = [
        {"id": 1, "prompt": "Q?", "candidates": ["good", "", "a </s> b"]},
        {"id": 2, "prompt": "Q?", "candidates": ["", ""]},
    ]
    given = tiny.write(tmp_path / "candidates.jsonl", rows)
    code, _, said = tiny.distill("rank", "--reward", reward, "--candidates", given, "--out", out)
    assert code == 0
    assert "1 of 5 candidates have control tokens in their texts, read as text: </s>" in said
    found = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [row["candidates"] for row in found] == [row["candidates"] for row in rows]
    assert [len(row["scores"]) for row in found] == [3, 2]
