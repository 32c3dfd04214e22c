"""A run folder as one HTML page: `run_report` for the command, `build` for the page itself.

The ledger is read in one transaction, so all numbers agree while a run continues. The page is one file
without scripts and without anything from elsewhere. Its content-security policy says so too: no host,
script, frame or form, and the one style sheet is known by its hash.
"""

import base64
import hashlib
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from engine.terminal import plain, plain_lines
from evaluators.report.blocks import Drawing, Listing, Report, Section
from evaluators.report.evaluations import evaluate, has_votes
from evaluators.report.figures import FigureTable
from evaluators.report.inputs import Inputs, look
from evaluators.report.sections import (
    cost,
    data,
    failures,
    human,
    judge,
    limits,
    ranking,
    reward,
    rouge,
    scores,
    training,
)
from evaluators.report.sections import run as asked
from evaluators.report.sections import statistics as words
from store.damage import is_damage, words_of
from store.errors import DamagedLedger, RunFolderError
from store.files import is_plain, is_stdout, replacing
from store.queries import connect_reader
from store.run_folder import LEDGER, ledger_path
from store.schema import migrate

HERE = Path(__file__).parent
LONGEST = 20_000  # characters of a quoted text


def html(report: Report) -> str:
    """The page. The same report gives the same bytes."""
    style = (HERE / "static" / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src-elem 'sha256-{digest}'; style-src-attr 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    found: str = _template().render(report=report, style=style, policy=policy)
    return found.encode("utf-8", "replace").decode()


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"csv_link": csv_link, "line": plain, "quoted": quoted}
    return environment.get_template("report.html")


def csv_link(numbers: FigureTable) -> str:
    """The table as a link that a browser saves."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(numbers.csv.encode()).decode()


def quoted(text: str) -> str:
    """Somebody's words as they are, without control characters, and of a very long text the beginning."""
    shown = plain_lines(text)
    if len(shown) <= LONGEST:
        return shown
    return f"{shown[:LONGEST]}… ({len(shown) - LONGEST:,} more characters)"


SEED = 0
SECTIONS: tuple[tuple[str, Callable[[Inputs], Section | str]], ...] = (
    ("What was asked", asked.section),
    ("Cost", cost.section),
    ("Limits over time", limits.section),
    ("Failures", failures.section),
    ("The data", data.section),
    ("Statistics of the data", words.section),
    ("Scores", scores.section),
    ("The student", training.section),
    ("The reward model", reward.section),
    ("Judges", judge.section),
    ("The ranking study", ranking.section),
    ("ROUGE", rouge.section),
    ("Human votes", human.section),
)


def run_report(
    run: Path,
    out: Path,
    csv: Path | None = None,
    trainings: Sequence[Path] = (),
    evaluations: Sequence[Path] = (),
    seed: int = SEED,
) -> int:
    """Writes the page, and the tables as files into `csv` where that is given; returns the exit code.
    Raises UsageError, RunFolderError."""
    is_plain(out)  # told before the work
    try:
        report = build(run, trainings, evaluations, seed)
    except sqlite3.Error as error:
        if is_damage(error):
            raise DamagedLedger(ledger_path(run), error) from error
        raise RunFolderError(f"cannot read {ledger_path(run)}: {error}") from error
    with replacing(out) as file:
        file.write(html(report).encode())
    for name, text in tables(report) if csv else ():
        with replacing(csv / f"{name}.csv") as file:  # type: ignore[operator]
            file.write(text.encode())
    where = "standard output" if is_stdout(out) else out
    count = len(report.sections)
    print(f"{count} section{'s' * (count != 1)} written to {where}", file=sys.stderr)
    return 0


def build(
    run: Path, trainings: Sequence[Path] = (), evaluations: Sequence[Path] = (), seed: int = SEED
) -> Report:
    """The report as a value. Raises UsageError, RunFolderError."""
    with closing(_reader(run)) as reader:
        reader.execute("BEGIN")
        found = look(run, reader, trainings, evaluations, seed)
        evaluate(found)
        told = [(name, section(found)) for name, section in SECTIONS]
        about = list(_about(found))
    sections = [s for _, s in told if isinstance(s, Section)]
    left_out = [(name, why) for name, why in told if isinstance(why, str)]
    if words := words_of(list(found.damages.values()), run):
        left_out.append(("Damaged answers", words))
    name = run.resolve().name
    return Report(f"Report on {name}", about, sections, [*left_out, *found.unread])


def _reader(run: Path) -> sqlite3.Connection:
    """Of the ledger; of an empty one where the folder holds only people's votes. Raises RunFolderError."""
    if (run / LEDGER).exists() or not has_votes(run):
        return connect_reader(run)
    empty = sqlite3.connect(":memory:", isolation_level=None)
    migrate(empty)
    return empty


def _about(found: Inputs) -> Iterator[tuple[str, str]]:
    """When it was: by the ledger's own times, so that the same run gives the same page."""
    started = [run["started"] for stage in found.stages for run in stage.runs]
    ended = [stage.runs[-1]["ended"] for stage in found.stages if stage.runs]
    if started:
        yield "begun", _moment(min(started))
        whole = all(time is not None for time in ended)
        yield "ended", _moment(max(ended)) if whole else "not yet, or killed"
    yield "made by", "distill report"
    yield "rows drawn with seed", str(found.seed)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def tables(report: Report) -> Iterator[tuple[str, str]]:
    """(name, CSV) of every table and figure."""
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Listing):
                yield block.table.name, block.table.csv
            elif isinstance(block, Drawing):
                yield block.figure.table.name, block.figure.table.csv
