"""The commands that take the engine's settings: they ask a teacher, or tell what asking would cost.

Thin: each reads flags and calls one function. `engine/cli/app.py` makes commands of them. Imports only
what `--help` needs; each command imports its own work.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from engine.cli.options import JsonOption, takes, takes_settings
from engine.collect.build_settings import checked, engine_fields, settings_from
from engine.collect.setting_fields import Declared, setting
from engine.environment import OPENAI_KEY, check_key

OPTIONS = "Options"


class Asking(Declared):
    """What every command has that asks a teacher."""

    run: Path = setting(..., "run folder; it is created if it does not exist", OPTIONS, metavar="DIR")
    yes: bool = setting(False, "do not ask whether the cost is acceptable", OPTIONS)
    quiet: bool = setting(False, "show no progress, and no summary if all rows succeed", OPTIONS)


class Estimating(Asking):
    run: Path | None = setting(None, "count only what remains of this run", OPTIONS, metavar="DIR")  # type: ignore[assignment]


asks = takes(Asking.model_fields, "asked", build=Asking)

PoolArgument = Annotated[
    str,
    typer.Argument(
        metavar="POOL", help="JSONL, JSON list, CSV or Parquet, gzipped or not; - for standard input"
    ),
]
AnswersOption = Annotated[str, typer.Option("--answers", metavar="A", help="a model's answers")]
AgainstOption = Annotated[str, typer.Option("--against", metavar="B", help="the opponent's answers")]
QuestionsOption = Annotated[
    str | None,
    typer.Option("--questions", metavar="Q", help="the prompts, if the answers name them by id only"),
]


@takes_settings("generate")
@asks
def generate(pool: PoolArgument, *, asked: Asking, options: dict[str, Any]) -> None:
    """Ask the teacher for an answer to each row of a pool."""
    _collect_pool("generate", pool, asked, options)


@takes_settings("translate")
@asks
def translate(pool: PoolArgument, *, asked: Asking, options: dict[str, Any]) -> None:
    """Translate a pool into another language; the export is a pool again."""
    _collect_pool("translate", pool, asked, options)


def _collect_pool(task: str, pool: str, asked: Asking, options: dict[str, Any]) -> None:
    from engine.collect.rows import pool_of
    from engine.run.collect import collect

    check_key(options.get("api_key_env", OPENAI_KEY))
    settings = settings_from(options, task)
    rows = pool_of(settings, pool)
    raise typer.Exit(collect(settings, rows, asked.run, asked.yes, asked.quiet, typer.confirm))


def _collect_contests(
    task: str, answers: list[str], questions: str | None, asked: Asking, options: dict[str, Any], **own: Any
) -> None:
    from engine.collect.rows import contests_of
    from engine.run.collect import collect

    check_key(options.get("api_key_env", OPENAI_KEY))
    settings = settings_from(options, task, **own)
    rows = contests_of(settings, answers, questions)
    raise typer.Exit(collect(settings, rows, asked.run, asked.yes, asked.quiet, typer.confirm))


@takes_settings("score")
@asks
def score(
    answers: Annotated[
        list[str], typer.Argument(metavar="ANSWERS...", help="each model's answers, one file each")
    ],
    questions: QuestionsOption = None,
    *,
    asked: Asking,
    options: dict[str, Any],
) -> None:
    """Score the answers of several models to each prompt, 1-10."""
    _collect_contests("score", answers, questions, asked, options)


@takes_settings("judge")
@asks
def judge(
    answers: AnswersOption,
    against: AgainstOption,
    questions: QuestionsOption = None,
    *,
    asked: Asking,
    options: dict[str, Any],
) -> None:
    """Rate two models' answers to each question, 1-10 each."""
    _collect_contests("judge", [answers, against], questions, asked, options)


@takes_settings("compare")
@asks
def compare(
    answers: AnswersOption,
    against: AgainstOption,
    questions: QuestionsOption = None,
    *,
    asked: Asking,
    options: dict[str, Any],
) -> None:
    """Say which of two models' answers is better, in both orders."""
    _collect_contests("compare", [answers, against], questions, asked, options, both_orders=True)


@takes_settings("generate", "reuse", "replace", "metrics_port")
@asks
def run_(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="a TOML file of stages and steps")],
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="only this stage or step; repeat it")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the plan and its price; send nothing")
    ] = False,
    json: JsonOption = False,
    *,
    asked: Asking,
    options: dict[str, Any],
) -> None:
    """Run a recipe: its stages side by side, and steps such as training."""
    from engine.collect.settings import Settings
    from engine.recipe.run import How, run_recipe
    from engine.recipe.steps import commands_of

    told = checked(Settings, engine_fields("generate"), {"model": "the recipe's", **options})
    how = How(asked.yes, asked.quiet, told.metrics_port, typer.confirm, told.reuse, told.replace)
    commands = commands_of(context.find_root().command)
    raise typer.Exit(run_recipe(recipe, asked.run, commands, only or [], dry_run, json, how))


@takes_settings("estimate")
@takes(Estimating.model_fields, "asked", build=Estimating)
def estimate(
    pool: Annotated[
        str, typer.Argument(metavar="POOL", help="JSONL, JSON list, CSV or Parquet file, gzipped or not")
    ],
    task: Annotated[
        Literal["generate", "translate"],
        typer.Option("--task", help="the task to price [generate]", show_default=False),
    ] = "generate",
    pilot: Annotated[
        int | None,
        typer.Option("--pilot", metavar="N", help="send N rows drawn at random first (needs --run)"),
    ] = None,
    json: JsonOption = False,
    *,
    asked: Estimating,
    options: dict[str, Any],
) -> None:
    """Estimate what a pool will cost and how long it will take."""
    from engine.collect.rows import pool_of
    from engine.run.collect import run_estimate, run_pilot
    from store.pool import rereadable

    settings, sent = settings_from(options, task), 0
    with rereadable(pool) as file:
        rows = pool_of(settings, file)
        if pilot is not None:
            sent = run_pilot(settings, rows, asked.run, pilot, asked.yes, asked.quiet, typer.confirm)
        raise typer.Exit(run_estimate(settings, rows, asked.run, sent, json))


@takes_settings("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="rows in Alpaca's shape, with `output`")],
    run: Annotated[
        Path, typer.Option("--run", metavar="DIR", help="run folder; it is created if it does not exist")
    ],
    *,
    options: dict[str, Any],
) -> None:
    """Import answers that were paid for elsewhere."""
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
