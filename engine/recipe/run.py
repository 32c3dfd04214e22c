"""`distill run`: prices a recipe's stages, asks for leave, runs them and the steps, says what came of it."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from engine.provider.errors import Incomplete
from engine.recipe.completeness import Completeness
from engine.recipe.load import load
from engine.recipe.phases import Course, How, run_phases
from engine.recipe.plan import Plan, plan_stages, print_dry_run, unserved, without_missing
from engine.recipe.schema import OfStep, Recipe
from engine.recipe.stages import Graph
from engine.recipe.steps import Commands, Step, steps_of
from engine.run.bills import bill_json
from engine.run.build import StageResult
from engine.run.result_tables import print_bad_rows, print_results
from engine.run.tables import print_steps
from engine.serve.llama import FOR_FOLDERS, extras_of
from engine.terminal import plain
from store.errors import UsageError
from store.extras import require
from store.key_index import known_keys
from store.ledger import connect_writer
from store.queries import connect_reader, stages
from store.run_folder import LEDGER, held
from store.step_records import is_whole, record_of

DRY_SECONDS = 5.0  # of counting for each stage; what is not counted by then is extrapolated


def run_recipe(
    file: Path, run: Path, commands: Commands, only: Sequence[str], dry_run: bool, as_json: bool, how: How
) -> int:
    """`run`, as the command line shows it. Returns the exit code."""
    if dry_run:
        plan = plan_recipe(file, run, commands, only, how)
        if as_json:
            sys.stdout.write(orjson.dumps(plan.as_json()).decode() + "\n")
        else:
            print_dry_run(plan)
        return 0
    course = take_course(file, run, commands, only, how)
    if as_json:
        _print_results(course)
    elif not how.quiet or course.exit_code:
        print_results(course.results, run)
        stopped = {name for name, result in course.results.items() if result.stopped}  # said already
        others = {name: why for name, why in course.incomplete.items() if name not in stopped}
        print_steps(course.steps, course.waiting, others)
    print_bad_rows(course.results)
    return course.exit_code


def plan_recipe(file: Path, run: Path, commands: Commands, only: Sequence[str], how: How) -> Plan:
    """What a recipe will cost; nothing is asked, and files may be missing. Raises UsageError."""
    recipe = with_choice(load(file, may_lack_files=True), how.reuse, how.replace)
    steps, chosen = steps_of(recipe, commands), _chosen(recipe, run, only)
    recipe, missing = without_missing(recipe, chosen)
    graph = Graph(recipe, run, unserved(recipe, run))
    stages = [name for name in chosen if name in recipe.stage]
    planned = plan_stages(graph, stages, run, known_keys(run), DRY_SECONDS, asks=False)
    return Plan(graph, planned, [name for name in chosen if name in steps], missing)


def take_course(file: Path, run: Path, commands: Commands, only: Sequence[str], how: How) -> Course:
    """Runs a recipe. Raises UsageError before anything is asked, and Incomplete where a step would run on a
    part of its data; what becomes of stages and steps is in the result."""
    recipe = with_choice(load(file), how.reuse, how.replace)
    steps, chosen = steps_of(recipe, commands), _chosen(recipe, run, only)
    require(*_extras(recipe, steps, chosen), purpose=f"recipe {plain(file.name)}")
    graph = Graph(recipe, run, unserved(recipe, run))
    with held(run):
        connect_writer(run).close()
        _check_complete(graph, steps, chosen, run)
        course = Course()
        run_phases(recipe, chosen, steps, run, how, course)
    return course


def with_choice(recipe: Recipe, reuse: bool, replace: bool) -> Recipe:
    """The recipe where every stage that says nothing itself keeps its answers under other settings, or
    asks them again. Raises UsageError."""
    if reuse and replace:
        raise UsageError("--reuse keeps answers, --replace asks them again: give one of them")
    update = {"reuse": reuse, "replace": replace}
    stages = {
        name: stage if stage.reuse or stage.replace else stage.model_copy(update=update)
        for name, stage in recipe.stage.items()
    }
    return recipe.model_copy(update={"stage": stages})


def _chosen(recipe: Recipe, run: Path, only: Sequence[str]) -> list[str]:
    """The stages and steps to run, in order. What they need must run with them, or have run."""
    for name in only:
        if name not in recipe.nodes:
            raise UsageError(f"--only {name}: no such stage or step; there are {', '.join(recipe.nodes)}")
    chosen = [name for name in recipe.nodes if not only or name in only]
    there = _stages_in(run)
    for name in chosen:
        for above in recipe.needs(name):
            record = record_of(run, above) if above in recipe.step else {}
            begun = above in there if above in recipe.stage else bool(record)
            if name in recipe.stage and above in recipe.step:
                begun = is_whole(run, record)
            if above not in chosen and not begun:
                what = "it reads stage" if above in recipe.stage else "it needs step"
                raise UsageError(f"--only {name}: {what} '{above}', which has not run in {run} yet")
    return chosen


def _extras(recipe: Recipe, steps: Mapping[str, Step], chosen: Sequence[str]) -> Iterator[str]:
    """Of the chosen steps, and of the teachers that the recipe serves to the chosen stages."""
    for name in chosen:
        if name in steps:
            yield from steps[name].extras
        elif isinstance(serve := recipe.teacher[recipe.stage[name].teacher].serve, OfStep):
            yield from FOR_FOLDERS
        elif serve not in (None, "scripted"):
            yield from extras_of(serve)


def _check_complete(graph: Graph, steps: Mapping[str, Step], chosen: Sequence[str], run: Path) -> None:
    """What steps read, or made, must be complete where it does not run now. Stages take the rows that
    are there of others. Raises Incomplete."""
    recipe = graph.given
    sources = {name: recipe.needs(name) if name in steps else recipe.made(name) for name in chosen}
    wanted = {name: [one for one in above if one not in chosen] for name, above in sources.items()}
    if not any(wanted.values()):
        return
    complete = Completeness(graph, steps, run, known_keys(run))
    for name, above in wanted.items():
        for one in above:
            if lack := complete.lack(one):
                through = "" if lack.name == one else f" ({name} needs {one}, which needs {lack.name})"
                raise Incomplete(
                    f"--only {name}: {lack.words}{through}. Run it first, with --only {lack.name}, and what "
                    "comes after it; or run the recipe without --only"
                )


def _stages_in(run: Path) -> set[str]:
    if not (run / LEDGER).exists():
        return set()
    reader = connect_reader(run)
    try:
        return {name for _, name in stages(reader)}
    finally:
        reader.close()


def _print_results(course: Course) -> None:
    found = {name: _as_json(result) for name, result in course.results.items()}
    for name in found.keys() & course.incomplete.keys():
        found[name]["incomplete"] = f"it {course.incomplete[name]}"
    steps = {name: asdict(result) for name, result in course.steps.items()}
    shown = {"stages": found, "steps": steps, "waiting": course.waiting}
    sys.stdout.write(orjson.dumps(shown).decode() + "\n")


def _as_json(result: StageResult) -> dict[str, object]:
    state = result.state
    return {
        "done": state.done,
        "total": state.total,
        "failed": dict(state.failed),
        "outcomes": dict(state.outcomes),
        "cost_usd": state.cost_micro / 1e6,
        "exit_code": result.exit_code,
        **bill_json(result),
    }
