"""The loss over K answers against one pair at a time in float64; the reward is read where the mask ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the trainers' packages are not installed (requirements/train.txt)")
pytest.importorskip("transformers")

import torch

from store.errors import UsageError
from tests.support import tiny
from trainers.attention import implementation
from trainers.reward_model import (
    check_family,
    last_shown,
    padding_of,
    reward_model,
)
from trainers.rows import example, padded
from trainers.worker import collated, pair_figures, pair_loss_sum, prompts_in, rewards

pytestmark = pytest.mark.filterwarnings("default")
EOS = 1


@pytest.fixture(scope="module", params=["llama", "opt"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.reward_folder(tmp_path_factory.mktemp(request.param), request.param)


def loaded(folder: Path, pad: int = EOS) -> Any:
    attention = implementation(packed=True, bf16=False)
    return reward_model(str(folder), torch.float32, pad, attention=attention).eval()


def answers(*sizes: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.cat([torch.randint(3, 259, (n,), generator=draw), torch.tensor([EOS])]) for n in sizes]


@pytest.fixture
def prompts() -> list[dict[str, Any]]:
    """Four answers with a tie among them (5 pairs), one pair, and a part of a prompt of 4 pairs."""
    four = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 3], [2, 3]])
    return [
        {"answers": answers(5, 9, 2, 12), "pairs": four, "share": 5},
        {"answers": answers(7, 3), "pairs": torch.tensor([[1, 0]]), "share": 1},
        {"answers": answers(4, 6, 8), "pairs": torch.tensor([[2, 0], [2, 1]]), "share": 4},
    ]


def slow(model: Any, prompts: list[dict[str, Any]]) -> torch.Tensor:
    """The mean over each prompt's pairs, summed: two forwards for each pair, nothing padded."""

    def reward(tokens: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids=tokens[None], use_cache=False).last_hidden_state
        return hidden[0, -1] @ model.score.weight[0]

    total = torch.zeros((), dtype=torch.float64)
    for prompt in prompts:
        for better, worse in prompt["pairs"].tolist():
            gap = reward(prompt["answers"][better]) - reward(prompt["answers"][worse])
            total = total + torch.log1p(torch.exp(-gap)) / prompt["share"]
    return total


def test_loss_and_gradient_over_k_answers_are_those_of_single_pairs(
    folder: Path, prompts: list[dict[str, Any]]
) -> None:
    model, reference = loaded(folder), loaded(folder).double()
    batch = collated(prompts)
    assert prompts_in(batch) == pytest.approx(2.5)
    assert len(batch["cu_seq_lens_q"]) - 1 == 9  # one forward for each answer, and no padding
    assert batch["input_ids"].shape == (1, int(batch["cu_seq_lens_q"][-1]))
    found, expected = pair_loss_sum(model, batch), slow(reference, prompts)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    found.backward()
    expected.backward()
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_prompts_weigh_the_same_whatever_their_pairs(folder: Path, prompts: list[dict[str, Any]]) -> None:
    model = loaded(folder)
    whole = prompts[:2]
    alone = [pair_loss_sum(model, collated([prompt])).item() for prompt in whole]
    assert pair_loss_sum(model, collated(whole)).item() == pytest.approx(sum(alone), rel=1e-5)
    model.score.weight.data.zero_()
    assert pair_loss_sum(model, collated(whole)).item() == pytest.approx(2 * 0.693147, rel=1e-5)
    figures = pair_figures(model, collated(whole))
    assert figures["held_out_accuracy"] == (3.0, 6.0)  # ties: half right


def test_the_reward_is_read_at_the_end_though_padding_is_the_end_of_sequence(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = loaded(folder, pad=EOS)
    rows = answers(3, 6, 11)
    batch = padded([example(row, torch.ones_like(row)) for row in rows], pad=EOS)
    end_to_end = collated([{"answers": rows, "pairs": torch.tensor([[0, 1]]), "share": 1}])
    with torch.no_grad():
        alone = torch.cat([model(row[None], torch.ones_like(row)[None]).logits for row in rows])
        together = model(batch["input_ids"], batch["attention_mask"]).logits
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rewards(model, end_to_end), alone.squeeze(-1), rtol=1e-4, atol=1e-5)
        theirs = AutoModelForSequenceClassification.from_pretrained(folder, pad_token_id=EOS).eval()
        by_id = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert (by_id - alone).abs().max() > 1e-3  # what reading by the token's id gives
        # With the padding that our folders name, plain transformers reads the same place.
        pad = padding_of(tiny.tokenizer())
        ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, pad)
        theirs = AutoModelForSequenceClassification.from_pretrained(folder, pad_token_id=pad).eval()
        plain = theirs(input_ids=ids, attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(plain, alone, rtol=1e-4, atol=1e-5)


def test_the_last_shown_token_is_found_on_either_side() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    assert last_shown(mask).tolist() == [2, 4, 4, 0]


def test_near_rewards_stay_apart_in_bf16(folder: Path) -> None:
    model = loaded(folder)
    hidden = torch.ones(2, model.score.in_features, dtype=torch.bfloat16)
    hidden[1, 0] += 2**-7
    with torch.autocast("cpu", torch.bfloat16):
        one, other = model.score(hidden).squeeze(-1)
    assert one.dtype == torch.float32
    assert one != other


def test_a_backbone_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="a reward model of type bert is not known"):
        check_family(type("Config", (), {"model_type": "bert"}))
