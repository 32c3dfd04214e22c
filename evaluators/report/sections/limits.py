"""How the limits were used over time: requests and tokens a minute of each teacher, 429s, and pauses.

Time is the time in which somebody asked: between runs it stands still.
"""

from collections import defaultdict
from typing import Any

from engine.terminal import percent
from evaluators.figures.lines import over_time
from evaluators.figures.look import figure
from evaluators.figures.table import Table, table
from evaluators.report.document import Block, Drawing, Facts, Heading, Section, Words
from evaluators.report.found import Found, Stage
from evaluators.report.queries import CAME, REFUSED, SENT, SPANS

BINS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)  # seconds
MOST_BINS = 150
LEAST_SENT = 10  # requests, below which a teacher has no figure
SHOWN = 8  # teachers
Runs = list[tuple[Stage, Any]]


def section(found: Found) -> Section | str:
    spans = _spans(found)
    teachers = _teachers(found, spans)
    total = sum(b - a for a, b in _joined([spans[r["id"]] for runs in teachers.values() for _, r in runs]))
    size = next((b for b in BINS if total / b <= MOST_BINS), BINS[-1])
    sent, came, refused = (_binned(found, sql, size) for sql in (SENT, CAME, REFUSED))
    blocks: list[Block] = []
    counts = {k: sum(sum(sent[r["id"]].values()) for _, r in runs) for k, runs in teachers.items()}
    for key in sorted(teachers, key=lambda k: -counts[k])[:SHOWN]:
        if counts[key] >= LEAST_SENT:
            blocks += _teacher(key, teachers[key], spans, size, (sent, came, refused), len(blocks))
    if not blocks:
        return f"no teacher was asked {LEAST_SENT} times online"
    return Section(
        "limits", "How the limits were used", "From the ledger's attempts, second by second.", blocks
    )


def _spans(found: Found) -> dict[int, tuple[float, float]]:
    """Of each run: when it asked, from its first request to its end."""
    spans = {}
    for number, started, ended, first, last in found.reader.execute(SPANS):
        begin = first if first is not None else started
        spans[number] = (
            begin,
            max(x for x in (begin, ended if last is None else max(ended or 0, last)) if x),
        )
    return spans


def _teachers(found: Found, spans: dict[int, tuple[float, float]]) -> dict[tuple[str, str], Runs]:
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


def _binned(found: Found, sql: str, size: int) -> dict[int, dict[int, float]]:
    bins: dict[int, dict[int, float]] = defaultdict(dict)
    for run, place, count in found.reader.execute(sql, {"bin": size}):
        bins[run][place] = count
    return bins


def _teacher(
    key: tuple[str, str],
    runs: Runs,
    spans: dict[int, tuple[float, float]],
    size: int,
    binned: Any,
    number: int,
) -> list[Block]:
    name, model = key
    numbers = _over_time(f"limits-{number // 3 + 1}", runs, spans, size, binned)
    sent = sum(v or 0 for v in numbers.numbers("requests a minute")) * size / 60
    refused = sum(numbers.numbers("429s"))
    caption = (
        f"{sent:,.0f} requests to {model} ({name}), in steps of {size} s; {refused:,.0f} of them were refused "
        f"with a 429. Tokens are counted as billed, when the reply came. Time between runs is left out."
    )
    drawn = figure(f"{model} over time", caption, caption, numbers, over_time, 3.6)
    return [
        Heading(f"{model} ({name})"),
        Facts(_facts(runs, numbers, refused)),
        Drawing(drawn),
        *_held(numbers, size),
    ]


def _over_time(name: str, runs: Runs, spans: dict[int, tuple[float, float]], size: int, binned: Any) -> Table:
    """A row for each step of time in which somebody might have asked."""
    sent, came, refused = binned
    rows, passed, factor = [], 0, 60 / size
    for begin, end in _joined([spans[run["id"]] for _, run in runs]):
        for place in range(int(begin // size), int(end // size) + 1):
            alive = [
                run for _, run in runs if spans[run["id"]][0] // size <= place <= spans[run["id"]][1] // size
            ]
            counts = [sum(which[run["id"]].get(place, 0) for run in alive) for which in (sent, came, refused)]
            rows.append(
                (
                    passed / 60, counts[0] * factor, _limit(alive, "rpm"),
                    counts[1] * factor, _limit(alive, "tpm"), counts[2],
                )
            )  # fmt: skip
            passed += size
    columns = ("minutes:number", "requests a minute:count", "request limit:count", "tokens a minute:count")
    return table(name, (*columns, "token limit:count", "429s:count"), rows)


def _limit(runs: list[Any], name: str) -> float | None:
    """That of all the teacher's servers together; runs that share a teacher share it."""
    limits = []
    for run in runs:
        servers = [run["settings"], *(run["settings"].get("others") or [])]
        limits.append([server.get(name) for server in servers])
    sums = [sum(each) for each in limits if all(each)]
    return max(sums, default=None)


def _facts(runs: Runs, numbers: Table, refused: float) -> list[tuple[str, str]]:
    used = [run["utilisation"] for _, run in runs if run["utilisation"]]
    facts = []
    for what in ("requests", "tokens"):
        share = used[-1].get(what) if used else None
        if share is not None:
            facts.append((f"of the limit in {what}, last run", percent(share)))
    facts.append(("busiest step, requests a minute", f"{max(numbers.numbers('requests a minute')):,.0f}"))
    facts.append(("busiest step, tokens a minute", f"{max(numbers.numbers('tokens a minute')):,.0f}"))
    return [*facts, ("429s", f"{refused:,.0f}")]


def _held(numbers: Table, size: int) -> list[Block]:
    """Steps in which nothing was sent: after a 429, or for another reason."""
    sent, refused = numbers.numbers("requests a minute"), numbers.numbers("429s")
    after = silent = 0
    held = False
    for requests, limited in zip(sent, refused, strict=True):
        held = bool(limited) or (held and not requests)
        silent += not requests
        after += not requests and held
    if not silent:
        return []
    return [
        Words(
            f"In {silent * size:,} s of {len(sent) * size:,} s nothing was sent, {after * size:,} s of them "
            "right after a 429. The rest is waiting: for replies, for the limit, or for an outage to end."
        )
    ]
