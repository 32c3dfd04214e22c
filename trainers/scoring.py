"""Rewards of answers from a `train reward` folder, in batches sorted by length; and `evaluate reward`.

The order of batches depends on the answers alone, so a continued run scores the same batches.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import torch

from store.errors import UsageError
from store.special_tokens import TextTokens, named
from trainers.comparisons import Group, read_groups
from trainers.display import Display
from trainers.models import check_whole, config_of, fingerprint, tokenizer_of
from trainers.preflight import CPUINFO, cpu_has_bf16
from trainers.reward_data import encoded
from trainers.reward_metrics import Judged, report_on, share, words
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

    def __init__(self, folder: Path, precision: Precision | None = None) -> None:
        self.about: About = read_about(folder)
        self.folder = folder
        self.precision = precision or precision_for(config_of(str(folder)))
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


def precision_for(config: Any, cpuinfo: Path = CPUINFO) -> Precision:
    """bf16 on GPUs and on CPUs that have it. On a CPU a model that was saved in fp32 stays so: `train` does
    that where fp32 was measured to be faster, and a measurement here could say something else each time."""
    if torch.cuda.is_available():
        return "bf16"
    return "bf16" if cpu_has_bf16(cpuinfo) and config.dtype != torch.float32 else "fp32"


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


def run_evaluation(reward: Path, data: Path, limit: int | None, json: bool, quiet: bool) -> int:
    """Prints the report. Raises UsageError, PoolError."""
    groups, read = read_groups(data, limit)
    with Display(quiet) as display:
        if read.bad:
            display.say(f"{read.bad:,} rows are unusable: {'; '.join(read.bad_shown)}")
        if read.both_ways:
            display.say(f"{read.both_ways:,} pairs are given both ways and left out")
        scorer = Scorer(reward)
        report = measured_on(scorer, groups, display)
        if scorer.marked:
            display.say(f"{scorer.marked:,} answers {scorer.read_as_text}")
    report |= {"bad_rows": read.bad, "ties": read.ties, "equal_answers": read.equal}
    report["both_ways"] = read.both_ways
    text = orjson.dumps(report).decode() if json else "\n".join(shown(report))
    sys.stdout.write(text + "\n")
    return 0


def measured_on(scorer: Scorer, groups: Sequence[Group], display: Display) -> dict[str, Any]:
    """The figures on all pairs of these groups."""
    questions = [(group.prompt, answer) for group in groups for answer in group.answers]
    answers = [scorer.readable(question) for question in questions]
    rewards = np.zeros(len(answers))
    done = 0
    for places, values in scored(scorer, answers):
        rewards[places] = values
        display.scored(done := done + len(places), len(answers))
    short = sum(answer.short for answer in answers)
    counted = {"answers": len(answers), "cut": short, "alike": _alike(groups, answers)}
    return report_on(judged(groups, rewards)) | counted


def _alike(groups: Sequence[Group], answers: Sequence[Readable]) -> int:
    """Pairs whose answers read the same, most often since both were cut: half right, whatever the model."""
    found = first = 0
    for group in groups:
        found += sum(answers[first + b].tokens == answers[first + w].tokens for b, w in group.pairs)
        first += len(group.answers)
    return found


def judged(groups: Sequence[Group], rewards: Any) -> Judged:
    """rewards: of all answers, group by group."""
    found: list[tuple[float, float, int, int, int]] = []
    first = 0
    for number, group in enumerate(groups):
        for (better, worse), margin in group.pairs.items():
            gap = rewards[first + better] - rewards[first + worse]
            lengths = len(group.answers[better]), len(group.answers[worse])
            found.append((gap, math.nan if margin is None else margin, *lengths, number))
        first += len(group.answers)
    gaps, margins, better_lengths, worse_lengths, prompts = np.array(found, np.float64).reshape(-1, 5).T
    return Judged(gaps, margins, better_lengths, worse_lengths, prompts.astype(np.int64))


def shown(report: dict[str, Any]) -> list[str]:
    """For people: sentences and three small tables."""
    told = [*words(report)]
    if report["cut"]:
        told.append(f"{report['cut']:,} of {report['answers']:,} answers were too long and read in part.")
    if report["alike"]:
        told.append(f"{report['alike']:,} pairs read the same within the model's length: half right.")
    for heading, rows in (("margin", report["by_margin"]), ("length", report["by_length"])):
        told += ["", f"{'by ' + heading:<40} pairs  accuracy  (95 %)            longer wins"]
        told += [_row(bucket) for bucket in rows if bucket["pairs"]]
    found = report["calibration"]
    told += ["", f"calibration of σ(Δr): Brier {found['brier']:.3f} (0.25: no idea), ECE {found['ece']:.3f}"]
    told += [
        f"  says {share(b['confidence'])}, is right {share(b['accuracy'])} ({b['pairs']:,} pairs)"
        for b in found["bins"]
        if b["pairs"]
    ]
    return told


def _row(bucket: dict[str, Any]) -> str:
    span = f"({share(bucket['low'])} to {share(bucket['high'])})"
    return (
        f"  {bucket['of']:<38} {bucket['pairs']:>5}  {share(bucket['accuracy']):>8}  {span:<18}"
        f"  {share(bucket['length_baseline'])}"
    )
