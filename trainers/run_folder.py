"""The folder of a training run: the result on top, what it was made with under `training/`. And whether a
folder can be the model that one starts from, or a reward model: read without torch, so it is told at once.

OUT/model.safetensors, config.json, tokenizer…, README.md     the result, when it is complete
OUT/metrics.jsonl, curves.png                                 as it goes
OUT/training/run.json                                         what the run is, to be resumed as the same
OUT/training/checkpoints/, log.txt, rows-N/, job-N.json

A checkpoint counts when its manifest is there and every file is as it says. The manifest is written last, in
one rename, after all processes have written and all files are on the disk. Whatever a kill leaves behind has
none, and is passed over.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import orjson

from store.errors import UsageError, why_unread
from store.files import whole
from store.run_folder import held
from store.student import check_weights
from trainers.encoding import Template
from trainers.errors import NotTheSame, TrainingFailed

WORK = "training"
RUN = "run.json"
FINISHED = "finished.json"
METRICS = "metrics.jsonl"
ABOUT = "reward.json"  # of a reward model
PRECISIONS = ("bf16", "fp32")
SHOWN = 40  # characters of a value that differs
MANIFEST = "complete.json"  # of a checkpoint
NAME = re.compile(r"checkpoint-(\d+)")
DAMAGED = "damaged-"
Identity = Mapping[str, Any]
Say = Callable[[str], None]


class Folder:
    """The paths of a training run's folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.work = out / WORK
        self.checkpoints = self.work / "checkpoints"
        self.stop = self.work / "stop"
        self.result = self.work / "result"
        self.metrics = out / METRICS
        self.curves = out / "curves.png"
        self.finished = self.work / FINISHED

    def place(self, node: int) -> Path:
        """What a machine holds while it trains: they may share the folder."""
        return self.work / f"node-{node}" if node else self.work

    def log(self, node: int) -> Path:
        return self.place(node) / "log.txt"

    def rows(self, node: int) -> Path:
        return self.work / f"rows-{node}"

    def job(self, node: int) -> Path:
        return self.work / f"job-{node}.json"

    def check(self, resume: bool) -> None:
        """Raises UsageError where OUT holds something else, or a run and no --resume."""
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"--out {self.out} is a file; name a folder")
        held = sorted(p.name for p in self.out.iterdir()) if self.out.is_dir() else []
        if (self.work / RUN).is_file():
            if not resume:
                raise UsageError(
                    f"{self.out} holds a training run already: --resume continues it, or name another --out"
                )
        elif set(held) - {WORK}:
            raise UsageError(f"--out {self.out} holds something else ({held[0]}, …); name a new folder")
        elif resume:
            raise UsageError(f"nothing to resume in {self.out}: no training run was started there")

    def begin(self, identity: Identity) -> None:
        write(self.work / RUN, identity)

    @property
    def begun_in(self) -> str | None:
        """The precision of the training that is here; None where it is not known."""
        try:
            found = json.loads((self.work / RUN).read_bytes())["precision"]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return found if found in PRECISIONS else None

    def same(self, identity: Identity) -> None:
        """Raises NotTheSame naming each value that differs from the run's; UsageError where that is not
        to be read."""
        told = self.work / RUN
        try:
            before = dict(json.loads(told.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            words = "start again with another --out: nobody knows what it was started with"
            raise UsageError(f"{told} cannot be read ({error}): {words}") from error
        now = json.loads(json.dumps(identity, default=str))
        found = [
            f"{name.replace('_', '-')}: {_short(before.get(name))} -> {_short(now.get(name))}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if found:
            raise NotTheSame(
                f"{self.out} cannot be resumed with other settings ({'; '.join(found)}): "
                "give those that it was started with, or start again with another --out"
            )

    def publish(self) -> None:
        """Moves the complete result to the top; config.json last, for by it a model is known."""
        for file in sorted(self.result.iterdir(), key=lambda f: f.name == "config.json"):
            file.chmod(0o644)
            file.replace(self.out / file.name)
        shutil.rmtree(self.result)

    def clear(self) -> None:
        """Removes what only an unfinished training needs."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        for found in (*self.work.glob("rows-*"), *self.work.glob("job-*")):
            shutil.rmtree(found) if found.is_dir() else found.unlink()


@contextmanager
def held_by(folder: Folder, node: int) -> Iterator[None]:
    """No other command trains there meanwhile. What the disk refuses is said in a sentence."""
    try:
        with held(folder.place(node), flag="--out"):
            yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        words = f"{where}{error.strerror or error}; --resume continues once that is fixed"
        raise TrainingFailed(words) from error


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else text[:12] + "…"


def write(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON file, complete or not at all."""
    with whole(path) as file:
        file.write((json.dumps(value, indent=1, default=str) + "\n").encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """What was measured so far; a torn last line is not there."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return found


def forget_after(path: Path, step: int) -> None:
    """Drops what was measured after the checkpoint that a resume begins from: it comes again."""
    kept = [record for record in read_metrics(path) if record.get("step", 0) <= step]
    with whole(path) as file:
        file.writelines(orjson.dumps(record) + b"\n" for record in kept)


def seal(checkpoint: Path) -> None:
    """Declares a checkpoint complete; call when every process has written its part."""
    files = {}
    for file in sorted(checkpoint.rglob("*")):
        if file.is_file() and not file.name.startswith(f".{MANIFEST}"):
            _to_disk(file)
            files[str(file.relative_to(checkpoint))] = file.stat().st_size, _digest(file)
    beside = checkpoint / f".{MANIFEST}.part"
    beside.write_text(json.dumps(files, indent=1))
    _to_disk(beside)
    beside.replace(checkpoint / MANIFEST)
    _to_disk(checkpoint)


def checkpoint_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is complete."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_bytes())
    except FileNotFoundError:
        return "it was not finished"
    except ValueError:
        return f"its {MANIFEST} is incomplete"
    for name, (size, digest) in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes, not {size:,}"
        if _digest(file) != digest:
            return f"{name} has changed since it was written"
    return None


def last_checkpoint(folder: Path, say: Say) -> Path | None:
    """The latest checkpoint that is complete. Later ones are put out of the way: an unfinished one is
    removed, a damaged one renamed."""
    for checkpoint in reversed(checkpoints_in(folder)):
        why = checkpoint_fault(checkpoint)
        if why is None:
            return checkpoint
        say(f"{checkpoint.name} is skipped: {why}")
        if (checkpoint / MANIFEST).exists():
            shutil.rmtree(folder / (DAMAGED + checkpoint.name), ignore_errors=True)
            checkpoint.rename(folder / (DAMAGED + checkpoint.name))
        else:
            shutil.rmtree(checkpoint)
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints by step, the first first."""
    found = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    match = NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_model(name: str, flag: str = "--model") -> None:
    """Raises UsageError where no model can be read: a file, no folder, a folder that is not a model or whose
    weights are incomplete. A name on a hub passes."""
    path = Path(name)
    if path.is_file():
        raise UsageError(f"{flag} {name} is a file; expected a transformers folder, a hub name or smollm2")
    if path.is_dir():
        _check_files(path, f"{flag} {name}", "a transformers folder")
    elif path.is_absolute() or name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1:
        raise UsageError(f"{flag} {name}: there is no such folder")


@dataclass(frozen=True)
class About:
    """How a reward model was taught to read."""

    template: Template
    max_length: int


def write_about(about: About, folder: Path) -> None:
    (folder / ABOUT).write_text(json.dumps(asdict(about)) + "\n")


def read_about(folder: Path) -> About:
    """Raises UsageError where the folder is not a reward model of ours, or is incomplete."""
    told, expected = f"--reward {folder}", "a folder of `train reward`"
    if not folder.is_dir():
        words = "it is a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"{told}: {words}; expected {expected}")
    _check_files(folder, told, expected)
    try:
        found = json.loads((folder / ABOUT).read_bytes())
        if found["template"] not in get_args(Template) or found["max_length"] < 1:
            raise ValueError(f"template {found['template']}, max_length {found['max_length']}")
        return About(found["template"], int(found["max_length"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = why_unread(error) if isinstance(error, OSError) else error
        raise UsageError(f"{told}: no {ABOUT} that says how it reads ({why}); expected {expected}") from None


def _check_files(folder: Path, told: str, expected: str) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UsageError(f"{told}: the folder has no config.json; expected {expected}")
    try:
        if not isinstance(json.loads(config.read_bytes()), dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        why = why_unread(error) if isinstance(error, OSError) else error
        raise UsageError(f"{config} cannot be read: {why}; expected {expected}") from error
    check_weights(folder, {})
