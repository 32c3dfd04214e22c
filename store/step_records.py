"""What is known of a recipe's steps: RUN/steps/NAME.json, read and written. Runs nothing, imports little."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from store.files import whole

STEPS = "steps"
State = Literal["done", "known", "failed", "interrupted", "waiting"]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepResult:
    """known: it had been done before; waiting: `why` names what it waits for."""

    state: State
    exit_code: int = 0
    why: str = ""
    seconds: float = 0.0


def record_of(run: Path, name: str) -> Record:
    """{} where the step was never begun, or the record cannot be read."""
    try:
        found = orjson.loads((run / STEPS / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def steps_told(run: Path) -> dict[str, dict[str, Any]]:
    """The steps that were begun in a run folder, as `status` has them."""
    records = {file.stem: record_of(run, file.stem) for file in sorted((run / STEPS).glob("*.json"))}
    return {
        name: {"run": record["run"], "done": is_whole(run, record), "seconds": record.get("seconds")}
        for name, record in records.items()
        if "run" in record
    }


def is_whole(run: Path, record: Record) -> bool:
    """Whether a step came to its end, and all that it left still lies there."""
    left = record.get("left", {})
    return bool(left) and all(_size(run / name) == seal["bytes"] for name, seal in left.items())


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def write_record(run: Path, name: str, record: Record) -> None:
    """Whole or not at all."""
    with whole(run / STEPS / f"{name}.json") as file:
        file.write(orjson.dumps(record, option=orjson.OPT_INDENT_2))
