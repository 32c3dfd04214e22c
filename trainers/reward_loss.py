"""The loss over all pairs of a prompt's answers, with one forward for each answer.

InstructGPT (arXiv 2203.02155, section 3.5, equation 1): the mean of −log σ(r_better − r_worse) over a
prompt's pairs, so that each prompt weighs the same. A prompt in parts weighs by the pairs of each part.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trainers.batching import Batch
from trainers.reward_data import Parts


class PartRows(torch.utils.data.Dataset[Batch]):
    """Chosen parts; each one as a batch of its own, not padded yet."""

    def __init__(self, parts: Parts, chosen: np.ndarray[Any, Any]) -> None:
        self._parts, self._chosen = parts, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, place: int) -> Any:
        return part_of(self._parts, int(self._chosen[place]))


def part_of(parts: Parts, index: int) -> dict[str, Any]:
    """answers: tensors of tokens. pairs: (P, 2). share: pairs of the whole prompt."""
    answers = [torch.tensor(np.asarray(tokens), dtype=torch.long) for tokens in parts.answers(index)]
    pairs = torch.tensor(np.asarray(parts.pairs_of(index)), dtype=torch.long)
    return {"answers": answers, "pairs": pairs, "share": int(parts.shares[index])}


def collated(found: Sequence[dict[str, Any]], pad: int) -> Batch:
    """input_ids, attention_mask: (answers, longest), filled on the right, the shortest first. pairs: (P, 2)
    rows of these. shares: (P,) pairs that each pair's prompt has; whole, for no one casts those to bf16."""
    unsorted = [answer for part in found for answer in part["answers"]]
    answers = sorted(unsorted, key=len)
    places = torch.tensor([len(answer) for answer in unsorted]).argsort(stable=True).argsort()
    firsts = np.cumsum([0, *(len(part["answers"]) for part in found)])
    pairs = [part["pairs"] + int(first) for part, first in zip(found, firsts, strict=False)]

    def fill(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    return {
        "input_ids": fill(answers, pad),
        "attention_mask": fill([torch.ones_like(answer) for answer in answers], 0),
        "pairs": places[torch.cat(pairs)],
        "shares": torch.cat([torch.full((len(part["pairs"]),), part["share"]) for part in found]),
    }


def prompts_in(batch: Batch) -> float:
    """Whole prompts, and of others the part that is here."""
    return float((1.0 / batch["shares"].double()).sum())


def rewards(model: Any, batch: Batch) -> torch.Tensor:
    """(answers,) float32. The shorter half apart from the longer: else two fifths of a batch were padding.
    Always two forwards, so that processes keep step under ZeRO-3."""
    halves = zip(batch["input_ids"].chunk(2), batch["attention_mask"].chunk(2), strict=True)
    cut = [(ids[:, :width], mask[:, :width]) for ids, mask in halves for width in (int(mask.sum(1).max()),)]
    return torch.cat([model(input_ids=i, attention_mask=m).logits.float().squeeze(-1) for i, m in cut])


def differences(model: Any, batch: Batch) -> torch.Tensor:
    """(P,) r_better − r_worse of each pair."""
    better, worse = rewards(model, batch)[batch["pairs"]].unbind(1)
    return better - worse


def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """The sum over prompts of the mean over their pairs."""
    return weighted(differences(model, batch), batch)


def weighted(found: torch.Tensor, batch: Batch) -> torch.Tensor:
    return -(torch.nn.functional.logsigmoid(found) / batch["shares"]).sum()


def measured(model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
    """Loss a prompt, and accuracy over pairs; a difference of 0 is half right."""
    found = differences(model, batch)
    right = (found > 0).double() + (found == 0).double() / 2
    return {
        "held_out_loss": (weighted(found, batch).item(), prompts_in(batch)),
        "held_out_accuracy": (right.sum().item(), float(len(right))),
    }
