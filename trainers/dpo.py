"""`distill train dpo`, from the command to the result: check, read, train, measure, publish.

The training is TRL's (trl_worker.py). The figures of the card are of the folder as it is published, on
prompts that were held out, beside the model as it was.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from store.student import named
from trainers.comparisons import Group
from trainers.drift import drift_on
from trainers.model_card import Table, file_table, finish, losses, recipe_table
from trainers.models import check_whole, skeleton, tokenizer_of
from trainers.preference_data import PairCounts, PairRows, prepared
from trainers.preflight import Setup, carry_out, check_length, check_size, identity_of, set_up, tell_time
from trainers.rows import save
from trainers.run_folder import Folder, held_by, read_metrics, write
from trainers.trl_config import REFERENCED, DpoRecipe

ABOUT = "Learnt from preferences ({}) with TRL, made by `distill train dpo`."
REPORT = "report.json"


def run_dpo(recipe: DpoRecipe, resume: bool, quiet: bool, env: Mapping[str, str]) -> int:
    """Returns the exit code; raises an error of ours with its own."""
    begun = set_up(recipe, resume, quiet, env)
    if begun is None:
        return 0
    recipe, setup = begun
    check_length(recipe, setup.config)
    shapes = skeleton(setup.config)
    check_whole(setup.model, shapes)
    parameters = check_size(recipe, setup, shapes, setup.config.vocab_size, "pairs")
    with held_by(setup.folder, recipe.node_rank):
        rows, counts, held = read(recipe, setup)
        passes = 2 if recipe.loss in REFERENCED else 1  # the reference reads each pair once
        tell_time(recipe, setup, parameters, rows.lengths[rows.trained].sum() * passes)
        carry_out(
            recipe, setup, "dpo", identity_of(recipe, rows.digest, setup.model), template=counts.template
        )
        if recipe.node_rank == 0:
            report = measured_report(recipe, setup, counts.template, held)
            write(setup.folder.result / REPORT, report)
            said = tables(recipe, rows, counts, report, setup.folder)
            about = ABOUT.format(recipe.loss.upper())
            finish(recipe, setup.folder, len(rows.trained), about, said, (), recipe.loss)
            setup.display.say(f"the model is in {recipe.out}")
    return 0


def read(recipe: DpoRecipe, setup: Setup) -> tuple[PairRows, PairCounts, list[Group]]:
    """The preferences as tokens, on disk, with a word on all that was left out or cut."""
    rows, counts, held = prepared(recipe, tokenizer_of(setup.model))
    save(rows, setup.folder.rows(recipe.node_rank))
    setup.display.say(
        f"{len(rows):,} pairs among {counts.answers:,} answers to {counts.prompts:,} prompts, "
        f"{counts.tokens:,} tokens ({counts.template} template); {counts.held_prompts:,} prompts held out"
    )
    over = f"over {recipe.max_length} tokens"
    remarks = [
        (counts.too_long, f"answers left out: {over} (--too-long cut keeps their beginning)"),
        (counts.cut, f"answers cut at the end: {over}; they teach no end of sequence"),
        (counts.no_room, f"answers left out: the prompt alone is {over}"),
        (counts.alike, f"pairs left out: both answers are the same within {recipe.max_length} tokens"),
        (counts.read.both_ways + counts.both_ways, "pairs left out: given both ways"),
        (counts.read.equal, "pairs of equal answers left out"),
        (counts.read.ties, "ties left out: equal scores"),
        (counts.controls.total(), f"control tokens in texts, read as text: {named(counts.controls)}"),
        (counts.read.bad, f"rows unusable: {'; '.join(counts.read.bad_shown)}"),
    ]
    for number, words in remarks:
        if number:
            setup.display.say(f"  {number:,} {words}")
    return rows, counts, held


def measured_report(
    recipe: DpoRecipe, setup: Setup, template: str, groups: Sequence[Group]
) -> dict[str, Any]:
    """On the prompts held out: how well the preferences are told apart, as the training measured it last,
    and how far the model has moved."""
    held = [record for record in read_metrics(setup.folder.metrics) if record["kind"] == "held_out"]
    names = ("accuracy", "margin", "chosen_tokens", "rejected_tokens")
    found = {name: held[-1][f"held_out_{name}"] for name in names} if held else {}
    prompts = [group.prompt for group in groups[: recipe.samples]]
    if prompts:
        found |= drift_on(setup, recipe, template, prompts)
        setup.display.say(
            f"accuracy {found['accuracy']:.3f}, margin {found['margin']:.3f}; KL to the model as it was "
            f"{found['kl']:.3f} nats an answer; its answers are {found['policy_tokens']:.0f} tokens long, "
            f"{found['before_tokens']:.0f} before (chosen {found['chosen_tokens']:.0f}, rejected "
            f"{found['rejected_tokens']:.0f})"
        )
    return found


MEANING = {
    "accuracy": "the chosen answer has the higher reward",
    "margin": "reward of the chosen answer above the rejected one's",
    "kl": "KL to the model as it was (nats an answer, on its own answers)",
    "kl_token": "KL a token",
    "chosen_tokens": "length of chosen answers (tokens)",
    "rejected_tokens": "length of rejected answers",
    "policy_tokens": "length of the model's own answers",
    "before_tokens": "length of its answers before",
    "unfinished": "its answers that did not end within the bound",
    "unfinished_before": "the same, before",
    "answers": "answers that were drawn",
}


def tables(
    recipe: DpoRecipe, rows: PairRows, counts: PairCounts, report: Mapping[str, Any], folder: Folder
) -> dict[str, Table]:
    """What the card says in tables."""
    data: Table = {
        **file_table(recipe),
        "sha256 of the answers as tokens": f"`{rows.digest}`",
        "rows read": counts.read.rows,
        "prompts": counts.prompts,
        "held out of these": counts.held_prompts,
        "pairs": len(rows),
        "answers": counts.answers,
        "answers left out, too long": counts.too_long + counts.no_room,
        "answers cut": counts.cut,
        "pairs left out, the same within the length": counts.alike,
        "pairs left out, given both ways": counts.read.both_ways + counts.both_ways,
        "ties left out": counts.read.ties,
        "rows unusable": counts.read.bad,
        "tokens": counts.tokens,
        "template": counts.template,
    }
    found: dict[str, Table] = {
        "Data": data,
        "Recipe": {**recipe_table(recipe), "beta": recipe.strength},
        "Losses (a pair)": losses(read_metrics(folder.metrics)),
    }
    if report:
        found["Held-out prompts"] = {MEANING[name]: report[name] for name in MEANING if name in report}
    return found
