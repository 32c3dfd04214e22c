"""The settings of the trainings that TRL drives: preferences, reinforcement learning, distillation.

Declared as those in config.py. Defaults are those of the methods' papers where they agree with TRL's; they
were not tuned here.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainers.config import (
    HOW,
    SEEN,
    WHAT,
    Count,
    Epochs,
    Positive,
    Share,
    Template,
    Training,
    setting,
)

BETAS = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}
REFERENCED = ("dpo", "ipo", "kto")  # losses that compare with the model as it was


class DpoRecipe(Training):
    """Learning from preferences. A row is a pair of answers.

    DPO (arXiv 2305.18290, appendix B): β 0.1, 64 pairs a step, 1e-6. IPO: 2310.12036; KTO: 2402.01306;
    ORPO: 2403.07691, which learns without a reference and with a higher rate (8e-6 there); SimPO:
    2405.14734, β 2 and γ/β 0.5.
    """

    loss_name: ClassVar[str] = "loss a pair"

    data: Path = setting(
        ..., "preferences: pairs, or answers with scores", WHAT, metavar="FILE", needed=False
    )
    held_out: Share = setting(
        0.1, "share of the prompts that is held out to measure the loss", WHAT, metavar="SHARE"
    )
    template: Template | None = setting(None, "chat template", WHAT, usual="by the model")
    loss: Literal["dpo", "ipo", "kto", "orpo", "simpo"] = setting("dpo", "what is minimised", HOW)
    beta: Positive | None = setting(
        None, "how much a difference weighs; with dpo, ipo and kto, how close to the model as it was", HOW,
        usual="0.1; 2 with simpo",
    )  # fmt: skip
    margin: Annotated[float, Field(ge=0, le=10**9)] = setting(
        0.5, "with simpo: the difference that is aimed at, in units of 1/beta (γ/β)", HOW
    )
    epochs: Epochs = setting(1.0, "passes over the data", HOW)
    batch: Count = setting(64, "pairs per optimizer step, over all processes", HOW)
    micro_batch: Count | None = setting(None, "pairs per forward pass in each process", HOW, usual="up to 4")
    lr: Positive = setting(1e-6, "learning rate", HOW)
    warmup: Share = setting(0.1, "share of the steps in which the rate rises", HOW, metavar="SHARE")
    max_length: Annotated[int, Field(ge=8, le=10**9)] = setting(
        1024, "most tokens of a prompt with one answer", HOW
    )
    too_long: Literal["drop", "cut"] = setting("drop", "what to do with answers over the length", HOW)
    samples: Annotated[int, Field(ge=0, le=10**6)] = setting(
        32, "held-out prompts to answer, for the model card's KL and lengths", SEEN
    )

    @model_validator(mode="after")
    def _kl_of_several(self) -> Self:
        if self.loss == "kto" and self.rows_at_once < 2:
            raise ValueError("kto takes its KL over a micro batch: --micro-batch must be 2 or more")
        return self

    @property
    def strength(self) -> float:
        """β, as said or by the loss."""
        return self.beta or BETAS[self.loss]

    @property
    def tokens_at_once(self) -> int:
        answers = 4 if self.loss == "kto" else 2  # kto reads another prompt's answers besides
        return self.rows_at_once * answers * self.max_length
