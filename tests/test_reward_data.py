"""Comparisons as read, split, cut into parts and turned into tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

import numpy as np

from engine.tasks.datasets import comparison_line, comparisons, ranking_line
from store.errors import PoolError, UsageError
from store.records import Contest
from store.student import TextTokens
from tests.support import tiny
from trainers.comparisons import Read, as_pairs, parts, read_groups
from trainers.config import RewardRecipe
from trainers.reward_data import Parts, encoded, prepared, template_for
from trainers.rows import load, save

pytestmark = pytest.mark.filterwarnings("default")


def recipe(path: Path, **more: Any) -> RewardRecipe:
    return RewardRecipe(data=path, model="m", out=path.parent / "out", **({"template": "alpaca"} | more))


# Files.


def test_what_score_exports_in_either_shape_are_the_same_comparisons(tmp_path: Path) -> None:
    contest = Contest("1", "Say it.", "", "", ("m", "n", "o"), ("A.", "B.", "C."), (0, 1, 2))
    scores = (9.0, 4.0, 4.0)
    ranked = tiny.write(tmp_path / "ranked.jsonl", [ranking_line(contest, scores)])
    paired = [comparison_line(pair) for pair in comparisons([(contest, scores)])]
    (one,), read = read_groups(ranked)
    (other,), _ = read_groups(tiny.write(tmp_path / "pairs.jsonl", paired))
    told = {(one.answers[b], one.answers[w]): margin for (b, w), margin in one.pairs.items()}
    assert told == {("A.", "B."): 5.0, ("A.", "C."): 5.0}
    assert told == {(other.answers[b], other.answers[w]): margin for (b, w), margin in other.pairs.items()}
    assert read.ties == 1


def test_pairs_of_one_prompt_are_one_group_wherever_they_stand(tmp_path: Path) -> None:
    said = [("p", "A", "B"), ("q", "A", "B"), ("p", "A", "C"), ("p", "A", "B"), ("p", "D", "D")]
    rows = [{"user_input": p, "completion_a": a, "completion_b": b} for p, a, b in said]
    (p, q), read = read_groups(tiny.write(tmp_path / "rows.jsonl", rows))
    assert (p.prompt, p.answers, p.pairs) == ("p", ["A", "B", "C"], {(0, 1): None, (0, 2): None})
    assert (q.prompt, q.answers, read.equal) == ("q", ["A", "B"], 1)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"user_input": "p", "completion_a": "a"}, "not a comparison: expected prompt with answers"),
        ({"user_input": " ", "completion_a": "a", "completion_b": "b"}, "no prompt"),
        ({"prompt": "p", "answers": [{"text": "a"}]}, "an answer has no text, or its score"),
        ({"prompt": "p", "answers": [{"text": "a", "score": True}]}, "an answer has no text, or its score"),
        ({"prompt": "p", "answers": "a"}, "answers is not a list"),
    ],
)
def test_a_row_that_compares_nothing_says_why(raw: dict[str, Any], reason: str) -> None:
    found = as_pairs(raw, Read())
    assert isinstance(found, str)
    assert found.startswith(reason)


def test_a_file_without_a_comparison_is_refused(tmp_path: Path) -> None:
    answers = [{"text": "a", "score": 5}, {"text": "b", "score": 5}]
    with pytest.raises(PoolError, match="all are ties, equal answers or have one answer only"):
        read_groups(tiny.write(tmp_path / "rows.jsonl", [{"prompt": "p", "answers": answers}]))


# Parts.


@given(
    st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda p: p[0] != p[1]), min_size=1),
    st.integers(2, 12),
)
def test_every_pair_is_in_one_part_and_no_part_is_too_wide(pairs: set[tuple[int, int]], most: int) -> None:
    found = list(parts(sorted(pairs), most))
    assert Counter(pair for part in found for pair in part) == Counter(pairs)
    assert all(len({answer for pair in part for answer in pair}) <= most for part in found)


def test_a_reference_and_its_many_opponents_go_in_parts_around_it() -> None:
    star = [(0, n) if n % 2 else (n, 0) for n in range(1, 21)]
    assert [len(part) for part in parts(star, 6)] == [5, 5, 5, 5]


# Length.


@pytest.mark.parametrize(
    ("prompt", "answer", "most", "text", "lost"),
    [
        ("p", "a" * 8, 33, "<|user|>p</s>\n<|assistant|>" + "a" * 8, (False, False)),
        ("p", "a" * 50, 60, "<|user|>p</s>\n<|assistant|>" + "a" * 35, (True, False)),
        ("p" * 50, "a" * 8, 30, "pppppp</s>\n<|assistant|>" + "a" * 8, (False, True)),
        ("p" * 50, "a" * 50, 40, "ppppp</s>\n<|assistant|>" + "a" * 19, (True, True)),
    ],
    ids=["fits", "a long answer", "a long prompt", "both"],
)
def test_prompt_and_answer_each_keep_half_and_the_end_of_sequence_stays(
    prompt: str, answer: str, most: int, text: str, lost: tuple[bool, bool], tokenizer: Any
) -> None:
    found = encoded(prompt, answer, "chat", TextTokens(tokenizer), most)
    assert tokenizer.decode(found.tokens) == text + "</s>"
    assert (len(found.tokens), found.cut, found.prompt_cut) == (min(most, len(found.tokens)), *lost)


def test_the_template_is_the_tokenizers_own_unless_said(tokenizer: Any) -> None:
    assert template_for(tokenizer, None) == "chat"
    assert template_for(tokenizer, "alpaca") == "alpaca"
    bare = tiny.tokenizer()
    bare.chat_template = None
    assert template_for(bare, None) == "alpaca"
    with pytest.raises(UsageError, match="has no chat template"):
        template_for(bare, "chat")


# The split.


def test_a_prompt_is_held_out_with_all_its_pairs_or_not_at_all(tmp_path: Path, tokenizer: Any) -> None:
    rows = tiny.rankings(20)
    pairs = [
        {"user_input": row["prompt"], "completion_a": "a" * n, "completion_b": "c"}
        for n in range(1, 5)
        for row in rows
    ]
    path = tiny.write(tmp_path / "rows.jsonl", rows + pairs)
    found, counts, held = prepared(recipe(path, held_out=0.3, answers=3), tokenizer)
    assert len(held) == 6
    assert counts.prompts == 20 < len(found)

    def prompts(chosen: Any) -> set[str]:
        texts = [tokenizer.decode(answer) for part in chosen for answer in found.answers(int(part))]
        return {text.split("### Instruction:\n")[1].split("\n")[0] for text in texts}

    assert prompts(found.held_out) == {group.prompt for group in held}
    assert not prompts(found.held_out) & prompts(found.trained)
    shares = [1 / share for part, share in enumerate(found.shares) for _ in found.pairs_of(part)]
    assert sum(shares) == pytest.approx(20)  # each prompt weighs 1
    save(found, tmp_path / "parts")
    assert load(Parts, tmp_path / "parts").digest == found.digest
    assert found.lengths[0] == sum(len(answer) for answer in found.answers(0))
    again, _, _ = prepared(recipe(path, held_out=0.3, answers=3, seed=1), tokenizer)
    assert not np.array_equal(again.held_out, found.held_out)


def test_answers_over_the_length_are_cut_or_left_out_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = tiny.rankings(4)
    rows[0]["answers"][0]["text"] = "a" * 400
    path = tiny.write(tmp_path / "rows.jsonl", rows)
    _, counts, _ = prepared(recipe(path, max_length=300), tokenizer)
    assert (counts.cut, counts.dropped, counts.pairs) == (1, 0, 12)
    _, counts, _ = prepared(recipe(path, max_length=300, too_long="drop"), tokenizer)
    assert (counts.cut, counts.dropped, counts.pairs) == (0, 1, 10)
    with pytest.raises(PoolError, match="0 prompts have a pair"):
        prepared(recipe(path, max_length=20, too_long="drop"), tokenizer)
