"""Checkpoints that can be trusted: one counts when its manifest is there and every file is as it says.

The manifest is written last, in one rename, after all processes have written and all files are on the
disk. Whatever a kill leaves behind has none, and is passed over.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

MANIFEST = "complete.json"
NAME = re.compile(r"checkpoint-(\d+)")
DAMAGED = "damaged-"
Say = Callable[[str], None]


def seal(checkpoint: Path) -> None:
    """Declares a checkpoint whole; call when every process has written its part."""
    files = {str(file.relative_to(checkpoint)): _seen(file) for file in _files(checkpoint)}
    beside = checkpoint / f".{MANIFEST}.part"
    beside.write_text(json.dumps(files, indent=1))
    _to_disk(beside)
    beside.replace(checkpoint / MANIFEST)
    _to_disk(checkpoint)


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_bytes())
    except FileNotFoundError:
        return "it was not finished"
    except ValueError:
        return f"its {MANIFEST} is torn"
    for name, (size, digest) in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size:,} bytes, not {size:,}"
        if _digest(file) != digest:
            return f"{name} has changed since it was written"
    return None


def last_whole(folder: Path, say: Say) -> Path | None:
    """The latest checkpoint that is whole. Later ones are put out of the way: an unfinished one is
    removed, a damaged one renamed."""
    for checkpoint in reversed(all_of(folder)):
        why = fault(checkpoint)
        if why is None:
            return checkpoint
        say(f"{checkpoint.name} is passed over: {why}")
        if (checkpoint / MANIFEST).exists():
            shutil.rmtree(folder / (DAMAGED + checkpoint.name), ignore_errors=True)
            checkpoint.rename(folder / (DAMAGED + checkpoint.name))
        else:
            shutil.rmtree(checkpoint)
    return None


def all_of(folder: Path) -> list[Path]:
    """Checkpoints by step, the first first."""
    found = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    match = NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def _files(checkpoint: Path) -> list[Path]:
    return sorted(f for f in checkpoint.rglob("*") if f.is_file() and not f.name.startswith(f".{MANIFEST}"))


def _seen(file: Path) -> tuple[int, str]:
    _to_disk(file)
    return file.stat().st_size, _digest(file)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
