"""The settings of a training run, declared once: default, bounds, text and panel of `--help`.

The flags of `train` are made from these classes, a TOML file has the same names, and so has docs/settings.md.

Defaults are those of the paper (arXiv 2304.03277, section 4.1, which takes Alpaca's): 3 epochs, global
batch 128, 2e-5, cosine, warm-up 0.03, length 512, bf16 (where the machine has it). Knows nothing of torch.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from store.errors import UsageError, wrong_value

MOST_ROWS_AT_ONCE = 4  # in a micro batch, unless said: more is no faster on CPU, and costs memory
MOST_EPOCHS = 10_000
FILES = ("data", "out", "deepspeed")


WHAT, HOW, WHERE, SEEN = "Data and model", "Training", "Machines", "Checkpoints and measurements"

Count = Annotated[int, Field(gt=0, le=10**9)]
Positive = Annotated[float, Field(gt=0, le=10**9)]
Share = Annotated[float, Field(ge=0, lt=1)]
Epochs = Annotated[float, Field(gt=0, le=MOST_EPOCHS)]
Template = Literal["alpaca", "chat"]


def setting(default: Any, text: str, panel: str, usual: str = "", **how: Any) -> Any:
    """A field with its flag. `usual`: what happens where nothing is said, if the default does not tell;
    `how`: the flag's `metavar`, and whether it is `needed` on the command line."""
    return Field(default, description=text, json_schema_extra={"panel": panel, "usual": usual, **how})


def _host_and_port(text: str) -> str:
    if not re.fullmatch(r"[^:\s]+:\d+", text):
        raise ValueError("must be HOST:PORT, for example host0:29500")
    return text


class Training(BaseModel):
    """What all training runs have in common. Fields that change nothing of what is learnt: see FREE."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    loss_name: ClassVar[str] = "loss a learnt token (nats)"

    data: Path = setting(..., "rows to learn from", WHAT, metavar="FILE", needed=False)
    model: Annotated[str, Field(min_length=1)] = setting(
        ..., "a model folder, a name on the Hugging Face hub, or smollm2", WHAT, metavar="M", needed=False
    )
    out: Path = setting(..., "new folder for the trained model", WHAT, metavar="DIR", needed=False)
    limit: Count | None = setting(None, "only the first N rows", WHAT)
    held_out: Share = setting(
        0.02, "share of the rows that is held out to measure the loss", WHAT, metavar="SHARE"
    )

    epochs: Epochs = setting(3.0, "passes over the data", HOW)
    batch: Count = setting(128, "rows per optimizer step, over all processes", HOW)
    micro_batch: Count | None = setting(
        None,
        "rows per forward pass in each process",
        HOW,
        usual=f"on a GPU what its memory holds, on a CPU up to {MOST_ROWS_AT_ONCE}",
    )
    lr: Positive = setting(2e-5, "learning rate", HOW)
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "learning rate schedule", HOW)
    warmup: Share = setting(0.03, "share of the steps in which the rate rises", HOW, metavar="SHARE")
    weight_decay: Annotated[float, Field(ge=0, le=10**9)] = setting(0.0, "weight decay", HOW)
    clip: Positive = setting(1.0, "largest norm of the gradient", HOW)
    max_length: Annotated[int, Field(ge=8, le=10**9)] = setting(
        512, "most tokens of a row, prompt and response", HOW
    )
    precision: Literal["bf16", "fp32"] | None = setting(
        None, "number format of the weights", HOW, usual="bf16; fp32 on a CPU without it"
    )
    lora: Count | None = setting(
        None,
        "train low-rank adapters of this rank only (LoRA); they are merged at the end",
        HOW,
        metavar="RANK",
    )
    recompute: bool = setting(False, "recompute activations instead of keeping them in memory", HOW)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = setting(42, "seed of all random draws", HOW)

    zero: Annotated[int, Field(ge=0, le=3)] | None = setting(
        None, "ZeRO stage of DeepSpeed, 0 to 3", WHERE, usual="2 for several processes"
    )
    offload: bool = setting(False, "keep the optimizer in RAM (with ZeRO-3 the weights, too)", WHERE)
    deepspeed: Path | None = setting(None, "DeepSpeed configuration of your own", WHERE, metavar="FILE")
    nproc: Annotated[int, Field(gt=0, le=1024)] = setting(1, "processes on this machine", WHERE)
    nnodes: Annotated[int, Field(gt=0, le=10**6)] = setting(1, "machines", WHERE)
    node_rank: Annotated[int, Field(ge=0, le=10**6)] = setting(0, "number of this machine, from 0", WHERE)
    master: Annotated[str, AfterValidator(_host_and_port)] | None = setting(
        None, "where machine 0 listens", WHERE, metavar="HOST:PORT"
    )

    save_every: Count | None = setting(None, "steps between two checkpoints", SEEN, usual="a tenth of all")
    eval_every: Count | None = setting(
        None, "steps between two measurements of the held-out loss", SEEN, usual="a tenth of all"
    )
    keep: Annotated[int, Field(ge=2, le=10**9)] = setting(2, "checkpoints that are kept", SEEN)
    tensorboard: bool = setting(False, "also write DIR/training/tensorboard", SEEN)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.batch % self.processes:
            near = max(1, round(self.batch / self.processes)) * self.processes
            raise ValueError(
                f"batch {self.batch} cannot be shared by {self.processes} processes: {near} could"
            )
        if self.micro_batch and self.share % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide the {self.share} rows that each of "
                f"{self.processes} processes has of a batch of {self.batch}"
            )
        if self.deepspeed and (self.offload or self.zero is not None):
            raise ValueError("a DeepSpeed file itself says what zero and offload would: give one or other")
        if self.offload and self.zero not in (2, 3):
            raise ValueError("offload needs zero 2 or 3 (or a DeepSpeed file that says so)")
        if self.lora and self.zero == 3:
            raise ValueError("lora cannot be merged under zero 3; zero 2 shards its small optimizer as well")
        if self.nnodes > 1 and self.master is None:
            raise ValueError("nnodes needs master HOST:PORT, the same on every machine")
        if self.node_rank >= self.nnodes:
            raise ValueError(
                f"node_rank counts from 0: with nnodes {self.nnodes} it is at most {self.nnodes - 1}"
            )
        return self

    @property
    def processes(self) -> int:
        return self.nproc * self.nnodes

    @property
    def share(self) -> int:
        """Rows of a global batch for each process."""
        return self.batch // self.processes

    @property
    def rows_at_once(self) -> int:
        """Rows of a micro batch."""
        most = min(self.share, MOST_ROWS_AT_ONCE)
        return self.micro_batch or next(n for n in range(most, 0, -1) if self.share % n == 0)

    @property
    def tokens_at_once(self) -> int:
        """The most that so many rows may be, for the arithmetic of memory before they are read."""
        return self.rows_at_once * self.max_length

    @property
    def accumulation(self) -> int:
        """Micro batches between two steps of the optimizer."""
        return self.share // self.rows_at_once

    @property
    def with_deepspeed(self) -> bool:
        """One process without a wish for ZeRO is a plain loop; several share it by ZeRO-2, unless said."""
        return self.stage is not None or self.deepspeed is not None

    @property
    def stage(self) -> int | None:
        if self.zero is None and self.deepspeed is None and self.processes > 1:
            return 0 if self.lora else 2
        return self.zero


# What may differ between a run and its resume: nothing of it changes what is learnt. (`reasoning` changes the
# rows, which are compared as tokens.)
FREE = {
    "out", "data", "model", "nproc", "nnodes", "node_rank", "master",  # compared by content and by number
    "save_every", "eval_every", "keep", "tensorboard", "samples", "deepspeed", "reasoning",
}  # fmt: skip


class SftRecipe(Training):
    """Supervised fine-tuning."""

    template: Template | None = setting(None, "chat template", WHAT, usual="by the rows")
    reasoning: Literal["learn", "drop"] = setting("learn", "what to do with the thinking in rows", HOW)
    too_long: Literal["drop", "cut"] = setting("drop", "what to do with rows over the length", HOW)
    packing: Literal["auto", "on", "off"] = setting("auto", "put several rows into one sequence", HOW)
    samples: Annotated[int, Field(ge=0, le=10**6)] = setting(
        3, "held-out prompts to answer for the model card", SEEN
    )


class RewardRecipe(Training):
    """A reward model. A row is a prompt with all its answers: `batch` and `micro_batch` count prompts.

    The paper gives no more than the model (OPT-1.3B) and the loss. InstructGPT (arXiv 2203.02155, C.2) has
    64 prompts a step of 4 to 9 answers each, one epoch, 9e-6, cosine, for 6B parameters and 33K prompts,
    and found epochs to matter (they overfit) more than the rate. With hundreds of prompts that would be a
    dozen small steps. So batch, rate and epochs are from the range that BERT's authors give for a new head
    on a pretrained model of this size and little data (arXiv 1810.04805, A.3: 16 or 32 rows, 2e-5 to 5e-5,
    2 to 4 epochs), the least of its epochs; rate and length agree with DeepSpeed-Chat's script for
    OPT-350m (5e-5, 512, cosine). They were not tuned here. For a model of 1B and more, or tens of thousands
    of prompts, take InstructGPT's. answers: its largest K; a prompt with more is learnt in parts.
    """

    loss_name: ClassVar[str] = "loss a prompt (nats)"

    data: Path = setting(
        ..., "comparisons: pairs, or answers with scores", WHAT, metavar="FILE", needed=False
    )
    held_out: Share = setting(
        0.1, "share of the prompts that is held out to measure the loss", WHAT, metavar="SHARE"
    )
    epochs: Epochs = setting(2.0, "passes over the data", HOW)
    batch: Count = setting(16, "prompts per optimizer step, over all processes", HOW)
    micro_batch: Count | None = setting(
        None,
        "prompts per forward pass in each process",
        HOW,
        usual="on a GPU what its memory holds, on a CPU as many as have 8 answers",
    )
    lr: Positive = setting(5e-5, "learning rate", HOW)
    warmup: Share = setting(0.1, "share of the steps in which the rate rises", HOW, metavar="SHARE")
    max_length: Annotated[int, Field(ge=8, le=10**9)] = setting(
        512, "most tokens of a prompt with one answer", HOW
    )
    template: Template | None = setting(None, "chat template", WHAT, usual="by the model")
    too_long: Literal["drop", "cut"] = setting("cut", "what to do with answers over the length", HOW)
    answers: Annotated[int, Field(ge=2, le=10**6)] = setting(
        9, "most answers of a prompt at once", HOW, metavar="K"
    )

    @property
    def tokens_at_once(self) -> int:
        return self.rows_at_once * self.answers * self.max_length


R = TypeVar("R", bound=Training)


def recipe_from(kind: type[R], given: Mapping[str, Any], file: Path | None) -> R:
    """Flags that were given win over the file. Raises UsageError naming what is wrong, and where."""
    said = {name: value for name, value in given.items() if value is not None}
    values: dict[str, Any] = {}
    if file is not None:
        try:
            found = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read recipe {file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: not valid TOML: {error}") from error
        values = {name.replace("-", "_"): value for name, value in found.items()}
        # Files are named from where the recipe lies.
        values |= {name: file.parent / values[name] for name in FILES if isinstance(values.get(name), str)}
    try:
        return kind.model_validate(values | said)
    except ValidationError as error:
        raise UsageError(_first_problem(error, said, file)) from None


def _first_problem(error: ValidationError, said: Mapping[str, Any], file: Path | None) -> str:
    problem = error.errors()[0]
    if not problem["loc"]:
        return problem["msg"].removeprefix("Value error, ")
    name = str(problem["loc"][0])
    flag = "--" + name.replace("_", "-")
    where = flag if name in said or file is None else f"{file}: {name}"
    if problem["type"] == "missing":
        return f"{flag} is missing: give it as a flag" + (f" or in {file}" if file else "")
    if problem["type"] == "extra_forbidden":
        return f"{where}: there is no setting of this name"
    return wrong_value(where, dict(problem))
