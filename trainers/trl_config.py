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
    SftRecipe,
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


class DistillRecipe(SftRecipe):
    """A student that learns a teacher's probabilities of the next token, not only the token that was taken.

    Forward KL over the teacher's most likely tokens, softened by a temperature (Hinton et al., arXiv
    1503.02531, whose factor of the squared temperature keeps the gradients' size). On-policy: GKD (arXiv
    2306.13649).
    """

    loss_name: ClassVar[str] = "KL a learnt token (nats)"

    data: Path = setting(
        ..., "rows to learn from, with log-probabilities where there is no teacher", WHAT, metavar="FILE",
        needed=False,
    )  # fmt: skip
    teacher: Annotated[str, Field(min_length=1)] | None = setting(
        None, "a model folder or hub name whose probabilities are learnt", WHAT, metavar="M",
        usual="those in the rows",
    )  # fmt: skip
    top: Annotated[int, Field(ge=1, le=10_000)] = setting(
        32, "most likely tokens of the teacher that are learnt at each place", HOW
    )
    temperature: Positive = setting(1.0, "softens both distributions", HOW)
    on_policy: Annotated[float, Field(ge=0, le=1)] = setting(
        0.0, "share of the steps that learn from the student's own answers (GKD); needs a teacher", HOW,
        metavar="SHARE",
    )  # fmt: skip
    divergence: Annotated[float, Field(ge=0, le=1)] = setting(
        0.0, "on-policy: 0 is the forward KL, 1 the reverse one, between lies Jensen and Shannon's", HOW
    )
    answer_tokens: Count = setting(128, "on-policy: most tokens of an answer", HOW)

    @model_validator(mode="after")
    def _teacher_there(self) -> Self:
        if self.on_policy and self.teacher is None:
            raise ValueError("on_policy needs a teacher: it judges answers that nobody has seen")
        if not self.on_policy and self.divergence:
            raise ValueError("divergence is for on_policy: stored probabilities are learnt by the forward KL")
        return self


class RlRecipe(Training):
    """Reinforcement learning from a reward: the student answers, and learns from what its answers are worth.

    RLOO (arXiv 2402.14740) or GRPO (2402.03300). β 0.05 is TRL's for RLOO; a reward model is only right
    near the answers that it has seen, so both have it. A row is an answer.
    """

    loss_name: ClassVar[str] = "minus the reward of an answer"

    data: Path = setting(..., "prompts to answer", WHAT, metavar="FILE", needed=False)
    reward: Annotated[str, Field(min_length=1)] = setting(
        ..., "a folder that `train reward` wrote, or a Python function (MODULE:NAME or FILE.py:NAME)", WHAT,
        metavar="R", needed=False,
    )  # fmt: skip
    template: Template | None = setting(None, "chat template", WHAT, usual="by the model")
    method: Literal["rloo", "grpo"] = setting("rloo", "how it learns from rewards", HOW)
    group: Annotated[int, Field(ge=2, le=1000)] = setting(
        4, "answers to a prompt, which are compared with each other", HOW, metavar="K"
    )
    beta: Annotated[float, Field(ge=0, le=10**9)] = setting(
        0.05, "how much the KL to the model as it was counts against the reward", HOW
    )
    length_penalty: Annotated[float, Field(ge=0, le=10**9)] = setting(
        0.0, "taken from the reward for each token of an answer", HOW
    )
    temperature: Positive = setting(1.0, "of the answers", HOW)
    answer_tokens: Count = setting(256, "most tokens of an answer", HOW)
    held_out: Share = setting(
        0.05, "share of the prompts that is held out to measure the reward", WHAT, metavar="SHARE"
    )
    epochs: Epochs = setting(1.0, "passes over the prompts", HOW)
    batch: Count = setting(64, "answers per optimizer step, over all processes", HOW)
    micro_batch: Count | None = setting(
        None, "answers per forward pass in each process", HOW, usual="up to 4"
    )
    lr: Positive = setting(1e-6, "learning rate", HOW)
    max_length: Annotated[int, Field(ge=8, le=10**9)] = setting(
        1024, "most tokens of a prompt with its answer", HOW
    )
    samples: Annotated[int, Field(ge=1, le=10**6)] = setting(
        32, "held-out prompts to answer, to measure reward, KL and lengths", SEEN
    )

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.batch % self.group:
            raise ValueError(f"batch {self.batch} must hold all {self.group} answers of a prompt (--group)")
        if self.answer_tokens >= self.max_length:
            raise ValueError(
                f"answer_tokens {self.answer_tokens} leave no room for a prompt within max_length "
                f"{self.max_length}"
            )
        return self
