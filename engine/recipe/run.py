"""`distill run`: prices a recipe's stages, asks for leave, runs them and the steps, says what came of it.

In each phase stages are asked together, then the steps that waited for them run. What is lost (a step that
failed, a stage that was stopped) takes with it what needs it; the rest continues.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import orjson

from engine.provider.errors import Incomplete
from engine.recipe.load import chosen_of, load, with_choice
from engine.recipe.plan import (
    Completeness,
    plan_recipe,
    plan_stages,
    print_dry_run,
    settle,
    unserved,
)
from engine.recipe.schema import OfStep, Recipe
from engine.recipe.stages import Graph, Served
from engine.recipe.step_runner import run_step
from engine.recipe.steps import Commands, Step, extras_for, left_by, steps_of
from engine.run.collect import SURVEY_SECONDS, Confirm, ask_leave_for, budget_warning, sum_of
from engine.run.job import Control, Job, StageJob, StageResult
from engine.run.results import bill_json, print_bad_rows, print_results
from engine.run.session import run_job
from engine.run.tables import print_plan, print_steps
from engine.subprocesses import ServingFailed, served
from engine.terminal import plain, tell
from store.errors import DistillError, require
from store.key_index import known_keys
from store.run_folder import StepResult, held
from store.schema import connect_writer


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
    """A recipe in a run folder, and what has come of it so far. lost: what came to no good end, and why;
    incomplete: of these what still has rows to come, in words that follow its name. agreed: stages whose
    answers under other settings are to be asked again, as somebody at a terminal has said."""

    recipe: Recipe
    known_steps: Mapping[str, Step]
    run: Path
    how: How
    results: dict[str, StageResult] = field(default_factory=dict)
    steps: dict[str, StepResult] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    incomplete: dict[str, str] = field(default_factory=dict)
    agreed: set[str] = field(default_factory=set)
    codes: list[int] = field(default_factory=list)

    def waits(self, name: str) -> bool:
        """Whether what comes before it is lost; then it is, too."""
        if above := [one for one in self.recipe.needs(name) if one in self.lost]:
            words = f"needs {above[0]}"
            if above[0] in self.incomplete:
                words += f", which {self.incomplete[above[0]]}"
                self.incomplete[name] = words
            self.lose(name, f"it {words}")
        return bool(above)

    def lose(self, name: str, why: str, code: int = 0) -> None:
        self.lost[name] = why
        self.codes.append(code)

    def take(self, job: StageJob, result: StageResult) -> None:
        """How a stage has ended. One whose rows come of a stage that is incomplete is so itself, though
        all that could be asked has its answer."""
        name, state = job.settings.stage, result.state
        self.results[name] = result
        self.codes.append(result.exit_code)
        if result.exit_code not in (0, 1):
            pending = (state.total or 0) - state.done - state.failed.total()
            count = f": {pending:,} of {state.total:,} rows are pending" if pending > 0 else ""
            self.incomplete[name] = f"is incomplete{count}"
            self.lose(name, "it was stopped early")
        elif above := [one for one in self.recipe.upstream(name) if one in self.incomplete]:
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


def run_recipe(
    file: Path, run: Path, commands: Commands, only: Sequence[str], dry_run: bool, as_json: bool, how: How
) -> int:
    """`run`, as the command line shows it. Returns the exit code."""
    if dry_run:
        plan = plan_recipe(file, run, commands, only, how.reuse, how.replace)
        if as_json:
            sys.stdout.write(orjson.dumps(plan.as_json()).decode() + "\n")
        else:
            print_dry_run(plan)
        return 0
    course = take_course(file, run, commands, only, how)
    if as_json:
        found: dict[str, dict[str, object]] = {}
        for name, result in course.results.items():
            state = result.state
            found[name] = {
                "done": state.done,
                "total": state.total,
                "failed": dict(state.failed),
                "outcomes": dict(state.outcomes),
                "cost_usd": state.cost_micro / 1e6,
                "exit_code": result.exit_code,
                **bill_json(result),
            }
            if name in course.incomplete:
                found[name]["incomplete"] = f"it {course.incomplete[name]}"
        steps = {name: asdict(result) for name, result in course.steps.items()}
        shown = {"stages": found, "steps": steps, "waiting": course.waiting}
        sys.stdout.write(orjson.dumps(shown).decode() + "\n")
    elif not how.quiet or course.exit_code:
        print_results(course.results, run)
        stopped = {name for name, result in course.results.items() if result.stopped}  # said already
        others = {name: why for name, why in course.incomplete.items() if name not in stopped}
        print_steps(course.steps, course.waiting, others)
    print_bad_rows(course.results)
    return course.exit_code


def take_course(file: Path, run: Path, commands: Commands, only: Sequence[str], how: How) -> Course:
    """Runs a recipe. Raises UsageError before anything is asked, and Incomplete where a step would run on a
    part of its data; what becomes of stages and steps is in the result."""
    recipe = with_choice(load(file), how.reuse, how.replace)
    steps, chosen = steps_of(recipe, commands), chosen_of(recipe, run, only)
    require(*extras_for(recipe, steps, chosen), purpose=f"recipe {plain(file.name)}")
    graph = Graph(recipe, run, unserved(recipe, run))
    with held(run):
        connect_writer(run).close()
        # what steps read, or made, must be complete where it does not run now; stages take the rows that
        # are there of others
        sources = {name: recipe.needs(name) if name in steps else recipe.made(name) for name in chosen}
        wanted = {name: [one for one in above if one not in chosen] for name, above in sources.items()}
        pairs = [(name, one) for name, above in wanted.items() for one in above]
        complete = Completeness(graph, steps, run, known_keys(run)) if pairs else None
        for name, one in pairs:
            if complete and (lack := complete.lack(one)):
                through = "" if lack.name == one else f" ({name} needs {one}, which needs {lack.name})"
                raise Incomplete(
                    f"--only {name}: {lack.words}{through}. Run it first, with --only {lack.name}, and what "
                    "comes after it; or run the recipe without --only"
                )
        course = Course(recipe, steps, run, how)
        run_phases(course, chosen)
    return course


def run_phases(course: Course, chosen: Sequence[str]) -> None:
    """Stages together, then the steps that were waiting for them, until nobody waits any more."""
    recipe, steps = course.recipe, course.known_steps
    stages = [name for name in chosen if name in recipe.stage]
    phases = recipe.phases
    for phase in range(max((phases[name] for name in chosen), default=-1) + 1):
        now = [name for name in chosen if phases[name] == phase]
        _ask(course, [name for name in now if name in recipe.stage], stages, phase == 0)
        for name in now:
            if name in steps and not steps[name].is_last:
                _step(course, steps[name])
    for name in chosen:
        if name in steps and steps[name].is_last:
            _step(course, steps[name])


def _ask(course: Course, now: Sequence[str], every: Sequence[str], is_first: bool) -> None:
    """One phase's stages. Before the first, leave is asked for `every` stage of the recipe."""
    recipe, run, how = course.recipe, course.run, course.how
    ready = [name for name in now if not course.waits(name)]
    if course.is_interrupted or not (ready or (is_first and every)):
        return
    with _serving(course, ready) as own:
        ready = [name for name in ready if name not in course.lost]
        graph = Graph(recipe, run, own, course.agreed)
        # of the stages that these read and that do not run now: which still have rows to come?
        above = {one for name in ready for one in graph.recipe.upstream(name)}
        if above := above.difference(ready, course.results):
            complete = Completeness(graph, course.known_steps, run, known_keys(run))
            for name in sorted(above):
                if lack := complete.lack(name):
                    graph.incomplete.add(name)
                    course.incomplete[name] = f"is incomplete: {lack.words}"
        jobs = _with_leave(course, graph, ready, every) if is_first else _later(course, graph, ready)
        results = []
        if jobs:
            knob = "budget in the recipe"
            index, budget = known_keys(run), recipe.budget
            job = Job(jobs, run, index, budget, how.quiet, how.metrics_port, knob, how.control)
            results = run_job(job)
    for job_of_stage, result in zip(jobs, results, strict=False):
        course.take(job_of_stage, result)


def _step(course: Course, step: Step) -> None:
    if course.is_interrupted or course.waits(step.name):
        return
    result = run_step(course.recipe, step, course.run, course.how.quiet, course.how.control)
    course.steps[step.name] = result
    if result.state in ("failed", "interrupted"):
        course.lose(step.name, result.why, result.exit_code)


def _with_leave(course: Course, graph: Graph, ready: Sequence[str], every: Sequence[str]) -> list[StageJob]:
    """The stages that can be asked now, when leave was given for all."""
    run, how = course.run, course.how
    course.agreed.update(settle(graph, every, how.confirm, how.quiet))
    planned = plan_stages(graph, every, run, known_keys(run), SURVEY_SECONDS)
    if not how.quiet:
        print_plan(planned, graph.recipe.budget)
        costs = [told.cost_as_asked(job.settings.batch) for job, told in planned.values()]
        cost = sum_of([one for one in costs if one])
        if warning := budget_warning(run, graph.recipe.budget, cost):
            tell(f"{warning}\n")
    capped = []
    for job, told in planned.values():
        cap = job.settings.budget if job.cap is None else job.cap  # the stage's own, or that of all
        capped.append((job.settings.model_copy(update={"budget": cap}), told))
    ask_leave_for(capped, how.yes, how.confirm)
    return [replace(job, estimate=told) for job, told in (planned[name] for name in ready)]


def _later(course: Course, graph: Graph, ready: Sequence[str]) -> list[StageJob]:
    """The stages of a later phase; one that cannot be is lost, and the others continue."""
    run, how = course.run, course.how
    index, jobs = known_keys(run), []
    for name in ready:
        try:
            course.agreed.update(settle(graph, [name], how.confirm, how.quiet))
            job, told = plan_stages(graph, [name], run, index, SURVEY_SECONDS)[name]
            jobs.append(replace(job, estimate=told))
        except DistillError as error:
            course.lose(name, str(error), error.exit_code)
    return [job for job in jobs if not course.waits(job.settings.stage)]


@contextlib.contextmanager
def _serving(course: Course, names: Sequence[str]) -> Iterator[Served]:
    """Starts the teachers that the recipe serves itself, and stops them in the end. Where a step's
    model cannot be served, those who would ask it are lost."""
    recipe, run = course.recipe, course.run
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
