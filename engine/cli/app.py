"""`distill`: the command line. Thin: reads flags, calls one function, turns errors into words.

The commands that take the engine's flags are in ask.py, the others here. Imports only what
`--help` needs; each command imports its own work.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from engine import __version__
from engine.cli.ask import ASKING
from engine.cli.crash_report import Unexpected
from engine.cli.options import JsonOption
from engine.terminal import outlive_the_terminal, plain, stop_on_signals, tell
from evaluators.cli import annotate, report
from evaluators.cli import app as evaluate_app
from store.errors import DistillError, UsageError
from trainers.cli import app as train_app
from trainers.cli import rank

# In the order of the work: before asking, asking, after it, training, evaluation.
COMMANDS = (
    "estimate", "generate", "translate", "score", "compare", "judge", "run", "import",
    "status", "failures", "browse", "retry", "settle", "check", "export",
    "train", "rank", "serve", "evaluate", "annotate", "report", "demo",
)  # fmt: skip


class InOrder(typer.core.TyperGroup):
    """The commands as `--help` lists them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=COMMANDS.index)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"distill {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="distill",
    cls=InOrder,
    help="Distil a strong language model into data and smaller models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def distill(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit"),
    ] = False,
) -> None:
    """Distil a strong language model into data and smaller models."""


app.add_typer(train_app)
app.command()(rank)
app.add_typer(evaluate_app)
app.command()(report)
app.command()(annotate)

for name, command in ASKING.items():
    app.command(name)(command)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]
OnlyStage = Annotated[str | None, typer.Option("--stage", metavar="S", help="only this stage")]
OnlyCause = Annotated[
    str | None, typer.Option("--cause", metavar="C", help="only rows that failed for this cause")
]


def _print_json(value: Any) -> None:
    import orjson

    sys.stdout.write(orjson.dumps(value).decode() + "\n")


@app.command()
def status(run: RunArgument, json: JsonOption = False) -> None:
    """Tell what a run has done, what failed and why, and what it cost."""
    from engine.run.status import failed_alike, status_of

    found = status_of(run)
    if json:
        _print_json(found)
        return
    from engine.run.tables import print_status

    print_status(found, run, failed_alike(run, found))


@app.command()
def failures(
    run: RunArgument,
    stage: OnlyStage = None,
    cause: OnlyCause = None,
    json: JsonOption = False,
) -> None:
    """List the rows that failed, each with the server's message."""
    from engine.run.status import list_failures

    list_failures(run, stage, cause, json)


@app.command()
def retry(
    run: RunArgument,
    cause: OnlyCause = None,
    stage: OnlyStage = None,
) -> None:
    """Make failed rows pending again; the next `generate` sends them."""
    from engine.cli.commands import run_retry

    run_retry(run, cause, stage)


@app.command()
def check(
    run: RunArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="make damaged answers pending again; nothing is thrown away")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check that the ledger is intact, and say what is damaged and what that costs."""
    from engine.check.command import run_check

    raise typer.Exit(run_check(run, repair, json))


@app.command()
def settle(
    run: RunArgument,
    lost: Annotated[bool, typer.Option("--lost", help="they were not billed: nothing is at risk")] = False,
    billed: Annotated[
        bool, typer.Option("--billed", help="they were billed: book the most that they can cost")
    ] = False,
    usd: Annotated[
        float | None, typer.Option("--usd", metavar="X", help="they were billed, X dollars together")
    ] = None,
    stage: OnlyStage = None,
    id: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="only this row; repeat it for more")
    ] = None,
    attempt: Annotated[
        list[int] | None, typer.Option("--attempt", metavar="N", help="only this attempt; repeat it for more")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List requests that may have been billed without an answer, or say what became of them."""
    from engine.run.settle import run_settle

    run_settle(run, lost, billed, usd, stage, id or (), attempt or (), json)


@app.command()
def export(
    run: RunArgument,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help=".jsonl, .json, .csv or .parquet, also .gz; or -")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="F",
            help="alpaca, chat, parquet or candidates (for rank); of scores: comparisons or scores; "
            "of a judge: reviews [by the name of the file, and by the task]",
            show_default=False,
        ),
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="S", help="[the only one]", show_default=False)
    ] = None,
    outcome: Annotated[
        str, typer.Option("--outcome", metavar="O,O", help="[stop,length]", show_default=False)
    ] = "stop,length",
    min_margin: Annotated[
        float, typer.Option("--min-margin", metavar="M", help="of comparisons: least difference of scores")
    ] = 0.0,
    reasoning: Annotated[
        str,
        typer.Option(
            "--reasoning",
            metavar="R",
            help="thinking before answers: drop, keep (a field of its own) or inline (before the answer, in "
            "<think> marks) [drop]",
            show_default=False,
        ),
    ] = "drop",
    all_settings: Annotated[
        bool,
        typer.Option("--all-settings", help="answers under all settings, not only those of the last run"),
    ] = False,
) -> None:
    """Write the answers as a data set: a line for each row with an answer, in pool order."""
    from engine.export import run_export

    code = run_export(run, format, out, stage, outcome, min_margin, reasoning, all_settings)
    raise typer.Exit(code)


@app.command()
def browse(
    run: RunArgument,
    port: Annotated[
        int, typer.Option("--port", metavar="P", help="[8001]; 0 for any", show_default=False)
    ] = 8001,
) -> None:
    """Look at the ledger in a browser: Datasette, on loopback, read-only."""
    from engine.browse.app import run_browse

    run_browse(run, port)


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="smollm2, a GGUF file or a transformers folder", show_default=False
        ),
    ] = "smollm2",
    port: Annotated[
        int, typer.Option("--port", metavar="P", help="[8080]; 0 for any", show_default=False)
    ] = 8080,
    parallel: Annotated[
        int,
        typer.Option("--parallel", metavar="N", help="answers at once [16]", show_default=False),
    ] = 16,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="P",
            help="of a folder: bf16 or fp32 [bf16 where the processor has it]; only in fp32 on a CPU does a "
            "seed give the same answer whatever else is asked at the same time",
            show_default=False,
        ),
    ] = None,
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
    if scripted and precision:
        raise UsageError("--precision is for a transformers folder; a scripted teacher has none")
    if scripted:
        from engine.serve.scripted_server import run_scripted

        run_scripted(port, latency)
        return
    from engine.serve.llama import run_server

    run_server(model, port, parallel, precision)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="[runs/demo]", show_default=False)] = Path(
        "runs/demo"
    ),
) -> None:
    """Run every command once, small and offline, on the embedded teacher: a few minutes."""
    from engine.cli.demo import run_demo

    raise typer.Exit(run_demo(out))


def _run_app() -> None:
    try:
        app(prog_name="distill")
    except SystemExit:
        sys.stdout.flush()  # here, where a broken pipe is still heard of
        raise


def main() -> None:
    """Errors of ours become a sentence and their exit code, all others exit code 4 and a file with the
    traceback; a broken pipe is the reader's choice."""
    stop_on_signals()
    outlive_the_terminal()
    unexpected = Unexpected(sys.argv[1:], os.environ)
    unexpected.watch()
    try:
        _run_app()
    except DistillError as error:
        tell(f"distill: {plain(str(error), 1000)}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what ends already need not be interrupted
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except SystemExit:
        raise
    except BaseException as error:
        sys.exit(unexpected.say(error))
