"""The loss over all pairs of a prompt's answers, with one forward for each answer.

InstructGPT (arXiv 2203.02155, section 3.5, equation 1): the mean of −log σ(r_better − r_worse) over a
prompt's pairs, so that each prompt weighs the same. A prompt in parts weighs by the pairs of each part.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trainers.batches import Batch
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
    """input_ids, attention_mask: (answers, longest), filled on the right. pairs: (P, 2) rows of these.
    shares: (P,) pairs that each pair's prompt has; whole numbers, which no one casts to bf16."""
    answers = [answer for part in found for answer in part["answers"]]
    firsts = np.cumsum([0, *(len(part["answers"]) for part in found)])

    def fill(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    return {
        "input_ids": fill(answers, pad),
        "attention_mask": fill([torch.ones_like(answer) for answer in answers], 0),
        "pairs": torch.cat([part["pairs"] + int(first) for part, first in zip(found, firsts, strict=False)]),
        "shares": torch.cat([torch.full((len(part["pairs"]),), part["share"]) for part in found]),
    }


def prompts_in(batch: Batch) -> float:
    """Whole prompts, and of others the part that is here."""
    return float((1.0 / batch["shares"].double()).sum())


def differences(model: Any, batch: Batch) -> torch.Tensor:
    """(P,) r_better − r_worse of each pair."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    better, worse = logits.float().squeeze(-1)[batch["pairs"]].unbind(1)
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
