"""How the limits were used over time: requests and tokens a minute of each teacher, 429s, and pauses.

Time is the time in which somebody asked: between runs it stands still.
"""

from collections import defaultdict
from typing import Any, NamedTuple

from engine.terminal import percent
from evaluators.report.blocks import Block, Drawing, Facts, Heading, Section, Words
from evaluators.report.figures import FigureTable, figure, table
from evaluators.report.inputs import Inputs, StageInput
from evaluators.report.line_charts import over_time
from evaluators.report.queries import CAME, REFUSED, SENT, SPANS

BINS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)  # seconds
MOST_BINS = 150
LEAST_SENT = 10  # requests, below which a teacher has no figure
LEAST_SECONDS = 5.0  # of asking; a burst has no use of a limit over time
SHOWN = 8  # teachers
Runs = list[tuple[StageInput, Any]]
Counts = dict[int, dict[int, float]]  # run -> step of time -> how much


class Binned(NamedTuple):
    """Requests sent, tokens that came, 429s."""

    sent: Counts
    came: Counts
    refused: Counts


def section(found: Inputs) -> Section | str:
    spans = _spans(found)
    teachers = _teachers(found, spans)
    steps: dict[float, Binned] = {}
    told: list[tuple[float, list[Block]]] = []
    bursts: list[str] = []
    for key, runs in teachers.items():
        seconds = _seconds([spans[run["id"]] for _, run in runs])
        size = next((size for size in BINS if seconds / size <= MOST_BINS), BINS[-1])
        if size not in steps:
            steps[size] = Binned(*(_binned(found, sql, size) for sql in (SENT, CAME, REFUSED)))
        sent = sum(sum(steps[size].sent[run["id"]].values()) for _, run in runs)
        if sent >= LEAST_SENT and seconds < LEAST_SECONDS:
            bursts.append(f"{key[0]} ({sent:,.0f} requests in {seconds:.1f} s)")
        elif sent >= LEAST_SENT:
            numbers = _over_time(f"limits-{len(told) + 1}", runs, spans, size, steps[size])
            told.append((sent, _teacher(key, runs, numbers, size)))
    told.sort(key=lambda each: -each[0])
    if not (told or bursts):
        return f"no teacher was asked {LEAST_SENT} times online"
    blocks = [block for _, some in told[:SHOWN] for block in some]
    if bursts:
        blocks.append(Words("Too short for a figure: " + ", ".join(bursts) + "."))
    about = "What was sent and when, from the ledger's attempts."
    return Section("limits", "How the limits were used", about, blocks)


def _seconds(spans: list[tuple[float, float]]) -> float:
    """In which somebody asked."""
    return sum(end - begin for begin, end in _joined(spans))


def _spans(found: Inputs) -> dict[int, tuple[float, float]]:
    """Of each run: when it asked, from its first request to its end."""
    spans = {}
    for number, started, ended, first, last in found.reader.execute(SPANS):
        begin = first if first is not None else started
        spans[number] = (
            begin,
            max(x for x in (begin, ended if last is None else max(ended or 0, last)) if x),
        )
    return spans


def _teachers(found: Inputs, spans: dict[int, tuple[float, float]]) -> dict[tuple[str, str], Runs]:
    """Runs that shared limits, by the teacher's name and model; batches have no limits a minute."""
    teachers: dict[tuple[str, str], Runs] = defaultdict(list)
    for stage in found.stages:
        for run in stage.runs:
            settings = run["settings"] or {}
            if not settings.get("batch") and run["id"] in spans:
                name = str(settings.get("teacher") or stage.name)
                teachers[name, str(settings.get("model", "?"))].append((stage, run))
    return teachers


def _joined(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def _binned(found: Inputs, sql: str, size: float) -> Counts:
    bins: Counts = defaultdict(dict)
    for run, place, count in found.reader.execute(sql, {"bin": size}):
        bins[run][place] = count
    return bins


def _teacher(key: tuple[str, str], runs: Runs, numbers: FigureTable, size: float) -> list[Block]:
    name, model = key
    sent = sum(v or 0 for v in numbers.numbers("requests a minute")) * size / 60
    refused = sum(numbers.numbers("429s"))
    caption = (
        f"{sent:,.0f} requests to {model} ({name}), in steps of {size:g} s; {refused:,.0f} were refused with "
        "a 429. Tokens are counted as billed, when the reply came. Time between runs is left out."
    )
    drawn = figure(f"{model} over time", caption, caption, numbers, over_time, 3.6)
    facts = Facts(_facts(runs, numbers, refused))
    return [Heading(f"{model} ({name})"), facts, Drawing(drawn), *_held(numbers, size)]


def _over_time(
    name: str, runs: Runs, spans: dict[int, tuple[float, float]], size: float, binned: Binned
) -> FigureTable:
    """A row for each step of time in which somebody might have asked."""
    mine = {run["id"]: _places(spans[run["id"]], binned, run["id"], size) for _, run in runs}
    rows, passed, factor = [], 0.0, 60 / size
    for first, last in _joined([(float(a), float(b)) for a, b in mine.values()]):
        for place in range(int(first), int(last) + 1):
            alive = [run for _, run in runs if mine[run["id"]][0] <= place <= mine[run["id"]][1]]
            sent, came, refused = (sum(of[r["id"]].get(place, 0) for r in alive) for of in binned)
            limits = _limit(alive, "rpm"), _limit(alive, "tpm")
            rows.append((passed / 60, size, sent * factor, limits[0], came * factor, limits[1], refused))
            passed += size
    columns = (
        "minutes:number",
        "seconds:number",
        "requests a minute:count",
        "request limit:count",
        "tokens a minute:count",
    )
    return table(name, (*columns, "token limit:count", "429s:count"), rows)


def _places(span: tuple[float, float], binned: Binned, run: int, size: float) -> tuple[int, int]:
    """The first and the last step of a run: to its last request, its last reply or its end."""
    begin, end = span
    last = max(binned.came[run], default=0)
    return int(begin // size), max(int(end // size), last)


def _limit(runs: list[Any], name: str) -> float | None:
    """That of all the teacher's servers together; runs that share a teacher share it."""
    limits = []
    for run in runs:
        servers = [run["settings"], *(run["settings"].get("others") or [])]
        limits.append([server.get(name) for server in servers])
    sums = [sum(each) for each in limits if all(each)]
    return max(sums, default=None)


def _facts(runs: Runs, numbers: FigureTable, refused: float) -> list[tuple[str, str]]:
    used = [run["utilisation"] for _, run in runs if run["utilisation"]]
    facts = []
    for what in ("requests", "tokens"):
        share = used[-1].get(what) if used else None
        if share is not None:
            facts.append((f"of the limit in {what}, last run", percent(share)))
    facts.append(("busiest step, requests a minute", f"{max(numbers.numbers('requests a minute')):,.0f}"))
    facts.append(("busiest step, tokens a minute", f"{max(numbers.numbers('tokens a minute')):,.0f}"))
    return [*facts, ("429s", f"{refused:,.0f}")]


def _held(numbers: FigureTable, size: float) -> list[Block]:
    """Steps in which nothing was sent: after a 429, or for another reason."""
    sent, refused = numbers.numbers("requests a minute"), numbers.numbers("429s")
    after = silent = 0
    held = False
    for requests, limited in zip(sent, refused, strict=True):
        held = bool(limited) or (held and not requests)
        silent += not requests
        after += not requests and held
    if silent * size < 1:
        return []
    whole = f"{silent * size:,.0f} s of {len(sent) * size:,.0f} s"
    words = f"Nothing was sent in {whole}, {after * size:,.0f} s of them right after a 429. "
    return [Words(words + "The rest is waiting: for replies, for the limit, or for an outage to end.")]
