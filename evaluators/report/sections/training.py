"""Training curves: the loss as it fell, held-out loss beside it, and answers to held-out prompts."""

import re
from collections.abc import Sequence
from typing import Any

from engine.terminal import duration, plain
from evaluators.report.blocks import (
    Block,
    Drawing,
    Facts,
    Heading,
    Headline,
    Quote,
    Sample,
    Samples,
    Section,
    Words,
)
from evaluators.report.figures import FigureTable, figure, table
from evaluators.report.inputs import Inputs, Json, TrainingInput
from evaluators.report.line_charts import curves

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


def is_reward(training: TrainingInput) -> bool:
    held = any("held_out_accuracy" in record for record in training.metrics)
    return held or bool(training.quality) or "answers" in recipe_of(training)


def recipe_of(training: TrainingInput) -> Json:
    found = training.finished.get("Recipe") or training.setup.get("recipe") or training.setup
    return found if isinstance(found, dict) else {}


def section(found: Inputs) -> Section | str:
    mine = [t for t in found.trainings if not is_reward(t)]
    if not mine:
        return "no training of a student was found below the run folder; name one with --training"
    blocks: list[Block] = []
    heads = []
    for number, training in enumerate(mine, 1):
        blocks += [Heading(training.name), *told(training, f"training-{number}"), *_answers(training)]
        heads += _headlines(training)
    return Section(
        "training", "The student", "Supervised fine-tuning: the loss is on responses only.", blocks, heads
    )


def told(training: TrainingInput, name: str) -> list[Block]:
    """Facts, curves, and what a reader must know of them; for any kind of training."""
    steps = [r for r in training.metrics if r.get("kind") == "step" and number(r.get("loss"))]
    held = [r for r in training.metrics if r.get("kind") == "held_out" and number(r.get("held_out_loss"))]
    blocks: list[Block] = [Facts(_facts(training, steps))]
    if not steps:
        return [*blocks, Words("No step was measured yet.", True)]
    numbers = curve(name, steps, held)
    caption = _caption(steps, held)
    drawing = figure(f"Learning curves of {plain(training.name, 60)}", caption, caption, numbers, curves, 3.1)
    blocks.append(Drawing(drawing))
    if not training.finished:
        blocks.append(Words("This training has not ended: the curves are of what was done so far.", True))
    losses = [r["held_out_loss"] for r in held]
    if len(losses) > 2 and min(losses) < losses[-1] * 0.99:
        best = held[losses.index(min(losses))]["step"]
        blocks.append(
            Words(f"The held-out loss was lowest at step {best:,} and rose after it: it overfits.", True)
        )
    return blocks


def number(value: object) -> bool:
    return isinstance(value, int | float) and value == value


def _caption(steps: Sequence[Json], held: Sequence[Json]) -> str:
    first, last = steps[0], steps[-1]
    caption = (
        f"Loss over {last['step']:,} steps: {first['loss']:.3f} at first, {last['loss']:.3f} at the end."
    )
    if held:
        caption += f" On held-out rows {held[0]['held_out_loss']:.3f} and {held[-1]['held_out_loss']:.3f}."
    if len(steps) > POINTS:
        caption += f" Each point is a mean of {-(-len(steps) // POINTS)} steps."
    return caption


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


def _facts(training: TrainingInput, steps: Sequence[Json]) -> list[tuple[str, str]]:
    recipe = {**training.setup, **recipe_of(training)}
    facts = [(n.replace("_", " "), _value(recipe[n])) for n in SHOWN if recipe.get(n) is not None]
    if training.title:
        facts.insert(0, ("training", training.title))
    data = training.finished.get("Data")
    for name, value in data.items() if isinstance(data, dict) else ():
        if "sha256" not in name and value:
            facts.append((str(name), _value(value)))
    seconds = sum(r["seconds"] for r in steps if number(r.get("seconds")))
    if seconds:
        tokens = sum(r["tokens"] for r in steps if number(r.get("tokens")))
        facts += [("time in steps", duration(seconds)), ("tokens a second", f"{tokens / seconds:,.0f}")]
    return facts


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
    return [Samples(f"{len(samples)} answers to held-out prompts, as the student learnt", samples)]


def _headlines(training: TrainingInput) -> list[Headline]:
    held = [r for r in training.metrics if r.get("kind") == "held_out" and number(r.get("held_out_loss"))]
    if not held:
        return []
    weak = "" if training.finished else "the training has not ended"
    note = f"{held[0]['held_out_loss']:.2f} before, {training.name}" if len(held) > 1 else training.name
    return [Headline(f"{held[-1]['held_out_loss']:.2f}", "held-out loss of the student", note, weak)]
