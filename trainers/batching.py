"""Which rows make each step, and how rows become tensors.

The rows of step s are the same whatever the number of processes, the micro batch and the packing: passes
over the data, each in an order drawn from the seed, are laid end to end and cut into global batches.
Within a global batch rows are sorted by length, so that rows of one length share a micro batch and
processes have equal work. What fills the last batch belongs to a further pass.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainers.token_rows import TokenRows

IGNORED = -100
Batch = dict[str, torch.Tensor]


def steps_of(rows: int, batch: int, epochs: float) -> int:
    return max(1, math.ceil(rows * epochs / batch))


def order(lengths: npt.NDArray[np.int64], batch: int, steps: int, seed: int) -> npt.NDArray[np.int64]:
    """(steps, batch) places in `lengths`: a step's rows, shortest first."""
    passes = math.ceil(steps * batch / len(lengths))
    drawn = [np.random.default_rng([seed, n]).permutation(len(lengths)) for n in range(passes)]
    steps_rows = np.concatenate(drawn)[: steps * batch].reshape(steps, batch)
    sorted_places = np.argsort(lengths[steps_rows], axis=1, kind="stable")
    return np.take_along_axis(steps_rows, sorted_places, axis=1)


class Examples(torch.utils.data.Dataset[Batch]):
    """Chosen rows as a data set of tensors: `input_ids` and `targets`, the token that each position must
    foretell, or IGNORED."""

    def __init__(self, rows: TokenRows, chosen: npt.NDArray[np.int64]) -> None:
        self._rows, self._chosen = rows, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, place: int) -> Batch:
        tokens, learn = self._rows.row(int(self._chosen[place]))
        return example(tokens, learn)


class Planned(torch.utils.data.Sampler[int]):
    """The order, as the Trainer wants it."""

    def __init__(self, places: npt.NDArray[np.int64]) -> None:
        self._places = places.reshape(-1)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places.tolist())


def in_groups(
    places: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    size: int,
    made: Callable[[Sequence[int]], Batch],
) -> list[Callable[[], Batch]]:
    """Micro batches of these rows, shortest first, made when they are wanted."""
    found = sorted(places.tolist(), key=lambda i: int(lengths[i]))
    return [partial(made, found[at : at + size]) for at in range(0, len(found), size)]


def example(tokens: npt.ArrayLike, learn: npt.ArrayLike) -> Batch:
    ids = torch.tensor(np.asarray(tokens), dtype=torch.long)
    targets = torch.full_like(ids, IGNORED)
    learnt = torch.tensor(np.asarray(learn), dtype=torch.bool)
    targets[:-1] = torch.where(learnt[1:], ids[1:], IGNORED)  # the prompt is read, not learnt
    return {"input_ids": ids, "targets": targets}


def padded(examples: Sequence[Batch], pad: int) -> Batch:
    """(rows, longest), filled on the right."""
    ids = [e["input_ids"] for e in examples]

    def fill(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    return {
        "input_ids": fill(ids, pad),
        "attention_mask": fill([torch.ones_like(i) for i in ids], 0),
        "targets": fill([e["targets"] for e in examples], IGNORED),
    }


def packed(examples: Sequence[Batch]) -> Batch:
    """All rows in one, (1, tokens): positions that begin anew keep them apart. Logits are made only
    where something is learnt."""
    targets = torch.cat([e["targets"] for e in examples])
    learnt = torch.nonzero(targets != IGNORED).squeeze(1)
    return {
        "input_ids": torch.cat([e["input_ids"] for e in examples])[None],
        "position_ids": torch.cat([torch.arange(len(e["input_ids"])) for e in examples])[None],
        "logits_to_keep": learnt,
        "targets": targets[learnt][None],
    }


def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy summed over the learnt tokens of a batch."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "targets"}
    logits = model(**inputs, use_cache=False).logits
    targets = batch["targets"].reshape(-1)
    flat = logits.reshape(-1, logits.shape[-1]).float()
    return torch.nn.functional.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum")


def learnt_in(batch: Batch) -> int:
    return int((batch["targets"] != IGNORED).sum())
