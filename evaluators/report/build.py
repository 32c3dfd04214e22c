"""A run folder as one HTML page: `run_report` for the command, `build` for the page itself.

The ledger is read in one transaction, so all numbers agree while a run continues. The page is one file
without scripts and without anything from elsewhere. Its content-security policy says so too: no host,
script, frame or form, and the one style sheet is known by its hash.

What a run folder holds beside the ledger's sums is evaluated here and now: judgements, votes, verbs. The same
functions as the commands', so that the numbers are the same. What would be too much to read in a report, or
needs what is not installed, is left out with a word on how to have it.
"""

import base64
import hashlib
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.terminal import plain, plain_lines
from evaluators.report.data import data_section, statistics_section
from evaluators.report.figures import Drawing, FigureTable, Listing, Report, Section
from evaluators.report.inputs import NOT_THERE, Evaluation, Inputs, drawn, look
from evaluators.report.judge import judge_section, ranking_section
from evaluators.report.limits import failures_section, limits_section
from evaluators.report.run import asked_section, cost_section
from evaluators.report.scores import human_section, rouge_section, scores_section
from evaluators.report.training import reward_section, student_section
from store.errors import DamagedLedger, DistillError, RunFolderError, is_damage, words_of
from store.files import LEDGER, is_plain, is_stdout, replacing
from store.queries import connect_reader
from store.run_folder import ledger_path
from store.schema import migrate
from store.votes_schema import VOTES

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
    ("What was asked", asked_section),
    ("Cost", cost_section),
    ("Limits over time", limits_section),
    ("Failures", failures_section),
    ("The data", data_section),
    ("Statistics of the data", statistics_section),
    ("Scores", scores_section),
    ("The student", student_section),
    ("The reward model", reward_section),
    ("Judges", judge_section),
    ("The ranking study", ranking_section),
    ("ROUGE", rouge_section),
    ("Human votes", human_section),
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
    if (run / LEDGER).exists() or not any(_with_votes(run)):
        opened = connect_reader(run)
    else:  # the folder holds only people's votes
        opened = sqlite3.connect(":memory:", isolation_level=None)
        migrate(opened)
    with closing(opened) as reader:
        reader.execute("BEGIN")
        found = look(run, reader, trainings, evaluations, seed)
        evaluate(found)
        told = [(name, section(found)) for name, section in SECTIONS]
    about = []
    # when it was: by the ledger's own times, so that the same run gives the same page
    if started := [one["started"] for stage in found.stages for one in stage.runs]:
        ended = [stage.runs[-1]["ended"] for stage in found.stages if stage.runs]
        about.append(("started", _moment(min(started))))
        about.append(("ended", "not yet, or killed" if None in ended else _moment(max(ended))))
    about += [("made by", "distill report"), ("rows drawn with seed", str(found.seed))]
    sections = [s for _, s in told if isinstance(s, Section)]
    left_out = [(name, why) for name, why in told if isinstance(why, str)]
    if words := words_of(list(found.damages.values()), run):
        left_out.append(("Damaged answers", words))
    name = run.resolve().name
    return Report(f"Report on {name}", about, sections, [*left_out, *found.unread])


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


MOST_JUDGED = 20_000  # replies, which are read whole
PARSED, STAGES = 1000, 2  # answers whose verbs are looked for, and of how many stages
FEWEST = 100  # answers, below which verbs are chance
LETTERS = 0.8  # of the characters: below, a text is hardly English


def evaluate(found: Inputs) -> None:
    """Puts what the folder itself can tell before the evaluations that lie in files."""
    own: list[Evaluation] = []
    for one in (_judged, _voted, _verbs):
        try:
            own.extend(one(found))
        except (DistillError, *NOT_THERE) as error:
            found.unread.append((one.__name__.lstrip("_"), f"could not be read: {error}"))
    found.evaluations[:0] = own


def _judged(found: Inputs) -> Iterator[Evaluation]:
    names = []
    for stage in found.of_task("judge", "compare"):
        if stage.counts["done"] <= MOST_JUDGED:
            names.append(stage.name)
        else:
            why = (
                f"over {MOST_JUDGED:,} judgements; sum it up with `evaluate judge --json`, and name the file"
            )
            found.unread.append((f"judgements of {stage.name}", why))
    if names:
        from evaluators.judge.metrics import judge_report
        from evaluators.judge.reviews import read_run

        told = judge_report(read_run(found.run, names))
        yield Evaluation("this run's judgements: " + ", ".join(names), "judge", told)


def _with_votes(run: Path) -> Iterator[Path]:
    """The folder and those in it, as far as people have voted there."""
    folders = sorted(folder for folder in run.iterdir() if folder.is_dir()) if run.is_dir() else []
    yield from (folder for folder in (run, *folders) if (folder / VOTES).is_file())


def _voted(found: Inputs) -> Iterator[Evaluation]:
    for folder in _with_votes(found.run):
        from evaluators.human import figures

        name = "this run's votes" if folder == found.run else f"votes in {folder.name}"
        yield Evaluation(name, "human", figures(folder))


def _verbs(found: Inputs) -> Iterator[Evaluation]:
    """Of answers that were drawn; the paper's figure is of all."""
    from evaluators.data.verbs import MODEL, Verbs, load_parser, parsed
    from evaluators.records import Record

    stages = [stage for stage in found.of_task("generate") if stage.counts["done"] >= FEWEST]
    stages = sorted(stages, key=lambda s: -s.counts["done"])[:STAGES]
    if stages and find_spec(MODEL) is None:
        why = "spaCy's English model is not installed; `distill evaluate verbs` says how to get it"
        found.unread.append(("Verbs and their nouns", why))
        return
    data: dict[str, object] = {}
    for stage in stages:
        answers = drawn(found, stage, PARSED, "verbs")
        english = [a for a in answers if sum(c.isascii() for c in a.text) >= LETTERS * len(a.text)]
        if len(english) * 2 < len(answers):
            continue
        told, rows = Verbs(), [Record(str(a.position), a.position, "", "", a.text) for a in english]
        for row, pair in parsed(load_parser(), rows, "output", told):
            told.add(pair, row)
        data[stage.name] = {"rows": len(rows), "bad_rows": 0, **told.as_json()}
    if data:
        yield Evaluation("this run's answers", "verbs", {"field": "output", "data": data})
