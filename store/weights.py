"""Whether a transformers folder holds the weights that its config.json describes, by the files' headers.

Reads no weight and takes no memory. Knows neither torch nor any architecture: who asks brings the shapes.
https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from store.errors import UsageError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_HEADER = 100 << 20  # bytes, which the format allows
Shape = tuple[int, ...]


def check_weights(folder: Path, wanted: Mapping[str, Shape]) -> None:
    """Raises UsageError where files are missing or torn, or are of another model than the one that has
    parameters of these names and shapes: transformers would draw what is missing at random."""
    files = _files(folder)
    if not files:
        held = sum(file.stat().st_size for file in folder.glob("*.bin"))  # a parameter has a byte at least
        if not held:
            raise UsageError(f"{folder}: there are no weights beside config.json ({WHOLE})")
        found: dict[str, Shape] = {}
    else:
        found = {name: shape for file in files for name, shape in _shapes(file).items()}
        held = sum(map(math.prod, found.values()))
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name] != found[name]:
            raise UsageError(
                f"{folder}: config.json is of another model than the weights: {name} is {wanted[name]} by "
                f"it, and {found[name]} in them"
            )
    described = sum(map(math.prod, wanted.values()))
    if described > held:
        missing = sorted(wanted.keys() - found.keys())
        raise UsageError(
            f"{folder}: {len(missing):,} weights are missing, such as {missing[0]}: config.json describes "
            f"{described:,} parameters, and there are {held:,} at most; it is damaged or not a complete model"
        )


def _files(folder: Path) -> list[Path]:
    """Those that transformers reads, all there."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        named = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} cannot be read: {error}") from error
    missing = [name for name in named if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder}: {missing[0]} is missing, which {INDEX} names")
    return [folder / name for name in named]


def _shapes(file: Path) -> dict[str, Shape]:
    """Of every tensor of a safetensors file, which is as long as its header says."""
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(min(length, MOST_HEADER)))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is torn or no safetensors: its header cannot be read") from error
    if file.stat().st_size != 8 + length + end:
        raise UsageError(f"{file} is torn: {file.stat().st_size:,} bytes of {8 + length + end:,}")
    return shapes
