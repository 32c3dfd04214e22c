"""Reads a recipe (TOML) and checks it before anything is spent: names, cycles, files, keys.

    budget = 100.0                     # dollars, for all stages together

    [teacher.gpt]                      # stages with the same teacher share its limits
    model = "gpt-5.1"
    rpm = 10000
    [[teacher.gpt.endpoint]]           # further servers of the same model
    base_url = "http://127.0.0.1:8000/v1"

    [stage.chinese]
    task = "generate"
    teacher = "gpt"
    from = "translated"                # a stage; or pool = "file.jsonl"

    [step.student]                     # a command over complete files (steps.py)
    run = "train sft"
    data = { stage = "chinese" }

    [files]                            # where to get a file that is not there
    "file.jsonl" = "https://…"

Every message names the file and the line. Nothing is asked or written here.
"""

import contextlib
import graphlib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from engine.collect.setting_fields import POOLED, TASKS, StageSettings, declared
from engine.recipe.schema import OfStage, OfStep, Path_, Recipe, StageTable, line_numbers, wrong
from store.errors import UsageError, why_unread, wrong_value
from store.files import LEDGER
from store.queries import connect_reader, stages
from store.run_folder import is_whole, record_of

ONLY_FOR = {  # keys that other tasks would not heed
    name: tasks
    for name, field in StageSettings.model_fields.items()
    if len(tasks := [task for task in declared(field)["commands"] if task in TASKS]) < len(TASKS)
}
_PACKAGED = Path(__file__).parents[1] / "recipes"  # in an installed wheel
SHIPPED = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "recipes"
RANKED = re.compile(r"rank([1-9][0-9]*)\.jsonl")


def check(recipe: Recipe) -> None:
    """What only shows when tables meet. Raises UsageError."""
    if not recipe.stage:
        raise recipe.wrong((), "it has no stage")
    for name, teacher in recipe.teacher.items():
        if teacher.serve is None and teacher.model is None:
            raise recipe.wrong(("teacher", name), "it needs a model (or serve)")
        if teacher.serve is not None and (teacher.base_url or teacher.endpoint or teacher.model):
            raise recipe.wrong(
                ("teacher", name, "serve"), "a served teacher brings its own model and address"
            )
        for step in teacher.steps:
            _check_step(recipe, ("teacher", name, "after" if step in teacher.after else "serve"), step)
    for name, table in recipe.step.items():
        # what comes before a step must be there
        if name in recipe.stage:
            raise recipe.wrong(("step", name), "a stage has the same name")
        for key, values in table.flags.items():
            for value in values:
                if isinstance(value, OfStep):
                    _check_step(recipe, ("step", name, key), value.step)
                elif isinstance(value, OfStage) and value.stage not in recipe.stage:
                    known = ", ".join(recipe.stage)
                    words = f"there is no stage '{value.stage}'; there are: {known}"
                    raise recipe.wrong(("step", name, key), words)
        for one in table.after:
            if one not in recipe.stage:
                _check_step(recipe, ("step", name, "after"), one)
    for name, stage in recipe.stage.items():
        _check_stage(recipe, name, stage)
    try:
        _ = recipe.nodes
    except graphlib.CycleError as error:
        circle = error.args[1]
        what = "stages and steps" if recipe.step.keys() & set(circle) else "stages"
        at: Path_ = ("step" if circle[0] in recipe.step else "stage", circle[0])
        raise recipe.wrong(
            at, f"the {what} depend on each other in a cycle: {' -> '.join(reversed(circle))}"
        ) from None
    for name in recipe.stage:
        above = recipe.upstream(name)
        if len(above) > 1 and len(roots(recipe, name)) > 1:
            words = f"the stages {', '.join(above)} do not use the same rows of one pool"
            raise recipe.wrong(("stage", name, "answers"), words)


def _check_step(recipe: Recipe, where: Path_, name: str) -> None:
    if name not in recipe.step:
        known = ", ".join(recipe.step) or "none"
        raise recipe.wrong(where, f"there is no step '{name}'; there are: {known}")


def _check_stage(recipe: Recipe, name: str, stage: StageTable) -> None:
    at: Path_ = ("stage", name)
    if stage.teacher not in recipe.teacher:
        known = ", ".join(recipe.teacher) or "none"
        raise recipe.wrong((*at, "teacher"), f"there is no teacher '{stage.teacher}'; there are: {known}")
    if stage.task not in POOLED:
        _check_joined(recipe, at, stage)
    elif (stage.pool is None) == (stage.source is None):
        raise recipe.wrong(at, f'{stage.task} needs pool = "FILE" or from = "STAGE", one of them')
    elif stage.source is not None and stage.source not in recipe.stage:
        known = ", ".join(recipe.stage)
        raise recipe.wrong((*at, "from"), f"there is no stage '{stage.source}'; there are: {known}")
    elif stage.source is not None and stage.sample:
        raise recipe.wrong((*at, "sample"), "only a pool can be sampled; sample the stage before")
    else:
        for key in ("answers", "against", "questions"):
            if getattr(stage, key):
                raise recipe.wrong((*at, key), f"{stage.task} reads a pool, not models' answers")
    for key, tasks in ONLY_FOR.items():
        if key in stage.model_fields_set and stage.task not in tasks:
            words = f"it does not apply to {stage.task} (only to {', '.join(tasks)})"
            raise recipe.wrong((*at, key), words)
    for above in recipe.upstream(name):
        if recipe.stage[above].task not in POOLED:
            key = "from" if stage.source is not None else "answers"
            if above == stage.against:
                key = "against"
            words = f"stage '{above}' ({recipe.stage[above].task}) gives verdicts, not answers"
            raise recipe.wrong((*at, key), words)
    for key in ("pool", "questions", "prompt"):
        _check_file(recipe, (*at, key), getattr(stage, key))
    if stage.task == "translate" and not stage.to:
        raise recipe.wrong(at, 'translate needs a language: to = "Chinese"')


def _check_joined(recipe: Recipe, at: Path_, stage: StageTable) -> None:
    for key, value in (("pool", stage.pool), ("from", stage.source), ("sample", stage.sample)):
        if value is not None:
            raise recipe.wrong((*at, key), f"{stage.task} reads models' answers: answers = […]")
    pair = stage.task != "score"
    if pair and (isinstance(stage.answers, tuple) or stage.against is None):
        raise recipe.wrong(at, f'{stage.task} needs answers = "A" and against = "B", stages or files')
    if not pair and len(stage.members) < 2:
        raise recipe.wrong(at, 'score needs the answers of two models or more: answers = ["A", "B"]')
    key = "against" if pair else "answers"
    for number, member in enumerate(stage.members):
        where: Path_ = (*at, key if number else "answers")
        if not isinstance(member, OfStep):
            if member not in recipe.stage:
                _check_file(recipe, where, member, "no stage has this name, and ")
            continue
        # of the steps, only `rank` makes answers: rank1.jsonl has the best of each row, and so on
        _check_step(recipe, where, member.step)
        if recipe.step[member.step].run != "rank":
            raise recipe.wrong(where, f"step '{member.step}' makes no answers; only `rank` does")
        candidates = recipe.step[member.step].flags.get("candidates", ())
        if not all(isinstance(value, OfStage) for value in candidates) or len(candidates) != 1:
            words = f"step '{member.step}' must rank a stage: candidates = {{ stage = … }}"
            raise recipe.wrong(where, words)
        if not RANKED.fullmatch(member.file or ""):
            words = 'say which answers: file = "rank1.jsonl" (the best), "rank2.jsonl", …'
            raise recipe.wrong(where, words)
    if stage.questions and any(member in recipe.stage for member in stage.members):
        raise recipe.wrong(
            (*at, "questions"), "stages have their own questions; `questions` is for files only"
        )
    if stage.names and len(stage.names) != len(stage.members):
        raise recipe.wrong((*at, "names"), f"{len(stage.names)} names for {len(stage.members)} models")


def _check_file(recipe: Recipe, where: Path_, text: str | None, before: str = "") -> None:
    if text is None:
        return
    path = recipe.path(text)
    if text == "-":
        raise recipe.wrong(where, "a recipe is read more than once: name a file, not standard input")
    if not path.is_file():
        recipe.lacks(text, where, before)


def roots(recipe: Recipe, name: str) -> set[tuple[object, ...]]:
    """The pools that a stage's rows come from in the end, with what is taken of them."""
    stage = recipe.stage[name]
    above = recipe.upstream(name)
    if above:
        return set().union(*(roots(recipe, one) for one in above))
    pool = recipe.path(stage.pool).resolve() if stage.pool is not None else None
    return {(pool, stage.limit, stage.sample, stage.seed if stage.sample else 0, stage.members)}


EXPECTED = {
    "answers": "expected the name of a stage or file, or several",
    "against": "expected the name of a stage or file",
    "serve": 'expected the name of a model or file, or { step = "NAME" }',
    "after": "expected the name of a step, or several",
    "step": 'expected a value, several, { stage = "NAME", format = "F" } or { step = "NAME", file = "F" }',
}


def found(file: Path) -> Path:
    """The file, or where there is none, the shipped recipe that `NAME.toml` or `recipes/NAME.toml` means."""
    shipped = SHIPPED / file.name
    is_shipped = file.parent in (Path(), Path("recipes")) and shipped.is_file()
    return shipped if is_shipped and not file.exists() else file


def load(file: Path, may_lack_files: bool = False) -> Recipe:
    """`may_lack_files`: those that are not there are in `lacking` then. Raises UsageError naming the line."""
    file = found(file)
    try:
        text = file.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read recipe {file}: {why_unread(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is not valid TOML: {error}") from error
    lines = line_numbers(text)
    if unknown := {"file", "lines", "lacking"} & tables.keys():
        raise wrong(file, lines, (unknown.pop(),), "unknown name")
    try:
        lacking: list[str] | None = [] if may_lack_files else None
        recipe = Recipe(**{**tables, "file": file, "lines": lines, "lacking": lacking})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = tuple(problem["loc"])
        words = {"extra_forbidden": "unknown name", "missing": "it is required"}.get(problem["type"])
        if where[-1] == "[key]":
            words = "a name may hold letters, digits, '.', '_' and '-' only"
        elif where[0] == "step" and len(where) > 2 and where[2] not in ("run", "after"):
            where, words = where[:3], EXPECTED["step"]
        elif len(where) > 3 and (key := str(where[2])) in EXPECTED:  # may be of several types
            where, words = where[:3], EXPECTED[key]
        raise wrong(file, lines, where, words or wrong_value("found", problem)) from None
    check(recipe)
    return recipe


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


def chosen_of(recipe: Recipe, run: Path, only: Sequence[str]) -> list[str]:
    """The stages and steps to run, in order. What they need must run with them, or have run."""
    for name in only:
        if name not in recipe.nodes:
            raise UsageError(f"--only {name}: no such stage or step; there are {', '.join(recipe.nodes)}")
    chosen = [name for name in recipe.nodes if not only or name in only]
    there: set[str] = set()
    if (run / LEDGER).exists():
        with contextlib.closing(connect_reader(run)) as reader:
            there = {name for _, name in stages(reader)}
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
