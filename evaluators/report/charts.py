"""Bars (with intervals, grouped, stacked to 100 %), the paper's Figure 1a, b (verbs and nouns), and lines
(distributions, curves of a training, intervals, calibration).

The first column of a table names the bar or the group. The other columns are described at each function.
"""

from typing import Any

from evaluators.report.figures import COLOURS, GRID, INK, PAPER, QUIET, FigureTable

HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "oooo", "++++")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
LABEL = {True: 30, False: 16}  # characters of a name beside an axis, by whether it is the wide one
THICK = 0.62
EVEN: dict[str, Any] = {"color": QUIET, "linewidth": 1, "linestyle": (0, (4, 3))}  # where both are equal
ROOM = 1.0  # inches for axis and margins of a figure of horizontal bars


def short(name: str, wide: bool) -> str:
    """A name that fits beside an axis."""
    most = LABEL[wide]
    return name if len(name) <= most else name[: most - 1] + "…"


def series(n: int) -> dict[str, Any]:
    """Colour, dash and marker of the nth line."""
    place = n % len(COLOURS)
    return {"color": COLOURS[place], "linestyle": DASHES[place], "marker": MARKERS[place]}


def bar(n: int) -> dict[str, Any]:
    """Colour and hatch of the nth kind of bar."""
    place = n % len(COLOURS)
    return {"color": COLOURS[place], "hatch": HATCHES[place], "edgecolor": PAPER, "linewidth": 0.5}


def height_for(bars: int, each: float = 0.34) -> float:
    """Inches for so many horizontal bars."""
    return ROOM + each * max(bars, 1)


def measured(figure: Any, table: FigureTable, wide: bool) -> None:
    """Horizontal bars with 95 % intervals and words at their ends; columns: name, value, low, high,
    words."""
    axes = figure.subplots()
    names, values = table.names(table.columns[0]), table.numbers(table.columns[1])
    low, high = table.numbers("low"), table.numbers("high")
    places = range(len(names))
    axes.barh(places, values, height=THICK, **bar(0))
    for place, value, a, b in zip(places, values, low, high, strict=True):
        if a == a and b == b:
            axes.errorbar(value, place, xerr=[[max(0, value - a)], [max(0, b - value)]], **WHISKER)
    reach = max([v for v in (*values, *high) if v == v] or [1.0])
    for place, value, b, words in zip(places, values, high, table.names("words"), strict=True):
        axes.text(max(value, b if b == b else value) + reach * 0.015, place, words, va="center", **BESIDE)
    longest = max(map(len, table.names("words")), default=0)
    axes.set_xlim(0, reach / (1 - min(0.65, max(0.3, longest * (0.0125 if wide else 0.028)))))
    named(axes, names, wide)
    axes.set_xlabel(table.columns[1])


BESIDE: dict[str, Any] = {
    "fontsize": 9,
    "bbox": {"facecolor": PAPER, "edgecolor": "none", "boxstyle": "square,pad=0.08"},
}
WHISKER: dict[str, Any] = {
    "fmt": "none",
    "color": INK,
    "ecolor": INK,
    "elinewidth": 1.1,
    "capsize": 3,
    "capthick": 1.1,
}


def named(axes: Any, names: list[str], wide: bool) -> None:
    """Names down the side, the first on top."""
    axes.set_yticks(range(len(names)), [short(name, wide) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(names) - 0.4, -0.6)


def relative(figure: Any, table: FigureTable, wide: bool) -> None:
    """The same as shares, with a line where both are equal."""
    measured(figure, table, wide)
    (axes,) = figure.axes
    axes.axvline(1, **EVEN, zorder=0)
    percents(axes, "x")


def shares(figure: Any, table: FigureTable, wide: bool) -> None:
    """The same as shares of a whole, with a line at a half."""
    measured(figure, table, wide)
    (axes,) = figure.axes
    axes.axvline(0.5, **EVEN, zorder=0)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1] if wide else [0, 0.5, 1])
    percents(axes, "x")


def counted(figure: Any, table: FigureTable, wide: bool) -> None:
    """Horizontal bars of counts, with the count at the end; columns: name, count."""
    axes = figure.subplots()
    names, values = table.names(table.columns[0]), table.numbers(table.columns[1])
    axes.barh(range(len(names)), values, height=THICK, **bar(0))
    reach = max(values, default=1) or 1
    for place, value in enumerate(values):
        axes.text(value + reach * 0.012, place, f"{value:,.0f}", va="center", fontsize=9)
    axes.set_xlim(0, reach * 1.15)
    axes.locator_params(axis="x", integer=True)
    named(axes, names, wide)
    axes.set_xlabel(table.columns[1])


def grouped(figure: Any, table: FigureTable, wide: bool) -> None:
    """Vertical bars side by side; a column for each series. A gap stands where a number is unknown."""
    axes = figure.subplots()
    groups, series = table.names(table.columns[0]), table.columns[1:]
    width = 0.8 / max(len(series), 1)
    for n, name in enumerate(series):
        places = [g - 0.4 + width * (n + 0.5) for g in range(len(groups))]
        axes.bar(places, table.numbers(name), width=width * 0.94, label=short(name, wide), **bar(n))
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)
    if len(series) > 1:
        legend(figure, wide)


def stacked(figure: Any, table: FigureTable, wide: bool) -> None:
    """Horizontal bars of shares that make a whole; a column for each part, its per cent in it where it
    has room."""
    axes = figure.subplots()
    names, parts = table.names(table.columns[0]), table.columns[1:]
    left = [0.0] * len(names)
    series = WIN_TIE_LOSS if len(parts) == 3 and parts[1] in ("tie", "ties") else range(len(parts))
    for n, part in zip(series, parts, strict=True):
        values = table.numbers(part)
        axes.barh(range(len(names)), values, left=left, height=THICK, label=part, **bar(n))
        for place, (start, value) in enumerate(zip(left, values, strict=True)):
            if value >= (0.05 if wide else 0.1):
                axes.text(start + value / 2, place, f"{value:.0%}", ha="center", va="center", **ON_BAR)
        left = [start + (0 if value != value else value) for start, value in zip(left, values, strict=True)]
    axes.set_xlim(0, 1)
    named(axes, names, wide)
    percents(axes, "x")
    legend(figure, wide, 3)


WIN_TIE_LOSS = (0, 7, 3)  # blue, grey, vermilion: a loss is never green
ON_BAR: dict[str, Any] = {
    "fontsize": 9,
    "bbox": {"facecolor": PAPER, "edgecolor": GRID, "linewidth": 0.4, "boxstyle": "round,pad=0.18"},
}


def percents(axes: Any, which: str) -> None:
    from matplotlib.ticker import PercentFormatter

    getattr(axes, f"{which}axis").set_major_formatter(PercentFormatter(1, decimals=0))


def legend(figure: Any, wide: bool, columns: int = 0) -> None:
    """Above the axes, so that it covers nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        most = columns or (4 if wide else 2)
        figure.legend(handles, labels, loc="outside upper left", ncols=min(most, len(labels)))


INNER, OUTER, DEEP = 0.42, 0.72, 0.3
LEAST = 0.012  # of the circle, below which a wedge has no name


def sunburst(figure: Any, table: FigureTable, wide: bool) -> None:
    """Columns: verb, noun, count; rows of one verb next to each other."""
    axes = figure.add_subplot()
    rows = list(zip(table.names("verb"), table.names("noun"), table.numbers("count"), strict=True))
    verbs: dict[str, float] = {}
    for verb, _, count in rows:
        verbs[verb] = verbs.get(verb, 0) + count
    colours = {verb: COLOURS[n % len(COLOURS)] for n, verb in enumerate(verbs)}
    edge = {"edgecolor": PAPER, "linewidth": 0.8, "width": DEEP, "alpha": 0.75}
    _ring(axes, list(verbs.items()), INNER, [colours[v] for v in verbs], edge)
    edge |= {"alpha": 0.4}
    nouns = [(noun, count) for _, noun, count in rows]
    _ring(axes, nouns, OUTER, [colours[verb] for verb, _, _ in rows], edge)
    axes.set(xlim=(-0.89, 0.89), ylim=(-0.89, 0.89))


def _ring(
    axes: Any, parts: list[tuple[str, float]], radius: float, colours: list[str], edge: dict[str, Any]
) -> None:
    total = sum(count for _, count in parts) or 1
    labels = [name if count / total >= LEAST else "" for name, count in parts]
    wedges, texts = axes.pie(
        [count for _, count in parts], radius=radius + DEEP / 2 * 0.98, colors=colours, startangle=90,
        counterclock=False, labels=labels, labeldistance=(radius) / (radius + DEEP / 2), rotatelabels=False,
        wedgeprops=edge, textprops={"ha": "center", "va": "center", "fontsize": 7.5},
    )  # fmt: skip
    for wedge, text in zip(wedges, texts, strict=True):
        angle = (wedge.theta1 + wedge.theta2) / 2
        text.set_rotation(angle if -90 <= (angle + 180) % 360 - 180 <= 90 else angle + 180)
        text.set_rotation_mode("anchor")


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
        axes.axhline(0.5, **EVEN)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("held-out accuracy")
        percents(axes, "y")
    axes.set_xlabel("step")
    axes.locator_params(axis="x", integer=True)
    legend(figure, wide)


def rewards(figure: Any, table: FigureTable, wide: bool) -> None:
    """Answers of a training; columns: tokens, reward in the first steps, reward in the last ones."""
    axes, tokens = figure.subplots(), table.numbers("tokens")
    for n, when in ((0, "first"), (3, "last")):
        points = _known(tokens, table.numbers(f"{when} steps"))
        axes.scatter(*points, s=8, alpha=0.5, linewidths=0, color=COLOURS[n], label=f"{when} steps")
    axes.set_xlabel("tokens of an answer")
    axes.set_ylabel("reward")
    legend(figure, wide)


def _known(at: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    pairs = [(x, y) for x, y in zip(at, values, strict=True) if y == y]
    return [x for x, _ in pairs], [y for _, y in pairs]


def intervals(figure: Any, table: FigureTable, wide: bool) -> None:
    """What was expected, as an interval, and the actual value, as a diamond; columns: name, expected, low,
    high, actual."""
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
    actual = {"marker": "D", "color": COLOURS[3], "markeredgecolor": PAPER, "markersize": 8}
    axes.plot(table.numbers("actual"), places, label="actual", **line, **actual)
    named(axes, names, wide)
    axes.set_xlim(left=0)
    legend(figure, wide, 3)


def calibration(figure: Any, table: FigureTable, wide: bool) -> None:
    """How sure, and how often right; columns: confidence, accuracy, pairs."""
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], **EVEN, label="as sure as right")
    sure, right = table.numbers("confidence"), table.numbers("accuracy")
    axes.plot(*_known(sure, right), **series(0), label="the model")
    for x, y, pairs in zip(sure, right, table.numbers("pairs"), strict=True):
        if y == y:
            axes.annotate(f"{pairs:,.0f}", (x, y), xytext=(5, -11), textcoords="offset points", fontsize=8)
    axes.set(xlim=(0.48, 1.02), ylim=(0, 1.04), xlabel="says", ylabel="is right")
    percents(axes, "x")
    percents(axes, "y")
    legend(figure, wide)
