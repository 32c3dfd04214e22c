"""Rows as token arrays on disk, memory-mapped, with a digest.

tokens[starts[i]:starts[i+1]] are row i's. `learn` marks the tokens with a loss. Rows in `held_out` are
never trained on. Each field of a dataclass of arrays is one file.
"""

import hashlib
import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

A = TypeVar("A")


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


MOST_HELD_OUT = 1000


@dataclass(frozen=True)
class TokenRows:
    """tokens: (T,) int32. learn: (T,) bool. starts: (rows + 1,) int64. held_out: (h,) int64, sorted."""

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
