"""docs/settings.md says what the models of the settings say.

`python tests/test_settings_page.py` writes the page anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from engine.cli.options import usual  # noqa: E402
from engine.collect.build_settings import flag_of  # noqa: E402
from engine.collect.setting_fields import ALL, FLAGGED, PANELS, declared  # noqa: E402
from engine.recipe.schema import EndpointTable, Recipe, StageTable, TeacherTable  # noqa: E402
from trainers.config import RewardRecipe, SftRecipe  # noqa: E402
from trainers.trl_config import DistillRecipe, DpoRecipe, RlRecipe  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"
HOW = "python tests/test_settings_page.py"
TABLES = {"stage": StageTable, "teacher": TeacherTable, "endpoint": EndpointTable, "top": Recipe}
HEAD = f"""# Settings

All settings for asking and training, with bounds and defaults. `distill COMMAND --help` shows those of one
command. This page is written by `{HOW}` from `setting_fields.py` in
`engine/collect/` and `config.py`, `trl_config.py` in `trainers/`: change them, not the page.

A command refuses flags that it does not use; a stage refuses keys that its task does not use. The keys
have the flags' names with underscores. They go into `[stage.NAME]`, `[teacher.NAME]` and
`[[teacher.NAME.endpoint]]`, as the third column says, or at the top of the file. A wrong value: exit code 2.
"""
TRAINING = """
## Training

`train sft`, `reward`, `dpo`, `rl` and `distill` take these as flags, as keys of a recipe's step, and as keys
of the TOML file that `--recipe` names. A flag overrides the file.
"""
TRAININGS: dict[str, type[BaseModel]] = {"sft": SftRecipe, "reward": RewardRecipe, "dpo": DpoRecipe}
TRAININGS |= {"rl": RlRecipe, "distill": DistillRecipe}


def allowed(model: type[BaseModel], name: str) -> str:
    """Which values a setting takes, from its JSON schema."""
    schema: dict[str, Any] = model.model_json_schema()["properties"][name]
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    (kind,) = kinds
    if "enum" in kind:
        return ", ".join(f"`{value}`" for value in kind["enum"])
    words = {"integer": "whole number", "number": "number", "boolean": "yes or no", "array": "several texts"}
    word = words.get(kind.get("type", ""), "text" if kind.get("type") == "string" else "names and values")
    if kind.get("format") == "path":
        word = "path"
    bounds = [
        f"{sign} {kind[key]:,}"
        for key, sign in (
            ("exclusiveMinimum", "over"), ("minimum", "from"),
            ("maximum", "to"), ("exclusiveMaximum", "under"),
        )
        if key in kind and abs(kind[key]) < 10**9
    ]  # fmt: skip
    return " ".join([word, *bounds])


def heeded(commands: Sequence[str]) -> str:
    missing = [command for command in ALL if command not in commands]
    if len(missing) < len(commands):
        return f"all but {', '.join(missing)}" if missing else "all"
    return ", ".join(commands)


def places(name: str, field: FieldInfo) -> str:
    """The tables of a recipe that have a setting, and its key if it is not the flag's name."""
    found = [
        where for where, table in TABLES.items() if name in table.model_fields and where + name != "topstage"
    ]
    return ", ".join(found) + (f" (`{name}`)" if declared(field).get("flag") else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield ""
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def page() -> str:
    lines = [HEAD.rstrip()]
    for panel in PANELS:
        rows = [
            (
                f"`{flag_of(name, field)}`",
                str(field.description),
                places(name, field),
                allowed(model, name),
                usual(name, field, "all"),
                heeded(declared(field)["commands"]),
            )
            for model in FLAGGED
            for name, field in model.model_fields.items()
            if declared(field)["panel"] == panel
        ]
        head = ("flag", "what", "in a recipe", "values", "default", "commands")
        lines += ["", f"## {panel}", *table(head, rows)]
    lines.append(TRAINING.rstrip())
    kinds = [f"`{kind}`" for kind in TRAININGS]
    lines += table(("flag", "what", "values", *kinds), map(training_row, training_fields()))
    return "\n".join(lines) + "\n"


def training_fields() -> list[str]:
    return list(dict.fromkeys(name for model in TRAININGS.values() for name in model.model_fields))


def training_row(name: str) -> Sequence[str]:
    models = [model for model in TRAININGS.values() if name in model.model_fields]
    found: dict[type[BaseModel], FieldInfo] = {model: model.model_fields[name] for model in models}
    what = dict.fromkeys(str(field.description) for field in found.values())
    defaults = [usual(name, found[m]) if m in found else "none" for m in TRAININGS.values()]
    return (f"`{flag_of(name, found[models[0]])}`", "; ".join(what), allowed(models[0], name), *defaults)


def test_the_page_of_settings_is_what_the_models_say() -> None:
    assert PAGE.read_text() == page(), f"docs/settings.md is out of date: write it anew with `{HOW}`"


def test_every_setting_is_on_the_page() -> None:
    text = page()
    for model in (*FLAGGED, *TRAININGS.values()):
        for name, field in model.model_fields.items():
            assert f"| `{flag_of(name, field)}` |" in text, name


if __name__ == "__main__":
    PAGE.write_text(page())
