"""Reads a recipe (TOML) and checks it before a cent is spent: names, circles, files, keys.

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

Every complaint names the file and the line. Nothing is asked or written here.
"""

import graphlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from engine.settings import Quota
from engine.toml_lines import Path_, line_numbers
from store.errors import UsageError

POOLED = ("generate", "translate")  # tasks that read a pool, or one stage
JOINED = ("score", "judge", "compare")  # tasks that read several models' answers
ONLY_FOR = {  # keys that other tasks would not heed
    "both_orders": ("judge",), "names": JOINED, "structured": (*JOINED, "translate"), "language": JOINED,
    "to": ("translate",),
    "field": ("translate",), "prompt": ("generate", "translate", "judge"),
}  # fmt: skip

Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class EndpointTable(_Table, Quota):
    """A server: its address, the variable that holds its key, its limits and price."""

    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"


class TeacherTable(EndpointTable):
    """A model and who serves it. `serve`: what `distill serve` is to serve while the recipe runs."""

    model: str | None = None
    serve: str | None = None
    endpoint: tuple[EndpointTable, ...] = ()
    timeout: PositiveFloat = 300.0
    give_up: Annotated[float, Field(ge=0)] = 1800.0


class StageTable(_Table):
    """One stage; flags of the same names say what each means."""

    task: Literal["generate", "translate", "score", "judge", "compare"]
    teacher: str
    pool: str | None = None
    source: Annotated[str | None, Field(alias="from")] = None
    questions: str | None = None
    answers: str | tuple[str, ...] = ()
    against: str | None = None
    names: tuple[str, ...] = ()
    both_orders: bool = False
    to: str | None = None
    field: str | None = None
    language: str | None = None
    structured: bool = False
    sample: PositiveInt | None = None
    seed: int = 0
    limit: PositiveInt | None = None
    samples: PositiveInt = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt | None = None
    param: Mapping[str, Any] = {}
    omit: tuple[str, ...] = ()
    system: str | None = None
    prompt: str | None = None
    attempts: PositiveInt = 8
    attempts_parse: Annotated[int, Field(ge=0)] = 2
    batch: bool = False
    budget: Annotated[float, Field(ge=0)] | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """The models' answers that it reads, stages or files, in order."""
        given = (self.answers,) if isinstance(self.answers, str) else self.answers
        return (*given, self.against) if self.against is not None else given

    @property
    def inputs(self) -> tuple[str, ...]:
        """Everything that may be a stage."""
        return (self.source,) if self.source is not None else self.members


class Recipe(_Table):
    """Teachers and stages by name, the stages in an order in which each follows what it reads."""

    budget: Annotated[float, Field(ge=0)] | None = None
    teacher: dict[Name, TeacherTable]
    stage: dict[Name, StageTable]
    file: Path = Path()
    lines: dict[Path_, int] = {}

    def wrong(self, where: Path_, words: str) -> UsageError:
        """A complaint about a place in the recipe."""
        return _wrong(self.file, self.lines, where, words)

    def upstream(self, name: str) -> tuple[str, ...]:
        """The stages that a stage reads."""
        return tuple(i for i in self.stage[name].inputs if i in self.stage)

    def path(self, text: str) -> Path:
        """A file that the recipe names, which is meant relative to it."""
        return self.file.parent / Path(text).expanduser()

    @property
    def order(self) -> list[str]:
        graph = {name: self.upstream(name) for name in self.stage}
        return list(graphlib.TopologicalSorter(graph).static_order())


def load(file: Path) -> Recipe:
    """Raises UsageError naming the line."""
    try:
        text = file.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read recipe {file}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file} is no TOML: {error}") from error
    lines = line_numbers(text)
    if unknown := {"file", "lines"} & tables.keys():
        raise _wrong(file, lines, (unknown.pop(),), "unknown name")
    try:
        recipe = Recipe(**{**tables, "file": file, "lines": lines})
    except ValidationError as error:
        raise _invalid(file, lines, error) from None
    _check(recipe)
    return recipe


def _wrong(file: Path, lines: Mapping[Path_, int], where: Path_, words: str) -> UsageError:
    """The complaint at the nearest place that has a line."""
    for end in range(len(where), 0, -1):
        if where[:end] in lines:
            place = ".".join(str(part) for part in where if not isinstance(part, int))
            return UsageError(f"{file}, line {lines[where[:end]]}: {place}: {words}")
    return UsageError(f"{file}: {'.'.join(map(str, where)) + ': ' if where else ''}{words}")


def _invalid(file: Path, lines: Mapping[Path_, int], error: ValidationError) -> UsageError:
    problem = error.errors(include_url=False)[0]
    where = tuple(problem["loc"])
    words = {"extra_forbidden": "unknown name", "missing": "it is missing"}.get(problem["type"])
    if where[-1] == "[key]":
        words = "a name may hold letters, digits, '.', '_' and '-' only"
    elif "answers" in where:  # the one key that may be of two types
        where, words = where[: where.index("answers") + 1], "expected the name of a stage or file, or several"
    return _wrong(file, lines, where, words or problem["msg"])


def _check(recipe: Recipe) -> None:
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
    for name, stage in recipe.stage.items():
        _check_stage(recipe, name, stage)
    try:
        _ = recipe.order
    except graphlib.CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise recipe.wrong(("stage", error.args[1][0]), f"the stages go in a circle: {circle}") from None
    for name in recipe.stage:
        _check_same_pool(recipe, name)


def _check_stage(recipe: Recipe, name: str, stage: StageTable) -> None:
    at: Path_ = ("stage", name)
    if stage.teacher not in recipe.teacher:
        known = ", ".join(recipe.teacher) or "none"
        raise recipe.wrong((*at, "teacher"), f"there is no teacher '{stage.teacher}'; there are: {known}")
    if stage.task in POOLED:
        _check_pooled(recipe, at, stage)
    else:
        _check_joined(recipe, at, stage)
    for key, tasks in ONLY_FOR.items():
        if key in stage.model_fields_set and stage.task not in tasks:
            raise recipe.wrong((*at, key), f"{stage.task} has no use for it; it is for {', '.join(tasks)}")
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


def _check_pooled(recipe: Recipe, at: Path_, stage: StageTable) -> None:
    if (stage.pool is None) == (stage.source is None):
        raise recipe.wrong(at, f'{stage.task} needs pool = "FILE" or from = "STAGE", one of them')
    if stage.source is not None and stage.source not in recipe.stage:
        known = ", ".join(recipe.stage)
        raise recipe.wrong((*at, "from"), f"there is no stage '{stage.source}'; there are: {known}")
    if stage.source is not None and stage.sample:
        raise recipe.wrong((*at, "sample"), "only a pool can be sampled; sample the stage before")
    for key in ("answers", "against", "questions"):
        if getattr(stage, key):
            raise recipe.wrong((*at, key), f"{stage.task} reads a pool, not models' answers")


def _check_joined(recipe: Recipe, at: Path_, stage: StageTable) -> None:
    for key, value in (("pool", stage.pool), ("from", stage.source), ("sample", stage.sample)):
        if value is not None:
            raise recipe.wrong((*at, key), f"{stage.task} reads models' answers: answers = […]")
    pair = stage.task != "score"
    if pair and (not isinstance(stage.answers, str) or stage.against is None):
        raise recipe.wrong(at, f'{stage.task} needs answers = "A" and against = "B", stages or files')
    if not pair and len(stage.members) < 2:
        raise recipe.wrong(at, 'score needs the answers of two models or more: answers = ["A", "B"]')
    key = "against" if pair else "answers"
    for number, member in enumerate(stage.members):
        if member not in recipe.stage:
            where = key if number else "answers"
            _check_file(recipe, (*at, where), member, "no stage has this name, and ")
    if stage.questions and any(member in recipe.stage for member in stage.members):
        raise recipe.wrong((*at, "questions"), "the stages bring their own; questions are for files alone")
    if stage.names and len(stage.names) != len(stage.members):
        raise recipe.wrong((*at, "names"), f"{len(stage.names)} names for {len(stage.members)} models")


def _check_file(recipe: Recipe, where: Path_, text: str | None, before: str = "") -> None:
    if text is None:
        return
    path = recipe.path(text)
    if text == "-":
        raise recipe.wrong(where, "a recipe is read more than once: name a file, not standard input")
    if not path.is_file():
        raise recipe.wrong(where, f"{before}there is no file {path}")


def roots(recipe: Recipe, name: str) -> set[tuple[object, ...]]:
    """The pools that a stage's rows come from in the end, with what is taken of them."""
    stage = recipe.stage[name]
    above = recipe.upstream(name)
    if above:
        return set().union(*(roots(recipe, one) for one in above))
    pool = recipe.path(stage.pool).resolve() if stage.pool is not None else None
    return {(pool, stage.limit, stage.sample, stage.seed if stage.sample else 0, stage.members)}


def _check_same_pool(recipe: Recipe, name: str) -> None:
    above = recipe.upstream(name)
    if len(above) > 1 and len(roots(recipe, name)) > 1:
        where: Path_ = ("stage", name, "answers")
        raise recipe.wrong(where, f"the stages {', '.join(above)} do not stand on the same rows of one pool")
