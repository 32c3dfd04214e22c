"""Rows as tokens: on disk, in the order of the steps, and as tensors.

On disk each field of a dataclass of arrays is one file, memory-mapped; tokens[starts[i]:starts[i+1]] are row
i's.

The rows of step s are the same whatever the number of processes, the micro batch and the packing: passes
over the data, each in an order drawn from the seed, are laid end to end and cut into global batches.
Within a global batch rows are sorted by length, so that processes have equal work (micro_batches.py).
What fills the last batch belongs to a further pass.
"""

import hashlib
import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

A = TypeVar("A")
IGNORED = -100
MOST_HELD_OUT = 1000
Batch = dict[str, Any]  # tensors, and numbers that a model wants beside them


def save(arrays: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for field in fields(arrays):
        np.save(folder / f"{field.name}.npy", getattr(arrays, field.name))


def load(kind: type[A], folder: Path) -> A:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def digest_of(arrays: Any) -> str:
    """SHA-256 of all of it."""
    found = hashlib.sha256()
    for field in fields(arrays):
        found.update(np.ascontiguousarray(getattr(arrays, field.name)).data)
    return found.hexdigest()


@dataclass(frozen=True)
class TokenRows:
    """tokens: (T,) int32. learn: (T,) bool, the tokens with a loss. starts: (rows + 1,) int64. held_out: (h,)
    int64, sorted: the rows that are never trained on."""

    tokens: npt.NDArray[np.int32]
    learn: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """(tokens, learn) of one row."""
        place = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.tokens[place], self.learn[place]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.starts)

    @property
    def learnt(self) -> npt.NDArray[np.int64]:
        """Tokens of each row that the loss is taken on: its first one is foretold by nothing."""
        counted = self.learn.astype(np.int64)
        counted[self.starts[:-1]] = 0
        return np.add.reduceat(counted, self.starts[:-1])

    @property
    def trained(self) -> npt.NDArray[np.int64]:
        """Indices of the rows that are trained on."""
        return np.setdiff1d(np.arange(len(self)), self.held_out)

    @property
    def digest(self) -> str:
        """The same for the same rows, template, tokenizer, limit and split."""
        return digest_of(self)


def gathered(encoded: Iterable[tuple[Sequence[int], Sequence[bool]]], share: float, seed: int) -> TokenRows:
    """Rows from (tokens, learn) pairs; `share` of them, drawn by the seed, are held out."""
    tokens, learn, starts = array("i"), array("b"), array("q", [0])
    for ids, mask in encoded:
        tokens.extend(ids)
        learn.extend(mask)
        starts.append(len(tokens))
    return TokenRows(
        np.array(tokens, np.int32),
        np.array(learn, np.bool_),
        np.array(starts, np.int64),
        drawn(len(starts) - 1, share, seed),
    )


def drawn(count: int, share: float, seed: int) -> npt.NDArray[np.int64]:
    """Which of `count` are held out: at least one where a share is asked for and two are there."""
    wanted = min(round(count * share), MOST_HELD_OUT)
    if share and count > 1:
        wanted = min(max(wanted, 1), count - 1)
    return np.array(sorted(random.Random(seed).sample(range(count), wanted)), np.int64)


def steps_of(rows: int, batch: int, epochs: float) -> int:
    return max(1, math.ceil(rows * epochs / batch))


def order(lengths: npt.NDArray[np.int64], batch: int, steps: int, seed: int) -> npt.NDArray[np.int64]:
    """(steps, batch) places in `lengths`: a step's rows, shortest first."""
    passes = math.ceil(steps * batch / len(lengths))
    drawn = [np.random.default_rng([seed, n]).permutation(len(lengths)) for n in range(passes)]
    steps_rows = np.concatenate(drawn)[: steps * batch].reshape(steps, batch)
    sorted_places = np.argsort(lengths[steps_rows], axis=1, kind="stable")
    return np.take_along_axis(steps_rows, sorted_places, axis=1)


class Planned(torch.utils.data.Sampler[int]):
    """The order, for a Trainer with a data set of rows."""

    def __init__(self, places: npt.NDArray[np.int64]) -> None:
        self._places = places.reshape(-1)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places.tolist())


def example(tokens: npt.ArrayLike, learn: npt.ArrayLike) -> Batch:
    """A row as `input_ids` and `targets`, the token that each position must foretell, or IGNORED."""
    ids = np.asarray(tokens, np.int64)
    targets = np.full_like(ids, IGNORED)
    targets[:-1] = np.where(
        np.asarray(learn, np.bool_)[1:], ids[1:], IGNORED
    )  # the prompt is read, not learnt
    return {"input_ids": torch.from_numpy(ids), "targets": torch.from_numpy(targets)}


def padded(examples: Sequence[Batch], pad: int, width: int = 0) -> Batch:
    """(rows, longest, or `width` if that is more), filled on the right."""
    ids = [e["input_ids"] for e in examples]

    def fill(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        found = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
        return torch.nn.functional.pad(found, (0, max(0, width - found.shape[1])), value=value)

    return {
        "input_ids": fill(ids, pad),
        "attention_mask": fill([torch.ones_like(i) for i in ids], 0),
        "targets": fill([e["targets"] for e in examples], IGNORED),
    }


def packed(examples: Sequence[Batch]) -> Batch:
    """All rows in one, (1, tokens), kept apart by `end_to_end`. Logits are made only where something is
    learnt."""
    targets = torch.cat([e["targets"] for e in examples])
    learnt = torch.nonzero(targets != IGNORED).squeeze(1)
    return {
        **end_to_end([e["input_ids"] for e in examples]),
        "logits_to_keep": learnt,
        "targets": targets[learnt][None],
    }


def end_to_end(rows: Sequence[torch.Tensor]) -> Batch:
    """Rows of tokens as one, (1, tokens), with positions that begin anew, and where rows end, in the words
    of transformers."""
    lengths = [len(row) for row in rows]
    ends = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32)
    return {
        "input_ids": torch.cat(list(rows))[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        "cu_seq_lens_q": ends, "cu_seq_lens_k": ends,
        "max_length_q": max(lengths), "max_length_k": max(lengths),
    }  # fmt: skip


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def token_loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy summed over the learnt tokens of a batch."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "targets"}
    logits = model(**inputs, use_cache=False).logits
    targets = batch["targets"].reshape(-1)
    flat = logits.reshape(-1, logits.shape[-1]).float()
    return torch.nn.functional.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum")


def learnt_in(batch: Batch) -> int:
    return int((batch["targets"] != IGNORED).sum())
