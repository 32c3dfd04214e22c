"""What a recipe's stages will cost, whether they can run, and which are complete: nothing is asked here.

A stage is complete when what its rows are made of is, and a run of it would ask nothing: rows that have
failed for good do not count, all others are pending. A step is complete when what it needs is, and what it
has left came of just that.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.collect.other_settings import Standing, settled
from engine.collect.rows import Gone
from engine.recipe.load import chosen_of, load, with_choice
from engine.recipe.schema import OfStep, Recipe
from engine.recipe.stages import Graph
from engine.recipe.step_runner import is_as_recorded
from engine.recipe.steps import Commands, Step, steps_of
from engine.run.collect import Confirm, observed, price_steps, sum_of, told
from engine.run.estimate import Estimate, Survey, survey
from engine.run.job import StageJob
from engine.run.tables import print_plan, print_planned_steps
from engine.terminal import plain
from store.errors import PoolError, UsageError
from store.files import LEDGER
from store.key_index import ANSWERED, DUE, KeyIndex, Known, known_keys
from store.queries import Page, connect_reader, has_row, placed_page, stages
from store.records import BadRow
from store.run_folder import is_whole, record_of
from store.stage_rows import settings_of_runs, stage_number

NOWHERE = "http://127.0.0.1:0/v1"  # where a teacher is that a dry run need not start
Planned = dict[str, tuple[StageJob, Estimate]]
PAGE = 4096


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
    asked: dict[str, str] = {}  # by teacher, the model of its stage's newest run
    if served and (run / LEDGER).exists():
        with contextlib.closing(connect_reader(run)) as reader:
            for number, _ in stages(reader):
                newest = next(settings_of_runs(reader, number), {})
                asked[newest.get("teacher", "")] = newest.get("model", "")
    found = {}
    for name, what in served.items():
        # equal for what is equal; a name that is on no price list
        stand_in = "served-" + hashlib.blake2b(str(what).encode(), digest_size=6).hexdigest()
        found[name] = (NOWHERE, asked.get(name) or stand_in)
    return found


def plan_stages(
    graph: Graph, chosen: Sequence[str], run: Path, index: KeyIndex, seconds: float | None, asks: bool = True
) -> Planned:
    """Requests that several stages share are counted with the first: they are asked once."""
    recipe = graph.recipe
    # Rows of stages that do not run now are taken as they lie: they must be this recipe's
    others = {above for name in chosen for above in recipe.upstream(name)}.difference(chosen)
    others = {name for name in others if not recipe.teacher[recipe.stage[name].teacher].serve}
    for name in sorted(others):  # (what model is served is not known before it is)
        if standing := graph.standing(name).others:
            words = f"has answers under other settings ({standing[0].why}): "
            raise recipe.wrong(("stage", name), f"it {words}run it too, or put them back")
    planned, index = {}, index.copy()
    for name in chosen:
        job = graph.job(name, asks)
        try:
            found = survey(graph.expected(name), job.plan, index, seconds, price_steps(job.settings))
        except PoolError:
            if not job.after:
                raise
            found = Survey()  # everything that it reads has failed
        planned[name] = (job, told(job.settings, job.plan, found, observed(run, job.settings)))
    return planned


def settle(graph: Graph, chosen: Sequence[str], confirm: Confirm, quiet: bool) -> Iterator[str]:
    """Asks what becomes of answers under other settings; gives the stages where a yes was said. Raises
    UsageError with the line of a stage where nothing was."""
    recipe = graph.recipe
    for name in chosen:
        found, settings = graph.standing(name), graph.settings[name]
        if not found.others:
            continue
        changes = [change for other in found.others for change in other.changes]
        is_model = bool(changes) and all(change.startswith("model: ") for change in changes)
        if is_model and isinstance(recipe.teacher[recipe.stage[name].teacher].serve, OfStep):
            continue  # the recipe itself has made another model, which is what it is for
        try:
            settled(found, settings, confirm, quiet)
        except UsageError as error:
            raise recipe.wrong(("stage", name), str(error)) from None
        yield name


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
        told: dict[str, dict[str, object]] = {}
        for name in self.steps:
            table, done = (
                self.graph.given.step[name],
                is_whole(self.graph.run, record_of(self.graph.run, name)),
            )
            needs = list(table.needs)
            told[name] = {"run": table.run, "needs": needs, "done": done, "cost_usd": 0.0}  # it asks nobody
        return told

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
    # what must be fetched, with where it is to be had, and what cannot be priced without it
    if plan.missing:
        rest = "the rest is priced above" if plan.planned else "without them no stage can be priced"
        print(f"\nfiles that are not there yet ({rest}):")
    for file, one in plan.missing.items():
        print(f"  {plain(os.path.normpath(recipe.path(file)), 200)}")
        print(f"    {plain(one.where or 'the recipe does not say where to get it', 400)}")
    names = dict.fromkeys(name for one in plan.missing.values() for name in one.needed_by)
    stages = [plain(name, 40) for name in names if name not in recipe.step]
    if stages and plan.planned:
        print(f"stages without a price: {', '.join(stages)}")
    for name, found in plan.others.items():
        print(f"stage '{plain(name, 40)}': {found.words}: a run will need reuse, replace or another stage")


@dataclass(frozen=True, slots=True)
class Lack:
    """What keeps a stage or step from being complete: the first one, from the pools on, that is not."""

    name: str
    words: str


class Completeness:
    """Of a recipe in a run folder, as it is now; what was found is kept."""

    def __init__(self, graph: Graph, steps: Mapping[str, Step], run: Path, index: KeyIndex) -> None:
        self._graph, self._steps, self._run, self._index = graph, steps, run, index
        self._found: dict[str, Lack | None] = {}

    def lack(self, name: str) -> Lack | None:
        """None where a stage or step is complete."""
        if name not in self._found:
            recipe = self._graph.given
            # what it takes its rows from (a stage's teacher brings none)
            is_step = name in recipe.step
            sources = recipe.step[name].needs if is_step else (*recipe.upstream(name), *recipe.made(name))
            above = (found for one in sources if (found := self.lack(one)))
            self._found[name] = next(above, None) or self._own(name)
        return self._found[name]

    def _own(self, name: str) -> Lack | None:
        if name in self._steps:
            step, record = self._steps[name], record_of(self._run, name)
            if not is_whole(self._run, record):
                return Lack(name, f"step '{name}' has not finished")
            if not step.is_last and not is_as_recorded(self._graph.given, step, self._run, record):
                return Lack(name, f"step '{name}' was run with another command or on other data than now")
            return None
        known = Known(self._run, self._index)
        try:
            number = stage_number(known.reader, name)
            if number is None:
                return Lack(name, f"stage '{name}' has not run")
            pending, rows = _Census(known, number, self._graph.job(name, asks=False)).count()
        finally:
            known.close()
        return Lack(name, pending_words(name, pending, rows)) if pending else None


def pending_words(name: str, pending: int, rows: int) -> str:
    are = "row is" if rows == 1 else "rows are"
    return f"stage '{name}' is incomplete: {pending:,} of {rows:,} {are} pending"


class _Census:
    """Counts the rows of a stage that a run would do something about."""

    def __init__(self, known: Known, stage: int, job: StageJob) -> None:
        self._known, self._stage, self._job = known, stage, job
        self._page: Page = ({}, [])
        self._start = -PAGE

    def count(self) -> tuple[int, int]:
        """(pending, all)"""
        rows = pending = 0
        limit = self._job.plan.limit
        for row in self._job.rows.placed(self._known.reader):
            if isinstance(row, tuple):
                if limit is not None and rows >= limit:
                    break
                rows += 1
                pending += self._is_pending(row[0], self._job.plan.task.encode(row[1]))
            elif isinstance(row, Gone):
                pending += has_row(self._known.reader, self._stage, row.position)
            elif not isinstance(row, BadRow):  # nothing more will come
                break
        return pending, max(rows, pending)

    def _is_pending(self, position: int, item: bytes) -> bool:
        """Whether it does not stand in its place, or a sample of it has neither an answer nor failed."""
        plan = self._job.plan
        if not self._start <= position < self._start + PAGE:
            self._start = position - position % PAGE
            places = (self._start, self._start + PAGE)
            self._page = placed_page(self._known.reader, self._stage, plan.accepted, plan.samples, *places)
        items, requests = self._page
        there = items.get(position)
        if there is None or there[0] != item:
            return True
        numbers = [one.get(position) for one in requests]
        states = [DUE if number is None else self._known.index.state(number) for number in numbers]
        is_kept = there[1] != plan.fingerprint  # of settings of which only answers count
        return any(state == DUE or (is_kept and state != ANSWERED) for state in states)


DRY_SECONDS = 5.0  # of counting for each stage; what is not counted by then is extrapolated


def plan_recipe(
    file: Path, run: Path, commands: Commands, only: Sequence[str], reuse: bool = False, replace: bool = False
) -> Plan:
    """What a recipe will cost; nothing is asked, and files may be missing. Raises UsageError."""
    recipe = with_choice(load(file, may_lack_files=True), reuse, replace)
    steps, chosen = steps_of(recipe, commands), chosen_of(recipe, run, only)
    recipe, missing = without_missing(recipe, chosen)
    graph = Graph(recipe, run, unserved(recipe, run))
    stages = [name for name in chosen if name in recipe.stage]
    planned = plan_stages(graph, stages, run, known_keys(run), DRY_SECONDS, asks=False)
    return Plan(graph, planned, [name for name in chosen if name in steps], missing)
