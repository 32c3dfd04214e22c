"""`distill train rl`, from the command to the result: check, read, train, measure, publish.

The training is TRL's (rl_worker.py). A reward is hacked most easily by length, so the card shows the reward
against the length of answers, at the beginning and at the end.
"""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from store.errors import PoolError
from store.files import whole
from store.pool import Pool
from store.records import BadRow
from store.student import TextTokens, named
from trainers.display import DPI, HELD_OUT, SIZE, TRAINING
from trainers.encoding import encode, prompt_length
from trainers.model_card import Table, file_table, finish, losses, recipe_table
from trainers.models import check_whole, config_of, fingerprint, skeleton, tokenizer_of
from trainers.preflight import Setup, carry_out, check_length, check_size, identity_of, set_up
from trainers.reward_data import template_for
from trainers.rl_prompts import Prompts, check_reward, function_of, is_function, prompt_in
from trainers.rows import drawn, steps_of
from trainers.run_folder import held_by, read_metrics, write
from trainers.trl_config import RlRecipe

ABOUT = (
    "Learnt from a reward ({}, {}) with TRL, made by `distill train rl`.\n\n"
    "![Reward against length](reward-length.png)"
)
REPORT = "report.json"
BAD_SHOWN = 3
FEW = 10  # steps at each end that the plot shows, at most a fifth of all


def run_rl(recipe: RlRecipe, resume: bool, quiet: bool, env: Mapping[str, str]) -> int:
    """Returns the exit code; raises an error of ours with its own."""
    size, reward = reward_known(recipe.reward)
    begun = set_up(recipe, resume, quiet, env)
    if begun is None:
        return 0
    recipe, setup = begun
    check_length(recipe, setup.config)
    shapes = skeleton(setup.config)
    check_whole(setup.model, shapes)
    reference = sum(p.numel() for p in shapes.parameters()) if recipe.beta and recipe.lora is None else 0
    check_size(recipe, setup, shapes, setup.config.vocab_size, "answers", reference + size)
    with held_by(setup.folder, recipe.node_rank):
        prompts, digest = read(recipe, setup)
        identity = {**identity_of(recipe, digest, setup.model), "reward": reward}
        carry_out(recipe, setup, "rl", identity, template=prompts.template)
        if recipe.node_rank == 0:
            report = report_of(recipe, setup)
            write(setup.folder.result / REPORT, report)
            draw_lengths(read_metrics(setup.folder.metrics), setup.folder.result / "reward-length.png")
            about = "\n\n".join([ABOUT.format(recipe.method.upper(), recipe.reward), *words(report)])
            said = tables(recipe, prompts, digest, report, setup)
            rows = len(prompts.trained) * recipe.group
            finish(recipe, setup.folder, rows, about, said, (), recipe.method)
            setup.display.say(f"the model is in {recipe.out}")
    return 0


def reward_known(name: str) -> tuple[int, str]:
    """(parameters, what it is known by) of a reward. Raises UsageError where it is none."""
    if is_function(name):
        function = function_of(name)
        return 0, hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    check_reward(name)
    config = config_of(name)
    return sum(p.numel() for p in skeleton(config).parameters()), fingerprint(name)


def read(recipe: RlRecipe, setup: Setup) -> tuple[Prompts, str]:
    """The prompts, on disk, with a word on all that was left out; and their digest. Raises PoolError."""
    tokenizer = tokenizer_of(setup.model)
    texts, found, seen = TextTokens(tokenizer), Prompts(), set[str]()
    template = template_for(tokenizer, recipe.template)
    found.template = template
    for line, raw in Pool(recipe.data).objects():
        if recipe.limit is not None and found.read == recipe.limit:
            break
        found.read += 1
        item = raw.reason if isinstance(raw, BadRow) else prompt_in(raw)
        ids = item if isinstance(item, str) else encode(item, template, texts)
        if isinstance(item, str) or isinstance(ids, str):
            found.bad.append(f"line {line}: {ids}")
            continue
        text = f"{item.instruction}\n\n{item.input}" if item.input else item.instruction
        asked = ids[0][: prompt_length(ids[1])]
        if text in seen:
            found.again += 1
        elif len(asked) + recipe.answer_tokens > recipe.max_length:
            found.too_long += 1
        else:
            seen.add(text)
            found.texts.append(text)
            found.ids.append(asked)
    found.held_out = drawn(len(found.texts), recipe.held_out, recipe.seed).tolist()
    if recipe.batch > len(found.trained) * recipe.group:
        raise PoolError(
            f"{recipe.data}: {len(found.trained)} prompts to learn from, and a step takes "
            f"{recipe.batch // recipe.group} (--batch {recipe.batch} answers, {recipe.group} to a prompt)"
            + (f"; {'; '.join(found.bad[:BAD_SHOWN])}" if found.bad else "")
            + (f"; {found.too_long:,} leave no room for an answer within --max-length" * bool(found.too_long))
        )
    digest = found.save(setup.folder.rows(recipe.node_rank))
    setup.display.say(
        f"{len(found.texts):,} prompts ({template} template), {len(found.held_out):,} held out; "
        f"{recipe.group} answers to each, in {steps(recipe, found):,} steps"
    )
    remarks = [
        (len(found.bad), f"rows unusable: {'; '.join(found.bad[:BAD_SHOWN])}"),
        (found.again, "prompts stand there again, and are taken once"),
        (found.too_long, f"prompts leave no room for {recipe.answer_tokens} tokens within --max-length"),
        (texts.seen.total(), f"control tokens in texts, read as text: {named(texts.seen)}"),
    ]
    for number, told in remarks:
        if number:
            setup.display.say(f"  {number:,} {told}")
    return found, digest


def steps(recipe: RlRecipe, prompts: Prompts) -> int:
    return steps_of(len(prompts.trained) * recipe.group, recipe.batch, recipe.epochs)


HELD = ("reward", "tokens", "kl", "unfinished")


def report_of(recipe: RlRecipe, setup: Setup) -> dict[str, Any]:
    """What was measured on the prompts held out, before and at the end; how reward and length go together."""
    records = read_metrics(setup.folder.metrics)
    held = [record for record in records if record["kind"] == "held_out"]
    found: dict[str, Any] = {}
    for when, record in (("before", held[0]), ("after", held[-1])) if held else ():
        found[when] = {name: record[f"held_out_{name}"] for name in HELD}
    for when, points in zip(("before", "after"), ends(records), strict=True):
        lengths, rewards = (np.array(column, float) for column in zip(*points, strict=True))
        varied = len(points) > 2 and lengths.std() > 0 and rewards.std() > 0
        found.setdefault(when, {})["reward_with_length"] = (
            float(np.corrcoef(lengths, rewards)[0, 1]) if varied else None
        )
    for told in words(found):
        setup.display.say(told)
    return found


def words(report: Mapping[str, Any]) -> list[str]:
    """The report in sentences."""
    before, after = report.get("before", {}), report.get("after", {})
    if "reward" not in after:
        return ["No prompt was held out, so nothing is known of its quality."]
    moved = (
        "" if after["kl"] is None else f"; the KL to the model as it was is {after['kl']:.3f} nats a token"
    )
    told = [
        f"On held-out prompts the reward is {after['reward']:.3f} ({before['reward']:.3f} before), and "
        f"answers have {after['tokens']:.0f} tokens ({before['tokens']:.0f} before){moved}."
    ]
    if after["tokens"] > 1.2 * before["tokens"] and (after["reward_with_length"] or 0) > 0:
        told.append(
            "Its answers have grown, and longer ones have the higher reward: it may have learnt length. "
            "--length-penalty takes something from the reward for each token."
        )
    return told


def ends(records: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
    """[tokens, reward] of answers in the first steps and in the last ones."""
    steps_ = [record for record in records if record["kind"] == "step" and record.get("answers")]
    some = max(1, min(FEW, len(steps_) // 5))
    first, last = ([p for r in part for p in r["answers"]] for part in (steps_[:some], steps_[-some:]))
    return first or [[0, 0.0]], last or [[0, 0.0]]


def draw_lengths(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for points, color, name in zip(ends(records), (TRAINING, HELD_OUT), ("first", "last"), strict=True):
        tokens, rewards = zip(*points, strict=True)
        axes.scatter(tokens, rewards, s=9, alpha=0.5, color=color, label=f"{name} steps", linewidths=0)
    axes.set(xlabel="tokens of an answer", ylabel="reward", title="Reward against length")
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with whole(path) as file:
        figure.savefig(file, format="png")


def tables(
    recipe: RlRecipe, prompts: Prompts, digest: str, report: Mapping[str, Any], setup: Setup
) -> dict[str, Table]:
    """What the card says in tables."""
    data: Table = {
        **file_table(recipe),
        "sha256 of the prompts as tokens": f"`{digest}`",
        "rows read": prompts.read,
        "prompts": len(prompts.texts),
        "held out of these": len(prompts.held_out),
        "left out, too long": prompts.too_long,
        "the same again": prompts.again,
        "unusable": len(prompts.bad),
        "template": prompts.template,
    }
    names = {
        "reward": "reward (with the length penalty)",
        "tokens": "length of answers (tokens)",
        "kl": "KL to the model as it was (nats a token)",
        "unfinished": "share of answers that did not end",
        "reward_with_length": "correlation of reward and length",
    }
    held: Table = {
        told: " → ".join(_number(report.get(when, {}).get(name)) for when in ("before", "after"))
        for name, told in names.items()
    }
    return {
        "Data": data,
        "Recipe": recipe_table(recipe),
        "Losses (minus the reward)": losses(read_metrics(setup.folder.metrics)),
        "Held-out prompts": held,
    }


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "unknown"
