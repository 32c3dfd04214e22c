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
from store.errors import UsageError
from store.pool import spooled

if TYPE_CHECKING:
    from engine.collect.rows import Surveyed
    from engine.collect.settings import Settings

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
    name, shown = call.__name__, inspect.signature(call)
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
    return run.stage if stage is None and isinstance(run, Result) else stage


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
    """Collects in another thread than the caller's, whose loop and signals are its own."""
    from engine.run.collect import run_stage

    control, is_apart = _CONTROL.get() or Control(), _CONTROL.get() is not None
    control.on_progress = progress if callable(progress) else None

    def work() -> Result:
        found = run_stage(settings, rows, Path(run), yes, progress is not True, control=control)
        if found.stopped:
            raise found.stopped
        state = found.state
        return Result(
            Path(run), settings.stage, state.done, dict(+state.failed), state.bad_rows,
            state.cost_micro / 1e6, found.seconds, found.estimate,
        )  # fmt: skip

    return work() if is_apart else in_thread(work, control)
