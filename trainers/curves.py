"""Learning curves as a picture: training loss, smoothed; held-out loss; accuracy where it was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from store.files import whole

SIZE, DPI = (7.0, 4.2), 150
# Okabe and Ito's colours, which people with colour blindness tell apart.
TRAINING, HELD_OUT, ACCURACY = "#0072B2", "#D55E00", "#009E73"
SMOOTHED_OVER = 20  # steps at most, as the time constant of an exponential mean
SMOOTHED_LEAST, SMOOTHED_SHARE = 5, 5  # of a short run a fifth, but no less than so many steps
CHANCE = 0.5


def draw(records: Sequence[dict[str, Any]], path: Path, title: str, loss_name: str) -> None:
    """Writes a PNG; nothing where nothing was measured yet."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [(r["step"], r["loss"]) for r in records if r["kind"] == "step"]
    held = [(r["step"], r["held_out_loss"]) for r in records if r["kind"] == "held_out"]
    if not steps:
        return
    figure, axes = pyplot.subplots(figsize=SIZE, dpi=DPI, layout="constrained")
    places = [step for step, _ in steps]
    each = [loss for _, loss in steps]
    axes.plot(places, each, color=TRAINING, alpha=0.25, linewidth=0.8, label="training, each step")
    axes.plot(places, smoothed(each), color=TRAINING, label="training, smoothed")
    if held:
        line: dict[str, Any] = {"color": HELD_OUT, "marker": "o", "markersize": 3.5, "label": "held out"}
        axes.plot([step for step, _ in held], [loss for _, loss in held], **line)
        _accuracy(axes, records)
    axes.set(xlabel="step", ylabel=loss_name, title=title)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False)
    with whole(path) as file:
        figure.savefig(file, format="png")
    pyplot.close(figure)


def _accuracy(axes: Any, records: Sequence[dict[str, Any]]) -> None:
    """Held-out accuracy on an axis of its own, on the right."""
    found = [(r["step"], r["held_out_accuracy"]) for r in records if "held_out_accuracy" in r]
    if found:
        right = axes.twinx()
        right.plot(*zip(*found, strict=True), color=ACCURACY, linestyle="--", marker="s", markersize=3)
        right.axhline(CHANCE, color=ACCURACY, linewidth=0.6, alpha=0.6)
        right.set_ylabel("held-out accuracy (dashed; chance 0.5)", color=ACCURACY)
        right.set_ylim(0, 1)
        right.spines[["top"]].set_visible(False)


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential mean that is not drawn to 0 at its beginning, and in a short run does not lag."""
    keep = 1 - 1 / min(SMOOTHED_OVER, max(SMOOTHED_LEAST, len(values) // SMOOTHED_SHARE))
    found, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        found.append(mean / weight)
    return found
