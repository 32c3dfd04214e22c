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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine import __version__
from engine.library import (
    Name,
    Result,
    Rows,
    Shown,
    ask_about,
    ask_pool,
    beside,
    checked_settings,
    stage_of_result,
    with_settings,
)
from engine.run.estimate import Estimate
from engine.run.job import Progress
from store.errors import DistillError, MissingExtra, PoolError, RunFolderError, StorageError, UsageError
from store.extras import require
from store.pool import rereadable, spooled

if TYPE_CHECKING:
    import datasets
    import pandas

    from trainers.config import RewardRecipe, SftRecipe

__all__ = [
    "DistillError", "Estimate", "MissingExtra", "PoolError", "Progress", "Result", "RunFolderError",
    "StorageError", "UsageError", "__version__", "acompare", "aestimate", "agenerate", "ajudge", "answers",
    "ascore", "atranslate", "compare", "estimate", "evaluate", "export", "failures", "generate",
    "judge", "rank", "report", "score", "status", "to_dataset", "to_pandas", "train_reward", "train_sft",
    "translate",
]  # fmt: skip


@with_settings
def estimate(
    pool: Rows,
    *,
    model: str,
    task: Literal["generate", "translate"] = "generate",
    run: Name | None = None,
    **settings: Any,
) -> Estimate:
    """Tells what a pool will cost and how long it will take; with `run`, what remains of it."""
    from engine.collect.rows import pool_of
    from engine.run.collect import estimate_stage

    given = checked_settings(task, {"model": model, **settings}, "estimate")
    folder = Path(run) if run is not None else None
    with spooled(pool, "pool") as given_file, rereadable(given_file) as file:
        return estimate_stage(given, pool_of(given, file), folder)[0]


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


aestimate, agenerate, atranslate = beside(estimate), beside(generate), beside(translate)
ascore, acompare, ajudge = beside(score), beside(compare), beside(judge)


def answers(
    run: Name,
    stage: str | None = None,
    *,
    format: str | None = None,
    outcome: str = "stop,length",
    min_margin: float = 0.0,
    reasoning: Literal["drop", "keep", "inline"] = "drop",
    all_settings: bool = False,
) -> Iterator[dict[str, Any]]:
    """The answers of a stage, in the order of the pool, one by one: the rows that `export` writes."""
    from engine.answers import answers_of

    stage = stage_of_result(run, stage)
    return answers_of(Path(run), stage, format, outcome, min_margin, reasoning, all_settings)


def to_pandas(run: Name, stage: str | None = None, **how: Any) -> "pandas.DataFrame":
    """The same as a DataFrame."""
    try:
        import pandas
    except ImportError:
        raise UsageError("to_pandas needs pandas, which is not installed: pip install pandas") from None
    return pandas.DataFrame(list(answers(run, stage, **how)))


def to_dataset(run: Name, stage: str | None = None, **how: Any) -> "datasets.Dataset":
    """The same as a Dataset of Hugging Face's."""
    try:
        import datasets
    except ImportError:
        raise UsageError("to_dataset needs datasets, which is not installed: pip install datasets") from None
    return datasets.Dataset.from_list(list(answers(run, stage, **how)))


def export(
    run: Name,
    out: Name,
    stage: str | None = None,
    *,
    format: str | None = None,
    outcome: str = "stop,length",
    min_margin: float = 0.0,
    reasoning: Literal["drop", "keep", "inline"] = "drop",
    all_settings: bool = False,
) -> int:
    """Writes the answers as a data set, in the form that the file's name asks for; returns how many rows."""
    from engine.export import ExportOptions, export_stage

    stage = stage_of_result(run, stage)
    chosen = ExportOptions(format, stage, outcome, min_margin, reasoning, all_settings)
    return export_stage(Path(run), Path(out), chosen).rows


def status(run: Name) -> dict[str, Any]:
    """What a run has done, what failed and why, and what it cost: as `status --json` prints it."""
    from engine.run.status import status_of

    return status_of(Path(run))


def failures(run: Name, stage: str | None = None, *, cause: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows that failed, each with the server's message: as `failures --json` prints them."""
    from engine.run.status import failures_of

    return map(asdict, failures_of(Path(run), stage_of_result(run, stage), cause))


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


def _train(
    kind: "type[SftRecipe] | type[RewardRecipe]", given: dict[str, Any], resume: bool, quiet: bool
) -> Path:
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
