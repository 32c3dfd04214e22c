"""What follows from a batch's state: decisions, no I/O.

validating -> in_progress -> finalizing -> completed     results
     |             `-> cancelling -> cancelled           what was finished, and the rest again
     |             `-> expired                           the same
     `-> failed                                          refused, or the queue is full: nothing billed
"""

from collections.abc import Sequence
from typing import Literal

from engine.batch.client import Remote
from engine.provider.errors import AskError, BatchRefused, ConnectionLost, QuotaExhausted, RunStopped
from store.provider_batches import BatchRow

FULL_CODE = "token_limit_exceeded"
QUOTA_CODES = ("billing_hard_limit_reached", "insufficient_quota")
FIRST_POLL, LONGEST_POLL, GROWTH = 0.5, 120.0, 1.5
FINALIZING_POLL = 5.0
ENDED = ("completed", "expired", "cancelled", "failed")
_RANK = ("completed", "finalizing", "in_progress", "validating")  # of two, the one to keep

State = Literal["alive", "results", "full", "refused"]
Step = Literal["follow", "look", "create", "upload"]


def next_step(row: BatchRow) -> Step:
    """Where to go on with a batch that the ledger knows."""
    if row.remote:
        return "follow"
    if row.tried_at is not None:
        return "look"
    return "create" if row.input_file else "upload"


def is_alive(status: str) -> bool:
    """A status that we do not know is some way of being under way."""
    return status not in ENDED


def state_of(remote: Remote) -> State:
    if is_alive(remote.status):
        return "alive"
    if remote.status != "failed" or remote.output_file or remote.error_file:
        return "results"
    return "full" if any(code == FULL_CODE for code, _ in remote.problems) else "refused"


def poll_seconds(looks: int, status: str) -> float:
    """The wait before the next look: batches take minutes to a day."""
    longest = FINALIZING_POLL if status == "finalizing" else LONGEST_POLL
    return min(longest, FIRST_POLL * GROWTH ** min(looks, 30))


def best_of(found: Sequence[Remote]) -> Remote | None:
    """The one to keep of batches that were made for one intent; failed ones were never billed."""
    usable = [remote for remote in found if state_of(remote) in ("alive", "results")]

    def rank(remote: Remote) -> int:
        return _RANK.index(remote.status) if remote.status in _RANK else len(_RANK)

    return min(usable, key=rank, default=None)


def may_exist(error: AskError) -> bool:
    """Whether a batch may have been made although its creation failed in this way."""
    return not isinstance(error, ConnectionLost) or error.maybe_billed


def words_of(remote: Remote) -> str:
    """Why a batch failed, in the provider's words; the first of many lines alike."""
    first = [f"{code}: {words}" if code else words for code, words in remote.problems[:3]]
    more = f" (and {len(remote.problems) - 3} more)" if len(remote.problems) > 3 else ""
    return "; ".join(first) + more if first else "no reason given"


def refusal(remote: Remote) -> RunStopped:
    words = f"the provider refused batch {remote.id}, so nothing more is asked: {words_of(remote)}"
    if any(code in QUOTA_CODES for code, _ in remote.problems):
        return QuotaExhausted(words)
    return BatchRefused(words)
