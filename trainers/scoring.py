"""Rewards of answers, by a folder of `train reward`: encoded, sorted by length, in batches.

The plan of batches follows from the answers alone, so that a run that goes on where another ended scores
the same batches. bf16 on GPUs, and on CPUs that have it; elsewhere it is slower than fp32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from store.errors import UsageError
from store.special_tokens import TextTokens, named
from trainers.models import check_whole, config_of, fingerprint, tokenizer_of
from trainers.precision import CPUINFO, cpu_has_bf16
from trainers.reward_data import encoded
from trainers.reward_model import ABOUT, About, padding_of, read_about, reward_model, skeleton

TOKENS_AT_ONCE = 4096  # padded, in a batch
ROWS_AT_ONCE = 64
DIGITS = 6  # of a reward that is written down
Precision = Literal["bf16", "fp32"]
Question = tuple[str, str]  # prompt, answer


@dataclass(frozen=True)
class Readable:
    """An answer as tokens; short: whether some of its prompt or end are missing."""

    tokens: list[int]
    short: bool


class Scorer:
    """A reward model that is ready to score."""

    def __init__(self, folder: Path) -> None:
        self.about: About = read_about(folder)
        self.folder = folder
        self.precision = precision_here()
        self._tokenizer = tokenizer_of(str(folder))
        self.texts = TextTokens(self._tokenizer)
        self.marked = 0  # answers with control tokens in their text or prompt, which are read as text
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._pad = padding_of(self._tokenizer)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        check_whole(str(folder), skeleton(config_of(str(folder))))
        model = reward_model(str(folder), dtype, self._pad, new="")
        self._model: Any = model.eval().to(self._device)

    def __repr__(self) -> str:
        return f"Scorer({str(self.folder)!r}, {self.precision} on {self._device})"

    @property
    def read_as_text(self) -> str:
        """What was remarkable about `marked` answers, for a sentence."""
        return f"have control tokens in their texts, read as text: {named(self.texts.seen)}"

    @property
    def identity(self) -> dict[str, str]:
        """What scores depend on, besides the answers."""
        read = (self.folder / ABOUT).read_text()
        return {"reward": fingerprint(str(self.folder)), "reads": read, "precision": self.precision}

    def readable(self, question: Question) -> Readable:
        seen = self.texts.seen.total()
        found = encoded(*question, self.about.template, self.texts, self.about.max_length)
        self.marked += self.texts.seen.total() > seen
        return Readable(found.tokens, found.cut or found.prompt_cut)

    def rewards(self, batch: Sequence[Readable]) -> list[float]:
        """One forward for each. In float32 whatever the weights."""
        rows = [torch.tensor(one.tokens) for one in batch]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._pad)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
        with torch.inference_mode():
            logits = self._model(ids.to(self._device), mask.to(self._device)).logits
        if not logits.isfinite().all():
            raise UsageError(
                f"--reward {self.folder}: its rewards are no numbers (NaN): its weights are broken"
            )
        return [round(value, DIGITS) for value in logits.squeeze(-1).tolist()]


def precision_here(cpuinfo: Path = CPUINFO) -> Precision:
    """The faster one."""
    return "bf16" if torch.cuda.is_available() or cpu_has_bf16(cpuinfo) else "fp32"


def planned(answers: Sequence[Readable]) -> list[list[int]]:
    """Batches of places, the shortest first, of answers that are about as long."""
    batches: list[list[int]] = []
    for place in sorted(range(len(answers)), key=lambda n: (len(answers[n].tokens), n)):
        width = len(answers[place].tokens)
        last = batches[-1] if batches else None
        if last is None or len(last) == ROWS_AT_ONCE or (len(last) + 1) * width > TOKENS_AT_ONCE:
            batches.append([place])
        else:
            last.append(place)
    return batches


def scored(scorer: Scorer, answers: Sequence[Readable]) -> Iterator[tuple[list[int], list[float]]]:
    """(places, rewards) of each batch as it is done."""
    for batch in planned(answers):
        yield batch, scorer.rewards([answers[place] for place in batch])
