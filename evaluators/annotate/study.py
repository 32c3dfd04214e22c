"""Files of questions and of two models' answers -> what is put to the vote in RUN/votes.db.

The files are joined as `judge` joins them. A run folder that has its pairs already needs no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluators.annotate.ballot import read_words
from store.answer_sets import judge_contests
from store.errors import UsageError
from store.records import BadRow, Contest
from store.votes import Votes
from store.votes_schema import Study, VotePair, fingerprint

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


def begin(votes: Votes, files: Files) -> tuple[Study, list[BadRow]]:
    """The study of the folder, and the rows of the files that could not be used. Raises UsageError."""
    words = read_words(files.words) if files.words is not None else None
    found = _begin(votes, files)
    if words is not None:
        votes.keep_page_words(words)
    return found


def _begin(votes: Votes, files: Files) -> tuple[Study, list[BadRow]]:
    if files.votes is not None and files.votes < 1:
        raise UsageError(f"--votes {files.votes}: wants 1 or more people for each pair")
    found = votes.study
    if found and files.seed not in (None, found.seed):
        raise UsageError(
            f"--seed {files.seed}: the sides were drawn with seed {found.seed} when the votes began; "
            "leave it out, or name another folder with --run"
        )
    if files.answers is None and files.against is None and files.questions is None:
        return _as_before(votes, found, files), []
    if files.answers is None or files.against is None:
        missing = "--against" if files.against is None else "--answers"
        raise UsageError(f"two models' answers are compared: {missing} is missing")
    return _from_files(votes, found, files, files.answers, files.against)


def _as_before(votes: Votes, found: Study | None, files: Files) -> Study:
    if found is None:
        raise UsageError("nothing is put to the vote yet: give --questions, --answers and --against")
    if files.votes is not None:
        votes.want(files.votes)
    return votes.study or found


def _from_files(
    votes: Votes, found: Study | None, files: Files, answers: str, against: str
) -> tuple[Study, list[BadRow]]:
    rows = list(judge_contests(files.questions, answers, against, files.names or None))
    bad = [row for row in rows if isinstance(row, BadRow)]
    contests = [row for row in rows if isinstance(row, Contest)]
    pairs = [_pair(number, contest) for number, contest in enumerate(contests, 1)]
    a, b = contests[0].models
    wanted = files.votes or (found.wanted if found else WANTED)
    seed = files.seed if files.seed is not None else found.seed if found else 0
    return votes.begin(Study(a, b, wanted, seed, fingerprint(a, b, pairs)), pairs), bad


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
