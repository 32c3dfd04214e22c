"""How a call of the library (distill.py) becomes a run: settings by name, rows from anywhere, the thread.

A run has a thread and a loop of its own, so that it can be called where a loop is running: in a notebook. The
public names and what they mean are in distill.py.
"""

import contextlib
import difflib
import functools
import inspect
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from engine.collect.build_settings import engine_fields, settings_from
from engine.collect.setting_fields import DEFAULTS
from engine.environment import OPENAI_KEY, check_key
from engine.run.estimate import Estimate
from engine.run.job import Control, Progress, in_thread, in_thread_async
from store.errors import DistillError, UsageError
from store.pool import rereadable, spooled
from store.run_folder import StepResult

if TYPE_CHECKING:
    from engine.collect.rows import Surveyed
    from engine.collect.settings import Settings
    from engine.recipe.steps import Commands
    from engine.run.job import StageResult

Name = str | os.PathLike[str]  # of a file or folder; a Result stands for its run folder
Rows = Name | Iterable[Mapping[str, Any]]  # a file, or rows: dicts, a pandas.DataFrame, a datasets.Dataset
Shown = bool | Callable[[Progress], object]  # as on the command line, nothing, or this call now and then

P = ParamSpec("P")
T = TypeVar("T")

_CONTROL: ContextVar[Control | None] = ContextVar("control", default=None)  # where an async call has begun


@dataclass(frozen=True)
class Result:
    """How a stage ended. It stands for its run folder and stage wherever a run is asked for.

    done: answers that are stored, also those of earlier calls. failed: rows without an answer, by cause.
    cost_usd, seconds: of this call. estimate: what was foreseen; None where rows were not counted before."""

    run: Path
    stage: str
    done: int
    failed: Mapping[str, int]
    bad_rows: int
    cost_usd: float
    seconds: float
    estimate: Estimate | None = field(default=None, repr=False)

    def __fspath__(self) -> str:
        return str(self.run)


@dataclass(frozen=True)
class Imported:
    """What became of a file's rows. It stands for its run folder and stage wherever a run is asked for.

    taken: answers that are stored now. known: the same answer was there. others: not imported, because the
    request has another answer. empty: rows without an answer. pending: rows of the stage that have none."""

    run: Path
    stage: str
    taken: int
    known: int
    others: int
    empty: int
    bad_rows: int
    pending: int

    def __fspath__(self) -> str:
        return str(self.run)


@dataclass(frozen=True)
class RecipeResult:
    """How a recipe ended: its stages and its steps, by name."""

    run: Path
    stages: Mapping[str, Result]
    steps: Mapping[str, StepResult]

    def __fspath__(self) -> str:
        return str(self.run)


def beside(call: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The same call for a coroutine: it does not hold up its event loop. Being cancelled, it stops the run in
    good order first, which takes at most some seconds."""

    @functools.wraps(call)
    async def beside(*args: P.args, **values: P.kwargs) -> T:
        control = Control()

        def work() -> T:
            _CONTROL.set(control)
            return call(*args, **values)

        return await in_thread_async(work, control)

    beside.__name__ = beside.__qualname__ = f"a{call.__name__}"
    return beside


def with_settings(call: Callable[P, T]) -> Callable[P, T]:
    """The settings that a call takes by name, in its help and signature, where notebooks look for them."""
    name, shown = call.__name__.removesuffix("_answers"), inspect.signature(call)
    own = [p for p in shown.parameters.values() if p.kind is not p.VAR_KEYWORD]
    usuals = {"stage": name, **DEFAULTS[name]} if name in DEFAULTS else {}
    lent, lines = [], []
    for key, setting in engine_fields(name).items():
        if key in shown.parameters:
            continue
        usual = usuals.get(key, setting.default)
        annotation = setting.annotation or Any
        lent.append(
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=usual, annotation=annotation)
        )
        lines.append(f"    {key}: {setting.description}")
    call.__signature__ = shown.replace(parameters=[*own, *lent])  # type: ignore[attr-defined]
    call.__doc__ = "\n".join([call.__doc__ or "", "", "settings:", *lines])
    return call


def stage_of_result(run: Name, stage: str | None) -> str | None:
    return run.stage if stage is None and isinstance(run, Result | Imported) else stage


def checked_settings(task: str, given: Mapping[str, Any], call: str = "", **own: Any) -> "Settings":
    """As the command of this name would understand its flags. What is None is not given. Raises
    UsageError."""
    given = {name: value for name, value in given.items() if value is not None}
    known = engine_fields(call or task)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.75)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise UsageError(f"{call or task} has no setting {name}; {hint}")
    return settings_from(given, task, **own)


def _settings_to_ask(task: str, given: Mapping[str, Any], **own: Any) -> "Settings":
    settings = checked_settings(task, given, **own)
    check_key(given.get("api_key_env") or OPENAI_KEY)
    return settings


def ask_pool(
    task: str, pool: Rows, run: Name, yes: bool, progress: Shown, given: Mapping[str, Any]
) -> Result:
    from engine.collect.rows import pool_of

    settings = _settings_to_ask(task, given)
    with spooled(pool, "pool") as file:
        return _asked(settings, pool_of(settings, file), run, yes, progress)


def ask_about(
    task: str,
    answers: Sequence[Rows],
    questions: Rows | None,
    run: Name,
    yes: bool,
    progress: Shown,
    given: Mapping[str, Any],
    **own: Any,
) -> Result:
    from engine.collect.rows import contests_of

    settings = _settings_to_ask(task, given, **own)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(spooled(rows, f"answers{n}")) for n, rows in enumerate(answers, 1)]
        asked = None if questions is None else stack.enter_context(spooled(questions, "questions"))
        return _asked(settings, contests_of(settings, files, asked), run, yes, progress)


def _asked(settings: "Settings", rows: "Surveyed", run: Name, yes: bool, progress: Shown) -> Result:
    from engine.run.collect import run_stage

    def work(control: Control) -> Result:
        found = run_stage(settings, rows, Path(run), yes, progress is not True, control=control)
        if found.stopped:
            raise found.stopped
        return _result(Path(run), settings.stage, found)

    return _apart(work, progress)


def _apart(work: Callable[[Control], T], progress: Shown) -> T:
    """In another thread than the caller's, whose loop and signals are its own."""
    control, is_apart = _CONTROL.get() or Control(), _CONTROL.get() is not None
    control.on_progress = progress if callable(progress) else None
    return work(control) if is_apart else in_thread(lambda: work(control), control)


def _result(run: Path, stage: str, found: "StageResult") -> Result:
    state = found.state
    return Result(
        run, stage, state.done, dict(+state.failed), state.bad_rows, state.cost_micro / 1e6, found.seconds,
        found.estimate,
    )  # fmt: skip


def estimated(
    task: str,
    pool: Rows,
    run: Path | None,
    pilot: int | None,
    yes: bool,
    progress: Shown,
    given: Mapping[str, Any],
) -> Estimate:
    from engine.collect.rows import pool_of
    from engine.run.collect import estimate_stage, run_pilot

    settings, sent = checked_settings(task, given, "estimate"), 0
    with spooled(pool, "pool") as given_file, rereadable(given_file) as file:
        rows = pool_of(settings, file)
        if pilot is not None:
            check_key(given.get("api_key_env") or OPENAI_KEY)

            def work(control: Control) -> int:
                return run_pilot(settings, rows, run, pilot, yes, progress is not True, control=control)

            sent = _apart(work, progress)
        return estimate_stage(settings, rows, run, sent)[0]


def imported(answers: Rows, run: Path, given: Mapping[str, Any]) -> Imported:
    from engine.run.import_answers import import_answers

    settings = checked_settings("generate", given, "import")
    with spooled(answers, "answers") as file:
        found = _apart(lambda control: import_answers(settings, file, run, control), False)
    counts = found.counts
    return Imported(
        run, settings.stage, counts.taken, counts.known, counts.others, counts.empty, counts.bad,
        found.pending,
    )  # fmt: skip


def recipe_ran(
    recipe: Path, run: Path, commands: "Commands", only: Sequence[str], progress: Shown, **how: Any
) -> RecipeResult:
    """how: what phases.How has beside. Raises what has stopped a stage, or kept a step from its end."""
    from engine.recipe.run import How, take_course

    def work(control: Control) -> RecipeResult:
        asked = How(quiet=progress is not True, confirm=None, control=control, **how)
        course = take_course(recipe, run, commands, only, asked)
        for found in course.results.values():
            if found.stopped:
                raise found.stopped
        if course.lost:
            raise DistillError("; ".join(f"{name}: {why}" for name, why in course.lost.items()))
        stages = {name: _result(run, name, found) for name, found in course.results.items()}
        return RecipeResult(run, stages, course.steps)

    return _apart(work, progress)
