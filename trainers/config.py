"""What a training is told: a checked value from flags or a TOML file with the same names.

Defaults are those of the paper (arXiv 2304.03277, section 4.1, which takes Alpaca's): 3 epochs, global
batch 128, 2e-5, cosine, warm-up 0.03, length 512, bf16 (where the machine has it). Knows nothing of torch.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from store.errors import UsageError

MOST_ROWS_AT_ONCE = 4  # in a micro batch, unless said: more is no faster on CPU, and costs memory
MOST_EPOCHS = 10_000
FILES = ("data", "out", "deepspeed")


class Training(BaseModel):
    """What all trainings have in common. Fields that change nothing of what is learnt: see FREE."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    loss_name: ClassVar[str] = "loss a learnt token (nats)"

    data: Path
    model: Annotated[str, Field(min_length=1)]
    out: Path
    limit: PositiveInt | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.02
    seed: NonNegativeInt = 42

    epochs: Annotated[float, Field(gt=0, le=MOST_EPOCHS)] = 3.0
    batch: PositiveInt = 128
    micro_batch: PositiveInt | None = None
    lr: PositiveFloat = 2e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: NonNegativeFloat = 0.0
    clip: PositiveFloat = 1.0
    max_length: Annotated[int, Field(ge=8)] = 512
    precision: Literal["bf16", "fp32"] | None = None  # bf16, where the machine has it: preflight.py
    lora: PositiveInt | None = None
    recompute: bool = False

    zero: Literal[0, 1, 2, 3] | None = None
    offload: bool = False
    deepspeed: Path | None = None
    nproc: PositiveInt = 1
    nnodes: PositiveInt = 1
    node_rank: NonNegativeInt = 0
    master: Annotated[str, Field(pattern=r"^[^:\s]+:\d+$")] | None = None

    save_every: PositiveInt | None = None
    eval_every: PositiveInt | None = None
    keep: Annotated[int, Field(ge=2)] = 2
    tensorboard: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.batch % self.processes:
            raise ValueError(
                f"batch {self.batch} cannot be shared by {self.processes} processes: {_hint(self)}"
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
        """The most that a micro batch holds, for the arithmetic of memory."""
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
    """Supervised fine-tuning. template: by the data's shape, unless said. reasoning: what becomes of thinking
    in the rows."""

    template: Literal["alpaca", "chat"] | None = None
    reasoning: Literal["learn", "drop"] = "learn"
    too_long: Literal["drop", "cut"] = "drop"
    packing: Literal["auto", "on", "off"] = "auto"
    samples: NonNegativeInt = 3


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

    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    epochs: Annotated[float, Field(gt=0, le=MOST_EPOCHS)] = 2.0
    batch: PositiveInt = 16
    lr: PositiveFloat = 5e-5
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    template: Literal["alpaca", "chat"] | None = None
    too_long: Literal["drop", "cut"] = "cut"
    answers: Annotated[int, Field(ge=2)] = 9

    @property
    def tokens_at_once(self) -> int:
        return self.rows_at_once * self.answers * self.max_length


R = TypeVar("R", bound=Training)


def recipe_from(kind: type[R], given: Mapping[str, Any], file: Path | None) -> R:
    """Flags that were given win over the file. Raises UsageError naming what is wrong, and where."""
    said = {name: value for name, value in given.items() if value is not None}
    values = (_table(file) if file else {}) | said
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(_first_problem(error, said, file)) from None


def _table(file: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read recipe {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not TOML: {error}") from error
    values = {name.replace("-", "_"): value for name, value in found.items()}
    beside = {name: file.parent / values[name] for name in FILES if isinstance(values.get(name), str)}
    return values | beside


def _first_problem(error: ValidationError, said: Mapping[str, Any], file: Path | None) -> str:
    problem = error.errors()[0]
    words = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return words
    name = str(problem["loc"][0])
    flag = "--" + name.replace("_", "-")
    where = flag if name in said or file is None else f"{file}: {name}"
    if problem["type"] == "missing":
        return f"{flag} is missing: give it as a flag" + (f" or in {file}" if file else "")
    if problem["type"] == "extra_forbidden":
        return f"{where}: there is no setting of this name"
    return f"{where} {problem['input']}: {words[0].lower()}{words[1:]}"


def _hint(recipe: Training) -> str:
    near = max(1, round(recipe.batch / recipe.processes)) * recipe.processes
    return f"{near} could"
