"""`distill train …` and `rank`: reads flags and the environment, calls one function. Imports only what help
needs."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from trainers.options import HOW, SEEN, WHAT, telling, with_training_options

app = typer.Typer(name="train", help="Train a student or a reward model.", no_args_is_help=True)

RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="TOML with the flags' names; flags win")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="go on from the last whole checkpoint")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="say nothing when all is well")]
RewardOption = Annotated[Path, typer.Option("--reward", metavar="DIR", help="a folder of `train reward`")]
# Where its defaults or units are others than a student's; what they are taken from: RewardRecipe.
REWARD_HELP = {
    "data": "comparisons: pairs, or answers with scores",
    "held_out": "share of prompts that is only measured on [0.1]",
    "epochs": "passes over the data [2]",
    "batch": "prompts a step, of all processes [16]",
    "micro_batch": "prompts at once in a process [as many as have 8 answers]",
    "lr": "learning rate [5e-5]",
    "warmup": "share of the steps [0.1]",
    "max_length": "tokens of a prompt with one answer [512]",
}


@app.callback()
def train() -> None:
    """Train a student or a reward model."""


@app.command()
@with_training_options
def sft(
    recipe: RecipeOption = None,
    template: Annotated[
        str | None,
        typer.Option("--template", metavar="T", help="alpaca or chat [by the rows]", rich_help_panel=WHAT),
    ] = None,
    reasoning: Annotated[
        str | None,
        typer.Option(
            "--reasoning", metavar="W", help="learn or drop the thinking in rows [learn]", rich_help_panel=HOW
        ),
    ] = None,
    too_long: Annotated[
        str | None,
        typer.Option(
            "--too-long", metavar="W", help="drop or cut rows over the length [drop]", rich_help_panel=HOW
        ),
    ] = None,
    packing: Annotated[
        str | None,
        typer.Option("--packing", metavar="P", help="auto, on or off [auto]", rich_help_panel=HOW),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", help="held-out prompts to answer [3]", rich_help_panel=SEEN),
    ] = None,
    resume: ResumeOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Fine-tune a student on instructions and answers."""
    from trainers.recipe import SftRecipe, recipe_from

    own = {"template": template, "reasoning": reasoning, "too_long": too_long, "packing": packing}
    told = recipe_from(SftRecipe, options | own | {"samples": samples}, recipe)
    quieten()
    from trainers.sft_run import run_sft

    raise typer.Exit(run_sft(told, resume, quiet, os.environ))


@app.command()
@telling(REWARD_HELP)
def reward(
    recipe: RecipeOption = None,
    template: Annotated[
        str | None,
        typer.Option("--template", metavar="T", help="alpaca or chat [by the model]", rich_help_panel=WHAT),
    ] = None,
    too_long: Annotated[
        str | None,
        typer.Option(
            "--too-long", metavar="W", help="drop or cut answers over the length [cut]", rich_help_panel=HOW
        ),
    ] = None,
    answers: Annotated[
        int | None,
        typer.Option(
            "--answers", metavar="K", help="most answers of a prompt at once [9]", rich_help_panel=HOW
        ),
    ] = None,
    resume: ResumeOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train a reward model on comparisons of answers."""
    from trainers.recipe import RewardRecipe, recipe_from

    own = {"template": template, "too_long": too_long, "answers": answers}
    told = recipe_from(RewardRecipe, options | own, recipe)
    quieten()
    from trainers.reward_run import run_reward

    raise typer.Exit(run_reward(told, resume, quiet, os.environ))


def rank(
    reward: RewardOption,
    candidates: Annotated[
        Path, typer.Option("--candidates", metavar="FILE", help="rows of id, prompt and candidates")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the same with scores and order")],
    split: Annotated[
        Path | None,
        typer.Option("--split", metavar="DIR", help="also rank1.jsonl, rank2.jsonl, ...: answers for judge"),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Score candidates with a reward model and put them in order, the best first."""
    quieten()
    from trainers.rank import run_rank

    raise typer.Exit(run_rank(reward, candidates, out, quiet, split))


def quieten() -> None:
    """Libraries talk while they load; what matters is said by us, or is in the log."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
