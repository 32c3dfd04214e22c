"""`distill train sft`, from the command to the result: check, read, train, publish.

Everything that can be known to go wrong is said before weights are read: the folder, the model's name,
memory, the data. The training itself is in processes of their own (worker.py).
"""

from collections.abc import Mapping
from typing import Any

from store.errors import UsageError
from store.student import named
from trainers.config import SftRecipe
from trainers.model_card import Table, file_table, finish, losses, recipe_table, speed
from trainers.models import check_whole, packs_exactly, skeleton, tokenizer_of
from trainers.preflight import (
    Setup,
    carry_out,
    check_length,
    check_size,
    identity_of,
    set_up,
    size_of,
    tell_time,
)
from trainers.rows import TokenRows, save
from trainers.run_folder import Folder, held_by, read_metrics
from trainers.sft_data import SftCounts, tokenized

ABOUT = "Supervised fine-tuning with the loss on the responses only, made by `distill train sft`."


def run_sft(recipe: SftRecipe, resume: bool, quiet: bool, env: Mapping[str, str]) -> int:
    """Returns the exit code; raises an error of ours with its own."""
    begun = set_up(recipe, resume, quiet, env)
    if begun is None:
        return 0
    recipe, setup = begun
    folder, model, config = setup.folder, setup.model, setup.config
    check_length(recipe, config)
    packs, shapes = packed(recipe, config, folder if resume else None), skeleton(config)
    check_whole(model, shapes)
    size_of(recipe, setup, shapes, config.vocab_size)  # else it is refused before rows are read
    with held_by(folder, recipe.node_rank):
        rows, counts = read(recipe, setup)
        lengths = rows.lengths[rows.trained]
        fit = check_size(recipe, setup, shapes, config.vocab_size, "rows", lengths, packs)
        tell_time(recipe, setup, fit.parameters, lengths.sum())
        identity = identity_of(recipe, rows.digest, model, packed=packs)
        carry_out(recipe, setup, "sft", identity, fit, packed=packs, template=counts.template)
        if recipe.node_rank == 0:
            said = tables(recipe, rows, counts, packs, folder)
            said |= {"Speed": speed(read_metrics(folder.metrics), fit.needed)}
            finish(recipe, folder, len(rows.trained), ABOUT, said, samples(folder), "sft")
            setup.display.say(f"the model is in {recipe.out}")
    return 0


def packed(recipe: SftRecipe, config: Any, begun: Folder | None) -> bool:
    """Whether rows will be packed, which `auto` continues as it was begun. Raises UsageError where they must
    not be, and are to."""
    exact = packs_exactly(config)
    if recipe.packing == "auto" and begun and (known := begun.begun("packed", (True, False))) is not None:
        return bool(known)
    if recipe.packing == "on" and not exact:
        raise UsageError(
            f"--packing on: {config.model_type} is not known to keep packed rows apart; "
            "auto groups its rows by length instead"
        )
    return recipe.packing != "off" and exact


def read(recipe: SftRecipe, setup: Setup) -> tuple[TokenRows, SftCounts]:
    """The rows as tokens, on disk, with a word on each that was not simply learnt."""
    rows, counts = tokenized(recipe, tokenizer_of(setup.model))
    save(rows, setup.folder.rows(recipe.node_rank))
    setup.display.say(
        f"{counts.used:,} of {counts.read:,} rows, {counts.tokens:,} tokens of which {counts.learnt:,} are "
        f"learnt ({counts.template} template); {len(rows.held_out):,} rows held out"
    )
    over = f"over {recipe.max_length} tokens"
    kept = "learnt inside its marks" if recipe.reasoning == "learn" else "left out (--reasoning drop)"
    remarks = [
        (counts.thinking, f"with thinking, which is {kept}"),
        (counts.last_only, "chats teach their last answer only: earlier ones would be shown differently"),
        (counts.control, f"with control tokens in their texts, read as text: {named(counts.controls)}"),
        (counts.too_long, f"left out: {over} (--too-long cut keeps their beginning)"),
        (counts.cut, f"cut at the end: {over}; they teach no end of sequence"),
        (counts.no_room, f"left out: the prompt alone is {over}"),
        (counts.bad, f"unusable: {'; '.join(counts.bad_shown)}"),
    ]
    for number, words in remarks:
        if number:
            setup.display.say(f"  {number:,} {words}")
    return rows, counts


def tables(
    recipe: SftRecipe, rows: TokenRows, counts: SftCounts, packs: bool, folder: Folder
) -> dict[str, Table]:
    """What the card says in tables."""
    data: Table = {
        **file_table(recipe),
        "sha256 of the rows as tokens": f"`{rows.digest}`",
        "rows read": counts.read,
        "rows used": counts.used,
        "held out of these": len(rows.held_out),
        "left out, too long": counts.too_long + counts.no_room,
        "cut at the end": counts.cut,
        "unusable": counts.bad,
        "with thinking": counts.thinking,
        "with control tokens in their texts": counts.control,
        "tokens": counts.tokens,
        "tokens learnt": counts.learnt,
        "template": counts.template,
    }
    return {
        "Data": data,
        "Recipe": {**recipe_table(recipe), "packed": packs},
        "Losses (nats a learnt token)": losses(read_metrics(folder.metrics)),
    }


def samples(folder: Folder) -> list[dict[str, str]]:
    """The last that were drawn."""
    held = [record for record in read_metrics(folder.metrics) if record["kind"] == "held_out"]
    found: list[dict[str, str]] = held[-1]["samples"] if held else []
    return found
