"""Dataclasses whose fields are all arrays: on disk, a file for each field, and read by mapping, whatever
their size; and their digest.
"""

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

A = TypeVar("A")


def save(arrays: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for field in fields(arrays):
        np.save(folder / f"{field.name}.npy", getattr(arrays, field.name))


def load(kind: type[A], folder: Path) -> A:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def digest_of(arrays: Any) -> str:
    """SHA-256 of all of it."""
    found = hashlib.sha256()
    for field in fields(arrays):
        found.update(np.ascontiguousarray(getattr(arrays, field.name)).data)
    return found.hexdigest()
