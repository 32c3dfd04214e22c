"""What a student reads and what it learns of it, token by token; packed and padded are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.tasks import generate

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

import numpy as np
import torch

from store.errors import PoolError, UsageError
from store.records import Instruction, alpaca_prompt
from store.student import TextTokens
from tests.support import tiny
from trainers.attention import implementation
from trainers.comparisons import read_groups
from trainers.config import SftRecipe
from trainers.encoding import encode
from trainers.models import packs_exactly
from trainers.rank import survey
from trainers.rows import IGNORED, drawn, example, order, packed, padded, steps_of, token_loss_sum
from trainers.sft_data import SftCounts, as_lesson, fit, tokenized

pytestmark = pytest.mark.filterwarnings("default")


def test_a_student_reads_the_prompts_that_its_teacher_was_sent() -> None:
    build = generate.builder(None, None)
    for row in (Instruction("1", "Say {input}", "a {instruction}"), Instruction("2", "Say {x}", "")):
        assert alpaca_prompt(row.instruction, row.input) == build(row)[0]["content"]


# Masks.


def learnt(tokens: list[int], learn: list[bool], tokenizer: Any) -> list[str]:
    """The stretches that are learnt, as text."""
    found, last = [], False
    for token, now in zip(tokens, learn, strict=True):
        if now and not last:
            found.append("")
        if now:
            found[-1] += tokenizer.decode([token])
        last = now
    return found


def test_the_response_and_its_end_are_learnt_and_nothing_before(tokenizer: Any) -> None:
    tokens, learn = encode(Instruction("1", "Say ab", "", "ab"), "alpaca", TextTokens(tokenizer))
    prompt = alpaca_prompt("Say ab")
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    assert tokens == [*tokenizer(prompt)["input_ids"], a, b, 1]
    assert learn == [False] * len(prompt) + [True, True, True]  # a token a byte
    batch = example(tokens, learn)
    n = len(prompt)
    assert batch["targets"].tolist() == [IGNORED] * (n - 1) + [a, b, 1] + [IGNORED]


def test_each_answer_of_a_talk_is_learnt_with_its_end_of_turn(tokenizer: Any) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c?"},
        {"role": "assistant", "content": "d"},
    ]
    tokens, learn = encode(talk, "chat", TextTokens(tokenizer))
    whole = "<|system|>Be brief.</s>\n<|user|>a?</s>\n<|assistant|>b</s>\n<|user|>c?</s>\n<|assistant|>d</s>"
    assert tokenizer.decode(tokens) == whole
    assert learnt(tokens, learn, tokenizer) == ["b</s>\n", "d</s>"]


def test_an_alpaca_row_may_be_put_in_the_chat_template(tokenizer: Any) -> None:
    tokens, learn = encode(Instruction("1", "a?", "x", "b"), "chat", TextTokens(tokenizer))
    assert tokenizer.decode(tokens) == "<|user|>a?\n\nx</s>\n<|assistant|>b</s>"
    assert learnt(tokens, learn, tokenizer) == ["b</s>"]


def melting() -> Any:
    """A tokenizer with one token for a line break and a blank, and turns that begin on a new line."""
    from tokenizers import Tokenizer

    plain = tiny.tokenizer()
    inner = orjson.loads(plain.backend_tokenizer.to_str())
    inner["model"]["vocab"]["ĊĠ"] = len(inner["model"]["vocab"])
    inner["model"]["merges"] = [["Ċ", "Ġ"]]
    plain._tokenizer = Tokenizer.from_str(orjson.dumps(inner).decode())
    plain.chat_template = tiny.CHATML.replace("|>'", "|>\\n'")
    return plain


def test_an_answer_that_begins_with_a_blank_does_not_change_how_its_prompt_is_read() -> None:
    tokenizer = melting()
    talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": " \nb"}]
    asked = tokenizer.apply_chat_template(
        talk[:1], tokenize=True, return_dict=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
    assert whole[: len(asked)] != asked  # the trap
    tokens, learn = encode(talk, "chat", TextTokens(tokenizer))
    assert tokens[: len(asked)] == asked
    assert not any(learn[: len(asked)])
    assert learnt(tokens, learn, tokenizer) == [" \nb</s>"]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"instruction": "a"}, "no output"),
        ({"output": "a"}, "no instruction"),
        ({"messages": []}, "messages is not a list of objects"),
        ({"messages": [{"role": "user", "content": "a"}]}, "the last message is not an answer"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "a message without a role"),
    ],
)
def test_a_row_that_teaches_nothing_says_why(raw: dict[str, Any], reason: str) -> None:
    found = as_lesson(raw)
    assert isinstance(found, str)
    assert found.startswith(reason)


# Length.


@pytest.mark.parametrize(
    ("way", "most", "kept", "counted"),
    [
        ("drop", 5, 5, "used"),
        ("drop", 4, None, "too_long"),
        ("cut", 4, 4, "cut"),
        ("cut", 2, None, "no_room"),
        ("drop", 2, None, "no_room"),
    ],
)
def test_a_row_over_the_length_is_left_out_or_cut_and_counted(
    way: str, most: int, kept: int | None, counted: str
) -> None:
    counts = SftCounts()
    found = fit(([7, 8, 3, 4, 1], [False, False, True, True, True]), most, way, counts)
    assert (len(found[0]) if found else None) == kept
    told = {name: getattr(counts, name) for name in ("too_long", "cut", "no_room")}
    assert told == {name: int(name == counted) for name in told}


def recipe(path: Path, **more: Any) -> SftRecipe:
    return SftRecipe(data=path, model="m", out=path.parent / "out", **more)


@pytest.mark.parametrize("holds", tiny.ODD.values(), ids=tiny.ODD)
def test_a_file_of_which_nothing_can_be_learnt_is_named_with_what_is_wrong(
    tmp_path: Path, tokenizer: Any, holds: bytes
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(holds)
    wrong = "it is empty" if not holds.strip() else r"line 1: \w"
    with pytest.raises(PoolError, match=f"no row of .*rows.jsonl can be trained on: {wrong}"):
        tokenized(recipe(path), tokenizer)
    with pytest.raises(PoolError, match=f"no comparison in .*rows.jsonl: {wrong}"):
        read_groups(path)
    with pytest.raises(PoolError, match=f"nothing to rank in .*rows.jsonl: {wrong}"):
        survey(path)


def test_what_is_wrong_with_all_rows_is_said_once(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"instruction": "a"}\n' * 5 + b"{}\n")
    with pytest.raises(PoolError, match=r"trained on: line 1: no output; line 6: no instruction\b"):
        tokenized(recipe(path), tokenizer)


def test_a_file_is_read_with_all_that_is_wrong_in_it_counted(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "rows.jsonl"
    good = [orjson.dumps(row) for row in tiny.rows(10)]
    path.write_bytes(b"\n".join([*good[:5], b"{torn", b'{"instruction": "a"}', *good[5:]]))
    rows, counts = tokenized(recipe(path, held_out=0.2), tokenizer)
    assert (counts.read, counts.used, counts.bad, len(rows), len(rows.held_out)) == (12, 10, 2, 10, 2)
    assert counts.bad_shown[1] == "line 7: no output"
    assert counts.learnt == int(rows.learn.sum())
    assert set(rows.trained) | set(rows.held_out) == set(range(10))
    again, _ = tokenized(recipe(path, held_out=0.2), tokenizer)
    other, _ = tokenized(recipe(path, held_out=0.2, seed=1), tokenizer)
    assert again.digest == rows.digest != other.digest
    with pytest.raises(PoolError, match="10 are over --max-length 20"):
        tokenized(recipe(path, max_length=20), tokenizer)


def test_chats_need_a_chat_template(tmp_path: Path) -> None:
    bare = tiny.tokenizer()
    bare.chat_template = None
    talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    path = tiny.write(tmp_path / "rows.jsonl", [{"messages": talk}] * 2)
    with pytest.raises(UsageError, match="line 1: this model's tokenizer has no chat template"):
        tokenized(recipe(path), bare)
    _, counts = tokenized(recipe(path, template="alpaca"), bare)
    assert counts.used == 2


@pytest.mark.parametrize(
    ("count", "share", "held"), [(1000, 0.02, 20), (10, 0.02, 1), (1, 0.5, 0), (9, 0, 0)]
)
def test_so_many_are_held_out(count: int, share: float, held: int) -> None:
    assert len(drawn(count, share, 1)) == held


# Batches.


def test_a_step_has_the_same_rows_whatever_the_pieces_and_every_row_comes_once_a_pass() -> None:
    lengths = np.arange(30) % 7
    steps = steps_of(30, 8, 2)
    planned = order(lengths, 8, steps, seed=3)
    assert planned.shape == (8, 8)
    flat = order(lengths, 1, 60, seed=3).ravel()
    assert sorted(flat[:30]) == list(range(30))
    assert sorted(planned[0]) == sorted(flat[:8])
    assert all((np.diff(lengths[step]) >= 0).all() for step in planned)
    assert (order(lengths, 8, steps, seed=4) != planned).any()


@pytest.fixture(scope="module")
def examples() -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(5)
    sizes = (9, 23, 14)
    return [
        example(torch.randint(3, 259, (n,), generator=draw).tolist(), [False] * 4 + [True] * (n - 4))
        for n in sizes
    ]


def test_packed_rows_do_not_see_each_other(examples: list[dict[str, torch.Tensor]]) -> None:
    model = tiny.model().eval()
    batch = packed(examples)
    with torch.no_grad():
        together = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits[0]
        alone = torch.cat([model(input_ids=e["input_ids"][None]).logits[0] for e in examples])
    assert (together - alone).abs().max() < 5e-5


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_the_loss_is_the_same_packed_padded_and_alone(
    kind: str, examples: list[dict[str, torch.Tensor]]
) -> None:
    model = tiny.model(kind).eval()
    alone = sum(token_loss_sum(model, padded([e], pad=1)) for e in examples)
    assert token_loss_sum(model, padded(examples, pad=1)).item() == pytest.approx(alone.item(), rel=1e-5)
    reference = 0.0
    for e in examples:  # transformers' own, which takes unshifted labels
        labels = torch.cat([torch.tensor([IGNORED]), e["targets"][:-1]])
        count = int((labels != IGNORED).sum())
        reference += model(input_ids=e["input_ids"][None], labels=labels[None]).loss.item() * count
    assert alone.item() == pytest.approx(reference, rel=1e-5)
    assert packs_exactly(model.config)
    model.set_attn_implementation(implementation(packed=True, bf16=False))
    assert token_loss_sum(model, packed(examples)).item() == pytest.approx(alone.item(), rel=1e-5)


def test_packed_rows_give_the_gradient_of_rows_alone(examples: list[dict[str, torch.Tensor]]) -> None:
    one, other = tiny.model(), tiny.model()
    token_loss_sum(one, packed(examples)).backward()
    for e in examples:
        token_loss_sum(other, padded([e], pad=1)).backward()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
