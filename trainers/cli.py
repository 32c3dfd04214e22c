"""`distill train …` and `rank`: read flags and the environment, call one function.

The flags of a training run are made from its settings (config.py). Imports only what help needs: no torch.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.options import takes
from store.errors import needs, require
from store.files import is_plain
from store.pool import Pool
from trainers.config import RewardRecipe, SftRecipe, Training, recipe_from
from trainers.trl_config import DistillRecipe, DpoRecipe, RlRecipe

SMOLLM2 = "smollm2"  # the embedded model, and the extra that brings it

app = typer.Typer(name="train", help="Train a student or a reward model.", no_args_is_help=True)

RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="TOML file with these settings; flags override it"),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="continue from the last complete checkpoint")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="print only errors")]
RewardOption = Annotated[
    Path, typer.Option("--reward", metavar="DIR", help="a folder that `train reward` wrote")
]


@app.callback()
def train() -> None:
    """Train a student or a reward model."""


@app.command()
@takes(SftRecipe.model_fields, "options")
@needs("train")
def sft(
    recipe: RecipeOption = None,
    resume: ResumeOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Fine-tune a student on instructions and answers."""
    raise typer.Exit(run_training(recipe_from(SftRecipe, options, recipe), resume, quiet))


@app.command()
@takes(RewardRecipe.model_fields, "options")
@needs("train")
def reward(
    recipe: RecipeOption = None,
    resume: ResumeOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train a reward model on comparisons of answers."""
    raise typer.Exit(run_training(recipe_from(RewardRecipe, options, recipe), resume, quiet))


@app.command()
@takes(DpoRecipe.model_fields, "options")
@needs("train", "trl")
def dpo(
    recipe: RecipeOption = None,
    resume: ResumeOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train a student on preferences: DPO, IPO, KTO, ORPO, SimPO."""
    raise typer.Exit(run_training(recipe_from(DpoRecipe, options, recipe), resume, quiet))


@app.command()
@takes(DistillRecipe.model_fields, "options")
@needs("train")
def distill(
    recipe: RecipeOption = None,
    resume: ResumeOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train a student on a teacher's probabilities of the next token."""
    raise typer.Exit(run_training(recipe_from(DistillRecipe, options, recipe), resume, quiet))


@app.command()
@takes(RlRecipe.model_fields, "options")
@needs("train", "trl")
def rl(
    recipe: RecipeOption = None,
    resume: ResumeOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train a student on a reward: RLOO, GRPO."""
    raise typer.Exit(run_training(recipe_from(RlRecipe, options, recipe), resume, quiet))


@needs("train")
def rank(
    reward: RewardOption,
    candidates: Annotated[
        Path, typer.Option("--candidates", metavar="FILE", help="rows with id, prompt and candidates")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the same rows with scores and order")],
    split: Annotated[
        Path | None,
        typer.Option(
            "--split", metavar="DIR", help="also write rank1.jsonl, rank2.jsonl, … here: answers for judge"
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Rank candidates with a reward model, the best first."""
    raise typer.Exit(run_ranking(reward, candidates, out, split, quiet))


def run_ranking(reward: Path, candidates: Path, out: Path, split: Path | None, quiet: bool) -> int:
    """Returns the exit code. Raises UsageError."""
    require("train", purpose="ranking answers")
    from trainers.run_folder import read_about

    Pool(candidates)
    read_about(reward)  # told at once, as below
    is_plain(out)
    quieten()
    from trainers.rank import run_rank

    return run_rank(reward, candidates, out, quiet, split)


def run_training(told: Training, resume: bool, quiet: bool) -> int:
    """Returns the exit code. What is missing may be gigabytes, and is told when the settings are known to be
    right. Raises UsageError."""
    quieten()
    by_trl = isinstance(told, DpoRecipe | RlRecipe) or (
        isinstance(told, DistillRecipe) and told.on_policy > 0
    )
    embedded = SMOLLM2 in (told.model, getattr(told, "teacher", None))
    extras = ["train"] + ["trl"] * by_trl + [SMOLLM2] * embedded
    require(*extras, purpose="training a model")
    from trainers.rl_prompts import check_reward
    from trainers.run_folder import Folder, check_model

    if not resume:  # is all of it there? Told at once: libraries take their time to load
        Pool(told.data)
        if told.model != SMOLLM2:
            check_model(told.model)
        if isinstance(told, DistillRecipe) and told.teacher not in (None, SMOLLM2):
            check_model(str(told.teacher), "--teacher")
        if isinstance(told, RlRecipe):
            check_reward(told.reward)
    if told.node_rank == 0:
        Folder(told.out).check(resume)
    if isinstance(told, DistillRecipe):
        from trainers.distill import run_distill

        return run_distill(told, resume, quiet, os.environ)
    if isinstance(told, SftRecipe):
        from trainers.sft import run_sft

        return run_sft(told, resume, quiet, os.environ)
    if isinstance(told, DpoRecipe):
        from trainers.dpo import run_dpo

        return run_dpo(told, resume, quiet, os.environ)
    if isinstance(told, RlRecipe):
        from trainers.rl import run_rl

        return run_rl(told, resume, quiet, os.environ)
    assert isinstance(told, RewardRecipe)
    from trainers.reward import run_reward

    return run_reward(told, resume, quiet, os.environ)


def quieten() -> None:
    """Libraries talk while they load; what matters is said by us, or is in the log."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import logging

    # DeepSpeed writes to standard output, as soon as transformers finds it, that there is no GPU. It sets the
    # logger's level itself.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
