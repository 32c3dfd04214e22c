"""`distill evaluate …`, `annotate` and `report`: read flags, call one function.

Part of the command line, so it may use every package. Imports only what help needs.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from engine.cli.options import JsonOption, takes
from engine.collect.setting_fields import Declared, setting
from evaluators import cli_data as data_cli
from evaluators.cli_data import CsvOption
from store.errors import UsageError, needs
from store.pool import Pool
from trainers.cli import QuietOption, RewardOption, quieten

if TYPE_CHECKING:
    from evaluators.judge.command import JudgeOptions

OPTIONS = "Options"
MoreArgument = Annotated[list[Path] | None, typer.Argument(metavar="FILE", hidden=True)]


class JudgeFlags(Declared):
    """Whose judgements are read, and where the figures go."""

    reviews: tuple[Path, ...] = setting(
        (), "a judge's reviews: FastChat's, or those of `export`", OPTIONS, metavar="FILE...", repeat=True
    )
    preferences: tuple[Path, ...] = setting(
        (), "AlpacaEval's preferences; repeat it", OPTIONS, metavar="FILE", repeat=True
    )
    run: tuple[Path, ...] = setting(
        (), "run folder with stages that judge; repeat it", OPTIONS, metavar="DIR", repeat=True
    )
    stage: tuple[str, ...] = setting(
        (), "stage of the run; repeat it", OPTIONS, usual="all that judge", metavar="S", repeat=True
    )
    baseline: tuple[Path, ...] = setting(
        (), "reviews of other answers to compare with; repeat it", OPTIONS, metavar="FILE", repeat=True
    )
    questions: Path | None = setting(None, "the questions, for their categories", OPTIONS, metavar="Q")
    a: str | None = setting(
        None, "first model, if reviews do not name it", OPTIONS, usual="X of X_vs_Y", metavar="NAME"
    )
    b: str | None = setting(
        None, "the opponent, if reviews do not name it", OPTIONS, usual="Y", metavar="NAME"
    )
    judge: tuple[str, ...] = setting(
        (), "a judge's name, one for each file and run; repeat it", OPTIONS, usual="their own",
        metavar="NAME", repeat=True,
    )  # fmt: skip
    scores: str = setting(
        "file",
        "which score to trust if a review's `score` and its text differ: file or text",
        OPTIONS,
        metavar="W",
    )
    csv: Path | None = setting(None, "also write the table as CSV", OPTIONS, metavar="FILE")
    rows: Path | None = setting(
        None, "write every reply behind the figures as JSONL", OPTIONS, metavar="FILE"
    )


JUDGED = {name: field for name, field in JudgeFlags.model_fields.items() if name != "baseline"}
RANKED = {
    name: field
    for name, field in JudgeFlags.model_fields.items()
    if name not in ("preferences", "questions", "a", "judge")
}


class VoteFlags(Declared):
    """What people vote on, and where."""

    questions: str | None = setting(
        None, "the prompts, if the answers name them by id only", OPTIONS, metavar="Q"
    )
    answers: str | None = setting(
        None, "a model's answers (not needed to continue a run)", OPTIONS, metavar="A"
    )
    against: str | None = setting(None, "the opponent's answers", OPTIONS, metavar="B")
    names: tuple[str, ...] = setting(
        (), "a model's name, in the order of the files; repeat it", OPTIONS, usual="the file's", flag="name",
        metavar="N", repeat=True,
    )  # fmt: skip
    votes: int | None = setting(None, "votes for each pair", OPTIONS, usual="3")
    words: Path | None = setting(
        None, "own criteria and language of the pages (TOML)", OPTIONS, metavar="FILE"
    )
    seed: int | None = setting(None, "seed for assigning answers to left and right", OPTIONS, usual="0")
    port: int = setting(8002, "port; 0 picks a free one", OPTIONS, metavar="P")
    host: str = setting("127.0.0.1", "address to listen on", OPTIONS, metavar="H")
    allow_host: tuple[str, ...] = setting(
        (),
        "name of a proxy that forwards to this page; repeat it",
        OPTIONS,
        metavar="NAME[:PORT]",
        repeat=True,
    )
    mturk: Path | None = setting(
        None, "write a page and a table for Mechanical Turk instead", OPTIONS, metavar="DIR"
    )
    import_: Path | None = setting(
        None, "import Mechanical Turk's results instead", OPTIONS, flag="import", metavar="RESULTS.csv"
    )


app = typer.Typer(name="evaluate", help="Measure models, answers and judges.", no_args_is_help=True)
for command in data_cli.COMMANDS:
    app.command()(command)


@app.callback()
def evaluate() -> None:
    """Measure models, answers and judges."""


@app.command()
@needs("train", purpose="measuring a reward model")
def reward(
    reward: RewardOption,
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="comparisons: pairs, or answers with scores")
    ],
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="only the first N rows")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure how often a reward model prefers the better answer."""
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be greater than 0")
    Pool(data)  # is it there? Told at once: libraries take their time to load
    from trainers.run_folder import read_about

    read_about(reward)
    quieten()
    from trainers.reward_model import run_evaluation

    raise typer.Exit(run_evaluation(reward, data, limit, json, quiet))


@app.command()
@takes(JUDGED, "asked", build=JudgeFlags)
@needs("evaluate", purpose="summing up judges")
def judge(more: MoreArgument = None, json: JsonOption = False, *, asked: JudgeFlags) -> None:
    """Summarize judges: scores, wins, intervals, position bias, agreement."""
    from evaluators.judge.command import run_judge
    from evaluators.tables import outputs

    with outputs(json, csv=asked.csv, rows=asked.rows):
        raise typer.Exit(run_judge(_judged(asked, more), json, asked.csv, asked.rows))


@app.command()
@takes(RANKED, "asked", build=JudgeFlags)
@needs("evaluate", purpose="comparing ranks")
def ranking(more: MoreArgument = None, json: JsonOption = False, *, asked: JudgeFlags) -> None:
    """Show whether answers get worse from rank to rank."""
    from evaluators.judge.command import run_ranking
    from evaluators.tables import outputs

    with outputs(json, csv=asked.csv, rows=asked.rows):
        raise typer.Exit(run_ranking(_judged(asked, more), json, asked.csv, asked.rows))


def _judged(asked: JudgeFlags, more: list[Path] | None) -> "JudgeOptions":
    from evaluators.judge.command import JudgeOptions, with_more

    reviews, preferences = with_more(asked.reviews, asked.preferences, more or [])
    return JudgeOptions(
        reviews, preferences, asked.run, asked.stage, asked.baseline, asked.questions, asked.a, asked.b,
        asked.judge, asked.scores,
    )  # fmt: skip


@app.command()
@needs("evaluate", purpose="counting votes")
def human(
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="the folder that `annotate` made")],
    json: JsonOption = False,
    csv: CsvOption = None,
    votes: Annotated[
        Path | None, typer.Option("--votes", metavar="FILE", help="write every vote that counts as CSV")
    ] = None,
) -> None:
    """Count people's votes by criterion, and how far annotators agree."""
    from evaluators.human import run_human
    from evaluators.tables import outputs

    with outputs(json, csv=csv, votes=votes):
        run_human(run, json, csv, votes)


@takes(VoteFlags.model_fields, "asked", build=VoteFlags)
@needs("evaluate", purpose="the page for annotators")
def annotate(
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="where the votes are kept")],
    *,
    asked: VoteFlags,
) -> None:
    """Let people vote on two models' answers on a web page."""
    from evaluators.annotate.command import Files, run_import, run_mturk, run_page
    from evaluators.annotate.server import ListenAddress

    files = Files(
        asked.questions, asked.answers, asked.against, asked.names, asked.votes, asked.seed, asked.words
    )
    if asked.import_ is not None:
        run_import(run, asked.import_)
    elif asked.mturk is not None:
        run_mturk(files, run, asked.mturk)
    else:
        run_page(files, run, ListenAddress(asked.host, asked.port, asked.allow_host))


def evaluated(what: str, files: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluate WHAT FILES… --json` prints. settings: flags by name, with underscores.
    Raises UsageError."""
    import orjson

    commands: Any = typer.main.get_command(app)
    if what not in commands.commands:
        raise UsageError(f"evaluate {what}: unknown; choose from {', '.join(commands.commands)}")
    command = commands.commands[what]
    flags = {max(p.opts, key=len).lstrip("-").replace("-", "_"): p for p in command.params}
    words = [*files, "--json"]
    for name, value in settings.items():
        if name not in flags:
            raise UsageError(f"evaluate {what} has no setting {name}; it has {', '.join(flags)}")
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, bool):
                words += flags[name].opts if one else flags[name].secondary_opts
            elif one is not None:
                words += [max(flags[name].opts, key=len), str(one)]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            command.main(words, standalone_mode=False)
    except TyperException as error:
        raise UsageError(f"evaluate {what}: {error.format_message()}") from None
    found: dict[str, Any] = orjson.loads(printed.getvalue())
    return found


@needs("evaluate", purpose="a report")
def report(
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="the run folder")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the HTML page")],
    training: Annotated[
        list[Path] | None,
        typer.Option("--training", metavar="DIR", help="folder of a training run elsewhere; repeat it"),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluation",
            metavar="FILE",
            help="output of `evaluate … --json`, besides RUN/evaluations/*.json; repeat it",
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="DIR", help="also write every table as CSV in this folder"),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", help="seed for the rows that are shown [0]", show_default=False),
    ] = 0,
) -> None:
    """Write a report about a run as one HTML page."""
    from evaluators.report.build import run_report

    raise typer.Exit(run_report(run, out, csv, training or [], evaluation or [], seed))
