"""Whether what came before a stage's first answer speaks against the run, and not against its rows:
a refused parameter or a dead model must not burn a pool, nor a judge whom nobody can read."""

from collections.abc import Collection

from engine.asking import Failed
from engine.errors import AllRefused, AllUnread, RunStopped

CANARIES = 10


def is_doubtful(failed: Failed) -> bool:
    """Whether the row may have failed by the run's fault."""
    return failed.refused or failed.cause == "unparsed"


def against_the_run(failures: Collection[Failed]) -> RunStopped | None:
    """Why nothing more is to be asked, or None. `failures`: doubtful ones of different rows, while no
    row has been answered."""
    unread = [failed for failed in failures if failed.cause == "unparsed"]
    if len(unread) >= CANARIES:
        return AllUnread(_words(len(unread), "answered in vain", unread[-1]))
    gone = [failed for failed in failures if failed.status == 404]
    alike = len({failed.status for failed in failures}) == 1
    if gone or (alike and not unread and len(failures) >= CANARIES):
        return AllRefused(_words(len(failures), "refused", [*failures][-1]))
    return None


def _words(count: int, what: str, last: Failed) -> str:
    rows = "the first row was" if count == 1 else f"the first {count:,} rows were all"
    return f"{rows} {what}, so nothing more is asked: {last.words}"
