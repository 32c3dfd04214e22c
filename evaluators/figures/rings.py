"""The paper's Figure 1a, b: root verbs in the inner ring, their nouns in the outer one."""

from typing import Any

from evaluators.figures.look import COLOURS, PAPER
from evaluators.figures.table import Table

INNER, OUTER, DEEP = 0.42, 0.72, 0.3
LEAST = 0.012  # of the circle, below which a wedge has no name


def sunburst(figure: Any, table: Table, wide: bool) -> None:
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
