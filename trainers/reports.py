"""What a training process tells the command that started it: JSON records on its standard output.

A record stands on a line of its own after RFC 7464's separator, so that whatever libraries print beside
it is told apart.
"""

import os
import sys
from pathlib import Path
from typing import Any

import orjson

SEPARATOR = b"\x1e"


def report(kind: str, **values: Any) -> None:
    """To be called by one process of a machine only."""
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), b"\n" + SEPARATOR + _record(kind, values) + b"\n")


def _record(kind: str, values: dict[str, Any]) -> bytes:
    return orjson.dumps({"kind": kind, **values}, option=orjson.OPT_SERIALIZE_NUMPY)


def measured(metrics: Path, kind: str, **values: Any) -> None:
    """A measurement: on disk first, by the process that seals checkpoints, so that none is sealed whose
    measurements a killed command never read; then told."""
    with metrics.open("ab") as file:
        file.write(_record(kind, values) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    report(kind, **values)


def parsed(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None where it is something else."""
    if not line.startswith(SEPARATOR):
        return None
    try:
        found: dict[str, Any] = orjson.loads(line[1:])
    except orjson.JSONDecodeError:
        return None
    return found
