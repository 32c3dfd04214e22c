"""The next token of each row, each by its own parameters.

A row draws one number a token from its own generator, so that its numbers do not depend on the other rows in
the batch. The last digits of its logits do: see `Student.repeats`.
"""

import random
from collections.abc import Sequence
from typing import Protocol

import torch

GREEDY_BELOW = 1e-4


class SamplingParams(Protocol):
    """How a row is sampled."""

    temperature: float
    top_p: float
    draws: random.Random


def next_tokens(logits: torch.Tensor, rows: Sequence[SamplingParams]) -> list[int]:
    """logits: (rows, vocabulary) float32; -inf where a token must not come."""
    found = logits.argmax(-1)
    drawn = [place for place, row in enumerate(rows) if row.temperature >= GREEDY_BELOW]
    if drawn:
        found[drawn] = _drawn(logits[drawn], [rows[place] for place in drawn])
    tokens: list[int] = found.tolist()
    return tokens


def _drawn(logits: torch.Tensor, rows: Sequence[SamplingParams]) -> torch.Tensor:
    """By the inverse of the distribution function, in float64: the sum of many small numbers counts."""
    temperatures = logits.new_tensor([row.temperature for row in rows])
    chances = (logits / temperatures[:, None]).softmax(-1).double()
    cut = [place for place, row in enumerate(rows) if row.top_p < 1]
    if cut:
        chances[cut] = nucleus(chances[cut], [rows[place].top_p for place in cut])
    below = chances.cumsum(-1)
    wanted = chances.new_tensor([row.draws.random() for row in rows]) * below[:, -1]
    return torch.searchsorted(below, wanted[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def nucleus(chances: torch.Tensor, top_p: Sequence[float]) -> torch.Tensor:
    """The likeliest tokens that together reach top_p, at least one; the others get 0. (Holtzman et al.,
    arXiv 1904.09751)"""
    ordered, places = chances.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    outside = before >= chances.new_tensor(top_p)[:, None]
    outside[:, 0] = False
    return chances.masked_fill(outside.scatter(-1, places, outside), 0.0)
