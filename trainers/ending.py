"""What every training does after its last step: its card, and the result to the top of its folder."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.batches import steps_of
from trainers.card import Table, card, versions
from trainers.folder import Folder, write
from trainers.recipe import Training
from trainers.run import title_of

HIDDEN = {
    "data",
    "out",
    "model",
    "master",
    "node_rank",
}  # said elsewhere on the card, or of this machine alone


def finish(
    recipe: Training,
    folder: Folder,
    rows: int,
    about: str,
    sections: Mapping[str, Table],
    samples: Sequence[Mapping[str, str]],
    tag: str,
) -> None:
    """rows: of one pass over the data. about: what the model is, in Markdown. sections: of the card."""
    sections = {**sections, "Versions": versions()}
    text = card(title_of(recipe), about, recipe.model, sections, samples, ["distill", tag])
    (folder.result / "README.md").write_text(text, encoding="utf-8")
    folder.publish()
    write(folder.finished, {"steps": steps_of(rows, recipe.batch, recipe.epochs), **sections})
    folder.clear()


def recipe_table(recipe: Training) -> dict[str, Any]:
    told = recipe.model_dump(mode="json", exclude=HIDDEN)
    return told | {"micro_batch": recipe.rows_at_once, "accumulation": recipe.accumulation}


def file_table(recipe: Training) -> dict[str, str]:
    """The data's file, by which another can be told to be the same."""
    with recipe.data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": recipe.data.name, "sha256 of the file": f"`{digest}`"}


def losses(records: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """The training's and the held-out losses."""
    steps = [r for r in records if r["kind"] == "step"]
    held = [r for r in records if r["kind"] == "held_out"]
    last = steps[-max(1, len(steps) // 10) :]
    found: dict[str, object] = {"steps": steps[-1]["step"] if steps else 0}
    if steps:
        found["training, mean of the last tenth"] = sum(r["loss"] for r in last) / len(last)
    if held:
        found["held out, before"] = held[0]["held_out_loss"]
        found["held out, at the end"] = held[-1]["held_out_loss"]
    return found
