"""Training curves: the loss as it fell, held-out loss beside it, and answers to held-out prompts.

And the reward model: how often it prefers the better answer, beside the longer answer's and chance's.
"""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from engine.terminal import duration, plain
from evaluators.report.charts import EVEN, calibration, curves, grouped, height_for, percents, rewards, shares
from evaluators.report.figures import (
    Block,
    Drawing,
    Facts,
    FigureTable,
    Heading,
    Headline,
    Listing,
    Quote,
    Sample,
    Samples,
    Section,
    Words,
    figure,
    table,
)
from evaluators.report.inputs import Inputs, Json, TrainingInput

POINTS = 300  # steps in a curve, beyond which neighbours are drawn as their mean
HASH = re.compile("[0-9a-f]{64}")
SMOOTHED_OVER = 20  # steps, as the time constant of an exponential mean
SHOWN = (
    "model",
    "epochs",
    "batch",
    "lr",
    "schedule",
    "warmup",
    "max_length",
    "precision",
    "lora",
    "zero",
    "seed",
)


# A setting of each kind of training, beside `train sft`, whose students are measured as reward models are.
STUDENTS = {"loss", "teacher", "method"}
POINTS_DRAWN = 300  # answers, of the first steps and of the last ones
MOVED = ("accuracy", "margin", "kl", "chosen_tokens", "rejected_tokens", "policy_tokens", "before_tokens")


def is_reward(training: TrainingInput) -> bool:
    if recipe_of(training).keys() & STUDENTS:
        return False
    held = any("held_out_accuracy" in record for record in training.metrics)
    return held or bool(training.quality) or "answers" in recipe_of(training)


def recipe_of(training: TrainingInput) -> Json:
    found = training.finished.get("Recipe") or training.setup.get("recipe") or training.setup
    return found if isinstance(found, dict) else {}


def student_section(found: Inputs) -> Section | str:
    mine = [t for t in found.trainings if not is_reward(t)]
    if not mine:
        return "no training run of a student was found below the run folder; name one with --training"
    blocks: list[Block] = []
    heads = []
    for place, training in enumerate(mine, 1):
        blocks += [Heading(training.name), *told(training, f"training-{place}"), *_answers(training)]
        blocks += [*_moved(training), *_by_length(training, f"rewards-{place}")]
        if held := _held_out(training):
            weak = "" if training.finished else "the training run has not ended"
            first, last = held[0]["held_out_loss"], held[-1]["held_out_loss"]
            note = f"{first:.2f} before, {training.name}" if len(held) > 1 else training.name
            heads.append(Headline(f"{last:.2f}", "held-out loss of the student", note, weak))
    about = "In supervised fine-tuning the loss is on responses only."
    return Section("training", "The student", about, blocks, heads)


def _moved(training: TrainingInput) -> list[Block]:
    """What learning from preferences or rewards has changed, on held-out prompts."""
    facts = [(name, _figure(training.quality[name])) for name in MOVED if number(training.quality.get(name))]
    before, after = (training.quality.get(when) for when in ("before", "after"))
    if isinstance(before, dict) and isinstance(after, dict):
        told = [(name, value, after.get(name)) for name, value in before.items()]
        told = [one for one in told if number(one[1]) and number(one[2])]
        facts += [(name, f"{_figure(old)} → {_figure(new)}") for name, old, new in told]
    return [Facts([(name.replace("_", " "), value) for name, value in facts])] if facts else []


def _figure(value: Any) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


def _by_length(training: TrainingInput, name: str) -> list[Block]:
    """Reward against length: what a reward model is hacked by most easily."""
    steps = [r["answers"] for r in training.metrics if isinstance(r.get("answers"), list)]
    some = max(1, len(steps) // 5)
    first, last = ([p for part in parts for p in part] for parts in (steps[:some], steps[-some:]))
    if not steps or not first or not last:
        return []
    rows = [(tokens, reward, None) for tokens, reward in first[:POINTS_DRAWN]]
    rows += [(tokens, None, reward) for tokens, reward in last[-POINTS_DRAWN:]]
    numbers = table(name, ("tokens:count", "first steps:number", "last steps:number"), rows)
    words = f"Reward against length of {plain(training.name, 60)}"
    caption = (
        "Each point is an answer. If longer answers have the higher reward, the student may learn length."
    )
    return [Drawing(figure(words, caption, caption, numbers, rewards, 3.1))]


def _held_out(training: TrainingInput) -> list[Json]:
    records = [r for r in training.metrics if r.get("kind") == "held_out"]
    return [r for r in records if number(r.get("held_out_loss"))]


def told(training: TrainingInput, name: str) -> list[Block]:
    """Facts, curves, and what a reader must know of them; for any kind of training."""
    steps = [r for r in training.metrics if r.get("kind") == "step" and number(r.get("loss"))]
    held = _held_out(training)
    recipe = {**training.setup, **recipe_of(training)}
    facts = [(n.replace("_", " "), _value(recipe[n])) for n in SHOWN if recipe.get(n) is not None]
    if training.title:
        facts.insert(0, ("training", training.title))
    data = training.finished.get("Data")
    for key, value in data.items() if isinstance(data, dict) else ():
        if "sha256" not in key and value:
            facts.append((str(key), _value(value)))
    seconds = sum(r["seconds"] for r in steps if number(r.get("seconds")))
    if seconds:
        tokens = sum(r["tokens"] for r in steps if number(r.get("tokens")))
        facts += [("time in steps", duration(seconds)), ("tokens a second", f"{tokens / seconds:,.0f}")]
    blocks: list[Block] = [Facts(facts)]
    if not steps:
        return [*blocks, Words("No step was measured yet.", True)]
    numbers = curve(name, steps, held)
    first, last = steps[0], steps[-1]
    caption = (
        f"Loss over {last['step']:,} steps: {first['loss']:.3f} at first, {last['loss']:.3f} at the end."
    )
    if held:
        caption += f" On held-out rows {held[0]['held_out_loss']:.3f} and {held[-1]['held_out_loss']:.3f}."
    if len(steps) > POINTS:
        caption += f" Each point is a mean of {-(-len(steps) // POINTS)} steps."
    drawing = figure(f"Learning curves of {plain(training.name, 60)}", caption, caption, numbers, curves, 3.1)
    blocks.append(Drawing(drawing))
    if not training.finished:
        blocks.append(Words("This training run has not ended: the curves are of what was done so far.", True))
    losses = [r["held_out_loss"] for r in held]
    if len(losses) > 2 and min(losses) < losses[-1] * 0.99:
        best = held[losses.index(min(losses))]["step"]
        blocks.append(
            Words(f"The held-out loss was lowest at step {best:,} and rose after it: it overfits.", True)
        )
    return blocks


def number(value: object) -> bool:
    return isinstance(value, int | float) and value == value


def curve(name: str, steps: Sequence[Json], held: Sequence[Json]) -> FigureTable:
    """A row for each point that is drawn: of the training loss, or of what was held out."""
    size = -(-len(steps) // POINTS)
    smooth = smoothed([r["loss"] for r in steps])
    rows: list[tuple[Any, ...]] = []
    for begin in range(0, len(steps), size):
        part = steps[begin : begin + size]
        end = begin + len(part) - 1
        rows.append((part[-1]["step"], sum(r["loss"] for r in part) / len(part), smooth[end], None, None))
    rows += [(r["step"], None, None, r["held_out_loss"], r.get("held_out_accuracy")) for r in held]
    columns = ("step:count", "training loss:number", "smoothed:number", "held-out loss:number")
    return table(name, (*columns, "held-out accuracy:share"), sorted(rows, key=lambda r: r[0]))


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential mean that is not drawn to 0 at its beginning."""
    keep = 1 - 1 / SMOOTHED_OVER
    found, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        found.append(mean / weight)
    return found


def _value(value: object) -> str:
    """A folder is told by its name: the rest of a path says only where somebody worked."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = plain(str(value), 80)
    if HASH.fullmatch(text):
        return text[:12] + "…"
    return text.rstrip("/").rsplit("/", 1)[-1] if text.startswith("/") else text


def _answers(training: TrainingInput) -> list[Block]:
    """What the student said to held-out prompts, before and after."""
    held = [r for r in training.metrics if r.get("kind") == "held_out" and r.get("samples")]
    if not held:
        return []
    first = {s["prompt"]: s["answer"] for s in held[0]["samples"]} if len(held) > 1 else {}
    samples = []
    for place, sample in enumerate(held[-1]["samples"], 1):
        quotes = [Quote("prompt", str(sample.get("prompt", "")))]
        if sample.get("prompt") in first:
            quotes.append(Quote(f"answer at step {held[0]['step']:,}", str(first[sample["prompt"]])))
        quotes.append(Quote(f"answer at step {held[-1]['step']:,}", str(sample.get("answer", ""))))
        quotes.append(Quote("reference", str(sample.get("reference", ""))))
        samples.append(Sample(f"held-out prompt {place}", "greedy, not chosen", quotes))
    return [Samples(f"Answers to held-out prompts, as the student learnt: {len(samples)}", samples)]


FEW = 100  # pairs, below which an accuracy has a wide interval


def reward_section(found: Inputs) -> Section | str:
    trained = [t for t in found.trainings if is_reward(t)]
    measures = [(f"{t.name}, held out", t.quality) for t in trained if t.quality]
    measures += [(e.name, e.data) for e in found.evaluated("reward")]
    if not trained and not measures:
        return "no training run of a reward model was found, and no `evaluate reward --json`"
    blocks: list[Block] = []
    for place, training in enumerate(trained, 1):
        blocks += [Heading(training.name), *told(training, f"reward-training-{place}")]
    heads = []
    for place, (name, data) in enumerate(measures, 1):
        blocks += [Heading(name), *_measure(data, f"reward-{place}")]
        note = f"of {data['pairs']:,} pairs; the longer answer wins {percent(data['length_baseline'])}"
        label = "reward model prefers the better answer"
        heads.append(Headline(percent(data["accuracy"]), label, note, _weakness(data)))
    about = "It learns which of two answers the teacher scored higher."
    return Section("reward", "The reward model", about, blocks, heads)


def percent(value: float) -> str:
    return f"{value:.1%}"


def _weakness(data: Json) -> str:
    """Why the number proves little; empty where it does prove something."""
    if data["low"] <= 0.5:
        return "not shown to be better than chance"
    over = data.get("over_length")
    if over and over["high"] < 0:
        return "does not beat length"
    if (over and over["low"] <= 0) or (not over and data["low"] <= data["length_baseline"]):
        return "not shown to beat length"
    return "few pairs" if data["pairs"] < FEW else ""


def _measure(data: Json, name: str) -> list[Block]:
    right, span = percent(data["accuracy"]), f"{percent(data['low'])} to {percent(data['high'])}"
    guessed = data["length_baseline"]
    rows = [
        ("the reward model", data["accuracy"], data["low"], data["high"], f"{right} ({span})"),
        ("the longer answer", guessed, None, None, percent(guessed)),
        ("a coin", data.get("chance", 0.5), None, None, "50.0%"),
    ]
    columns = ("who says", "share of pairs that are right:share", "low:share", "high:share", "words")
    summary = table(name, columns, rows)
    caption = f"Right on {right} of {data['pairs']:,} pairs ({span}, 95 %), beside two ways to guess."
    blocks: list[Block] = [Drawing(figure("Accuracy", caption, caption, summary, shares, height_for(3)))]
    if weak := _weakness(data):
        blocks.append(Words(f"What this proves is weak: {weak}.", True))
    for key, title in (("by_margin", "By margin of the scores"), ("by_length", "By length")):
        blocks += _buckets(data, key, title, f"{name}-{key.replace('_', '-')}")
    found = data.get("calibration") or {}
    if bins := [b for b in found.get("bins", []) if b.get("pairs")]:
        heads = ("confidence:share", "accuracy:share", "pairs:count")
        points = [(b["confidence"], b["accuracy"], b["pairs"]) for b in bins]
        caption = (
            "How sure σ(Δr) is of its choice, and how often it is right, with the pairs at each point: Brier "
            f"score {found['brier']:.3f} (0.25: no idea), expected calibration error {found['ece']:.3f}."
        )
        numbers = table(f"{name}-calibration", heads, points)
        blocks.append(Drawing(figure("Calibration", caption, caption, numbers, calibration, 3.0)))
    return blocks


def _buckets(data: Json, key: str, title: str, name: str) -> list[Block]:
    filled: list[Any] = [b for b in data.get(key) or [] if b.get("pairs")]
    if len(filled) < 2:
        return []
    rows = [(f"{b['of']} (n {b['pairs']:,})", b["accuracy"], b["length_baseline"]) for b in filled]
    columns = (title.lower(), "reward model:share", "longer answer:share")
    caption = "Accuracy of the reward model and of 'the longer answer wins', with the pairs in each."
    drawing = figure(
        title, caption, f"{title}. {caption}", table(name, columns, rows), _side_by_side, 3.2, 4.2
    )
    spans = [(b["of"], b["pairs"], b["accuracy"], b["low"], b["high"], b["length_baseline"]) for b in filled]
    heads = (title.lower(), "pairs:count", "accuracy:share", "low:share", "high:share", "longer answer:share")
    few = [b["of"] for b in filled if b["pairs"] < 30]
    blocks: list[Block] = [
        Drawing(drawing),
        Listing(table(f"{name}-intervals", heads, spans), f"{title}, with 95 % intervals."),
    ]
    if few:
        blocks.append(Words(f"Fewer than 30 pairs, which prove little: {'; '.join(few)}.", True))
    return blocks


def _side_by_side(canvas: Any, numbers: FigureTable, wide: bool) -> None:
    grouped(canvas, numbers, wide)
    (axes,) = canvas.axes
    labels = [textwrap.fill(name, 15 if wide else 9) for name in numbers.names(numbers.columns[0])]
    axes.set_xticks(range(len(labels)), labels, fontsize=8.5 if wide else 7.5)
    axes.axhline(0.5, **EVEN)
    axes.set_ylim(0, 1)
    percents(axes, "y")
