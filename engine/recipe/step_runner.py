"""Runs a step: exports what it reads, starts its command, keeps a record by which it is known as done.

RUN/steps/NAME/            what the command leaves
RUN/steps/NAME.in/FLAG/    stages, exported for it
RUN/steps/NAME.json        the record: the command, what it read (hashes), what it left when it was whole
RUN/steps/NAME.before-1/   what it had left when its command or what it reads was another

The commands are other packages' and run in processes of their own; they meet us in files.
"""

import contextlib
import hashlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import orjson

from engine.answers import SHAPES
from engine.collect.other_settings import counting
from engine.export import ExportOptions, export_stage
from engine.recipe.schema import READ_THE_RUN, OfStage, OfStep, Recipe, Value
from engine.recipe.steps import EVALUATIONS, MADE, WRITTEN, Flag, Step, folder_of, is_file, left_by
from engine.run.job import Control
from engine.subprocesses import Stop, command, run_to_end
from engine.terminal import plain, tell
from store.errors import DistillError, words_of
from store.queries import connect_reader, stage_of, stage_status
from store.run_folder import STEPS, Record, StepResult, is_whole, record_of, write_record

OUR_STDERR = 2  # for what a command says: our standard output may be a program's
BEGUN = Path("training") / "run.json"  # where a training was begun, which can be resumed


class EmptyStage(DistillError):
    """A stage is complete, and none of its rows is of use to a step."""

    exit_code = 1


def run_step(
    recipe: Recipe, step: Step, run: Path, quiet: bool, control: Control | None = None
) -> StepResult:
    """Nothing is done where the same command has done the same already. control: of whoever has started this
    thread."""
    started = time.monotonic()
    try:
        words, inputs = _prepared(recipe, step, run, run / STEPS / f"{step.name}.in")
    except DistillError as error:
        return StepResult("failed", 1, str(error))
    digest = _digest(inputs)
    record = record_of(run, step.name)
    if record.get("digest") == digest and is_whole(run, record) and not step.is_last:
        return StepResult("known")
    if record.get("digest") != digest or "left" in record:
        _set_aside(step, run)
    words += _own_words(step, run, quiet)
    record = {"run": " ".join(step.run), "digest": digest, "inputs": inputs, "command": words}
    record |= {"begun": time.time()}
    write_record(run, step.name, record)
    if not quiet:
        tell(f"step {step.name}: distill {' '.join(words)}\n")
    code = _run(step, run, words, control.attached_process if control else None)
    seconds = time.monotonic() - started
    if code:
        said = f"`distill {' '.join(words)}` ended with exit code {code}"
        ours = code if code in (3, 130) else 1
        return StepResult("interrupted" if code == 130 else "failed", ours, said, seconds)
    files = sorted(file for file in folder_of(run, step.name).glob("*") if file.is_file())
    if step.run[0] == "evaluate":
        files.append(run / EVALUATIONS / f"{step.name}.json")
    left = {str(file.relative_to(run)): _seal(file) for file in files}
    write_record(run, step.name, {**record, "left": left, "ended": time.time(), "seconds": seconds})
    return StepResult("done", seconds=seconds)


def is_as_recorded(recipe: Recipe, step: Step, run: Path, record: Record) -> bool:
    """Whether what a step has left came of the command and the contents that it would have now. Nothing
    of the step is touched."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _, inputs = _prepared(recipe, step, run, Path(folder))
        except DistillError:
            return False
    return bool(_digest(inputs) == record.get("digest"))


def _digest(inputs: list[Any]) -> str:
    return hashlib.sha256(orjson.dumps(inputs, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _prepared(recipe: Recipe, step: Step, run: Path, folder: Path) -> tuple[list[str], list[Any]]:
    """The words of the command, and what decides its result: the words with files' contents. Stages
    are exported to the folder."""
    options, arguments, inputs = list(step.run), [], [list(step.run)]
    for flag, values in step.given:
        for value in values:
            word, seal = _word(recipe, step, run, folder / flag.name, flag, value)
            inputs.append([flag.name, seal])
            if isinstance(value, bool):
                options += [flag.words] if value else [flag.off] if flag.off else []
            elif flag.words:
                options += [flag.words, word]
            else:
                arguments.append(word)
    return [*options, *arguments], inputs


def _word(recipe: Recipe, step: Step, run: Path, folder: Path, flag: Flag, value: Value) -> tuple[str, Any]:
    """How a value is said on the command line, and what it is known by."""
    if isinstance(value, OfStage) and flag.name == "stage":  # read in the ledger, under its name
        number, _ = stage_of(run, value.stage)
        with contextlib.closing(connect_reader(run)) as reader:
            counted, told = counting(reader, number), stage_status(reader, number)
        known_by = ("done", "failed", "outcomes", "prompt_tokens", "completion_tokens")
        return value.stage, {"plans": sorted(counted.plans), **{key: told[key] for key in known_by}}
    if isinstance(value, OfStage):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{value.stage}.jsonl"
        format = value.format or SHAPES[recipe.stage[value.stage].task][0]
        chosen = ExportOptions(format, value.stage, value.outcome, value.min_margin, value.reasoning)
        found = export_stage(run, path, chosen)
        if words := words_of([found.damages], run):
            tell(f"distill: {plain(words, 1000)}\n")
        if not found.rows:
            words = f"stage '{value.stage}' has no row for it (outcomes {value.outcome})"
            raise EmptyStage(f"{words}: see `distill status --run {run}` for what became of its rows")
    elif isinstance(value, OfStep):
        path = left_by(run, value, recipe.step[value.step].run)
    elif is_file(flag) and flag.name in WRITTEN:
        return str(folder_of(run, step.name) / str(value)), value
    elif is_file(flag) or (flag.name == "model" and recipe.path(str(value)).is_dir()):
        path = recipe.path(str(value))
    else:
        return str(value), value
    record = record_of(run, value.step) if isinstance(value, OfStep) and path.is_dir() else {}
    return str(path), record.get("left") or _seal(path)


def _own_words(step: Step, run: Path, quiet: bool) -> list[str]:
    """What is ours to say: where the result goes, and whether a training run continues."""
    folder, kind = folder_of(run, step.name), step.run[0]
    quietly = ["--quiet"] if quiet and step.can_be_quiet else []
    if kind == "train":
        return ["--out", str(folder), *quietly, *(["--resume"] if (folder / BEGUN).is_file() else [])]
    if kind == "evaluate":
        reads_run = any(flag.name == "stage" for flag, _ in step.given)
        folder_words = [*READ_THE_RUN.get(" ".join(step.run), ()), str(run)] if reads_run else []
        return ["--json", *quietly, *folder_words]
    words = ["--out", str(folder / MADE[kind]), *quietly]
    return [*words, "--split", str(folder)] if kind == "rank" else ["--run", str(run), *words]


def _run(
    step: Step, run: Path, words: list[str], stoppable: Callable[[Stop], AbstractContextManager[None]] | None
) -> int:
    """A training is killed when we are, for it continues from its checkpoint; others clear up first."""
    folder = folder_of(run, step.name)
    if step.run[0] == "train":
        return run_to_end(command(*words), OUR_STDERR, signal.SIGKILL, stoppable)
    folder.mkdir(parents=True, exist_ok=True)
    if step.run[0] != "evaluate":
        return run_to_end(command(*words), OUR_STDERR, signal.SIGTERM, stoppable)
    result = run / EVALUATIONS / f"{step.name}.json"
    result.parent.mkdir(exist_ok=True)
    beside = result.with_name(f".{result.name}.part")
    with beside.open("wb") as out:
        code = run_to_end(command(*words), out, signal.SIGTERM, stoppable)
    if code == 0:
        beside.replace(result)
    return code


def _seal(path: Path) -> dict[str, Any]:
    """What a file is known by; of a folder that is not ours, what lies in it."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return {file.name: [(found := file.stat()).st_size, found.st_mtime_ns] for file in files}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _set_aside(step: Step, run: Path) -> None:
    """What was made otherwise is kept; a report is of the moment, and what is lost is lost."""
    folder = folder_of(run, step.name)
    if step.is_last or not folder.is_dir() or not any(folder.iterdir()):
        return
    number = 1
    while (aside := folder.with_name(f"{step.name}.before-{number}")).exists():
        number += 1
    folder.rename(aside)
    record = run / STEPS / f"{step.name}.json"
    if record.exists():
        shutil.move(record, aside / "step.json")
    tell(f"step {step.name}: its command or its inputs have changed; its earlier outputs are in {aside}\n")
