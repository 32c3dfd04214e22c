"""`distill evaluate …`: reads flags, calls one function. A part of the command line, so it may use all.

Imports only what help needs.
"""

from pathlib import Path
from typing import Annotated

import typer

from evaluators import data_cli
from trainers.cli import JsonOption, QuietOption, RewardOption, quieten

app = typer.Typer(name="evaluate", help="Measure models, answers and judges.", no_args_is_help=True)
for command in data_cli.COMMANDS:
    app.command()(command)


@app.callback()
def evaluate() -> None:
    """Measure models, answers and judges."""


@app.command()
def reward(
    reward: RewardOption,
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="comparisons: pairs, or answers with scores")
    ],
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="only the first N rows")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a reward model: how often it prefers the better answer, beside the longer one's."""
    quieten()
    from trainers.reward_report import run_evaluation

    raise typer.Exit(run_evaluation(reward, data, limit, json, quiet))
