"""The library: what the commands do, as calls from Python, for notebooks and programs.

    import distill

    result = distill.generate("pool.jsonl", run="runs/mine", model="gpt-5.1", budget=50)
    for row in distill.answers(result):
        ...

A call takes the settings of its command under the same names, with underscores. What the command line would
refuse raises the same sentence as a `DistillError`; it names the flag (`--price-in` is `price_in=`). Nothing
is asked on the terminal. docs/library.md has examples.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine import __version__
from engine.library import (
    Imported,
    Name,
    RecipeResult,
    Result,
    Rows,
    Shown,
    ask_about,
    ask_pool,
    beside,
    estimated,
    imported,
    recipe_ran,
    with_settings,
)
from engine.run.estimate import Estimate
from engine.run.job import Progress
from engine.run_calls import (
    answers,
    check,
    export,
    failures,
    retry,
    settle,
    status,
    to_dataset,
    to_pandas,
    unconfirmed,
)
from store.errors import (
    DistillError,
    MissingExtra,
    PoolError,
    RunFolderError,
    StorageError,
    UsageError,
    require,
)

if TYPE_CHECKING:
    from engine.recipe.steps import Commands
    from trainers.config import Training

__all__ = [
    "DistillError", "Estimate", "Imported", "MissingExtra", "PoolError", "Progress", "RecipeResult", "Result",
    "RunFolderError", "StorageError", "UsageError", "__version__", "acompare", "aestimate", "agenerate",
    "ajudge", "answers", "arun", "ascore", "atranslate", "check", "compare", "estimate", "evaluate", "export",
    "failures", "generate", "import_answers", "judge", "plan", "rank", "report", "retry", "run", "score",
    "settle", "status", "to_dataset", "to_pandas", "train_distill", "train_dpo", "train_reward",
    "train_rl", "train_sft", "translate", "unconfirmed",
]  # fmt: skip


@with_settings
def estimate(
    pool: Rows,
    *,
    model: str,
    task: Literal["generate", "translate"] = "generate",
    run: Name | None = None,
    pilot: int | None = None,
    yes: bool = False,
    progress: Shown = True,
    **settings: Any,
) -> Estimate:
    """Estimates what a pool will cost and how long it will take; with `run`, what remains of it.
    pilot: first sends this many rows, drawn at random; their answers are kept in `run`."""
    folder = Path(run) if run is not None else None
    return estimated(task, pool, folder, pilot, yes, progress, {"model": model, **settings})


@with_settings
def generate(
    pool: Rows, *, run: Name, model: str, yes: bool = False, progress: Shown = True, **settings: Any
) -> Result:
    """Asks the teacher for an answer to each row of a pool."""
    return ask_pool("generate", pool, run, yes, progress, {"model": model, **settings})


@with_settings
def translate(
    pool: Rows, *, run: Name, model: str, yes: bool = False, progress: Shown = True, **settings: Any
) -> Result:
    """Translates a pool into another language (`to`); what it exports is a pool again."""
    return ask_pool("translate", pool, run, yes, progress, {"model": model, **settings})


@with_settings
def score(
    answers: Sequence[Rows] | Mapping[str, Rows],
    *,
    run: Name,
    model: str,
    questions: Rows | None = None,
    yes: bool = False,
    progress: Shown = True,
    **settings: Any,
) -> Result:
    """Scores the answers of several models to each prompt, 1-10. answers: by the models' names, or files that
    are called by them."""
    if isinstance(answers, Mapping):
        settings = {"names": tuple(answers), **settings}
        answers = list(answers.values())
    given = {"model": model, **settings}
    return ask_about("score", answers, questions, run, yes, progress, given)


@with_settings
def compare(
    answers: Rows,
    against: Rows,
    *,
    run: Name,
    model: str,
    questions: Rows | None = None,
    yes: bool = False,
    progress: Shown = True,
    **settings: Any,
) -> Result:
    """Says which of two models' answers is better, in both orders."""
    given = {"model": model, **settings}
    return ask_about("compare", [answers, against], questions, run, yes, progress, given, both_orders=True)


@with_settings
def judge(
    answers: Rows,
    against: Rows,
    *,
    run: Name,
    model: str,
    questions: Rows | None = None,
    yes: bool = False,
    progress: Shown = True,
    **settings: Any,
) -> Result:
    """Rates two models' answers to each question, 1-10 each."""
    given = {"model": model, **settings}
    return ask_about("judge", [answers, against], questions, run, yes, progress, given)


def run(
    recipe: Name,
    *,
    run: Name,
    only: Sequence[str] = (),
    yes: bool = False,
    reuse: bool = False,
    replace: bool = False,
    metrics_port: int | None = None,
    progress: Shown = True,
) -> RecipeResult:
    """Runs a recipe: its stages side by side, and steps such as training. only: these stages and steps.
    Raises what has stopped a stage, or kept a step from its end; the same call continues it."""
    how = {"yes": yes, "reuse": reuse, "replace": replace, "metrics_port": metrics_port}
    return recipe_ran(Path(recipe), Path(run), _commands(), only, progress, **how)


def plan(recipe: Name, *, run: Name, only: Sequence[str] = ()) -> dict[str, Any]:
    """What a recipe will cost, and which of its files are missing: as `run --dry-run --json` prints it."""
    from engine.recipe.plan import plan_recipe

    return plan_recipe(Path(recipe), Path(run), _commands(), only).as_json()


def _commands() -> "Commands":
    """What the steps of a recipe can be."""
    import typer.main

    from engine.cli.app import app
    from engine.recipe.steps import commands_of

    return commands_of(typer.main.get_command(app))


aestimate, agenerate, atranslate = beside(estimate), beside(generate), beside(translate)
ascore, acompare, ajudge, arun = beside(score), beside(compare), beside(judge), beside(run)


@with_settings
def import_answers(answers: Rows, *, run: Name, model: str, **settings: Any) -> Imported:
    """Imports answers that were paid for elsewhere: rows in Alpaca's shape, with `output`."""
    return imported(answers, Path(run), {"model": model, **settings})


def train_sft(
    data: Name, *, model: str, out: Name, resume: bool = False, quiet: bool = False, **settings: Any
) -> Path:
    """Fine-tunes a student on instructions and answers; returns its folder. settings: docs/settings.md."""
    from trainers.config import SftRecipe

    return _train(SftRecipe, {"data": data, "model": model, "out": out, **settings}, resume, quiet)


def train_reward(
    data: Name, *, model: str, out: Name, resume: bool = False, quiet: bool = False, **settings: Any
) -> Path:
    """Trains a reward model on comparisons of answers; returns its folder. settings: docs/settings.md."""
    from trainers.config import RewardRecipe

    return _train(RewardRecipe, {"data": data, "model": model, "out": out, **settings}, resume, quiet)


def train_dpo(
    data: Name, *, model: str, out: Name, resume: bool = False, quiet: bool = False, **settings: Any
) -> Path:
    """Trains a student on preferences (`loss="dpo"`, ipo, kto, orpo, simpo); returns its folder."""
    from trainers.trl_config import DpoRecipe

    return _train(DpoRecipe, {"data": data, "model": model, "out": out, **settings}, resume, quiet)


def train_rl(
    data: Name,
    *,
    model: str,
    reward: str,
    out: Name,
    resume: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Path:
    """Trains a student on a reward (a folder of `train_reward`, or a function's name); returns its folder."""
    from trainers.trl_config import RlRecipe

    given = {"data": data, "model": model, "reward": reward, "out": out, **settings}
    return _train(RlRecipe, given, resume, quiet)


def train_distill(
    data: Name, *, model: str, out: Name, resume: bool = False, quiet: bool = False, **settings: Any
) -> Path:
    """Trains a student on probabilities (of `teacher=`, or in the rows); returns its folder."""
    from trainers.trl_config import DistillRecipe

    return _train(DistillRecipe, {"data": data, "model": model, "out": out, **settings}, resume, quiet)


def _train(kind: "type[Training]", given: dict[str, Any], resume: bool, quiet: bool) -> Path:
    from trainers.cli import run_training
    from trainers.config import recipe_from

    run_training(recipe_from(kind, given, None), resume, quiet)
    return Path(given["out"])


def rank(
    reward: Name, candidates: Name, out: Name, *, split: Name | None = None, quiet: bool = False
) -> Path:
    """Ranks candidates with a reward model, the best first; returns the file."""
    from trainers.cli import run_ranking

    run_ranking(Path(reward), Path(candidates), Path(out), Path(split) if split else None, quiet)
    return Path(out)


def evaluate(what: str, *files: Name, **settings: Any) -> dict[str, Any]:
    """What `distill evaluate WHAT FILES… --json` prints: `evaluate("lengths", "a.jsonl", field="output")`."""
    from evaluators.cli import evaluated

    return evaluated(what, [os.fspath(file) for file in files], settings)


def report(
    run: Name,
    out: Name,
    *,
    csv: Name | None = None,
    training: Sequence[Name] = (),
    evaluation: Sequence[Name] = (),
    seed: int = 0,
) -> Path:
    """Writes a report about a run as one HTML page; returns the file. Options as those of the command."""
    require("evaluate", purpose="a report")
    from evaluators.report.build import run_report

    trainings, evaluations = [*map(Path, training)], [*map(Path, evaluation)]
    run_report(Path(run), Path(out), Path(csv) if csv else None, trainings, evaluations, seed)
    return Path(out)
