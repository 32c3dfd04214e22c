"""`distill annotate`: opens the run folder's votes, and serves the page, writes HITs or reads them back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.terminal import plain, tell
from evaluators.annotate.server import ListenAddress, serve
from evaluators.annotate.study import Files, begin, spoken
from store.errors import UsageError
from store.run_folder import held
from store.votes import Votes, votes_path
from store.votes_schema import LOCK


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
        for line in told.lines():
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
