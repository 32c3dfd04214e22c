"""`distill train sft`, from the command to the result: check, read, train, publish.

Everything that can be known to go wrong is said before weights are read: the folder, the model's name,
memory, the data. The training itself is in processes of their own (sft.py).
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from store.errors import UsageError
from trainers import rows as rows_on_disk
from trainers.batches import steps_of
from trainers.beginning import carry_out, identity_of, losses, opened, tell_time
from trainers.card import card, versions
from trainers.folder import Folder, held_by, read_metrics, write
from trainers.lora import linear_shapes
from trainers.machine import Machine, this_machine
from trainers.memory import Size, lora_parameters
from trainers.models import (
    config_of,
    packs_exactly,
    parameters_of,
    resolve,
    skeleton,
    tokenizer_of,
)
from trainers.precision import with_precision
from trainers.progress import Display
from trainers.recipe import SftRecipe
from trainers.room import check_memory, in_words
from trainers.rows import Rows
from trainers.run import title_of
from trainers.sft_data import Counts, tokenized
from trainers.zero import as_configured, stage_of

MODULE = "trainers.sft"


def run_sft(recipe: SftRecipe, resume: bool, quiet: bool, env: Mapping[str, str]) -> int:
    """Returns the exit code; raises an error of ours with its own."""
    display = Display(quiet)
    folder = opened(recipe, resume, display)
    if folder is None:
        return 0
    model = resolve(recipe.model, folder.work)
    config, machine = config_of(model), this_machine()
    recipe = with_precision(recipe, machine, display)
    packed = check(recipe, config, machine, display)
    with held_by(folder, recipe.node_rank):
        rows, counts = read(recipe, model, folder, display)
        if not machine.gpus:
            tokens = float(rows.lengths[rows.trained].sum() * recipe.epochs)
            tell_time(recipe, parameters_of(config), tokens, display)
        identity = identity_of(recipe, rows.digest, model, packed=packed)
        job = {"model": model, "packed": packed, "template": counts.template}
        carry_out(recipe, MODULE, identity, folder, resume, quiet, env, machine, job)
        if recipe.node_rank == 0:
            finish(recipe, rows, counts, packed, folder)
            display.say(f"the model is in {recipe.out}")
    return 0


def check(recipe: SftRecipe, config: Any, machine: Machine, display: Display) -> bool:
    """Whether rows will be packed. Raises UsageError where this cannot be trained here."""
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.max_length > longest:
        raise UsageError(f"--max-length {recipe.max_length}: this model reads at most {longest} tokens")
    exact = packs_exactly(config)
    if recipe.packing == "on" and not exact:
        raise UsageError(
            f"--packing on: {config.model_type} is not known to keep packed rows apart; "
            "auto groups its rows by length instead"
        )
    parameters = parameters_of(config)
    trained = parameters
    if recipe.lora is not None:
        trained = lora_parameters(recipe.lora, linear_shapes(skeleton(config)))
    size = Size.of(config, parameters, trained)
    needed = check_memory(size, as_configured(recipe), stage_of(recipe), machine)
    display.say(in_words(size, recipe, needed, machine, "rows"))
    return recipe.packing != "off" and exact


def read(recipe: SftRecipe, model: str, folder: Folder, display: Display) -> tuple[Rows, Counts]:
    """The rows as tokens, on disk, with a word on each that was left out."""
    rows, counts = tokenized(recipe, tokenizer_of(model))
    rows_on_disk.save(rows, folder.rows(recipe.node_rank))
    display.say(
        f"{counts.used:,} of {counts.read:,} rows, {counts.tokens:,} tokens of which {counts.learnt:,} are "
        f"learnt ({counts.template} template); {len(rows.held_out):,} rows held out"
    )
    for number, words in _left_out(counts, recipe):
        if number:
            display.say(f"  {number:,} {words}")
    return rows, counts


def _left_out(counts: Counts, recipe: SftRecipe) -> list[tuple[int, str]]:
    over = f"over {recipe.max_length} tokens"
    return [
        (counts.too_long, f"left out: {over} (--too-long cut keeps their beginning)"),
        (counts.cut, f"cut at the end: {over}; they teach no end of sequence"),
        (counts.no_room, f"left out: the prompt alone is {over}"),
        (counts.bad, f"unusable: {'; '.join(counts.bad_shown)}"),
    ]


def finish(recipe: SftRecipe, rows: Rows, counts: Counts, packed: bool, folder: Folder) -> None:
    """The card, then the result to the top of the folder."""
    records = read_metrics(folder.metrics)
    held = [r for r in records if r["kind"] == "held_out"]
    sections = {
        "Data": _data_section(recipe, rows, counts),
        "Recipe": recipe.model_dump(mode="json", exclude={"data", "out", "model", "master", "node_rank"})
        | {"micro_batch": recipe.rows_at_once, "accumulation": recipe.accumulation, "packed": packed},
        "Losses (nats a learnt token)": losses(records),
        "Versions": versions(),
    }
    samples = held[-1]["samples"] if held else []
    title = title_of(recipe)
    text = card(
        title,
        "Supervised fine-tuning with the loss on the responses only, made by `distill train sft`.",
        recipe.model, sections, samples, ["distill", "sft"],
    )  # fmt: skip
    (folder.result / "README.md").write_text(text, encoding="utf-8")
    folder.publish()
    write(folder.finished, {"steps": steps_of(len(rows.trained), recipe.batch, recipe.epochs)} | sections)
    folder.clear()


def _data_section(recipe: SftRecipe, rows: Rows, counts: Counts) -> dict[str, object]:
    with recipe.data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": recipe.data.name,
        "sha256 of the file": f"`{digest}`",
        "sha256 of the rows as tokens": f"`{rows.digest}`",
        "rows read": counts.read,
        "rows used": counts.used,
        "held out of these": len(rows.held_out),
        "left out, too long": counts.too_long + counts.no_room,
        "cut at the end": counts.cut,
        "unusable": counts.bad,
        "tokens": counts.tokens,
        "tokens learnt": counts.learnt,
        "template": counts.template,
    }
