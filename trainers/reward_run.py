"""`distill train reward`, from the command to the result: check, read, train, measure, publish.

The figures of the card are of the folder as it is published, on prompts that were held out.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from store.errors import UsageError
from trainers import reward_data
from trainers.batches import steps_of
from trainers.beginning import carry_out, identity_of, losses, opened, tell_time
from trainers.card import card, versions
from trainers.comparisons import Group
from trainers.folder import Folder, held_by, read_metrics, write
from trainers.lora import linear_shapes
from trainers.machine import Machine, this_machine
from trainers.memory import Size, lora_parameters
from trainers.models import config_of, resolve, tokenizer_of
from trainers.precision import with_precision
from trainers.preferences import share, words
from trainers.progress import Display
from trainers.recipe import RewardRecipe
from trainers.reward_data import Counts, Parts, prepared, template_for
from trainers.reward_model import check_family, skeleton
from trainers.reward_report import measured_on
from trainers.room import check_memory, in_words
from trainers.run import title_of
from trainers.scoring import Scorer
from trainers.zero import as_configured, stage_of

MODULE = "trainers.reward"
ANSWERS_AT_ONCE = 8  # in a micro batch, unless said: of so many prompts as have no more
REPORT = "report.json"


def run_reward(recipe: RewardRecipe, resume: bool, quiet: bool, env: Mapping[str, str]) -> int:
    """Returns the exit code; raises an error of ours with its own."""
    display = Display(quiet)
    folder = opened(recipe, resume, display)
    if folder is None:
        return 0
    model = resolve(recipe.model, folder.work)
    config, machine = config_of(model), this_machine()
    recipe = with_precision(recipe, machine, display)
    check(recipe, config)
    with held_by(folder, recipe.node_rank):
        parts, counts, held_groups = read(recipe, model, folder, display)
        recipe = with_what_fits(recipe, parts)
        parameters = check_size(recipe, config, machine, display)
        if not machine.gpus:
            tokens = float(parts.lengths[parts.trained].sum() * recipe.epochs)
            tell_time(recipe, parameters, tokens, display)
        identity = identity_of(recipe, parts.digest, model)
        carry_out(recipe, MODULE, identity, folder, resume, quiet, env, machine, {"model": model})
        if recipe.node_rank == 0:
            finish(recipe, parts, counts, held_groups, folder, display)
            display.say(f"the reward model is in {recipe.out}")
    return 0


def check(recipe: RewardRecipe, config: Any) -> None:
    """Raises UsageError where this cannot be trained here."""
    check_family(config)
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and recipe.max_length > longest:
        raise UsageError(f"--max-length {recipe.max_length}: this model reads at most {longest} tokens")


def read(
    recipe: RewardRecipe, model: str, folder: Folder, display: Display
) -> tuple[Parts, Counts, list[Group]]:
    """The comparisons as tokens, on disk, with a word on all that was left out or cut."""
    tokenizer = tokenizer_of(model)
    parts, counts, held_groups = prepared(recipe, tokenizer)
    reward_data.save(parts, folder.rows(recipe.node_rank))
    display.say(
        f"{counts.pairs:,} pairs among {counts.answers:,} answers to {counts.prompts:,} prompts, "
        f"{counts.tokens:,} tokens ({template_for(tokenizer, recipe.template)} template); "
        f"{len(held_groups):,} prompts held out"
    )
    for number, told in _left_out(counts, recipe):
        if number:
            display.say(f"  {number:,} {told}")
    return parts, counts, held_groups


def _left_out(counts: Counts, recipe: RewardRecipe) -> list[tuple[int, str]]:
    over = f"over {recipe.max_length} tokens"
    return [
        (counts.cut, f"answers cut at the end: {over} (--too-long drop leaves them out)"),
        (counts.prompt_cut, f"answers lost the beginning of their prompt: {over}"),
        (counts.dropped, f"answers left out: {over}"),
        (counts.parts - counts.prompts, f"more parts than prompts: over --answers {recipe.answers} answers"),
        (counts.read.ties, "ties left out: equal scores"),
        (counts.read.equal, "pairs of equal answers left out"),
        (counts.read.bad, f"rows unusable: {'; '.join(counts.read.bad_shown)}"),
    ]


def with_what_fits(recipe: RewardRecipe, parts: Parts) -> RewardRecipe:
    """The recipe with the K that the data has, and a micro batch of prompts that suits it."""
    most = max(1, ANSWERS_AT_ONCE // parts.widest)
    fits = next(n for n in range(min(recipe.share, most), 0, -1) if recipe.share % n == 0)
    return recipe.model_copy(update={"answers": parts.widest, "micro_batch": recipe.micro_batch or fits})


def check_size(recipe: RewardRecipe, config: Any, machine: Machine, display: Display) -> int:
    """The number of parameters. Raises TooLarge."""
    shapes = skeleton(config)
    parameters = sum(p.numel() for p in shapes.parameters())
    trained = parameters
    if recipe.lora is not None:
        trained = lora_parameters(recipe.lora, linear_shapes(shapes))
    size = replace(Size.of(config, parameters, trained), vocabulary=1)
    needed = check_memory(size, as_configured(recipe), stage_of(recipe), machine)
    told = in_words(size, recipe, needed, machine, "prompts")
    display.say(f"{told}, of up to {recipe.answers} answers")
    return parameters


def finish(
    recipe: RewardRecipe,
    parts: Parts,
    counts: Counts,
    groups: Sequence[Group],
    folder: Folder,
    display: Display,
) -> None:
    """Measures, writes the card, and moves the result to the top of the folder."""
    report = measured_on(Scorer(folder.result), groups, display) if groups else {}
    told = words(report) if report else ["No prompt was held out, so nothing is known of its quality."]
    for line in told:
        display.say(line)
    shown = recipe.model_dump(mode="json", exclude={"data", "out", "model", "master", "node_rank"})
    sections = {
        "Data": _data_section(recipe, parts, counts, len(groups)),
        "Recipe": shown | {"accumulation": recipe.accumulation},
        "Losses (nats a prompt)": losses(read_metrics(folder.metrics)),
        **_quality(report),
        "Versions": versions(),
    }
    summary = "A reward model: one number for a prompt and its answer; made by `distill train reward`."
    text = card(
        title_of(recipe),
        "\n\n".join([summary, *told]),
        recipe.model,
        sections,
        (),
        ["distill", "reward-model"],
    )
    (folder.result / "README.md").write_text(text, encoding="utf-8")
    write(folder.result / REPORT, report)
    folder.publish()
    write(folder.finished, {"steps": steps_of(len(parts.trained), recipe.batch, recipe.epochs)} | sections)
    folder.clear()


def _data_section(recipe: RewardRecipe, parts: Parts, counts: Counts, held: int) -> dict[str, object]:
    with recipe.data.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": recipe.data.name,
        "sha256 of the file": f"`{digest}`",
        "sha256 of the answers as tokens": f"`{parts.digest}`",
        "rows read": counts.read.rows,
        "prompts": counts.prompts,
        "held out of these": held,
        "pairs": counts.pairs,
        "answers": counts.answers,
        "answers cut": counts.cut,
        "answers whose prompt was cut": counts.prompt_cut,
        "answers left out, too long": counts.dropped,
        "ties left out": counts.read.ties,
        "rows unusable": counts.read.bad,
        "tokens": counts.tokens,
    }


def _quality(report: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """The report as tables; all of it is in report.json."""
    if not report:
        return {}
    found: dict[str, dict[str, object]] = {
        "Held-out prompts": {
            "pairs": report["pairs"],
            "accuracy": _spanned(report),
            "'the longer answer wins'": share(report["length_baseline"]),
            "chance": share(report["chance"]),
            "Brier score of σ(Δr)": report["calibration"]["brier"],
            "expected calibration error": report["calibration"]["ece"],
        }
    }
    for name, key in (("By margin", "by_margin"), ("By length", "by_length")):
        found[name] = {
            bucket["of"]: f"{_spanned(bucket)}, {bucket['pairs']} pairs; longer wins "
            f"{share(bucket['length_baseline'])}"
            for bucket in report[key]
            if bucket["pairs"]
        }
    return found


def _spanned(bucket: Mapping[str, Any]) -> str:
    return f"{share(bucket['accuracy'])} ({share(bucket['low'])} to {share(bucket['high'])})"
