"""Learning curves as a picture: the training loss, smoothed, and the held-out loss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIZE, DPI = (7.0, 4.2), 150
# Okabe and Ito's colours, which people with colour blindness tell apart.
TRAINING, HELD_OUT = "#0072B2", "#D55E00"
SMOOTHED_OVER = 20  # steps, as the time constant of an exponential mean


def draw(records: Sequence[dict[str, Any]], path: Path, title: str) -> None:
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
    axes.plot(places, [loss for _, loss in steps], color=TRAINING, alpha=0.25, linewidth=0.8)
    axes.plot(places, smoothed([loss for _, loss in steps]), color=TRAINING, label="training (smoothed)")
    if held:
        line: dict[str, Any] = {"color": HELD_OUT, "marker": "o", "markersize": 3.5, "label": "held out"}
        axes.plot([step for step, _ in held], [loss for _, loss in held], **line)
    axes.set(xlabel="step", ylabel="loss a learnt token (nats)", title=title)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False)
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format="png")
    pyplot.close(figure)
    beside.replace(path)


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential mean that is not drawn to 0 at its beginning."""
    keep = 1 - 1 / SMOOTHED_OVER
    found, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        found.append(mean / weight)
    return found
