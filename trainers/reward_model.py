"""A reward model: its form, its folder, the rewards of answers, and `evaluate reward`.

It is a language model's body with one number for a head: transformers' sequence classification, read right.

transformers takes the last token that is not the padding's id, which is a wrong one where that id is also
the end of sequence (SmolLM2). Here the mask says where a row ends. The folder that is saved names a padding
token that ends no row, where the tokenizer has one, so that plain transformers reads the same place.

Answers are scored in batches sorted by length. The order of batches depends on the answers alone, so a
continued run scores the same batches.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import numpy as np
import orjson
import torch
from transformers import AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from store.errors import UsageError
from store.student import TextTokens, named
from trainers.comparisons import Group, read_groups
from trainers.display import Display
from trainers.memory import CPUINFO, cpu_has_bf16
from trainers.models import check_whole, config_of, fingerprint, tokenizer_of, whole
from trainers.reward_data import encoded
from trainers.reward_metrics import Judged, report_on, shown
from trainers.run_folder import ABOUT, About, read_about

HEAD = "score."
FAMILIES = {"llama", "opt", "mistral", "qwen2", "qwen3", "smollm3", "phi3"}  # with `model` and `score`
TOKENS_AT_ONCE = 4096  # padded, in a batch
ROWS_AT_ONCE = 64
DIGITS = 6  # of a reward that is written down
PACKED = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
Precision = Literal["bf16", "fp32"]
Question = tuple[str, str]  # prompt, answer


def check_family(config: Any) -> None:
    if config.model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UsageError(f"a reward model of type {config.model_type} is not known; known are {known}")


def skeleton(config: Any) -> Any:
    """Without weights: shapes only, no memory."""
    config.num_labels = 1
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def reward_model(model: str, dtype: torch.dtype, pad: int, new: str = HEAD, attention: str = "sdpa") -> Any:
    """The weights in `dtype`, with a new head where the folder has none (`new` empty: it must have one)."""
    more = {"num_labels": 1, "pad_token_id": pad}
    found = whole(AutoModelForSequenceClassification, model, dtype, attention, new, **more)
    return read_by_mask(found)


def read_by_mask(model: Any) -> Any:
    """Bound to the instance, so that wrappers (DeepSpeed, peft) call it and the class stays as saved."""
    model.forward = MethodType(_rewards, model)
    model.score.forward = MethodType(_head, model.score)
    return model


def _rewards(
    self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **packed: Any
) -> SequenceClassifierOutputWithPast:
    """logits: (rows, 1) float32, at the last token that the mask (rows, length) shows; of rows end to end,
    at each one's last token."""
    ends = packed.get("cu_seq_lens_q")
    where = {name: value for name, value in packed.items() if name in PACKED} if ends is not None else {}
    how = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    hidden = self.model(**how, **where).last_hidden_state
    if ends is None:
        last = last_shown(attention_mask)
        read = hidden[torch.arange(len(last), device=last.device), last]
    else:
        read = hidden[0, ends[1:] - 1]
    return SequenceClassifierOutputWithPast(logits=self.score(read))


def last_shown(mask: torch.Tensor) -> torch.Tensor:
    """(rows,) the place of each row's last token, wherever the padding is."""
    return mask.shape[1] - 1 - mask.flip(1).argmax(1)


def _head(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The head in float32, under autocast too: bf16 has 256 numbers between 1 and 2, and near rewards
    would be ties."""
    return (hidden.float() * self.weight.float()).sum(-1, keepdim=True)


def padding_of(tokenizer: Any) -> int:
    """A token that ends no row; the end of sequence itself where there is no other."""
    ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    found: int = next(
        (i for i in ids if i is not None and i != tokenizer.eos_token_id), tokenizer.eos_token_id
    )
    return found


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
                f"--reward {self.folder}: its rewards are not numbers (NaN): its weights are broken"
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
    alike = first = 0  # pairs whose answers read the same, most often since both were cut: half right
    for group in groups:
        alike += sum(answers[first + b].tokens == answers[first + w].tokens for b, w in group.pairs)
        first += len(group.answers)
    counted = {"answers": len(answers), "cut": sum(answer.short for answer in answers), "alike": alike}
    return report_on(judged(groups, rewards)) | counted


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
