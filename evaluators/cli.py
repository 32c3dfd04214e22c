"""`distill evaluate …`: reads flags, calls one function. A part of the command line, so it may use all.

Imports only what help needs.
"""

from pathlib import Path
from typing import Annotated

import typer

from trainers.cli import JsonOption, QuietOption, RewardOption, quieten

ReviewsOption = Annotated[
    list[Path] | None,
    typer.Option("--reviews", metavar="FILE...", help="a judge's reviews: FastChat's, or those of `export`"),
]
MoreArgument = Annotated[list[Path] | None, typer.Argument(metavar="", hidden=True, show_default=False)]
JudgedRunOption = Annotated[
    list[Path] | None, typer.Option("--run", metavar="RUN", help="what the judges of a run said")
]
JudgedStageOption = Annotated[
    list[str] | None, typer.Option("--stage", metavar="S", help="of the run [all that judge]")
]
ModelAOption = Annotated[
    str | None,
    typer.Option("--a", metavar="NAME", help="first model, where reviews do not say [X of X_vs_Y]"),
]
ModelBOption = Annotated[
    str | None, typer.Option("--b", metavar="NAME", help="its opponent, where reviews do not say [Y]")
]
JudgeOption = Annotated[
    list[str] | None,
    typer.Option("--judge", metavar="NAME", help="a judge's name, one for each file and run [theirs]"),
]
JudgedQuestionsOption = Annotated[
    Path | None, typer.Option("--questions", metavar="Q", help="the questions, for their categories")
]
WordOption = Annotated[
    str,
    typer.Option(
        "--scores",
        metavar="W",
        help="where a review's score is not its text's: file or text [file]",
        show_default=False,
    ),
]
CsvOption = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="the figures as a table")]

app = typer.Typer(name="evaluate", help="Measure models, answers and judges.", no_args_is_help=True)


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


@app.command()
def judge(
    more: MoreArgument = None,
    reviews: ReviewsOption = None,
    preferences: Annotated[
        list[Path] | None,
        typer.Option("--preferences", metavar="FILE", help="which output is better, as AlpacaEval has it"),
    ] = None,
    run: JudgedRunOption = None,
    stage: JudgedStageOption = None,
    questions: JudgedQuestionsOption = None,
    a: ModelAOption = None,
    b: ModelBOption = None,
    judge: JudgeOption = None,
    scores: WordOption = "file",
    csv: CsvOption = None,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="each reply behind the figures, as JSONL")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Sum up judges: scores against an opponent, wins, intervals, position bias, agreement."""
    from evaluators.judge.command import Asked, run_judge, with_more

    files = with_more(reviews or [], preferences or [], more or [])
    asked = Asked(*files, run or (), stage or (), (), questions, a, b, judge or (), scores)
    raise typer.Exit(run_judge(asked, json, csv, rows))


@app.command()
def ranking(
    more: MoreArgument = None,
    reviews: ReviewsOption = None,
    run: JudgedRunOption = None,
    stage: JudgedStageOption = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option("--baseline", metavar="FILE", help="reviews of other answers, to compare with"),
    ] = None,
    b: ModelBOption = None,
    scores: WordOption = "file",
    csv: CsvOption = None,
    json: JsonOption = False,
) -> None:
    """Tell whether answers get worse from rank to rank; the best first, or named rank1, rank2, ..."""
    from evaluators.judge.command import Asked, run_ranking, with_more

    files, _ = with_more(reviews or [], [], more or [])
    asked = Asked(files, (), run or (), stage or (), baseline or (), b=b, scores=scores)
    raise typer.Exit(run_ranking(asked, json, csv))
