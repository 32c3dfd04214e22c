"""`distill train …`: reads flags and the environment, calls one function. Imports only what help needs."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from trainers.options import HOW, SEEN, WHAT, with_training_options

app = typer.Typer(name="train", help="Train a student or a reward model.", no_args_is_help=True)

RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="TOML with the flags' names; flags win")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="go on from the last whole checkpoint")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="say nothing when all is well")]


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

    own = {"template": template, "too_long": too_long, "packing": packing, "samples": samples}
    told = recipe_from(SftRecipe, options | own, recipe)
    _quieten()
    from trainers.sft_run import run_sft

    raise typer.Exit(run_sft(told, resume, quiet, os.environ))


def _quieten() -> None:
    """Libraries talk while they load; what matters is said by us, or is in the log."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
