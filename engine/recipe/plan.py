"""What a recipe's stages will cost, and whether they can run: nothing is asked here."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.collect.other_settings import Standing, settled
from engine.recipe.schema import OfStep, Recipe
from engine.recipe.stages import Graph
from engine.run.build import StageJob
from engine.run.collect import Confirm, observed, price_steps, sum_of, told
from engine.run.estimate import Estimate, Survey, survey
from engine.run.tables import print_plan, print_planned_steps
from engine.terminal import plain
from store.errors import PoolError, UsageError
from store.key_index import KeyIndex
from store.queries import connect_reader, stages
from store.run_folder import LEDGER
from store.stage_rows import settings_of_runs
from store.step_records import is_whole, record_of

NOWHERE = "http://127.0.0.1:0/v1"  # where a teacher is that a dry run need not start
Planned = dict[str, tuple[StageJob, Estimate]]


@dataclass(frozen=True, slots=True)
class Missing:
    """A file that is not there. where: it can be had, as far as the recipe says; needed_by: stages and
    steps."""

    where: str | None
    needed_by: Sequence[str]


def unserved(recipe: Recipe, run: Path) -> dict[str, tuple[str, str]]:
    """The teachers that the recipe serves, while they do not run. Which model it will be is not known
    before; if the ledger knows one, it may be that again."""
    served = {name: teacher.serve for name, teacher in recipe.teacher.items() if teacher.serve}
    asked = _models_asked(run) if served and (run / LEDGER).exists() else {}
    return {name: (NOWHERE, asked.get(name) or _stand_in(what)) for name, what in served.items()}


def _models_asked(run: Path) -> dict[str, str]:
    """By teacher, the model of its stage's newest run."""
    reader = connect_reader(run)
    try:
        found: dict[str, str] = {}
        for number, _ in stages(reader):
            newest = next(settings_of_runs(reader, number), {})
            found[newest.get("teacher", "")] = newest.get("model", "")
        return found
    finally:
        reader.close()


def _stand_in(what: object) -> str:
    """Equal for what is equal; a name that is on no price list."""
    return "served-" + hashlib.blake2b(str(what).encode(), digest_size=6).hexdigest()


def plan_stages(
    graph: Graph, chosen: Sequence[str], run: Path, index: KeyIndex, seconds: float | None, asks: bool = True
) -> Planned:
    """Requests that several stages share are counted with the first: they are asked once."""
    _check_rows_of_others(graph, chosen)
    planned, index = {}, index.copy()
    for name in chosen:
        job = graph.job(name, asks)
        found = _surveyed(graph, job, index, seconds)
        planned[name] = (job, told(job.settings, job.plan, found, observed(run, job.settings)))
    return planned


def _surveyed(graph: Graph, job: StageJob, index: KeyIndex, seconds: float | None) -> Survey:
    try:
        return survey(graph.expected(job.settings.stage), job.plan, index, seconds, price_steps(job.settings))
    except PoolError:
        if not job.after:
            raise
        return Survey()  # everything that it reads has failed


def _check_rows_of_others(graph: Graph, chosen: Sequence[str]) -> None:
    """Rows of stages that do not run now are taken as they lie: they must be this recipe's."""
    recipe = graph.recipe
    others = {above for name in chosen for above in recipe.upstream(name)}.difference(chosen)
    others = {name for name in others if not recipe.teacher[recipe.stage[name].teacher].serve}
    for name in sorted(others):  # (what model is served is not known before it is)
        if found := graph.standing(name).others:
            words = f"has answers to other settings than these ({found[0].why}): run it too, or put them back"
            raise recipe.wrong(("stage", name), f"it {words}")


def settle(graph: Graph, chosen: Sequence[str], confirm: Confirm, quiet: bool) -> Iterator[str]:
    """Asks what becomes of answers under other settings; gives the stages where a yes was said. Raises
    UsageError with the line of a stage where nothing was."""
    for name in chosen:
        found, settings = graph.standing(name), graph.settings[name]
        if not found.others or _is_retrained(graph, name):
            continue
        try:
            settled(found, settings, confirm, quiet)
        except UsageError as error:
            raise graph.recipe.wrong(("stage", name), str(error)) from None
        yield name


def _is_retrained(graph: Graph, name: str) -> bool:
    """Whether the recipe itself has made another model of the stage's teacher, which is what it is for."""
    teacher = graph.recipe.teacher[graph.recipe.stage[name].teacher]
    changes = [change for other in graph.standing(name).others for change in other.changes]
    changed = bool(changes) and all(change.startswith("model: ") for change in changes)
    return isinstance(teacher.serve, OfStep) and changed


def without_missing(recipe: Recipe, chosen: Sequence[str]) -> tuple[Recipe, Mapping[str, Missing]]:
    """The recipe without the stages whose rows come, in the end, from a file that is not there; and these
    files, as the recipe names them."""
    absent = dict.fromkeys(recipe.lacking or ())
    lost: dict[str, set[str]] = {}
    for name in recipe.nodes:
        if name in recipe.step:
            values = [v for several in recipe.step[name].flags.values() for v in several]
            own = {str(value) for value in values if isinstance(value, str)}
            above = recipe.step[name].needs
        else:
            stage = recipe.stage[name]
            own = {one for one in (stage.pool, stage.questions, stage.prompt, *stage.named) if one}
            above = (*recipe.upstream(name), *recipe.made(name))
        lost[name] = own.intersection(absent).union(*(lost[one] for one in above))
    missing = {
        file: Missing(recipe.files.get(file), [name for name in chosen if file in lost[name]])
        for file in absent
    }
    there = {name: stage for name, stage in recipe.stage.items() if not lost[name]}
    return recipe.model_copy(update={"stage": there}), {f: m for f, m in missing.items() if m.needed_by}


@dataclass(frozen=True, slots=True)
class Plan:
    """A dry run's result: stages with a price, steps, and files that are not there."""

    graph: Graph
    planned: Planned
    steps: Sequence[str]
    missing: Mapping[str, Missing]

    @property
    def others(self) -> dict[str, Standing]:
        """The stages with answers under other settings."""
        return {name: found for name in self.planned if (found := self.graph.standing(name)).others}

    @property
    def steps_told(self) -> dict[str, dict[str, object]]:
        return {name: _step_told(self.graph.given, name, self.graph.run) for name in self.steps}

    def as_json(self) -> dict[str, Any]:
        stages: dict[str, dict[str, object]]
        stages = {name: told.as_json() for name, (_, told) in self.planned.items()}
        for name, found in self.others.items():
            stages[name]["other_settings"] = found.as_json()
        costs = [told.cost_as_asked(job.settings.batch) for job, told in self.planned.values()]
        known = sum_of([cost for cost in costs if cost is not None])
        total = {
            "requests": sum(told.requests for _, told in self.planned.values()),
            "cost_usd": None if None in costs else asdict(known),
        }
        missing = {file: asdict(one) for file, one in self.missing.items()}
        return {"stages": stages, "total": total, "steps": self.steps_told, "missing": missing}


def print_dry_run(plan: Plan) -> None:
    recipe = plan.graph.given
    if plan.planned:
        print_plan(plan.planned, recipe.budget, to_stdout=True)
    print_planned_steps(plan.steps_told)
    _print_missing(recipe, plan.missing, bool(plan.planned))
    for name, found in plan.others.items():
        print(f"stage '{plain(name, 40)}': {found.words}: a run will want reuse, replace or another stage")


def _print_missing(recipe: Recipe, missing: Mapping[str, Missing], is_rest_priced: bool) -> None:
    """What must be fetched, with where it is to be had, and what cannot be priced without it."""
    if not missing:
        return
    rest = "the rest is priced above" if is_rest_priced else "without them no stage can be priced"
    print(f"\nfiles that are not there yet ({rest}):")
    for file, one in missing.items():
        print(f"  {plain(os.path.normpath(recipe.path(file)), 200)}")
        print(f"    {plain(one.where or 'the recipe does not say where to get it', 400)}")
    names = dict.fromkeys(name for one in missing.values() for name in one.needed_by)
    stages = [plain(name, 40) for name in names if name not in recipe.step]
    if stages and is_rest_priced:
        print(f"stages without a price: {', '.join(stages)}")


def _step_told(recipe: Recipe, name: str, run: Path) -> dict[str, object]:
    """cost_usd: a step asks nobody."""
    table = recipe.step[name]
    done = is_whole(run, record_of(run, name))
    return {"run": table.run, "needs": list(table.needs), "done": done, "cost_usd": 0.0}
