"""The commands that take the engine's flags: they ask a teacher, or tell what asking would cost.

Thin: each reads flags and calls one function. `engine/cli/app.py` makes commands of them. Imports only
what `--help` needs; each command imports its own work.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.options import JsonOption, lend, settings_from, with_engine_options
from engine.environment import check_key

PoolArgument = Annotated[
    str,
    typer.Argument(
        metavar="POOL", help="JSONL, JSON list, CSV or Parquet, also gzipped; - for standard input"
    ),
]
RunOption = Annotated[Path, typer.Option("--run", metavar="DIR", help="the run folder (made if need be)")]
ToOption = Annotated[
    str,
    typer.Option(
        "--to", metavar="LANGUAGE", help="the language to translate into [Chinese]", show_default=False
    ),
]
AnswersOption = Annotated[str, typer.Option("--answers", metavar="A", help="a model's answers")]
AgainstOption = Annotated[str, typer.Option("--against", metavar="B", help="the opponent's answers")]
YesOption = Annotated[bool, typer.Option("--yes", help="do not ask whether the cost is fine")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="no progress, no summary when all is done")]


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
    from engine.collect.rows import pool_of
    from engine.run.collect import collect

    check_key(options["api_key_env"])
    settings = settings_from(options, "generate")
    raise typer.Exit(collect(settings, pool_of(settings, pool), run, yes, quiet, typer.confirm))


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
    from engine.collect.rows import pool_of
    from engine.run.collect import collect

    check_key(options["api_key_env"])
    settings = settings_from(options, "translate", to=to, field=field)
    raise typer.Exit(collect(settings, pool_of(settings, pool), run, yes, quiet, typer.confirm))


def contest_options(
    run: RunOption,
    questions: Annotated[
        str | None,
        typer.Option("--questions", metavar="Q", help="the prompts, where answers name them by id only"),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="N", help="a model's name, in the order of the files [the file's]"),
    ] = None,
    yes: YesOption = False,
    quiet: QuietOption = False,
) -> None:
    """Of commands that read models' answers; only its signature is used."""


with_contest_options = lend(contest_options, "asked")


def _collect_contests(
    task: str, answers: list[str], asked: dict[str, Any], options: dict[str, Any], **own: Any
) -> None:
    from engine.collect.rows import contests_of
    from engine.run.collect import collect

    check_key(options["api_key_env"])
    settings = settings_from(options, task, names=tuple(asked["name"] or ()), **own)
    rows = contests_of(settings, answers, asked["questions"])
    raise typer.Exit(collect(settings, rows, asked["run"], asked["yes"], asked["quiet"], typer.confirm))


@with_engine_options
@with_contest_options
def score(
    answers: Annotated[
        list[str], typer.Argument(metavar="ANSWERS...", help="each model's answers, one file")
    ],
    *,
    asked: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Have the teacher score the answers of several models to each prompt, 1-10."""
    _collect_contests("score", answers, asked, options)


@with_engine_options
@with_contest_options
def judge(
    answers: AnswersOption,
    against: AgainstOption,
    both_orders: Annotated[
        bool, typer.Option("--both-orders", help="ask each question twice, either answer first")
    ] = False,
    language: Annotated[
        str | None,
        typer.Option("--language", metavar="L", help="of the reviewer's prompts: English or Chinese"),
    ] = None,
    *,
    asked: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Have the teacher rate two models' answers to each question, 1-10 each."""
    own = {"both_orders": both_orders, "language": language}
    _collect_contests("judge", [answers, against], asked, options, **own)


@with_engine_options
@with_contest_options
def compare(
    answers: AnswersOption,
    against: AgainstOption,
    *,
    asked: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Have the teacher say which of two models' answers is better, in both orders."""
    _collect_contests("compare", [answers, against], asked, options, both_orders=True)


def run_(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="stages and steps as a graph")],
    run: RunOption,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="only this stage or step (may be given several times)"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="the plan and its price; asks nothing")] = False,
    json: JsonOption = False,
    yes: YesOption = False,
    reuse: Annotated[
        bool,
        typer.Option("--reuse", help="keep the answers that stages have under other settings"),
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="ask rows with such an answer again")] = False,
    quiet: QuietOption = False,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", metavar="P", help="Prometheus metrics on loopback; 0 for any"),
    ] = None,
) -> None:
    """Run a recipe: stages together, each on rows as soon as they are there, and steps on whole files."""
    from engine.recipe.phases import How
    from engine.recipe.run import run_recipe
    from engine.recipe.steps import commands_of

    how = How(yes, quiet, metrics_port, typer.confirm, reuse, replace)
    commands = commands_of(context.find_root().command)
    raise typer.Exit(run_recipe(recipe, run, commands, only or [], dry_run, json, how))


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
    from engine.cli.commands import run_estimate
    from engine.collect.rows import pool_of
    from store.pool import rereadable

    settings = settings_from(options, task, to=to)
    with rereadable(pool) as file:
        found = pool_of(settings, file)
        raise typer.Exit(run_estimate(settings, found, run, pilot, json, yes, quiet, typer.confirm))


@with_engine_options
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="rows in Alpaca's shape, with `output`")],
    run: RunOption,
    *,
    options: dict[str, Any],
) -> None:
    """Take in answers that were paid for elsewhere, so that they are not bought again."""
    from engine.run.import_answers import run_import

    raise typer.Exit(run_import(settings_from(options, "generate"), file, run))


ASKING = {
    "generate": generate,
    "translate": translate,
    "score": score,
    "judge": judge,
    "compare": compare,
    "run": run_,
    "estimate": estimate,
    "import": import_,
}
