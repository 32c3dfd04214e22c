"""What a run is to do, and how its stages ended: the values that go into a session and come out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.estimate import Estimate
from engine.plan import Plan
from engine.rows import Rows
from engine.settings import Settings
from engine.state import RunState
from store.errors import DistillError
from store.index import KeyIndex


@dataclass(frozen=True, slots=True)
class StageJob:
    """One stage: what is asked, of which rows. `after`: the stages whose answers they are made of,
    which may run at the same time; `cap`: dollars for this stage alone; `lacking`: of `after` those that
    do not run now and are incomplete."""

    settings: Settings
    plan: Plan
    rows: Rows
    estimate: Estimate | None = None
    after: tuple[str, ...] = ()
    cap: float | None = None
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """Stages to run in a folder that this process holds; `cap`: dollars for the whole folder, and
    `knob`: what the user turns to raise it."""

    stages: Sequence[StageJob]
    run: Path
    index: KeyIndex
    cap: float | None
    quiet: bool
    metrics_port: int | None = None
    knob: str = "--budget"


@dataclass(frozen=True, slots=True)
class Result:
    """How a stage ended: counts, exit code, the reason if it ended early; and its estimate."""

    state: RunState
    exit_code: int
    stopped: DistillError | None
    utilisation: dict[str, Any]
    seconds: float
    estimate: Estimate | None = None
    is_batch: bool = False
