"""Lines: curves of a training, limits over time, distributions, calibration."""

from typing import Any

from evaluators.report.charts import legend, percents
from evaluators.report.figures import COLOURS, INK, PAPER, QUIET, FigureTable, bar, series, short

SPARSE = 40  # points, up to which each has its marker


def marked(n: int, points: int) -> dict[str, Any]:
    """The nth line's look; many points have few markers."""
    return {**series(n), "markevery": max(1, points // 12) if points > SPARSE else 1}


def distributions(figure: Any, table: FigureTable, wide: bool) -> None:
    """A line for each data set over bins; columns: where a bin begins, then a share for each."""
    axes = figure.subplots()
    begin = table.numbers(table.columns[0])
    for n, name in enumerate(table.columns[1:]):
        values = table.numbers(name)
        axes.plot(begin, values, label=short(name, wide), **marked(n, len(begin)))
        axes.fill_between(begin, values, color=COLOURS[n % len(COLOURS)], alpha=0.12, linewidth=0)
    axes.set_xlabel(table.columns[0])
    axes.set_ylabel("share")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    percents(axes, "y")
    legend(figure, wide)


def over_time(figure: Any, table: FigureTable, wide: bool) -> None:
    """Requests and tokens a minute against their limits, and 429s; columns: minutes (when a step begins),
    seconds (how long it is), requests a minute, request limit, tokens a minute, token limit, 429s."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    at, unit = _in_unit(_to_the_end(table.numbers("minutes"), table.numbers("seconds")[0]))
    for axes, n, name, limit in (
        (upper, 0, "requests a minute", "request limit"),
        (lower, 1, "tokens a minute", "token limit"),
    ):
        values = _held(table.numbers(name))
        axes.fill_between(at, values, step="post", color=COLOURS[n], alpha=0.25, linewidth=0)
        axes.step(at, values, where="post", color=COLOURS[n], linewidth=1.3, label=name)
        bounds = _held(table.numbers(limit))
        if any(b == b for b in bounds):
            axes.step(at, bounds, where="post", color=INK, linewidth=1.2, linestyle="--", label=limit)
        axes.set_ylim(bottom=0)
        axes.set_title(name + (", the limit dashed" if any(b == b for b in bounds) else ""), fontsize=9.5)
        thousands(axes)
    refused = [(t, n) for t, n in zip(at, table.numbers("429s"), strict=False) if n]
    if refused:
        _, top = upper.get_ylim()
        line = {"linestyle": "none", "marker": "v", "color": COLOURS[3], "markersize": 6}
        upper.plot([t for t, _ in refused], [top * 0.04] * len(refused), label="429s came", **line)
        upper.legend(loc="upper right", handles=upper.get_legend_handles_labels()[0][-1:])
    lower.set_xlabel(f"{unit} of asking")
    lower.set_xlim(left=0)


def _to_the_end(begins: list[float], seconds: float) -> list[float]:
    """Where steps begin, and where the last one ends."""
    return [*begins, begins[-1] + seconds / 60]


def _held(values: list[float]) -> list[float]:
    return [*values, values[-1]]


def _in_unit(minutes: list[float]) -> tuple[list[float], str]:
    """Seconds for minutes, or hours for days, of asking."""
    last = max(minutes, default=0)
    for most, factor, unit in ((5, 60, "seconds"), (300, 1, "minutes")):
        if last <= most:
            return [t * factor for t in minutes], unit
    return [t / 60 for t in minutes], "hours"


def thousands(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def short_number(value: float) -> str:
    """1,500 as 1.5k, two millions as 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def curves(figure: Any, table: FigureTable, wide: bool) -> None:
    """A training; columns: step, training loss, smoothed, held-out loss, held-out accuracy."""
    accuracy = table.numbers("held-out accuracy")
    with_accuracy = any(a == a for a in accuracy)
    found = figure.subplots(2, 1, sharex=True) if with_accuracy else [figure.subplots()]
    steps, axes = table.numbers("step"), found[0]
    axes.plot(*_known(steps, table.numbers("training loss")), color=COLOURS[0], alpha=0.35, linewidth=0.8)
    smooth = {"color": COLOURS[0], "linewidth": 1.8, "label": "training (smoothed)"}
    axes.plot(*_known(steps, table.numbers("smoothed")), **smooth)
    held = {"color": COLOURS[3], "marker": "o", "linestyle": "--", "label": "held out"}
    axes.plot(*_known(steps, table.numbers("held-out loss")), **held)
    axes.set_ylabel("loss (nats)")
    if with_accuracy:
        axes = found[1]
        axes.plot(*_known(steps, accuracy), color=COLOURS[2], marker="s", linestyle="-.")
        axes.axhline(0.5, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("held-out accuracy")
        percents(axes, "y")
    axes.set_xlabel("step")
    axes.locator_params(axis="x", integer=True)
    legend(figure, wide)


def _known(at: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    pairs = [(x, y) for x, y in zip(at, values, strict=True) if y == y]
    return [x for x, _ in pairs], [y for _, y in pairs]


def intervals(figure: Any, table: FigureTable, wide: bool) -> None:
    """What was expected, as an interval, and what came, as a diamond; columns: name, expected, low, high,
    came."""
    from evaluators.report.charts import named

    axes = figure.subplots()
    names = table.names(table.columns[0])
    places = list(range(len(names)))
    low, high = table.numbers("low"), table.numbers("high")
    spans = [b - a for a, b in zip(low, high, strict=True)]
    axes.barh(places, spans, left=low, height=0.34, label="estimate, 95 %", **bar(5))
    line = {"linestyle": "none", "zorder": 3}
    axes.plot(
        table.numbers("expected"), places, marker="|", markersize=13, color=INK, label="expected", **line
    )
    came = {"marker": "D", "color": COLOURS[3], "markeredgecolor": PAPER, "markersize": 8, "label": "came"}
    axes.plot(table.numbers("came"), places, **line, **came)
    named(axes, names, wide)
    axes.set_xlim(left=0)
    legend(figure, wide, 3)


def calibration(figure: Any, table: FigureTable, wide: bool) -> None:
    """How sure, and how often right; columns: confidence, accuracy, pairs."""
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
    sure, right = table.numbers("confidence"), table.numbers("accuracy")
    axes.plot(*_known(sure, right), **series(0), label="the model")
    for x, y, pairs in zip(sure, right, table.numbers("pairs"), strict=True):
        if y == y:
            axes.annotate(f"{pairs:,.0f}", (x, y), xytext=(5, -11), textcoords="offset points", fontsize=8)
    axes.set(xlim=(0.48, 1.02), ylim=(0, 1.04), xlabel="says", ylabel="is right")
    percents(axes, "x")
    percents(axes, "y")
    legend(figure, wide)
