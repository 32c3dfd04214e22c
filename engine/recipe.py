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

    [step.student]                     # a command over whole files (steps.py)
    run = "train sft"
    data = { stage = "chinese" }

Every complaint names the file and the line. Nothing is asked or written here.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from engine.recipe_checks import check
from engine.recipe_tables import Recipe, wrong
from engine.toml_lines import Path_, line_numbers
from store.errors import UsageError

EXPECTED = {
    "answers": "expected the name of a stage or file, or several",
    "against": "expected the name of a stage or file",
    "serve": 'expected the name of a model or file, or { step = "NAME" }',
    "after": "expected the name of a step, or several",
    "step": 'expected a value, several, { stage = "NAME", format = "F" } or { step = "NAME", file = "F" }',
}


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
        raise wrong(file, lines, (unknown.pop(),), "unknown name")
    try:
        recipe = Recipe(**{**tables, "file": file, "lines": lines})
    except ValidationError as error:
        raise _invalid(file, lines, error) from None
    check(recipe)
    return recipe


def _invalid(file: Path, lines: Mapping[Path_, int], error: ValidationError) -> UsageError:
    problem = error.errors(include_url=False)[0]
    where = tuple(problem["loc"])
    words = {"extra_forbidden": "unknown name", "missing": "it is missing"}.get(problem["type"])
    if where[-1] == "[key]":
        words = "a name may hold letters, digits, '.', '_' and '-' only"
    elif where[0] == "step" and len(where) > 2 and where[2] not in ("run", "after"):
        where, words = where[:3], EXPECTED["step"]
    elif len(where) > 3 and (key := str(where[2])) in EXPECTED:  # may be of several types
        where, words = where[:3], EXPECTED[key]
    return wrong(file, lines, where, words or problem["msg"])
