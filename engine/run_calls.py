"""The calls of the library (distill.py) about a run folder that is there: what came of it, and what is to be
sent again. `run` is the folder, or the result of a call, which stands for its stage as well."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engine.library import Name, stage_of_result
from store.errors import UsageError

if TYPE_CHECKING:
    import datasets
    import pandas

    from engine.run.unanswered import Retried
    from store.costs import Settled


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


def retry(run: Name, stage: str | None = None, *, cause: str | None = None) -> "Retried":
    """Makes failed rows pending again: the next run of the same call sends them."""
    from engine.run.unanswered import retry

    return retry(Path(run), cause, stage_of_result(run, stage))


def check(run: Name, *, repair: bool = False) -> dict[str, Any]:
    """Whether a ledger is intact, and what is damaged: as `check --json` prints it. repair: damaged answers
    become pending again; nothing is deleted."""
    from engine.check.command import check

    return check(Path(run), repair).as_json()


def unconfirmed(
    run: Name, stage: str | None = None, *, id: Sequence[str] = (), attempt: Sequence[int] = ()
) -> dict[str, Any]:
    """The requests that may have been billed without an answer: as `settle --json` prints them."""
    from engine.run.unanswered import Settlement, unconfirmed

    asked = Settlement(stage=stage_of_result(run, stage), id=id, attempt=attempt)
    return unconfirmed(Path(run), asked)


def settle(
    run: Name,
    stage: str | None = None,
    *,
    lost: bool = False,
    billed: bool = False,
    usd: float | None = None,
    id: Sequence[str] = (),
    attempt: Sequence[int] = (),
) -> "Settled":
    """Settles such requests, all or those of these rows or attempts. lost: they were not billed; billed: they
    were, at the most they can have cost; usd: they were billed so much together."""
    from engine.run.unanswered import Settlement, settle

    return settle(Path(run), Settlement(lost, billed, usd, stage_of_result(run, stage), id, attempt))
