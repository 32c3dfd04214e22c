"""What a teacher would have written at each place that is learnt: its most likely tokens, on disk.

Places are those of rows.py's targets, row by row. Read once, before the student is there, so that a
training holds one model only; a resumed training reads them from disk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from trainers.models import causal_model
from trainers.process import report
from trainers.rows import TokenRows, in_groups
from trainers.trl_config import DistillRecipe

NAMES = ("teacher_ids.npy", "teacher_logs.npy")


@dataclass(frozen=True)
class Targets:
    """ids: (places, top) int32. logs: (places, top) float32 log-probabilities at the training's
    temperature, of which the rest is missing; -inf where there is no more."""

    ids: npt.NDArray[np.int32]
    logs: npt.NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence["Targets"]) -> "Targets":
        return cls(np.concatenate([p.ids for p in parts]), np.concatenate([p.logs for p in parts]))

    @classmethod
    def read(cls, folder: Path) -> "Targets":
        return cls(*(np.load(folder / name, mmap_mode="r") for name in NAMES))

    def write(self, folder: Path) -> None:
        for name, values in zip(NAMES, (self.ids, self.logs), strict=True):
            np.save(folder / name, values)


def softened(logs: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float32]:
    """(top,) log-probabilities at 1, with -inf where there is no more, at another temperature. What is
    missing counts as one token, for nobody knows of how many it consists."""
    rest = max(0.0, 1.0 - float(np.exp(logs.astype(np.float64)).sum()))
    heated = np.append(logs.astype(np.float64), math.log(rest) if rest > 0 else -math.inf) / temperature
    found: npt.NDArray[np.float32] = (heated - np.logaddexp.reduce(heated)).astype(np.float32)[:-1]
    return found


def learnt_places(learn: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Where a row foretells a token that is learnt."""
    return np.flatnonzero(learn[1:])


def firsts(rows: TokenRows) -> npt.NDArray[np.int64]:
    """(rows + 1,) where each row's places begin."""
    learnt = np.array(rows.learn, np.int64)
    learnt[rows.starts[:-1]] = 0  # nothing foretells the first token of a row
    sums = np.concatenate([[0], np.cumsum(learnt)])
    return np.asarray(sums[rows.starts], np.int64)


def ask_teacher(teacher: str, rows: TokenRows, folder: Path, recipe: DistillRecipe) -> None:
    """Writes what the teacher says of all rows, which the processes of this machine share. Nothing where
    that was done."""
    if (folder / NAMES[-1]).is_file():
        return
    alone = not dist.is_initialized()
    rank, ranks = (0 if alone else dist.get_node_local_rank()), recipe.nproc
    first = firsts(rows)
    shape, part = (int(first[-1]), recipe.top), [folder / f"part-{name}" for name in NAMES]
    if rank == 0:
        for path, kind in zip(part, (np.int32, np.float32), strict=True):
            np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape).flush()
        report("asking", tokens=shape[0])
    if not alone:
        dist.barrier()
    ids, logs = (np.load(path, mmap_mode="r+") for path in part)
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    bf16 = recipe.precision == "bf16"
    model = causal_model(teacher, torch.bfloat16 if bf16 else torch.float32).eval().to(device)

    def ask(group: Sequence[int]) -> Any:
        width = max(int(rows.lengths[i]) for i in group)
        tokens = torch.zeros(len(group), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for n, i in enumerate(group):
            own = torch.tensor(np.array(rows.row(i)[0], np.int64))
            tokens[n, : len(own)], mask[n, : len(own)] = own, 1
        with torch.inference_mode():
            logits = model(tokens.to(device), attention_mask=mask.to(device), use_cache=False).logits
            for n, i in enumerate(group):
                places = torch.tensor(learnt_places(np.array(rows.row(i)[1])), device=device)
                soft = (logits[n, places].float() / recipe.temperature).log_softmax(-1)
                found = soft.topk(min(recipe.top, logits.shape[-1]))
                where = slice(first[i], first[i + 1])
                ids[where] = 0
                logs[where] = -np.inf
                ids[where, : found.indices.shape[1]] = found.indices.cpu().numpy()
                logs[where, : found.values.shape[1]] = found.values.cpu().numpy()
        return None

    groups = in_groups(np.arange(len(rows)), rows.lengths, recipe.rows_at_once, ask)
    for one in groups[rank::ranks]:
        one()
    ids.flush()
    logs.flush()
    if not alone:
        dist.barrier()
    if rank == 0:
        for path, name in zip(part, NAMES, strict=True):
            path.replace(folder / name)
    if not alone:
        dist.barrier()
