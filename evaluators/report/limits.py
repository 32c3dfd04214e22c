"""How the limits were used over time: requests and tokens a minute of each teacher, 429s, and pauses.

Time is the time in which somebody asked: between runs it stands still. And what failed and why, with the
server's words: rows without an answer, and attempts that failed.
"""

from collections import Counter, defaultdict
from random import Random
from typing import Any, NamedTuple

import orjson

from engine.terminal import percent, plain
from evaluators.report.charts import counted, height_for
from evaluators.report.figures import (
    COLOURS,
    INK,
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
from evaluators.report.inputs import Inputs, StageInput

BINS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)  # seconds
MOST_BINS = 150
LEAST_SENT = 10  # requests, below which a teacher has no figure
LEAST_SECONDS = 5.0  # of asking; a burst has no use of a limit over time
SHOWN = 8  # teachers
SENT = "SELECT run, CAST(sent_at / :bin AS INTEGER), count(*) FROM attempts GROUP BY 1, 2"
CAME = """
SELECT t.run, CAST(p.received_at / :bin AS INTEGER), sum(p.prompt_tokens + p.completion_tokens)
FROM responses p JOIN attempts t ON t.id = p.attempt GROUP BY 1, 2"""
REFUSED = """
SELECT t.run, CAST(e.at / :bin AS INTEGER), count(*) FROM errors e JOIN attempts t ON t.id = e.attempt
WHERE e.cause = 'rate_limit' GROUP BY 1, 2"""
SPANS = """
SELECT u.id, u.started, u.ended, min(t.sent_at), max(t.sent_at) FROM runs u
LEFT JOIN attempts t ON t.run = u.id GROUP BY 1"""
Runs = list[tuple[StageInput, Any]]
Counts = dict[int, dict[int, float]]  # run -> step of time -> how much


class Binned(NamedTuple):
    """Requests sent, tokens that came, 429s."""

    sent: Counts
    came: Counts
    refused: Counts


def limits_section(found: Inputs) -> Section | str:
    spans: dict[int, tuple[float, float]] = {}  # of each run: from its first request to its end
    for number, started, ended, first, last in found.reader.execute(SPANS):
        ends = (first if first is not None else started, ended if last is None else max(ended or 0, last))
        spans[number] = (ends[0], max(x for x in ends if x))
    # runs that shared limits, by the teacher's name and model; batches have no limits a minute
    teachers: dict[tuple[str, str], Runs] = defaultdict(list)
    for stage in found.stages:
        for run in stage.runs:
            settings = run["settings"] or {}
            if not settings.get("batch") and run["id"] in spans:
                name = str(settings.get("teacher") or stage.name)
                teachers[name, str(settings.get("model", "?"))].append((stage, run))
    steps: dict[float, Binned] = {}
    told: list[tuple[float, list[Block]]] = []
    bursts: list[str] = []
    for key, runs in teachers.items():
        seconds = sum(end - begin for begin, end in _joined([spans[run["id"]] for _, run in runs]))
        size = next((size for size in BINS if seconds / size <= MOST_BINS), BINS[-1])
        if size not in steps:
            steps[size] = Binned(defaultdict(dict), defaultdict(dict), defaultdict(dict))
            for sql, bins in zip((SENT, CAME, REFUSED), steps[size], strict=True):
                for run, place, count in found.reader.execute(sql, {"bin": size}):
                    bins[run][place] = count
        sent = sum(sum(steps[size].sent[run["id"]].values()) for _, run in runs)
        if sent >= LEAST_SENT and seconds < LEAST_SECONDS:
            bursts.append(f"{key[0]} ({sent:,.0f} requests in {seconds:.1f} s)")
        elif sent >= LEAST_SENT:
            numbers = _steps(f"limits-{len(told) + 1}", runs, spans, size, steps[size])
            told.append((sent, _teacher(key, runs, numbers, size)))
    told.sort(key=lambda each: -each[0])
    if not (told or bursts):
        return f"no teacher was asked {LEAST_SENT} times online"
    blocks = [block for _, some in told[:SHOWN] for block in some]
    if bursts:
        blocks.append(Words("Too short for a figure: " + ", ".join(bursts) + "."))
    about = "What was sent and when, from the ledger's attempts."
    return Section("limits", "How the limits were used", about, blocks)


def _joined(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def _teacher(key: tuple[str, str], runs: Runs, numbers: FigureTable, size: float) -> list[Block]:
    name, model = key
    sent = sum(v or 0 for v in numbers.numbers("requests a minute")) * size / 60
    refused = sum(numbers.numbers("429s"))
    caption = (
        f"Requests to {model} ({name}), in steps of {size:g} s: {sent:,.0f}. Refused with a 429: "
        f"{refused:,.0f}. Tokens are counted as billed, when the reply came. Time between runs is left out."
    )
    drawn = figure(f"{model} over time", caption, caption, numbers, over_time, 3.6)
    used = [run["utilisation"] for _, run in runs if run["utilisation"]]
    facts = []
    for what in ("requests", "tokens"):
        share = used[-1].get(what) if used else None
        if share is not None:
            facts.append((f"of the limit in {what}, last run", percent(share)))
    facts.append(("busiest step, requests a minute", f"{max(numbers.numbers('requests a minute')):,.0f}"))
    facts.append(("busiest step, tokens a minute", f"{max(numbers.numbers('tokens a minute')):,.0f}"))
    facts.append(("429s", f"{refused:,.0f}"))
    blocks: list[Block] = [Heading(f"{model} ({name})"), Facts(facts), Drawing(drawn)]
    # steps in which nothing was sent: after a 429, or for another reason
    after = silent = 0
    held = False
    steps = [*zip(numbers.numbers("requests a minute"), numbers.numbers("429s"), strict=True)]
    for requests, limited in steps:
        held = bool(limited) or (held and not requests)
        silent += not requests
        after += not requests and held
    if silent * size >= 1:
        whole = f"{silent * size:,.0f} s of {len(steps) * size:,.0f} s"
        words = f"Nothing was sent in {whole}, {after * size:,.0f} s of them right after a 429. "
        rest = "The rest is waiting: for replies, for the limit, or for an outage to end."
        blocks.append(Words(words + rest))
    return blocks


def _steps(
    name: str, runs: Runs, spans: dict[int, tuple[float, float]], size: float, binned: Binned
) -> FigureTable:
    """A row for each step of time in which somebody might have asked."""
    mine: dict[int, tuple[int, int]] = {}  # first and last step of a run: to its last reply or its end
    for _, run in runs:
        begin, end = spans[run["id"]]
        came_last = max(binned.came[run["id"]], default=0)
        mine[run["id"]] = int(begin // size), max(int(end // size), came_last)
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


def _limit(runs: list[Any], name: str) -> float | None:
    """That of all the teacher's servers together; runs that share a teacher share it."""
    limits = []
    for run in runs:
        servers = [run["settings"], *(run["settings"].get("others") or [])]
        limits.append([server.get(name) for server in servers])
    sums = [sum(each) for each in limits if all(each)]
    return max(sums, default=None)


def over_time(figure: Any, table: FigureTable, wide: bool) -> None:
    """Requests and tokens a minute against their limits, and 429s; columns: minutes (when a step begins),
    seconds (how long it is), requests a minute, request limit, tokens a minute, token limit, 429s."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    upper, lower = figure.subplots(2, 1, sharex=True)
    begins = table.numbers("minutes")
    at, unit = _in_unit([*begins, begins[-1] + table.numbers("seconds")[0] / 60])  # and where the last ends
    for axes, n, name, limit in (
        (upper, 0, "requests a minute", "request limit"),
        (lower, 1, "tokens a minute", "token limit"),
    ):
        values = _to_the_end(table.numbers(name))
        axes.fill_between(at, values, step="post", color=COLOURS[n], alpha=0.25, linewidth=0)
        axes.step(at, values, where="post", color=COLOURS[n], linewidth=1.3, label=name)
        bounds = _to_the_end(table.numbers(limit))
        if any(b == b for b in bounds):
            axes.step(at, bounds, where="post", color=INK, linewidth=1.2, linestyle="--", label=limit)
        axes.set_ylim(bottom=0)
        axes.set_title(name + (", the limit dashed" if any(b == b for b in bounds) else ""), fontsize=9.5)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    refused = [(t, n) for t, n in zip(at, table.numbers("429s"), strict=False) if n]
    if refused:
        _, top = upper.get_ylim()
        line = {"linestyle": "none", "marker": "v", "color": COLOURS[3], "markersize": 6}
        upper.plot([t for t, _ in refused], [top * 0.04] * len(refused), label="429s", **line)
        upper.legend(loc="upper right", handles=upper.get_legend_handles_labels()[0][-1:])
    lower.set_xlabel(f"{unit} of asking")
    lower.set_xlim(left=0)


def _to_the_end(values: list[float]) -> list[float]:
    """A step is drawn from its beginning: the last one ends a step later."""
    return [*values, values[-1]]


def _in_unit(minutes: list[float]) -> tuple[list[float], str]:
    """Seconds for minutes, or hours for days, of asking."""
    last = max(minutes, default=0)
    for most, factor, unit in ((5, 60, "seconds"), (300, 1, "minutes")):
        if last <= most:
            return [t * factor for t in minutes], unit
    return [t / 60 for t in minutes], "hours"


def short_number(value: float) -> str:
    """1,500 as 1.5k, two millions as 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


SAMPLED, MESSAGES, MESSAGE = 6, 3, 300
ERRORS = """
SELECT s.name, e.cause, e.status, count(*), count(DISTINCT e.request),
  sum(r.failure = e.id AND r.answer IS NULL) FROM errors e
JOIN attempts t ON t.id = e.attempt JOIN runs u ON u.id = t.run JOIN stages s ON s.id = u.stage
JOIN requests r ON r.id = e.request GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3"""
WORDS = """
SELECT message, count(*) AS asks FROM (SELECT message FROM errors WHERE cause = ? LIMIT 20000)
GROUP BY 1 ORDER BY asks DESC, 1 LIMIT ?"""
_FAILED = """
SELECT e.id, s.name, e.cause, e.status, e.message, w.item FROM errors e
JOIN requests r ON r.failure = e.id AND r.answer IS NULL JOIN attempts t ON t.id = e.attempt
JOIN runs u ON u.id = t.run JOIN stages s ON s.id = u.stage
LEFT JOIN rows w ON w.id = (u.stage << 40) + (SELECT min(a.position) FROM samples a
  WHERE a.stage = u.stage AND a.request = e.request)
WHERE e.id >= ? LIMIT 1"""


def failures_section(found: Inputs) -> Section | str:
    errors = found.reader.execute(ERRORS).fetchall()
    total = sum(sum(s.counts["failed"].values()) for s in found.stages)
    done = sum(s.counts["done"] for s in found.stages)
    if not errors and not total:
        return "nothing failed, and no attempt went wrong"
    words = (
        f"Failed for good: {total:,} of {total + done:,} rows that have ended. Failed attempts on the way: "
        f"{sum(e[3] for e in errors):,}; those with a transient cause were sent again."
    )
    causes: Counter[str] = Counter()
    for _, cause, _, asks, *_ in errors:
        causes[cause] += asks
    by_cause = sorted(causes.items(), key=lambda c: (-c[1], c[0]))
    numbers = table("attempts-by-cause", ("cause", "attempts:count"), by_cause)
    caption = "By cause. After a rate limit or a transient cause the row is sent again."
    drawn = figure("Attempts that failed", caption, caption, numbers, counted, height_for(len(causes)))
    columns = ("stage", "cause", "HTTP status:text", "attempts:count", "requests:count")
    every = table(
        "errors",
        (*columns, "failed for good:count"),
        [(*e[:2], "" if e[2] is None else str(e[2]), *e[3:]) for e in errors],
    )
    # the commonest messages of each cause; of a cause with very many errors, among the first
    commonest = [
        (cause, plain(message, MESSAGE), asks)
        for cause in dict.fromkeys(e[1] for e in errors)
        for message, asks in found.reader.execute(WORDS, (cause, MESSAGES))
    ]
    messages = table("messages", ("cause", "the server's message", "attempts:count"), commonest)
    blocks: list[Block] = [
        Words(words),
        Drawing(drawn),
        Listing(every, "Every kind of error. Equal rows share a request."),
        Listing(messages, "The most common messages."),
    ]
    samples = []
    # failed requests, drawn by their numbers
    (last,) = found.reader.execute("SELECT max(id) FROM errors").fetchone()
    random = Random(f"{found.seed} failures")
    chosen: dict[int, tuple[Any, ...]] = {}
    for _ in range(SAMPLED * 4 if last is not None else 0):
        row = found.reader.execute(_FAILED, (random.randint(1, last),)).fetchone()
        if row and len(chosen) < SAMPLED:
            chosen[row[0]] = row
    for _, (_, stage, cause, status, message, item) in sorted(chosen.items()):
        row = orjson.loads(item) if item else {}
        quotes = [
            Quote("instruction", str(row.get("instruction", ""))),
            Quote("the server's message", message),
        ]
        samples.append(Sample(f"{stage}: {cause}", f"status {status}" if status else "", quotes))
    if samples:
        about = f"Failed rows, drawn at random (seed {found.seed}): {len(samples)}"
        blocks.append(Samples(about, samples))
    share = total / (total + done) if total + done else 0.0
    headline = Headline(f"{total:,}", "rows failed", f"{share:.1%} of those that have ended")
    return Section("failures", "What failed", "By cause, with the server's messages.", blocks, [headline])
