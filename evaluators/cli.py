"""`distill evaluate …`, `annotate` and `report`: read flags, call one function.

Part of the command line, so it may use every package. Imports only what help needs.
"""

from pathlib import Path
from typing import Annotated

import typer

from engine.cli.options import JsonOption
from evaluators import cli_data as data_cli
from evaluators.cli_data import CsvOption
from trainers.cli import QuietOption, RewardOption, quieten

ReviewsOption = Annotated[
    list[Path] | None,
    typer.Option("--reviews", metavar="FILE...", help="a judge's reviews: FastChat's, or those of `export`"),
]
MoreArgument = Annotated[list[Path] | None, typer.Argument(metavar="FILE", hidden=True)]
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
RowsOption = Annotated[
    Path | None, typer.Option("--rows", metavar="FILE", help="each reply behind the figures, as JSONL")
]

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
    from trainers.scoring import run_evaluation

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
    rows: RowsOption = None,
    json: JsonOption = False,
) -> None:
    """Sum up judges: scores against an opponent, wins, intervals, position bias, agreement."""
    from evaluators.judge.command import JudgeOptions, run_judge, with_more
    from evaluators.tables import outputs

    files = with_more(reviews or [], preferences or [], more or [])
    asked = JudgeOptions(*files, run or (), stage or (), (), questions, a, b, judge or (), scores)
    with outputs(json, csv=csv, rows=rows):
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
    rows: RowsOption = None,
    json: JsonOption = False,
) -> None:
    """Tell whether answers get worse from rank to rank; the best first, or named rank1, rank2, ..."""
    from evaluators.judge.command import JudgeOptions, run_ranking, with_more
    from evaluators.tables import outputs

    files, _ = with_more(reviews or [], [], more or [])
    asked = JudgeOptions(files, (), run or (), stage or (), baseline or (), b=b, scores=scores)
    with outputs(json, csv=csv, rows=rows):
        raise typer.Exit(run_ranking(asked, json, csv, rows))


@app.command()
def human(
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="the folder that `annotate` made")],
    json: JsonOption = False,
    csv: CsvOption = None,
    votes: Annotated[
        Path | None, typer.Option("--votes", metavar="FILE", help="every vote that counts, in CSV")
    ] = None,
) -> None:
    """Count people's votes: win, tie, loss for each criterion, and how far annotators agree."""
    from evaluators.human import run_human
    from evaluators.tables import outputs

    with outputs(json, csv=csv, votes=votes):
        run_human(run, json, csv, votes)


def annotate(
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="where the votes are kept")],
    questions: Annotated[
        str | None,
        typer.Option("--questions", metavar="Q", help="the prompts, where answers name them by id only"),
    ] = None,
    answers: Annotated[
        str | None, typer.Option("--answers", metavar="A", help="a model's answers; the folder keeps them")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="B", help="the opponent's answers")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="N", help="a model's name, in the order of the files [the file's]"),
    ] = None,
    votes: Annotated[
        int | None,
        typer.Option("--votes", metavar="N", help="people who see each pair [3]", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="by which sides are drawn [0]", show_default=False),
    ] = None,
    words: Annotated[
        Path | None,
        typer.Option("--words", metavar="FILE", help="own criteria and language of the page (TOML)"),
    ] = None,
    port: Annotated[
        int, typer.Option("--port", metavar="P", help="[8002]; 0 for any", show_default=False)
    ] = 8002,
    host: Annotated[
        str,
        typer.Option("--host", metavar="H", help="address to listen on [127.0.0.1]", show_default=False),
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME[:PORT]", help="a proxy's name, by which people come"),
    ] = None,
    mturk: Annotated[
        Path | None,
        typer.Option("--mturk", metavar="DIR", help="write a page and a table for Mechanical Turk instead"),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="RESULTS.csv", help="take in Mechanical Turk's results instead"),
    ] = None,
) -> None:
    """Have people vote on two models' answers: helpful, honest, harmless, on a web page."""
    from evaluators.annotate.command import run_import, run_mturk, run_page
    from evaluators.annotate.server import ListenAddress
    from evaluators.annotate.study import Files

    files = Files(questions, answers, against, tuple(name or ()), votes, seed, words)
    if import_ is not None:
        run_import(run, import_)
    elif mturk is not None:
        run_mturk(files, run, mturk)
    else:
        run_page(files, run, ListenAddress(host, port, tuple(allow_host or ())))


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
