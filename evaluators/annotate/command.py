"""`distill annotate`: opens the run folder's votes, and serves the page, writes HITs or reads them back.

Files of questions and of two models' answers are put to the vote in RUN/votes.db. They are joined as `judge`
joins them. A run folder that has its pairs already needs no files.

For Mechanical Turk `hit.html` is the layout for 'New batch with an existing project', `hits.csv` the batch.
One row is one pair; the number of workers for each is set on the site. Sides are drawn for each pair and kept
in `key.csv`, which is not uploaded: the table names neither model. Answers are the same safe HTML as on our
page, in ASCII and without `$`, because the site refuses letters beyond the 16-bit plane and would expand
`${…}`. In results (`Batch_…_results.csv`) a bad row is counted and reported. An assignment is taken once, so
a file can be imported again when more has come in. What the requester has rejected is left out.
"""

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from engine.terminal import plain, tell
from evaluators.annotate.ballot import HERE, Criterion, read_ballot, read_words, words_of
from evaluators.annotate.pages import render, templates
from evaluators.annotate.server import ListenAddress, serve
from store.answer_sets import judge_contests
from store.errors import UsageError
from store.files import replacing
from store.pool import Pool
from store.records import BadRow, Contest
from store.run_folder import held
from store.votes import Votes
from store.votes_schema import LOCK, Ballot, Side, Study, VotePair, drawn_left, fingerprint, tidy, votes_path

WANTED = 3
LONGEST = 2**20  # characters of a question with its answers: a page must be read by somebody


@dataclass(frozen=True, slots=True)
class Files:
    """What the flags name; None where a flag is not given."""

    questions: str | None
    answers: str | None
    against: str | None
    names: tuple[str, ...]
    votes: int | None
    seed: int | None
    words: Path | None = None


def run_page(files: Files, run: Path, address: ListenAddress) -> None:
    """Serves the page until it is interrupted; says how many votes there are."""
    with _opened(run) as votes:
        _begin(votes, files)
        serve(votes, run, address)
        tell(f"{_count(votes)} in {run}; run the same command to continue\n")


def run_mturk(files: Files, run: Path, out: Path) -> None:
    """Writes the HIT's page, its table and the key."""
    with _opened(run) as votes:
        _begin(votes, files)
        for line in write_hits(votes, out):
            print(plain(line))


def run_import(run: Path, results: Path) -> None:
    """Takes in Mechanical Turk's results. Raises UsageError where there is nothing to take in."""
    votes_path(run)
    with _opened(run) as votes:
        told = take_results(votes, results)
        for line in spoken(told.bad):
            tell(f"{plain(line, 300)}\n")
        print(f"{told.words()}; {_count(votes)} in {run}")
        if not (told.taken or told.known):
            raise UsageError(f"no row of {results} could be used")


@contextmanager
def _opened(run: Path) -> Iterator[Votes]:
    with held(run, LOCK):
        votes = Votes(run)
        try:
            yield votes
        finally:
            votes.close()


def _begin(votes: Votes, files: Files) -> None:
    _, bad = begin(votes, files)
    for line in spoken(bad):
        tell(f"{plain(line, 300)}\n")


def _count(votes: Votes) -> str:
    return "1 vote" if votes.count == 1 else f"{votes.count:,} votes"


def begin(votes: Votes, files: Files) -> tuple[Study, list[BadRow]]:
    """The study of the folder, and the rows of the files that could not be used. Raises UsageError."""
    words = read_words(files.words) if files.words is not None else None
    if files.votes is not None and files.votes < 1:
        raise UsageError(f"--votes {files.votes}: must be 1 or more people for each pair")
    found = votes.study
    if found and files.seed not in (None, found.seed):
        raise UsageError(
            f"--seed {files.seed}: the sides were drawn with seed {found.seed} when the votes began; "
            "leave it out, or name another folder with --run"
        )
    if files.answers is None and files.against is None and files.questions is None:
        if found is None:
            raise UsageError("there is nothing to vote on yet: give --questions, --answers and --against")
        if files.votes is not None:
            votes.want(files.votes)
        study, bad = votes.study or found, []
    elif files.answers is None or files.against is None:
        missing = "--against" if files.against is None else "--answers"
        raise UsageError(f"two models' answers are compared: {missing} is missing")
    else:
        rows = list(judge_contests(files.questions, files.answers, files.against, files.names or None))
        bad = [row for row in rows if isinstance(row, BadRow)]
        contests = [row for row in rows if isinstance(row, Contest)]
        pairs = [_pair(number, contest) for number, contest in enumerate(contests, 1)]
        a, b = contests[0].models
        wanted = files.votes or (found.wanted if found else WANTED)
        seed = files.seed if files.seed is not None else found.seed if found else 0
        study = votes.begin(Study(a, b, wanted, seed, fingerprint(a, b, pairs)), pairs)
    if words is not None:
        votes.keep_page_words(words)
    return study, bad


def _pair(number: int, contest: Contest) -> VotePair:
    first, second = (text.strip() for text in contest.answers)
    pair = VotePair(number, contest.id, contest.category, contest.prompt.strip(), contest.input.strip(),
                first, second)  # fmt: skip
    if sum(map(len, (pair.instruction, pair.input, first, second))) > LONGEST:
        raise UsageError(f"question {contest.id}: with its answers it has over {LONGEST:,} characters; "
                         "that is too long to read, leave it out")  # fmt: skip
    return pair


def spoken(bad: Sequence[BadRow], shown: int = 5) -> list[str]:
    """Lines that say what was left out."""
    lines = [f"left out: line {row.line} of {row.reason}" for row in bad[:shown]]
    return lines + ([f"… and {len(bad) - shown:,} more rows left out"] if len(bad) > shown else [])


# Mechanical Turk in and out.
PAGE, TABLE, KEY = "hit.html", "hits.csv", "key.csv"
COLUMNS = ("hit", "instruction", "input", "left", "right")
KEY_COLUMNS = ("hit", "pair", "question", "left", "right")
WHO = "\0mturk"  # as whom sides are drawn; no annotator can be called that


def write_hits(votes: Votes, out: Path) -> list[str]:
    """Writes the three files; returns lines that say what to do with them. Raises UsageError."""
    study = votes.study
    assert study
    pairs = votes.pairs()
    words, style = words_of(votes.page_words), (HERE / "static" / "annotate.css").read_text()
    template = templates().get_template("hit.html")
    page = str(template.render(words=words.criteria, page=words, t=words.say, style=style))
    table: list[Sequence[str]] = []
    key: list[Sequence[str]] = []
    for pair in pairs:
        hit, answers, names = hit_id(study, pair.id), [pair.answer_a, pair.answer_b], [study.a, study.b]
        if left_of(study, pair.id) == "b":
            answers, names = answers[::-1], names[::-1]
        texts = (escape(pair.instruction), escape(pair.input), *map(render, answers))
        table.append((hit, *(_ascii(text).replace("$", "&#36;") for text in texts)))
        key.append((hit, str(pair.id), pair.question, *names))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / PAGE) as file:
            file.write(_ascii(page).encode())
        _write(out / TABLE, COLUMNS, table)
        _write(out / KEY, KEY_COLUMNS, key)
    except OSError as error:
        raise UsageError(f"cannot write in {out}: {error.strerror}; name another folder") from error
    return [
        f"{out / PAGE}: the project's layout",
        f"{out / TABLE}: {len(pairs):,} HITs, to be published with {study.wanted} assignments each",
        f"{out / KEY}: which model is where; keep it to yourself",
        f"then: distill annotate --run DIR --import RESULTS.csv, with the same DIR ({study.a}, {study.b})",
    ]


def hit_id(study: Study, pair: int) -> str:
    """Tells nothing to a worker, and one run's HITs from another's."""
    return hashlib.blake2b(f"{study.fingerprint}\0{pair}".encode(), digest_size=10).hexdigest()


def left_of(study: Study, pair: int) -> Side:
    return drawn_left(study.seed, pair, WHO)


def _ascii(html: str) -> str:
    return html.encode("ascii", "xmlcharrefreplace").decode()


def _write(path: Path, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(heads)
    writer.writerows(rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


NEEDED = ("WorkerId", "Input.hit")  # and Answer.NAME of each criterion


@dataclass
class ImportReport:
    """What became of the rows. known: assignments that were here already."""

    taken: int = 0
    known: int = 0
    rejected: int = 0
    bad: list[BadRow] = field(default_factory=list)

    def words(self) -> str:
        return (
            f"{self.taken:,} votes imported, {self.known:,} were here already, "
            f"{self.rejected:,} rejected by the requester, {len(self.bad):,} bad rows"
        )


@dataclass(frozen=True, slots=True)
class Assignment:
    """A usable row."""

    assignment: str
    worker: str
    pair: int
    ballot: Ballot
    seconds: float


def take_results(votes: Votes, path: Path) -> ImportReport:
    """Puts all usable rows down. Raises UsageError for a file that is no table of results."""
    study, told = votes.study, ImportReport()
    if study is None:
        raise UsageError("there is nothing to vote on in this folder: these HITs are of another one")
    pairs = {hit_id(study, pair.id): pair.id for pair in votes.pairs()}
    criteria = words_of(votes.page_words).criteria
    for line, row in Pool(path).objects():
        found = row.reason if isinstance(row, BadRow) else _read(study, pairs, criteria, row)
        if isinstance(found, str):
            told.bad.append(BadRow(line, f"{path}: {found}"))
        elif found is None:
            told.rejected += 1
        else:
            left = left_of(study, found.pair)
            new = votes.take(found.worker, found.pair, left, found.ballot, found.seconds, found.assignment)
            told.taken += new
            told.known += not new
    return told


def _read(
    study: Study, pairs: Mapping[str, int], criteria: Sequence[Criterion], row: Mapping[str, Any]
) -> Assignment | str | None:
    """What the row says, what is wrong with it, or None where it was rejected."""
    columns = {one.name: f"Answer.{one.name}" for one in criteria}
    if missing := [name for name in (*NEEDED, *columns.values()) if row.get(name) is None]:
        return f"no column {missing[0]}: is it a table of results, made from this project's page?"
    if str(row.get("AssignmentStatus") or "").strip().lower() == "rejected":
        return None
    pair = pairs.get(str(row["Input.hit"]).strip())
    if pair is None:
        return f"HIT {row['Input.hit']!r:.40} is not one of this run's"
    worker = tidy(str(row["WorkerId"]))
    if not worker:
        return "no WorkerId"
    answers = {name: str(row.get(column) or "").strip().lower() for name, column in columns.items()}
    form = {**answers, "note": row.get("Answer.note") or ""}
    ballot = read_ballot(form, left_of(study, pair), criteria)
    if isinstance(ballot, list):
        return f"no vote on {', '.join(ballot)} (expected left, tie or right)"
    try:
        seconds = float(str(row.get("WorkTimeInSeconds") or 0))
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        return f"WorkTimeInSeconds is {row.get('WorkTimeInSeconds')!r:.20}"
    assignment = str(row.get("AssignmentId") or "").strip() or f"{worker}/{row['Input.hit']}"
    return Assignment(assignment, worker, pair, ballot, seconds)
