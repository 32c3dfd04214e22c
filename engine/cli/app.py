"""`distill`: the command line. Thin: reads flags, calls one function, turns errors into sentences.

The commands that take the engine's flags are in ask.py, the others here. Imports only what
`--help` needs; each command imports its own work.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import __version__
from engine.cli.ask import ASKING, OPTIONS
from engine.cli.crash_report import Unexpected
from engine.cli.options import JsonOption, PanelCommand, PanelGroup, takes
from engine.collect.setting_fields import Declared, setting
from engine.terminal import outlive_the_terminal, plain, stop_on_signals, tell
from evaluators.cli import annotate, report
from evaluators.cli import app as evaluate_app
from store.errors import DistillError, MissingExtra, UsageError, require
from trainers.cli import app as train_app
from trainers.cli import rank

PANELS = {  # in the order of the work
    "Ask a teacher": ("estimate", "generate", "translate", "score", "compare", "judge", "run", "import"),
    "Look after a run": ("status", "failures", "browse", "retry", "settle", "check", "export"),
    "Train and serve": ("train", "rank", "serve"),
    "Evaluate": ("evaluate", "annotate", "report"),
    "Try it": ("demo",),
}
COMMANDS = tuple(name for names in PANELS.values() for name in names)


class InOrder(PanelGroup):
    """The commands as `--help` lists them."""

    def list_commands(self, ctx: Any) -> list[str]:
        for panel, names in PANELS.items():
            for name in names:
                self.commands[name].rich_help_panel = panel  # type: ignore[attr-defined]
        return list(COMMANDS)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"distill {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="distill",
    cls=InOrder,
    help="Distill a strong language model into data and smaller models.",
    no_args_is_help=True,
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
    """Distill a strong language model into data and smaller models."""


app.add_typer(train_app, cls=PanelGroup)
app.command()(rank)
app.add_typer(evaluate_app, cls=PanelGroup)
app.command()(report)
app.command()(annotate)

for name, command in ASKING.items():
    app.command(name)(command)

RunOption = Annotated[Path, typer.Option("--run", metavar="DIR", help="the run folder")]
StageOption = Annotated[str | None, typer.Option("--stage", metavar="S", help="only this stage")]
OnlyCause = Annotated[
    str | None, typer.Option("--cause", metavar="C", help="only rows that failed with this cause")
]


@app.command()
def status(run: RunOption, json: JsonOption = False) -> None:
    """Show what a run has done, what failed and why, and what it cost."""
    from engine.run.status import failed_alike, status_of

    found = status_of(run)
    if json:
        import orjson

        sys.stdout.write(orjson.dumps(found).decode() + "\n")
        return
    from engine.run.status import print_status

    print_status(found, run, failed_alike(run, found))


@app.command()
def failures(
    run: RunOption,
    stage: StageOption = None,
    cause: OnlyCause = None,
    json: JsonOption = False,
) -> None:
    """List the rows that failed, each with the server's message."""
    from engine.run.status import list_failures

    list_failures(run, stage, cause, json)


@app.command()
def retry(
    run: RunOption,
    cause: OnlyCause = None,
    stage: StageOption = None,
) -> None:
    """Let the next run of the same command send failed rows again."""
    from engine.run.unanswered import run_retry

    run_retry(run, cause, stage)


@app.command()
def check(
    run: RunOption,
    repair: Annotated[
        bool, typer.Option("--repair", help="make damaged answers pending again; nothing is deleted")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check whether the ledger is intact, and show what is damaged."""
    from engine.check.command import run_check

    raise typer.Exit(run_check(run, repair, json))


class SettleFlags(Declared):
    """What became of requests, and of which."""

    lost: bool = setting(False, "they were not billed", OPTIONS)
    billed: bool = setting(False, "they were billed: book the most that they can have cost", OPTIONS)
    usd: float | None = setting(None, "they were billed: X dollars in total", OPTIONS)
    stage: str | None = setting(None, "only this stage", OPTIONS, metavar="S")
    id: tuple[str, ...] = setting((), "only this row; repeat it", OPTIONS, metavar="ID", repeat=True)
    attempt: tuple[int, ...] = setting((), "only this attempt; repeat it", OPTIONS, metavar="N", repeat=True)


@app.command()
@takes(SettleFlags.model_fields, "asked", build=SettleFlags)
def settle(run: RunOption, json: JsonOption = False, *, asked: SettleFlags) -> None:
    """List requests that may have been billed without an answer, or settle them."""
    from engine.run.unanswered import Settlement, run_settle

    run_settle(run, Settlement(**asked.model_dump()), json)


class ExportFlags(Declared):
    """What of the answers becomes a data set, and how."""

    stage: str | None = setting(None, "name of the stage", OPTIONS, usual="the only one", metavar="S")
    outcome: str = setting("stop,length", "outcomes to export", OPTIONS, metavar="O,O")
    min_margin: float = setting(0.0, "comparisons: least difference between the scores", OPTIONS, metavar="M")
    reasoning: str = setting(
        "drop",
        "thinking before answers: drop, keep (in a field of its own) or inline (before them in <think>)",
        OPTIONS,
        metavar="R",
    )
    all_settings: bool = setting(False, "answers under all settings, not only those of the last run", OPTIONS)


@app.command()
@takes(ExportFlags.model_fields, "asked", build=ExportFlags)
def export(
    run: RunOption,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help=".jsonl, .json, .csv or .parquet, also .gz; or -")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="F",
            help="alpaca, chat, parquet or candidates (for rank); for score and compare: comparisons, "
            "for score also scores; for judge: reviews [by the file's name and the task]",
            show_default=False,
        ),
    ] = None,
    *,
    asked: ExportFlags,
) -> None:
    """Write the answers as a data set, in the order of the pool."""
    from engine.export import ExportOptions, run_export

    raise typer.Exit(run_export(run, out, ExportOptions(format, **asked.model_dump())))


@app.command()
def browse(
    run: RunOption,
    port: Annotated[
        int, typer.Option("--port", metavar="P", help="port; 0 picks a free one [8001]", show_default=False)
    ] = 8001,
) -> None:
    """Look at a run in the browser: answers, failures, costs."""
    from store.queries import connect_reader

    connect_reader(run).close()
    require("browse", purpose="browse")
    from engine.browse.app import run_browse

    run_browse(run, port)


class ServeFlags(Declared):
    """How a model is served."""

    port: int = setting(8080, "port; 0 picks a free one", OPTIONS, metavar="P")
    parallel: int = setting(16, "answers generated at the same time", OPTIONS, metavar="N")
    precision: str | None = setting(
        None,
        "transformers folder: bf16 or fp32; on a CPU, only fp32 gives the same answer to a seed",
        OPTIONS,
        usual="bf16; fp32 on a CPU without it, or if the model is in fp32",
        metavar="P",
    )
    scripted: bool = setting(False, "reply by simple rules, without a model, to try things out", OPTIONS)
    latency: float = setting(0.0, "seconds before a scripted reply", OPTIONS, metavar="S")


@app.command()
@takes(ServeFlags.model_fields, "asked", build=ServeFlags)
def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="smollm2, a GGUF file or a transformers folder", show_default=False
        ),
    ] = "smollm2",
    *,
    asked: ServeFlags,
) -> None:
    """Serve a small model with the OpenAI chat API, on loopback."""
    if asked.scripted and asked.precision:
        raise UsageError("--precision is for a transformers folder; a scripted teacher has none")
    if asked.scripted:
        from engine.serve.scripted_teacher import run_scripted

        run_scripted(asked.port, asked.latency)
        return
    from engine.serve.command import run_server

    run_server(model, asked.port, asked.parallel, asked.precision)


@app.command()
def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="folder for everything it makes [runs/demo]", show_default=False
        ),
    ] = Path("runs/demo"),
) -> None:
    """Run every command once, small and offline, in a few minutes."""
    from engine.cli.demo import run_demo

    raise typer.Exit(run_demo(out))


for group in (app, train_app, evaluate_app):
    for info in group.registered_commands:
        info.cls = PanelCommand


def main() -> None:
    """Errors of ours become a sentence and their exit code, all others exit code 4 and a file with the
    traceback; a broken pipe is the reader's choice."""
    stop_on_signals()
    outlive_the_terminal()
    unexpected = Unexpected(sys.argv[1:], os.environ)
    unexpected.watch()
    try:
        try:
            app(prog_name="distill")
        except SystemExit as ended:
            sys.stdout.flush()  # here, where a broken pipe is still heard of
            # typer makes an exit of it, in silence
            if isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
    except DistillError as error:
        if isinstance(error, MissingExtra):
            from engine.environment import start_again

            start_again(error)
        tell(f"distill: {plain(str(error), 1000)}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what ends already need not be interrupted
        tell("distill: interrupted; run the same command again\n")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except SystemExit:
        raise
    except BaseException as error:
        sys.exit(unexpected.say(error))
