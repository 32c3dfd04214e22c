"""The engine's part of the error tree, drawn whole.

    DistillError                 (store/errors.py)
    ├── UsageError, PoolError, RunFolderError, StorageError, DiskFull     (store/errors.py)
    ├── AskError                 one attempt brought no usable answer; has a cause
    │   ├── RateLimited          429: everyone waits, no attempt is spent
    │   ├── Transient            asked again with back-off
    │   │   ├── TimedOut         no reply in time              (may have been billed)
    │   │   ├── ConnectionLost   refused, reset, torn          (billed only if it was sent)
    │   │   ├── ServerFault      408, 409, 425, 5xx
    │   │   ├── BadReply         a 200 that cannot be read; its raw body is stored
    │   │   └── BrokenOff        a batch's file that breaks off: it is fetched again
    │   └── RowRefused           the row fails, once: 400, 403, 404, 413, 422, too large for the limit
    └── RunStopped               the whole run ends, resumable (exit 3)
        ├── AuthRefused          401; 403 of a server that has answered nothing yet
        ├── QuotaExhausted       an empty account, a quota for a day that is used up
        ├── ModelGone            the model is not there, or not there any more
        ├── AddressWrong         another address is meant: redirects, pages for browsers
        ├── BudgetReached        the next request could pass --budget
        ├── ProviderDown         the breaker gave up
        ├── AllRefused           the canaries were all refused with the same words
        ├── AllUnread            the canaries were all answered in a form that the task cannot read
        ├── AllEmpty             the canaries' replies hold no answer
        ├── TooManyUnusable      of the last hundred replies too many were paid for and hold no answer
        ├── BatchRefused         the provider does not take a batch, or does not know it any more
        ├── ResultsUnreadable    a batch has ended and its files do not show all results
        ├── Incomplete           what a step takes its rows from is not complete
        └── Interrupted          by a signal (exit 130)

Choose by type, never by message.
"""

from typing import Literal

from engine.provider.usage import NO_CLAIM, Claim
from store.errors import DistillError
from store.records import Cause

About = Literal["", "row", "run", "filter"]


class AskError(DistillError):
    """One attempt failed. `status` is the HTTP status or None; `maybe_billed` guards the budget; `raw`
    is the body of a reply of 200 that held the error, and `claim` what that said it cost."""

    cause: Cause = "server"
    maybe_billed = False
    raw: bytes | None = None
    claim: Claim = NO_CLAIM

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RateLimited(AskError):
    """`wait`: seconds that the server asked for, or None. `kind`: requests, tokens or empty."""

    cause: Cause = "rate_limit"

    def __init__(self, message: str, wait: float | None, kind: str) -> None:
        super().__init__(message, 429)
        self.wait = wait
        self.kind = kind


class Transient(AskError):
    """Worth asking again after a while. `is_outage`: it cannot be the row's fault."""

    is_outage = False


class TimedOut(Transient):
    cause: Cause = "timeout"
    maybe_billed = True


class ConnectionLost(Transient):
    cause: Cause = "connection"
    is_outage = True

    def __init__(self, message: str, maybe_billed: bool) -> None:
        super().__init__(message)
        self.maybe_billed = maybe_billed


class ServerFault(Transient):
    """`wait`: the server's own retry-after in seconds, or None."""

    cause: Cause = "server"

    def __init__(self, message: str, status: int, wait: float | None = None) -> None:
        super().__init__(message, status)
        self.wait = wait
        self.is_outage = status in (502, 503, 504, 529) or 520 <= status <= 527


class BadReply(Transient):
    """`raw` is what came; it is stored as `malformed` before the row is asked again. `page`: it is a page
    for browsers or a line of plain words, which no model has written and nobody bills."""

    cause: Cause = "malformed"
    raw: bytes

    def __init__(self, message: str, raw: bytes, page: bool = False) -> None:
        super().__init__(message, 200)
        self.raw, self.page, self.maybe_billed = raw, page, not page


class BrokenOff(Transient):
    """Its beginning came: an outage of the server is something else."""

    cause: Cause = "connection"


class RowRefused(AskError):
    """The server will not take this request. `about`: whose fault that is, where it is known: the row's
    (too large), its content's (a filter), or the run's (a parameter that the model does not take)."""

    def __init__(self, message: str, status: int, cause: Cause, about: About = "") -> None:
        super().__init__(message, status)
        self.cause, self.about = cause, about


class RunStopped(DistillError):
    """The run ends before the pool does; what is stored is kept, the rest stays pending. `cause`: how the
    attempt that brought it stands in the ledger; `raw` and `claim` as of an AskError."""

    exit_code = 3
    cause: Cause = "server"
    raw: bytes | None = None
    claim: Claim = NO_CLAIM


class AuthRefused(RunStopped):
    cause: Cause = "auth"


class QuotaExhausted(RunStopped):
    cause: Cause = "rate_limit"


class ModelGone(RunStopped):
    cause: Cause = "not_found"


class AddressWrong(RunStopped):
    cause: Cause = "not_found"


class BudgetReached(RunStopped): ...


class ProviderDown(RunStopped): ...


class AllRefused(RunStopped): ...


class AllUnread(RunStopped): ...


class AllEmpty(RunStopped): ...


class TooManyUnusable(RunStopped): ...


class BatchRefused(RunStopped): ...


class ResultsUnreadable(RunStopped): ...


class Incomplete(RunStopped): ...


class Interrupted(RunStopped):
    """SIGINT, SIGTERM or SIGHUP."""

    exit_code = 130
