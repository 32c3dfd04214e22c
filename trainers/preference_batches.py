"""Pairs on disk as the batches that TRL's trainers take."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from trainers.preference_data import PairRows
from trainers.rows import IGNORED, Batch
from trainers.run_folder import Folder
from trainers.trl_config import REFERENCED, DpoRecipe

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass
class Preferences:
    """The pairs of a training, as the losses want them. reference: (P, 2), or with KTO (P, 4),
    log-probabilities of the model as it was: of both answers, and of those of another prompt (see
    partners)."""

    rows: PairRows
    recipe: DpoRecipe
    pad: int
    folder: Folder
    reference: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        self.weights, self.others = self.rows.weights, partners(self.rows)

    def collated(self, places: Sequence[int]) -> Batch:
        """As the trainer of this loss takes it, with `weights` of its rows."""
        if self.recipe.loss == "kto":
            found = self._unpaired(places)
            weights: Any = np.repeat(self.weights[[*places]], 2)
        else:
            found = self.both(places)
            weights = np.tile(self.weights[[*places]], 2)
            if self.recipe.loss not in REFERENCED:
                found = _halves(found)
            elif self.reference is not None:
                chosen, rejected = torch.tensor(np.array(self.reference[[*places]])).unbind(1)
                found |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        return found | {"weights": torch.tensor(weights)}

    def both(self, places: Sequence[int]) -> Batch:
        """(2P, longest): the chosen answers, then the rejected ones. completion_mask: the tokens of
        answers."""
        rows: list[dict[str, Any]] = []
        for place in places:
            (asked, chosen), (_, rejected) = (self.rows.answer(i) for i in self.rows.pairs[place])
            rows.append({"prompt_ids": asked, "chosen_ids": chosen, "rejected_ids": rejected})
        return dict(DataCollatorForPreference(pad_token_id=self.pad)(rows))

    def _unpaired(self, places: Sequence[int]) -> Batch:
        """Rows chosen, rejected, chosen, …: each with the answer of another prompt, from which KTO takes
        its KL."""
        rows: list[dict[str, Any]] = []
        for place in places:
            others = self.rows.pairs[self.others[place]]
            for side, (own, other) in enumerate(zip(self.rows.pairs[place], others, strict=True)):
                (asked, answer), (_, another) = self.rows.answer(own), self.rows.answer(other)
                row: dict[str, Any] = {
                    "prompt_ids": asked,
                    "completion_ids": answer,
                    "KL_completion_ids": another,
                }
                if self.reference is not None:
                    known = self.reference[place]
                    row |= {"ref_logps": float(known[side]), "ref_KL_logps": float(known[side + 2])}
                rows.append({**row, "label": side == 0})
        # Another prompt's answer may be too long behind this one: its end is cut.
        collator = DataCollatorForUnpairedPreference(pad_token_id=self.pad, max_length=self.recipe.max_length)
        return dict(collator(rows))

    def held_out(self) -> Iterator[tuple[list[int], float]]:
        """Micro batches of pairs that weigh the same, and how many prompts they are together. Of one pair
        where several processes share them: TRL gathers what they have, which must be as much of each."""
        size = 1 if self.recipe.processes > 1 else self.recipe.rows_at_once
        held, pairs = self.rows.held_out, np.bincount(self.rows.prompts)[self.rows.prompts]
        for number in np.unique(pairs[held]):
            own = held[pairs[held] == number].tolist()
            for first in range(0, len(own), size):
                group = own[first : first + size]
                yield group, len(group) / float(number)


def partners(rows: PairRows) -> Ints:
    """(P,) for each pair one of the next prompt on the same side of the split."""
    found = np.arange(len(rows))
    for side in (rows.trained, rows.held_out):
        if len(side):
            of = rows.prompts[side]
            first = np.flatnonzero(np.diff(of, prepend=-1))
            number = np.cumsum(np.diff(of, prepend=of[0]) > 0)
            found[side] = side[first[(number + 1) % len(first)]]
    return found


def _halves(both: Batch) -> Batch:
    """As CPO's and ORPO's trainers take them."""
    labels = both["input_ids"].masked_fill(both["completion_mask"] == 0, IGNORED)
    parts = {"input_ids": both["input_ids"], "attention_mask": both["attention_mask"], "labels": labels}
    found: Batch = {}
    for name, tensor in parts.items():
        found[f"chosen_{name}"], found[f"rejected_{name}"] = tensor.chunk(2)
    return found
