"""`distill train reward`, from the command to the result: check, read, train, measure, publish.

The figures of the card are of the folder as it is published, on prompts that were held out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from store.student import named
from trainers.comparisons import Group
from trainers.config import RewardRecipe
from trainers.memory import Machine
from trainers.model_card import Table, file_table, finish, losses, recipe_table, speed
from trainers.models import check_whole, tokenizer_of
from trainers.preflight import Setup, carry_out, check_length, check_size, identity_of, set_up, tell_time
from trainers.reward_data import Parts, RewardCounts, prepared, template_for, unlike
from trainers.reward_metrics import share, words
from trainers.reward_model import HEAD, Scorer, check_family, measured_on, skeleton
from trainers.rows import save
from trainers.run_folder import Folder, held_by, read_metrics, write

ABOUT = "A reward model: one number for a prompt and its answer; made by `distill train reward`."
ANSWERS_AT_ONCE = 8  # in a micro batch, unless said: of so many prompts as have no more
REPORT = "report.json"
Report: TypeAlias = Mapping[str, Any]


def run_reward(recipe: RewardRecipe, resume: bool, quiet: bool, env: Mapping[str, str]) -> int:
    """Returns the exit code; raises an error of ours with its own."""
    begun = set_up(recipe, resume, quiet, env)
    if begun is None:
        return 0
    recipe, setup = begun
    folder, config = setup.folder, setup.config
    check_family(config)
    check_length(recipe, config)
    shapes = skeleton(config)
    check_whole(setup.model, shapes, HEAD)
    with held_by(folder, recipe.node_rank):
        parts, counts, held_groups = read(recipe, setup)
        lengths, widest = parts.lengths[parts.trained], parts.widest
        recipe = with_what_fits(recipe, parts, setup.machine)
        fit = check_size(recipe, setup, shapes, 1, f"prompts of up to {widest} answers", lengths)
        tell_time(recipe, setup, fit.parameters, lengths.sum())
        carry_out(recipe, setup, "reward", identity_of(recipe, parts.digest, setup.model), fit)
        if recipe.node_rank == 0:
            report, told = quality(setup, held_groups)
            said = tables(recipe, parts, counts, len(held_groups), report, folder)
            said |= {"Speed": speed(read_metrics(folder.metrics), fit.needed)}
            about = "\n\n".join([ABOUT, *told])
            finish(recipe, folder, len(parts.trained), about, said, (), "reward-model")
            setup.display.say(f"the reward model is in {recipe.out}")
    return 0


def read(recipe: RewardRecipe, setup: Setup) -> tuple[Parts, RewardCounts, list[Group]]:
    """The comparisons as tokens, on disk, with a word on all that was left out or cut."""
    tokenizer = tokenizer_of(setup.model)
    parts, counts, held_groups = prepared(recipe, tokenizer)
    save(parts, setup.folder.rows(recipe.node_rank))
    setup.display.say(
        f"{counts.pairs:,} pairs among {counts.answers:,} answers to {counts.prompts:,} prompts, "
        f"{counts.tokens:,} tokens ({template_for(tokenizer, recipe.template)} template); "
        f"{len(held_groups):,} prompts held out"
    )
    over, controls = f"over {recipe.max_length} tokens", named(counts.controls)
    remarks = [
        (counts.cut, f"answers cut at the end: {over} (--too-long drop leaves them out)"),
        (counts.prompt_cut, f"answers lost the beginning of their prompt: {over}"),
        (counts.dropped, f"answers left out: {over}"),
        (counts.parts - counts.prompts, f"more parts than prompts: over --answers {recipe.answers} answers"),
        *unlike(counts, recipe),
        (counts.control, f"answers with control tokens in their texts, read as text: {controls}"),
        (counts.read.bad, f"rows unusable: {'; '.join(counts.read.bad_shown)}"),
    ]
    for number, told in remarks:
        if number:
            setup.display.say(f"  {number:,} {told}")
    return parts, counts, held_groups


def with_what_fits(recipe: RewardRecipe, parts: Parts, machine: Machine) -> RewardRecipe:
    """The recipe with the K that the data has, and on a CPU a micro batch of prompts that suits it."""
    if machine.gpus:
        return recipe.model_copy(update={"answers": parts.widest})
    most = max(1, ANSWERS_AT_ONCE // parts.widest)
    fits = next(n for n in range(min(recipe.share, most), 0, -1) if recipe.share % n == 0)
    return recipe.model_copy(update={"answers": parts.widest, "micro_batch": recipe.micro_batch or fits})


def quality(setup: Setup, groups: Sequence[Group]) -> tuple[Report, list[str]]:
    """The report on the prompts held out, which goes with the result, and what it says in words."""
    result = setup.folder.result
    report = measured_on(Scorer(result), groups, setup.display) if groups else {}
    write(result / REPORT, report)
    told = words(report) if report else ["No prompt was held out, so nothing is known of its quality."]
    for line in told:
        setup.display.say(line)
    return report, told


def tables(
    recipe: RewardRecipe, parts: Parts, counts: RewardCounts, held: int, report: Report, folder: Folder
) -> dict[str, Table]:
    """What the card says in tables. held: prompts held out."""
    data: Table = {
        **file_table(recipe),
        "sha256 of the answers as tokens": f"`{parts.digest}`",
        "rows read": counts.read.rows,
        "prompts": counts.prompts,
        "held out of these": held,
        "pairs": counts.pairs,
        "answers": counts.answers,
        "answers cut": counts.cut,
        "answers whose prompt was cut": counts.prompt_cut,
        "answers left out, too long": counts.dropped,
        "pairs left out, the same within the length": counts.alike,
        "pairs left out, given both ways": counts.read.both_ways + counts.both_ways,
        "answers with control tokens in their texts": counts.control,
        "ties left out": counts.read.ties,
        "rows unusable": counts.read.bad,
        "tokens": counts.tokens,
    }
    found: dict[str, Table] = {
        "Data": data,
        "Recipe": recipe_table(recipe),
        "Losses (nats a prompt)": losses(read_metrics(folder.metrics)),
    }
    return found | _quality(report)


def _quality(report: Report) -> dict[str, Table]:
    """The report as tables; all of it is in report.json."""
    if not report:
        return {}
    found: dict[str, Table] = {
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


def _spanned(bucket: Report) -> str:
    return f"{share(bucket['accuracy'])} ({share(bucket['low'])} to {share(bucket['high'])})"
