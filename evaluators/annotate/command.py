"""`distill annotate`: opens the run folder's votes, and serves the page, writes HITs or reads them back.

Files of questions and of two models' answers are put to the vote in RUN/votes.db. They are joined as `judge`
joins them. A run folder that has its pairs already needs no files.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.terminal import plain, tell
from evaluators.annotate.ballot import read_words
from evaluators.annotate.server import ListenAddress, serve
from store.answer_sets import judge_contests
from store.errors import UsageError
from store.records import BadRow, Contest
from store.run_folder import held
from store.votes import Votes
from store.votes_schema import LOCK, Study, VotePair, fingerprint, votes_path

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
    from evaluators.annotate.mturk import write_hits

    with _opened(run) as votes:
        _begin(votes, files)
        for line in write_hits(votes, out):
            print(plain(line))


def run_import(run: Path, results: Path) -> None:
    """Takes in Mechanical Turk's results. Raises UsageError where there is nothing to take in."""
    from evaluators.annotate.mturk import take_results

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
        raise UsageError(f"--votes {files.votes}: wants 1 or more people for each pair")
    found = votes.study
    if found and files.seed not in (None, found.seed):
        raise UsageError(
            f"--seed {files.seed}: the sides were drawn with seed {found.seed} when the votes began; "
            "leave it out, or name another folder with --run"
        )
    if files.answers is None and files.against is None and files.questions is None:
        if found is None:
            raise UsageError("nothing is put to the vote yet: give --questions, --answers and --against")
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
                         "nobody can read that, leave it out")  # fmt: skip
    return pair


def spoken(bad: Sequence[BadRow], shown: int = 5) -> list[str]:
    """Lines that say what was left out."""
    lines = [f"left out: line {row.line} of {row.reason}" for row in bad[:shown]]
    return lines + ([f"… and {len(bad) - shown:,} more rows left out"] if len(bad) > shown else [])
