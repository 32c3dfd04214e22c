"""The steps of a recipe, checked against the command line itself.

    [step.student]
    run = "train sft"
    data = { stage = "english", format = "alpaca" }    # exported first
    model = "meta-llama/Llama-2-7b-hf"                  # every other key is a flag of the command
    zero = 3

    [step.best-of-5]
    run = "rank"
    reward = { step = "reward" }                        # what another step leaves
    candidates = { stage = "vicuna-student", format = "candidates" }

step_runner.py runs a step in its own process. Its outputs are in RUN/steps/NAME, or for an evaluation in
RUN/evaluations/NAME.json, where `report` looks for it.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from engine.answers import SHAPES, check_outcomes, check_reasoning
from engine.recipe.schema import READ_THE_RUN, OfStage, OfStep, Path_, Recipe, Value
from engine.serve.command import FOR_FOLDERS, SMOLLM2, extras_of
from store.answers import stem
from store.errors import UsageError
from store.run_folder import STEPS

FIRST_WORDS = ("train", "rank", "evaluate", "report")
# What is the recipe's to say: where results go, what is resumed, in which form it is told.
OURS = ("resume", "quiet", "json", "run")
WRITTEN = ("out", "csv", "rows", "split")  # flags that name what is written
NEEDED: dict[str, tuple[str, ...]] = {
    f"train {kind}": ("data", "model") for kind in ("sft", "reward", "dpo", "distill")
}
NEEDED["train rl"] = ("data", "model", "reward")  # these, or a recipe of their own
ONE_OF = {
    "evaluate judge": ("reviews", "preferences", "stage"),
    "evaluate ranking": ("reviews", "stage"),
    "evaluate shares": ("source", "stage"),
}


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag, or, without words of its own, one argument. off: the word for `false`."""

    name: str
    words: str
    off: str | None
    kind: type
    several: bool
    required: bool


class Command(dict[str, Flag]):
    """The flags of a command by their keys in a recipe. extras: what must be installed to run it."""

    def __init__(self, flags: Iterable[Flag], extras: tuple[str, ...]) -> None:
        super().__init__((flag.name, flag) for flag in flags)
        self.extras = extras


Commands = Mapping[str, Command]  # by its words: "train sft"


def commands_of(root: Any) -> Commands:
    """root: the command line as a typer group. A key is the flag's name with underscores, as elsewhere
    in recipes."""
    found = {}
    for words, command in _commands(root, ()):
        flags = []
        for param in command.params:
            is_option = param.param_type_name == "option"
            kind = param.type_descriptor.annotation
            inner = str if get_origin(kind) is Literal else next(iter(get_args(kind)), kind)
            longest = max(param.opts, key=len)
            name = longest.lstrip("-").replace("-", "_")
            off = param.secondary_opts[0] if is_option and param.secondary_opts else None
            several = bool(getattr(param, "multiple", False)) or param.nargs == -1
            flags.append(Flag(name, longest if is_option else "", off, inner, several, param.required))
        # not what needs people's votes, which lie in a folder of their own
        of_folder = any(flag.name == "run" and flag.required for flag in flags) and words != "report"
        if words.split()[0] in FIRST_WORDS and not of_folder:
            found[words] = Command(flags, getattr(command.callback, "extras", ()))
    return found


def _commands(group: Any, before: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*before, name))
        else:
            yield " ".join((*before, name)), command


def is_file(flag: Flag) -> bool:
    return flag.kind is Path


EVALUATIONS = "evaluations"
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a file"}
MADE = {"rank": "ranked.jsonl", "report": "report.html"}  # what a step leaves, if it is one file


@dataclass(frozen=True, slots=True)
class Step:
    """run: the command's words; given: its flags and their values, in the recipe's order. is_last: it
    looks at everything in the run folder, and comes after all that can be done. extras: see Command."""

    name: str
    run: tuple[str, ...]
    given: tuple[tuple[Flag, tuple[Value, ...]], ...]
    needs: tuple[str, ...]
    is_last: bool
    can_be_quiet: bool
    extras: tuple[str, ...]


def steps_of(recipe: Recipe, commands: Commands) -> Mapping[str, Step]:
    """Raises UsageError naming the line."""
    return {name: _step(recipe, name, commands) for name in recipe.nodes if name in recipe.step}


def extras_for(recipe: Recipe, steps: Mapping[str, Step], chosen: Sequence[str]) -> Iterator[str]:
    """Of the chosen steps, and of the teachers that the recipe serves to the chosen stages."""
    for name in chosen:
        if name in steps:
            yield from steps[name].extras
        elif isinstance(serve := recipe.teacher[recipe.stage[name].teacher].serve, OfStep):
            yield from FOR_FOLDERS
        elif serve not in (None, "scripted"):
            yield from extras_of(serve)


def folder_of(run: Path, name: str) -> Path:
    return run / STEPS / name


def left_by(run: Path, step: OfStep, command: str) -> Path:
    """What another stage, step or teacher reads of a step."""
    if command.startswith("evaluate ") and not step.file:
        return run / EVALUATIONS / f"{step.step}.json"
    file = step.file or MADE.get(command)
    return folder_of(run, step.step) / file if file else folder_of(run, step.step)


def placed(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with a file for all answers that stages read of steps. While a file is not there, the
    stage that its answers come from stands for it: good enough for a price."""
    stages = {}
    for name, stage in recipe.stage.items():
        found, names = [], []
        for member in stage.members:
            if isinstance(member, OfStep):
                path = left_by(run, member, recipe.step[member.step].run)
                (candidates,) = recipe.step[member.step].flags["candidates"]
                assert isinstance(candidates, OfStage)
                found.append(str(path.resolve()) if path.is_file() else candidates.stage)
                names.append(stem(Path(member.file or "").name))
            else:  # a stage's own name; a file's, whoever made it, without its endings
                found.append(member)
                names.append(member if member in recipe.stage else stem(Path(member).name))
        if any(isinstance(member, OfStep) for member in stage.members):
            update: dict[str, Any] = {"answers": tuple(found), "names": stage.names or tuple(names)}
            if stage.against is not None:
                update |= {"answers": found[0], "against": found[1]}
            stage = stage.model_copy(update=update)
        stages[name] = stage
    return recipe.model_copy(update={"stage": stages})


def _step(recipe: Recipe, name: str, commands: Commands) -> Step:
    table, at = recipe.step[name], ("step", name)
    if table.run not in commands:
        known = ", ".join(commands)
        words = f"a step cannot run '{table.run}' (only {', '.join(FIRST_WORDS)}); choose from {known}"
        raise recipe.wrong((*at, "run"), words)
    flags = commands[table.run]
    given = []
    for key, values in table.flags.items():
        if key not in flags or key in OURS or (key == "out" and not table.run.startswith("evaluate")):
            theirs = ", ".join(sorted(k for k in flags if k not in OURS and k not in ("out", "more")))
            words = (
                "distill sets it itself" if key in flags else f"{table.run} has no such flag; it has {theirs}"
            )
            raise recipe.wrong((*at, key), words)
        _check_values(recipe, (*at, key), flags[key], values)
        given.append((flags[key], values))
    needed = [f.name for f in flags.values() if f.required and f.name not in (*OURS, "out")]
    if table.run in READ_THE_RUN and "stage" in table.flags:
        needed = [key for key in needed if flags[key].words]  # its argument is this run's folder
    if "recipe" not in table.flags:
        needed += NEEDED.get(table.run, ())
    for key in needed:
        if key not in table.flags:
            raise recipe.wrong(at, f"{table.run} needs {key} = …")
    choice = ONE_OF.get(table.run)
    if choice and not table.flags.keys() & {*choice}:
        raise recipe.wrong(at, f"{table.run} needs {' or '.join(f'{key} = …' for key in choice)}")
    is_last = table.run == "report" and not table.after
    extras = (*flags.extras, *_extras_of_model(recipe, table.flags))
    return Step(name, tuple(table.run.split()), tuple(given), table.needs, is_last, "quiet" in flags, extras)


def _extras_of_model(recipe: Recipe, flags: Mapping[str, tuple[Value, ...]]) -> tuple[str, ...]:
    """The embedded model is an extra, also where a recipe of `train` names it."""
    model: Any = flags.get("model", (None,))[0]
    if model is None and "recipe" in flags:
        try:
            text = recipe.path(str(flags["recipe"][0])).read_text(encoding="utf-8")
            model = tomllib.loads(text).get("model")
        except (OSError, ValueError):  # which the command itself will say
            return ()
    return (SMOLLM2,) if model == SMOLLM2 else ()


def _check_values(recipe: Recipe, where: Path_, flag: Flag, values: tuple[Value, ...]) -> None:
    if not values or (len(values) > 1 and not flag.several):
        raise recipe.wrong(where, "it takes one value")
    for value in values:
        if isinstance(value, OfStage | OfStep):
            _check_input(recipe, where, flag, value)
        elif not _is(value, flag.kind):
            raise recipe.wrong(where, f"expected {KINDS[flag.kind]}, found {value!r}")
        elif is_file(flag) and flag.name in WRITTEN:
            if Path(str(value)).name != value:
                raise recipe.wrong(where, "it is written into the step's own folder: give a name only")
        elif is_file(flag) and not recipe.path(str(value)).exists():
            recipe.lacks(str(value), where)
    exported = [value.stage for value in values if isinstance(value, OfStage)]
    if len(set(exported)) < len(exported):
        raise recipe.wrong(where, "the same stage twice")


def _check_input(recipe: Recipe, where: Path_, flag: Flag, value: OfStage | OfStep) -> None:
    if flag.kind not in (Path, str) or flag.name in WRITTEN:
        raise recipe.wrong(where, f"expected {KINDS[flag.kind]}, not the output of a stage or step")
    if isinstance(value, OfStep):
        return
    stage = recipe.stage[value.stage]
    task = stage.task
    if flag.name == "stage":
        if recipe.step[str(where[1])].run != "evaluate shares" and task not in ("judge", "compare"):
            raise recipe.wrong(where, f"stage '{value.stage}' ({task}) has no judge; name one that has")
        return
    if value.format is not None and value.format not in SHAPES[task]:
        words = f"stage '{value.stage}' ({task}) is exported as {' or '.join(SHAPES[task])}"
        raise recipe.wrong(where, words)
    try:
        check_outcomes(value.outcome)
        check_reasoning(value.reasoning, value.format or SHAPES[task][0], task, stage.field)
    except UsageError as error:
        raise recipe.wrong(where, str(error)) from None


def _is(value: Value, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, str if kind is Path else kind)
