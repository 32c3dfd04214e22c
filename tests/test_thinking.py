"""Thinking as data: learnt inside the marks of a student's template, given back apart from its answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from engine.serve.model_loader import prompt_tokens
from engine.serve.sequence import ThinkingParts, parts
from store.errors import PoolError
from store.student import Marks, TextTokens, apart, marks_of
from tests.support import tiny
from trainers.config import SftRecipe
from trainers.encoding import encode
from trainers.sft_data import SftCounts, as_lesson, tokenized

pytestmark = pytest.mark.filterwarnings("default")

HEAD = "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
FIELD = (
    "{% if m.reasoning_content and loop.last %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
)
OWN = "{% if m.thinking %}{{ '[THINK]' + m.thinking + '[/THINK]' }}{% endif %}"
WHOLE, AFTER = "{{ m.content }}", "{{ m.content.split('</think>')[-1] }}"
FOOT = "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}"
END, OPENED = "{% endif %}", "{{ '<think>\n' }}{% endif %}"
TEMPLATES = {
    "knows nothing of thinking": tiny.CHATML,
    "writes a field": HEAD + FIELD + WHOLE + FOOT + END,  # Qwen3
    "opens it": HEAD + AFTER + FOOT + OPENED,  # DeepSeek-R1
    "opens it and writes a field": HEAD + FIELD + AFTER + FOOT + OPENED,  # Qwen3's later ones
    "takes it out": HEAD + AFTER + FOOT + END,
    "has its own marks": HEAD + OWN + WHOLE + FOOT + END,
}
ASKED = [{"role": "user", "content": "a?"}]
THOUGHTFUL = {"role": "assistant", "content": "b", "reasoning_content": "hm"}


def texts_with(template: str) -> TextTokens:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATES[template]
    return TextTokens(tokenizer)


def both(texts: TextTokens, talk: list[dict[str, str]]) -> tuple[str, str]:
    """What stands before what is learnt, and that."""
    found = encode(talk, "chat", texts)
    assert not isinstance(found, str)
    tokens, learn = found
    first = learn.index(True)
    assert all(learn[first:])
    return texts.tokenizer.decode(tokens[:first]), texts.tokenizer.decode(tokens[first:])


@pytest.mark.parametrize("template", TEMPLATES)
def test_thinking_is_learnt_after_the_prompt_as_it_will_be_asked(template: str) -> None:
    texts = texts_with(template)
    asked, learnt = both(texts, [*ASKED, THOUGHTFUL])
    given: Any = ASKED
    assert asked == texts.tokenizer.decode(prompt_tokens(given, texts))
    before, after = ("[THINK]", "[/THINK]") if "own" in template else ("<think>\n", "\n</think>\n\n")
    assert asked.endswith(before) == ("opens" in template)
    assert learnt.removesuffix("\n") == f"{'' if 'opens' in template else before}hm{after}b</s>"
    found = parts(learnt.removesuffix("\n").removesuffix("</s>"), texts.marks, final=True)
    assert found == ThinkingParts("hm", "b", False)  # the server takes apart what the trainer put together


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answer_without_thinking_closes_what_its_prompt_opened(template: str) -> None:
    texts = texts_with(template)
    asked, learnt = both(texts, [*ASKED, {"role": "assistant", "content": "b"}])
    given: Any = ASKED
    assert asked == texts.tokenizer.decode(prompt_tokens(given, texts))
    assert learnt.removesuffix("\n") == ("\n</think>\n\nb</s>" if "opens" in template else "b</s>")


@pytest.mark.parametrize("template", TEMPLATES)
def test_of_a_talk_with_thinking_in_its_middle_the_last_answer_is_learnt(template: str) -> None:
    texts = texts_with(template)
    asked, learnt = both(texts, [*ASKED, THOUGHTFUL, *ASKED, THOUGHTFUL])
    assert "hm" not in asked  # no client sends it back
    assert "hm" in learnt
    assert asked.count("b</s>") == 1


def test_marks_that_are_tokens_are_learnt_as_tokens() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    texts = TextTokens(tokenizer)
    marks = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    talk = [*ASKED, THOUGHTFUL | {"content": "Write <think> there"}]
    tokens, _ = encode(talk, "chat", texts)
    assert [token for token in tokens if token in marks] == marks
    assert not texts.unseen & set(marks)  # else the server could not tell the thinking apart
    assert texts.seen == {"<think>": 1}


def test_a_template_that_refuses_a_talk_makes_a_bad_row_of_it() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    found = encode([*ASKED, THOUGHTFUL], "chat", TextTokens(tokenizer))
    assert found == "the chat template does not take it: roles must alternate"


# Rows.


def recipe(path: Path, **more: Any) -> SftRecipe:
    return SftRecipe(data=path, model="m", out=path.parent / "out", **more)


ROW = {"instruction": "Say a.", "input": "", "output": "a"}
INLINE = "<think>\nhm\n</think>\n\na"


def written(folder: Path) -> dict[str, Path]:
    """The same row with its thinking, in every shape."""
    table = pa.Table.from_pylist([ROW | {"reasoning": "hm"}, ROW | {"reasoning": None}])
    pq.write_table(table, folder / "t.parquet")
    rows = [ROW | {"reasoning": "hm"}, ROW]
    (folder / "list.json").write_text(json.dumps(rows))
    return {
        "jsonl": tiny.write(folder / "rows.jsonl", rows),
        "list": folder / "list.json",
        "parquet": folder / "t.parquet",
        "inline": tiny.write(folder / "inline.jsonl", [ROW | {"output": INLINE}, ROW]),
        "with marks": tiny.write(
            folder / "marks.jsonl", [ROW | {"reasoning": "<think>hm</think>"}, ROW | {"reasoning": ""}]
        ),
        "in a talk": tiny.write(
            folder / "chat.jsonl",
            [
                {"messages": [{"role": "user", "content": "Say a."}, answer]}
                for answer in (THOUGHTFUL | {"content": "a"}, {"role": "assistant", "content": "a"})
            ],
        ),
    }


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_thinking_is_the_same_in_every_shape_of_a_row(tmp_path: Path, template: str) -> None:
    digests = set()
    for path in written(tmp_path).values():
        rows, counts = tokenized(recipe(path, template=template, held_out=0), tiny.tokenizer())
        assert (counts.used, counts.thinking, counts.bad) == (2, 1, 0)
        digests.add(rows.digest)
        learnt = tiny.tokenizer().decode(rows.row(0)[0][rows.row(0)[1]])
        assert learnt.removesuffix("\n") == "<think>\nhm\n</think>\n\na</s>"
    assert len(digests) == 1


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_dropped_thinking_leaves_rows_as_if_there_had_been_none(tmp_path: Path, template: str) -> None:
    bare = tiny.write(tmp_path / "bare.jsonl", [ROW, ROW])
    expected, _ = tokenized(recipe(bare, template=template, held_out=0), tiny.tokenizer())
    for path in written(tmp_path).values():
        told = recipe(path, template=template, held_out=0, reasoning="drop")
        rows, counts = tokenized(told, tiny.tokenizer())
        assert rows.digest == expected.digest
        assert counts.thinking == 1


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (ROW | {"output": "", "reasoning": "hm"}, "thinking without an answer"),
        (ROW | {"output": "<think>hm"}, "thinking without an answer"),
        (ROW | {"output": None, "reasoning": "hm"}, "thinking without an answer"),
        ({"messages": [*ASKED, THOUGHTFUL | {"content": None}]}, "thinking without an answer"),
        (ROW | {"output": ["a"]}, "output is not text: ['a']"),
        (ROW | {"output": True}, "output is not text: True"),
        (ROW | {"output": float("nan")}, "output is not text: nan"),
        (ROW | {"output": ""}, "no output"),
        (ROW | {"output": None}, "no output"),
    ],
)
def test_a_row_without_an_answer_says_why(raw: dict[str, Any], reason: str) -> None:
    assert as_lesson(raw) == reason


@pytest.mark.parametrize(
    ("value", "text"), [(42, "42"), (0, "0"), (0.5, "0.5"), (-3.0, "-3"), (10**30, str(10**30))]
)
def test_a_number_is_an_answer(value: float, text: str) -> None:
    for raw in (ROW | {"output": value}, {"instruction": "Say a.", "instances": [{"output": value}]}):
        found = as_lesson(raw)
        assert not isinstance(found, str)
        assert not isinstance(found.row, list)
        assert found.row.output == text


def test_thinking_that_would_end_itself_is_a_bad_row(tmp_path: Path) -> None:
    rows = [ROW | {"reasoning": "I write </think> now"}, ROW]
    path = tiny.write(tmp_path / "rows.jsonl", rows)
    _, counts = tokenized(recipe(path, held_out=0), tiny.tokenizer())
    assert (counts.used, counts.bad) == (1, 1)
    assert counts.bad_shown == ["line 1: its thinking has </think> in it, which would end it"]


def test_where_thinking_makes_all_rows_too_long_the_way_out_is_named(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "rows.jsonl", [ROW | {"reasoning": "hm " * 400}])
    with pytest.raises(PoolError, match="1 of them with thinking, which --reasoning drop leaves out"):
        tokenized(recipe(path), tiny.tokenizer())


def test_a_talk_that_teaches_its_last_answer_only_is_counted(tmp_path: Path) -> None:
    talk = [*ASKED, THOUGHTFUL, *ASKED, THOUGHTFUL]
    plain = [{name: text for name, text in m.items() if name != "reasoning_content"} for m in talk]
    path = tiny.write(tmp_path / "rows.jsonl", [{"messages": talk}, {"messages": plain}])
    counts: SftCounts
    _, counts = tokenized(recipe(path, held_out=0), tiny.tokenizer())
    assert (counts.used, counts.last_only, counts.thinking) == (2, 1, 1)
    _, counts = tokenized(recipe(path, held_out=0, reasoning="drop"), tiny.tokenizer())
    assert (counts.used, counts.last_only, counts.thinking) == (2, 0, 1)


# Taken apart.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("plain", ("", "plain")),
        (" <think>\na\n</think>\n\nb", ("a", "b")),
        ("<think>a", ("a", "")),
        ("<think></think>b", ("", "b")),
        ("[THINK]a[/THINK]b", ("a", "b")),
        ("Tags like <think>a</think> stay.", ("", "Tags like <think>a</think> stay.")),
    ],
)
def test_thinking_stands_before_an_answer_or_it_is_none(text: str, found: tuple[str, str]) -> None:
    assert apart(text) == found


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<", "/th", "a", "\n", " ", "b"]), max_size=8)


@given(PIECES.map("".join), st.booleans())
def test_what_a_stream_has_said_stands(text: str, opened: bool) -> None:
    """However the text is cut into pieces, each is only added to, and the end is that of the text."""
    marks = Marks("<think>\n", "\n</think>\n\n", opened)
    said = ThinkingParts("", "", False)
    for end in range(len(text) + 1):
        now = parts(text[:end], marks, final=False)
        assert now.thought.startswith(said.thought)
        assert now.answer.startswith(said.answer)
        said = now
    whole = parts(text, marks, final=True)
    assert whole.thought.startswith(said.thought)
    assert whole.answer.startswith(said.answer)


def test_a_template_is_asked_once_for_its_marks_and_a_broken_one_is_no_fault() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert marks_of(tokenizer) == Marks("<think>\n", "\n</think>\n\n")
