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
from store.errors import DistillError

app = typer.Typer(
    name="distill",
    help="Distil a strong language model into data and smaller models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PoolArgument = Annotated[
    str,
    typer.Argument(
        metavar="POOL", help="JSONL, JSON list, CSV or Parquet, also gzipped; - for standard input"
    ),
]
RunOption = Annotated[Path, typer.Option("--run", metavar="DIR", help="the run folder (made if need be)")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]
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
    from engine.collect import generate as collect

    settings = settings_from(options, "generate")
    raise typer.Exit(collect(settings, pool, run, yes, quiet, typer.confirm))


@app.command()
@with_engine_options
def estimate(
    pool: PoolArgument,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="count only what remains of this run"),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", metavar="T", help="[generate]", show_default=False)
    ] = "generate",
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

    settings = settings_from(options, _known_task(task))
    raise typer.Exit(run_estimate(settings, pool, run, pilot, json, yes, quiet, typer.confirm))


def _known_task(task: str) -> str:
    from store.errors import UsageError

    if task != "generate":
        raise UsageError(f"--task {task}: unknown; there is: generate")
    return task


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
    format: Annotated[str, typer.Option("--format", metavar="F", help="alpaca, chat or parquet")],
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
) -> None:
    """Write the answers as a data set: a line for each pool row with an answer, in pool order."""
    from engine.commands import run_export

    run_export(run, format, out, stage, outcome)


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
    port: Annotated[int, typer.Option("--port", metavar="P", help="[8001]", show_default=False)] = 8001,
) -> None:
    """Open the ledger in Datasette, on loopback, read-only."""
    from engine.commands import run_browse

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
) -> None:
    """Serve a small model behind the OpenAI chat API, on loopback."""
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
