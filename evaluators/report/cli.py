"""`distill report`: reads flags, calls one function. Imports only what help needs."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the page, self-contained")],
    training: Annotated[
        list[Path] | None,
        typer.Option("--training", metavar="DIR", help="a training that lies elsewhere (several times)"),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluation",
            metavar="FILE",
            help="what `evaluate … --json` wrote, beside RUN/evaluations/*.json (several times)",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="DIR", help="every table also as a CSV file in this folder"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="of the rows that are shown [0]", show_default=False)
    ] = 0,
) -> None:
    """Tell all of a run on one page: cost, limits, failures, data, training, judges, votes."""
    from evaluators.report.build import run_report

    raise typer.Exit(run_report(run, out, csv, training or [], evaluation or [], seed))
