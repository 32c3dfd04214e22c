"""What a recipe's stages will cost, and whether they can run: nothing is asked here."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from engine.collect import estimate_pool, sum_of
from engine.estimate import Estimate
from engine.graph import Graph
from engine.job import StageJob
from engine.recipe_tables import Recipe
from engine.show import print_plan, print_planned_steps
from engine.step_records import is_whole, record_of
from store.index import KeyIndex
from store.read import answered, connect_reader, has_other_plan, stages

UNSERVED = ("http://127.0.0.1:0/v1", "served")  # of a teacher that a dry run need not start


def unserved(recipe: Recipe) -> dict[str, tuple[str, str]]:
    return {name: UNSERVED for name, teacher in recipe.teacher.items() if teacher.serve}


def plan_stages(
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


def show_plan(
    planned: dict[str, tuple[StageJob, Estimate]],
    recipe: Recipe,
    steps: Sequence[str],
    run: Path,
    as_json: bool,
) -> None:
    told = {name: _step_told(recipe, name, run) for name in steps}
    if not as_json:
        print_plan(planned, recipe.budget, to_stdout=True)
        print_planned_steps(told)
        return
    found = {name: told.as_json() for name, (_, told) in planned.items()}
    total = {"requests": sum(told.requests for _, told in planned.values())}
    costs = [told.cost_usd for _, told in planned.values()]
    known = sum_of([cost for cost in costs if cost is not None])
    shown = {"stages": found, "total": {**total, "cost_usd": None if None in costs else asdict(known)}}
    sys.stdout.write(orjson.dumps({**shown, "steps": told}).decode() + "\n")


def _step_told(recipe: Recipe, name: str, run: Path) -> dict[str, object]:
    """cost_usd: a step asks nobody."""
    table = recipe.step[name]
    done = is_whole(run, record_of(run, name))
    return {"run": table.run, "needs": list(table.needs), "done": done, "cost_usd": 0.0}
