"""A recipe's course: in each phase stages are asked together, then the steps that waited for them run.

What is lost (a step that failed, a stage that was stopped) takes with it what needs it; the rest goes on.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.collect.settings import Settings
from engine.recipe.completeness import Completeness
from engine.recipe.plan import plan_stages, settle, unserved
from engine.recipe.schema import OfStep, Recipe
from engine.recipe.stages import Graph, Served
from engine.recipe.step_runner import run_step
from engine.recipe.steps import Step, left_by
from engine.run.build import Job, StageJob, StageResult
from engine.run.collect import SURVEY_SECONDS, Confirm, ask_leave_for, budget_warning, sum_of
from engine.run.control import Control
from engine.run.estimate import Estimate
from engine.run.session import run_job
from engine.run.tables import print_plan
from engine.serve.launch import ServingFailed, served
from engine.terminal import tell
from store.errors import DistillError
from store.key_index import known_keys
from store.step_records import StepResult


@dataclass(frozen=True, slots=True)
class How:
    """What the command line, or a program, says of how to run. control: of the program, which has started
    this thread."""

    yes: bool
    quiet: bool
    metrics_port: int | None
    confirm: Confirm
    reuse: bool = False
    replace: bool = False
    control: Control | None = None


@dataclass(slots=True)
class Course:
    """What has come of a recipe so far. lost: what came to no good end, and why; incomplete: of these what
    still has rows to come, in words that follow its name. agreed: stages whose answers under other
    settings are to be asked again, as somebody at a terminal has said."""

    results: dict[str, StageResult] = field(default_factory=dict)
    steps: dict[str, StepResult] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    incomplete: dict[str, str] = field(default_factory=dict)
    agreed: set[str] = field(default_factory=set)
    codes: list[int] = field(default_factory=list)

    def waits(self, recipe: Recipe, name: str) -> bool:
        """Whether what comes before it is lost; then it is, too."""
        if above := [one for one in recipe.needs(name) if one in self.lost]:
            words = f"needs {above[0]}"
            if above[0] in self.incomplete:
                words += f", which {self.incomplete[above[0]]}"
                self.incomplete[name] = words
            self.lose(name, f"it {words}")
        return bool(above)

    def lose(self, name: str, why: str, code: int = 0) -> None:
        self.lost[name] = why
        self.codes.append(code)

    def take(self, recipe: Recipe, job: StageJob, result: StageResult) -> None:
        """How a stage has ended. One whose rows come of a stage that is incomplete is so itself, though
        all that could be asked has its answer."""
        name = job.settings.stage
        self.results[name] = result
        self.codes.append(result.exit_code)
        if result.exit_code not in (0, 1):
            self.incomplete[name] = _pending(result)
            self.lose(name, "it was stopped early")
        elif above := [one for one in recipe.upstream(name) if one in self.incomplete]:
            self.incomplete[name] = f"reads {above[0]}, which {self.incomplete[above[0]]}"
            self.lose(name, f"it {self.incomplete[name]}", 3 if job.lacking else 0)

    @property
    def waiting(self) -> dict[str, str]:
        """What was not begun, and why."""
        begun = self.results.keys() | self.steps.keys()
        return {name: why for name, why in self.lost.items() if name not in begun}

    @property
    def is_interrupted(self) -> bool:
        return 130 in self.codes

    @property
    def exit_code(self) -> int:
        """The weightiest: interrupted, stopped early, bad input, failed rows or steps, done."""
        return next((code for code in (130, 3, 2, 1) if code in self.codes), max(self.codes, default=0))


def run_phases(
    recipe: Recipe, chosen: Sequence[str], steps: Mapping[str, Step], run: Path, how: How, course: Course
) -> None:
    """Stages together, then the steps that were waiting for them, until nobody waits any more."""
    stages = [name for name in chosen if name in recipe.stage]
    phases = recipe.phases
    for phase in range(max((phases[name] for name in chosen), default=-1) + 1):
        now = [name for name in chosen if phases[name] == phase]
        stages_now = [name for name in now if name in recipe.stage]
        _ask(recipe, stages_now, stages, steps, run, how, course, phase == 0)
        for name in now:
            if name in steps and not steps[name].is_last:
                _step(recipe, steps[name], run, how, course)
    for name in chosen:
        if name in steps and steps[name].is_last:
            _step(recipe, steps[name], run, how, course)


def _ask(
    recipe: Recipe,
    now: Sequence[str],
    every: Sequence[str],
    steps: Mapping[str, Step],
    run: Path,
    how: How,
    course: Course,
    is_first: bool,
) -> None:
    """One phase's stages. Before the first, leave is asked for `every` stage of the recipe."""
    ready = [name for name in now if not course.waits(recipe, name)]
    if course.is_interrupted or not (ready or (is_first and every)):
        return
    with _serving(recipe, ready, run, course) as own:
        ready = [name for name in ready if name not in course.lost]
        graph = Graph(recipe, run, own, course.agreed)
        _find_incomplete(graph, ready, steps, run, course)
        later = None if is_first else _later(graph, ready, run, how, course)
        jobs = _with_leave(graph, ready, every, run, how, course) if later is None else later
        results = _run(jobs, recipe, run, how) if jobs else []
    for job, result in zip(jobs, results, strict=False):
        course.take(recipe, job, result)


def _pending(result: StageResult) -> str:
    state = result.state
    pending = (state.total or 0) - state.done - state.failed.total()
    return (
        f"is incomplete: {pending:,} of {state.total:,} rows are pending" if pending > 0 else "is incomplete"
    )


def _find_incomplete(
    graph: Graph, ready: Sequence[str], steps: Mapping[str, Step], run: Path, course: Course
) -> None:
    """Of the stages that these read and that do not run now: those which still have rows to come."""
    above = {one for name in ready for one in graph.recipe.upstream(name)}
    if above := above.difference(ready, course.results):
        complete = Completeness(graph, steps, run, known_keys(run))
        for name in sorted(above):
            if lack := complete.lack(name):
                graph.incomplete.add(name)
                course.incomplete[name] = f"is incomplete: {lack.words}"


def _step(recipe: Recipe, step: Step, run: Path, how: How, course: Course) -> None:
    if course.is_interrupted or course.waits(recipe, step.name):
        return
    result = run_step(recipe, step, run, how.quiet, how.control)
    course.steps[step.name] = result
    if result.state in ("failed", "interrupted"):
        course.lose(step.name, result.why, result.exit_code)


def _with_leave(
    graph: Graph, ready: Sequence[str], every: Sequence[str], run: Path, how: How, course: Course
) -> list[StageJob]:
    """The stages that can be asked now, when leave was given for all."""
    course.agreed.update(settle(graph, every, how.confirm, how.quiet))
    planned = plan_stages(graph, every, run, known_keys(run), SURVEY_SECONDS)
    if not how.quiet:
        print_plan(planned, graph.recipe.budget)
        costs = [told.cost_as_asked(job.settings.batch) for job, told in planned.values()]
        cost = sum_of([one for one in costs if one])
        if warning := budget_warning(run, graph.recipe.budget, cost):
            tell(f"{warning}\n")
    ask_leave_for([(_capped(job), told) for job, told in planned.values()], how.yes, how.confirm)
    return [_estimated(*planned[name]) for name in ready]


def _later(graph: Graph, ready: Sequence[str], run: Path, how: How, course: Course) -> list[StageJob]:
    """The stages of a later phase; one that cannot be is lost, and the others go on."""
    index, jobs = known_keys(run), []
    for name in ready:
        try:
            course.agreed.update(settle(graph, [name], how.confirm, how.quiet))
            jobs += [
                _estimated(*one) for one in plan_stages(graph, [name], run, index, SURVEY_SECONDS).values()
            ]
        except DistillError as error:
            course.lose(name, str(error), error.exit_code)
    return [job for job in jobs if not course.waits(graph.recipe, job.settings.stage)]


def _estimated(job: StageJob, told: Estimate) -> StageJob:
    return replace(job, estimate=told)


@contextlib.contextmanager
def _serving(recipe: Recipe, names: Sequence[str], run: Path, course: Course) -> Iterator[Served]:
    """Starts the teachers that the recipe serves itself, and stops them in the end. Where a step's
    model cannot be served, those who would ask it are lost."""
    with contextlib.ExitStack() as stack:
        own = unserved(recipe, run)
        for teacher in dict.fromkeys(recipe.stage[name].teacher for name in names):
            serve = recipe.teacher[teacher].serve
            if serve is None:
                continue
            what = left_by(run, serve, recipe.step[serve.step].run) if isinstance(serve, OfStep) else serve
            try:
                own[teacher] = stack.enter_context(served(str(what), run / f"teacher-{teacher}.log"))
            except ServingFailed as error:
                if not isinstance(serve, OfStep):
                    raise
                for name in names:
                    if recipe.stage[name].teacher == teacher:
                        course.lose(name, str(error), error.exit_code)
        yield own


def _run(chosen: Sequence[StageJob], recipe: Recipe, run: Path, how: How) -> list[StageResult]:
    knob = "budget in the recipe"
    index, budget = known_keys(run), recipe.budget
    return run_job(Job(chosen, run, index, budget, how.quiet, how.metrics_port, knob, how.control))


def _capped(job: StageJob) -> Settings:
    """The stage's settings with the cap that it is under, its own or that of all."""
    cap = job.settings.budget if job.cap is None else job.cap
    return job.settings.model_copy(update={"budget": cap})
