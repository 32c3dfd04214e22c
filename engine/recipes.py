"""`distill run`: prices a recipe's stages, asks for leave, runs them together, says what came of it."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import orjson

from engine.collect import SURVEY_SECONDS, ask_leave_for, estimate_pool, known_keys, sum_of
from engine.estimate import Estimate
from engine.graph import Graph, Served
from engine.job import Job, Result, StageJob
from engine.recipe import Recipe, load
from engine.serving import served
from engine.session import run_job
from engine.settings import Settings
from engine.show import print_plan, print_results
from store.errors import UsageError
from store.folder import LEDGER, held
from store.index import KeyIndex
from store.ledger import connect_writer
from store.read import answered, connect_reader, has_other_plan, stages

DRY_SECONDS = 5.0  # of counting for each stage; what is not counted by then is extrapolated
UNSERVED = ("http://127.0.0.1:0/v1", "served")  # of a teacher that a dry run need not start


def run_recipe(
    file: Path,
    run: Path,
    only: Sequence[str],
    dry_run: bool,
    as_json: bool,
    yes: bool,
    quiet: bool,
    metrics_port: int | None,
    confirm: Callable[[str], bool],
) -> int:
    """Returns the exit code; raises UsageError before anything is asked."""
    recipe = load(file)
    chosen = _chosen(recipe, run, only)
    if dry_run:
        planned = _plan(
            Graph(recipe, _unserved(recipe)), chosen, run, known_keys(run), DRY_SECONDS, asks=False
        )
        _show_plan(planned, recipe, as_json)
        return 0
    with held(run):
        connect_writer(run).close()
        with _serving(recipe, chosen, run) as own:
            priced = _priced(Graph(recipe, own), chosen, run, yes, quiet, confirm)
            results = _run(priced, recipe, run, quiet, metrics_port)
    if as_json:
        _print_results(results)
    elif not quiet or any(result.exit_code for result in results.values()):
        print_results(results, run)
    return _exit_code(list(results.values()))


def _chosen(recipe: Recipe, run: Path, only: Sequence[str]) -> list[str]:
    """The stages to run, in order. What they read must run with them, or have run."""
    for name in only:
        if name not in recipe.stage:
            raise UsageError(f"--only {name}: no such stage; there are {', '.join(recipe.stage)}")
    chosen = [name for name in recipe.order if not only or name in only]
    there = _stages_in(run)
    for name in chosen:
        for above in recipe.upstream(name):
            if above not in chosen and above not in there:
                raise UsageError(f"--only {name}: it reads stage '{above}', which has not run in {run} yet")
    return chosen


def _stages_in(run: Path) -> set[str]:
    if not (run / LEDGER).exists():
        return set()
    reader = connect_reader(run)
    try:
        return {name for _, name in stages(reader)}
    finally:
        reader.close()


def _check_rows_of_others(graph: Graph, chosen: Sequence[str], run: Path) -> None:
    """Rows of stages that do not run now are taken as they lie: they must be this recipe's."""
    recipe = graph.recipe
    others = {above for name in chosen for above in recipe.upstream(name)}.difference(chosen)
    others = {name for name in others if not recipe.teacher[recipe.stage[name].teacher].serve}
    if not others:  # (what model is served is not known before it is)
        return
    reader = connect_reader(run)
    try:
        numbers = {name: number for number, name in stages(reader)}
        for name in sorted(others):
            if has_other_plan(reader, numbers[name], graph.fingerprint(name)):
                words = "has answers to other settings than these (model, parameters or prompts)"
                raise recipe.wrong(("stage", name), f"it {words}: run it too, or put them back")
    finally:
        reader.close()


def _unserved(recipe: Recipe) -> dict[str, tuple[str, str]]:
    return {name: UNSERVED for name, teacher in recipe.teacher.items() if teacher.serve}


@contextlib.contextmanager
def _serving(recipe: Recipe, chosen: Sequence[str], run: Path) -> Iterator[Served]:
    """Starts the teachers that the recipe serves itself, and stops them in the end."""
    needed = {recipe.stage[name].teacher for name in chosen}
    with contextlib.ExitStack() as stack:
        own = _unserved(recipe)
        for name, teacher in recipe.teacher.items():
            if teacher.serve and name in needed:
                own[name] = stack.enter_context(served(teacher.serve, run / f"teacher-{name}.log"))
        yield own


def _plan(
    graph: Graph, chosen: Sequence[str], run: Path, index: KeyIndex, seconds: float | None, asks: bool = True
) -> dict[str, tuple[StageJob, Estimate]]:
    _check_rows_of_others(graph, chosen, run)
    planned = {}
    for name in chosen:
        job = graph.job(name, asks)
        stored = answered(run, name) if job.after else 0
        told = estimate_pool(job.settings, graph.imagined(name), run, seconds, index, stored)
        planned[name] = (job, told)
    return planned


def _priced(
    graph: Graph, chosen: Sequence[str], run: Path, yes: bool, quiet: bool, confirm: Callable[[str], bool]
) -> list[StageJob]:
    """The stages with their estimates, when leave was given."""
    planned = _plan(graph, chosen, run, known_keys(run), SURVEY_SECONDS)
    if not quiet:
        print_plan(planned, graph.recipe.budget)
    ask_leave_for([(_capped(job), told) for job, told in planned.values()], yes, confirm)
    return [replace(job, estimate=None if job.after else told) for job, told in planned.values()]


def _run(
    chosen: Sequence[StageJob], recipe: Recipe, run: Path, quiet: bool, metrics_port: int | None
) -> dict[str, Result]:
    knob = "budget in the recipe"
    job = Job(chosen, run, known_keys(run), recipe.budget, quiet, metrics_port, knob)
    names = [stage.settings.stage for stage in chosen]
    return dict(zip(names, run_job(job), strict=True))


def _capped(job: StageJob) -> Settings:
    """The stage's settings with the cap that it is under, its own or that of all."""
    cap = job.settings.budget if job.cap is None else job.cap
    return job.settings.model_copy(update={"budget": cap})


def _show_plan(planned: dict[str, tuple[StageJob, Estimate]], recipe: Recipe, as_json: bool) -> None:
    if not as_json:
        print_plan(planned, recipe.budget, to_stdout=True)
        return
    found = {name: told.as_json() for name, (_, told) in planned.items()}
    total = {"requests": sum(told.requests for _, told in planned.values())}
    costs = [told.cost_usd for _, told in planned.values()]
    known = sum_of([cost for cost in costs if cost is not None])
    shown = {"stages": found, "total": {**total, "cost_usd": None if None in costs else asdict(known)}}
    sys.stdout.write(orjson.dumps(shown).decode() + "\n")


def _print_results(results: dict[str, Result]) -> None:
    found = {name: _as_json(result) for name, result in results.items()}
    sys.stdout.write(orjson.dumps({"stages": found}).decode() + "\n")


def _as_json(result: Result) -> dict[str, object]:
    state = result.state
    return {
        "done": state.done,
        "total": state.total,
        "failed": dict(state.failed),
        "outcomes": dict(state.outcomes),
        "cost_usd": state.cost_micro / 1e6,
        "exit_code": result.exit_code,
    }


def _exit_code(results: Sequence[Result]) -> int:
    """The weightiest: interrupted, stopped early, bad input, failed rows, done."""
    codes = [result.exit_code for result in results]
    return next((code for code in (130, 3, 2, 1) if code in codes), max(codes, default=0))
