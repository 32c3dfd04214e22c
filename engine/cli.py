"""`distill`: the command line. Thin: reads flags, calls one function, turns errors into words.

Imports only what `--help` needs; each command imports its own work.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.options import settings_from, with_engine_options
from evaluators.cli import annotate
from evaluators.cli import app as evaluate_app
from evaluators.report.cli import report
from store.errors import DistillError
from trainers.cli import app as train_app
from trainers.cli import rank

app = typer.Typer(
    name="distill",
    help="Distil a strong language model into data and smaller models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train_app)
app.command()(rank)
app.add_typer(evaluate_app)
app.command()(report)
app.command()(annotate)

PoolArgument = Annotated[
    str,
    typer.Argument(
        metavar="POOL", help="JSONL, JSON list, CSV or Parquet, also gzipped; - for standard input"
    ),
]
RunOption = Annotated[Path, typer.Option("--run", metavar="DIR", help="the run folder (made if need be)")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]
ToOption = Annotated[
    str,
    typer.Option(
        "--to", metavar="LANGUAGE", help="the language to translate into [Chinese]", show_default=False
    ),
]
QuestionsOption = Annotated[
    str | None,
    typer.Option("--questions", metavar="Q", help="the prompts, where answers name them by id only"),
]
AnswersOption = Annotated[str, typer.Option("--answers", metavar="A", help="a model's answers")]
AgainstOption = Annotated[str, typer.Option("--against", metavar="B", help="the opponent's answers")]
NameOption = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="N", help="a model's name, in the order of the files [the file's]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
YesOption = Annotated[bool, typer.Option("--yes", help="do not ask whether the cost is fine")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="no progress, no summary when all is done")]


def _print_json(value: Any) -> None:
    import orjson

    sys.stdout.write(orjson.dumps(value).decode() + "\n")


@app.command()
@with_engine_options
def generate(
    pool: PoolArgument,
    run: RunOption,
    yes: YesOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Ask the teacher for an answer to each row of a pool."""
    from engine.collect import collect
    from engine.sources import pool_of

    settings = settings_from(options, "generate")
    raise typer.Exit(collect(settings, pool_of(settings, pool), run, yes, quiet, typer.confirm))


@app.command()
@with_engine_options
def translate(
    pool: PoolArgument,
    run: RunOption,
    to: ToOption = "Chinese",
    field: Annotated[
        str,
        typer.Option("--field", metavar="F", help="instruction (with input) or output [instruction]"),
    ] = "instruction",
    yes: YesOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Put a pool into another language; the export is a pool again."""
    from engine.collect import collect
    from engine.sources import pool_of

    settings = settings_from(options, "translate", to=to, field=field)
    raise typer.Exit(collect(settings, pool_of(settings, pool), run, yes, quiet, typer.confirm))


@app.command()
@with_engine_options
def score(
    answers: Annotated[
        list[str], typer.Argument(metavar="ANSWERS...", help="each model's answers, one file")
    ],
    run: RunOption,
    questions: QuestionsOption = None,
    name: NameOption = None,
    yes: YesOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Have the teacher score the answers of several models to each prompt, 1-10."""
    from engine.collect import collect
    from engine.sources import contests_of

    settings = settings_from(options, "score", names=tuple(name or ()))
    rows = contests_of(settings, answers, questions)
    raise typer.Exit(collect(settings, rows, run, yes, quiet, typer.confirm))


@app.command()
@with_engine_options
def judge(
    answers: AnswersOption,
    against: AgainstOption,
    run: RunOption,
    questions: QuestionsOption = None,
    name: NameOption = None,
    both_orders: Annotated[
        bool, typer.Option("--both-orders", help="ask each question twice, either answer first")
    ] = False,
    language: Annotated[
        str | None,
        typer.Option("--language", metavar="L", help="of the reviewer's prompts: English or Chinese"),
    ] = None,
    yes: YesOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Have the teacher rate two models' answers to each question, 1-10 each."""
    from engine.collect import collect
    from engine.sources import contests_of

    own = {"names": tuple(name or ()), "both_orders": both_orders, "language": language}
    settings = settings_from(options, "judge", **own)
    rows = contests_of(settings, [answers, against], questions)
    raise typer.Exit(collect(settings, rows, run, yes, quiet, typer.confirm))


@app.command()
@with_engine_options
def compare(
    answers: AnswersOption,
    against: AgainstOption,
    run: RunOption,
    questions: QuestionsOption = None,
    name: NameOption = None,
    yes: YesOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Have the teacher say which of two models' answers is better, in both orders."""
    from engine.collect import collect
    from engine.sources import contests_of

    settings = settings_from(options, "compare", names=tuple(name or ()), both_orders=True)
    rows = contests_of(settings, [answers, against], questions)
    raise typer.Exit(collect(settings, rows, run, yes, quiet, typer.confirm))


@app.command(name="run")
def run_(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="stages as a graph")],
    run: RunOption,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="STAGE", help="only this stage (may be given several times)"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="the plan and its price; asks nothing")] = False,
    json: JsonOption = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", metavar="P", help="Prometheus metrics on loopback; 0 for any"),
    ] = None,
) -> None:
    """Run the stages of a recipe together, each on rows as soon as they are there."""
    from engine.recipes import run_recipe

    raise typer.Exit(
        run_recipe(recipe, run, only or [], dry_run, json, yes, quiet, metrics_port, typer.confirm)
    )


@app.command()
@with_engine_options
def estimate(
    pool: PoolArgument,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="count only what remains of this run"),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", metavar="T", help="generate or translate [generate]", show_default=False)
    ] = "generate",
    to: ToOption = "Chinese",
    pilot: Annotated[
        int | None,
        typer.Option("--pilot", metavar="N", help="ask N rows drawn at random first (needs --run)"),
    ] = None,
    json: JsonOption = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Tell what a pool will cost and how long it will take; asks nothing (but a pilot)."""
    from engine.commands import run_estimate
    from engine.sources import pool_of

    settings = settings_from(options, task, to=to)
    found = pool_of(settings, pool)
    raise typer.Exit(run_estimate(settings, found, run, pilot, json, yes, quiet, typer.confirm))


@app.command()
def status(run: RunArgument, json: JsonOption = False) -> None:
    """Tell what a run has done, what failed and why, and what it cost."""
    from engine.status import status_of

    found = status_of(run)
    if json:
        _print_json(found)
        return
    from engine.show import print_status

    print_status(found)


@app.command()
def retry(
    run: RunArgument,
    cause: Annotated[
        str | None,
        typer.Option("--cause", metavar="C", help="only rows that failed for this cause"),
    ] = None,
    stage: Annotated[str | None, typer.Option("--stage", metavar="S", help="only this stage")] = None,
) -> None:
    """Make failed rows due again; the next `generate` asks them."""
    from engine.commands import run_retry

    run_retry(run, cause, stage)


@app.command()
def export(
    run: RunArgument,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="F",
            help="alpaca, chat or parquet; of scores: comparisons or scores; of a judge: reviews",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="a name in .json is a JSON list, else JSONL"),
    ],
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="S", help="[the only one]", show_default=False)
    ] = None,
    outcome: Annotated[
        str, typer.Option("--outcome", metavar="O,O", help="[stop,length]", show_default=False)
    ] = "stop,length",
    min_margin: Annotated[
        float, typer.Option("--min-margin", metavar="M", help="of comparisons: least difference of scores")
    ] = 0.0,
) -> None:
    """Write the answers as a data set: a line for each row with an answer, in pool order."""
    from engine.exports import run_export

    run_export(run, format, out, stage, outcome, min_margin)


@app.command(name="import")
@with_engine_options
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="rows in Alpaca's shape, with `output`")],
    run: RunOption,
    *,
    options: dict[str, Any],
) -> None:
    """Take in answers that were paid for elsewhere, so that they are not bought again."""
    from engine.commands import run_import

    raise typer.Exit(run_import(settings_from(options, "generate"), file, run))


@app.command()
def browse(
    run: RunArgument,
    port: Annotated[
        int, typer.Option("--port", metavar="P", help="[8001]; 0 for any", show_default=False)
    ] = 8001,
) -> None:
    """Look at the ledger in a browser: Datasette, on loopback, read-only."""
    from engine.browse.server import run_browse

    run_browse(run, port)


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="a GGUF file, or smollm2", show_default=False)
    ] = "smollm2",
    port: Annotated[
        int, typer.Option("--port", metavar="P", help="[8080]; 0 for any", show_default=False)
    ] = 8080,
    parallel: Annotated[
        int,
        typer.Option("--parallel", metavar="N", help="requests at once [16]", show_default=False),
    ] = 16,
    scripted: Annotated[
        bool,
        typer.Option("--scripted", help="no model: replies by simple rules, for trying roles out"),
    ] = False,
    latency: Annotated[
        float,
        typer.Option(
            "--latency", metavar="S", help="seconds before a scripted reply [0]", show_default=False
        ),
    ] = 0.0,
) -> None:
    """Serve a small model behind the OpenAI chat API, on loopback."""
    if scripted:
        from engine.scripted.server import run_scripted

        run_scripted(port, latency)
        return
    from engine.serve import run_server

    run_server(model, port, parallel)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="[runs/demo]", show_default=False)] = Path(
        "runs/demo"
    ),
) -> None:
    """Everything, small and offline, on the embedded teacher: a minute."""
    from engine.demo import run_demo

    raise typer.Exit(run_demo(out))


def main() -> None:
    """Errors of ours become a sentence and their exit code; a broken pipe is the reader's choice."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # before a run handles both itself
    try:
        app(prog_name="distill")
    except DistillError as error:
        from engine.terminal import plain

        print(f"distill: {plain(str(error), 1000)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
