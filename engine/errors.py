"""The engine's part of the error tree, drawn whole.

    DistillError                 (store/errors.py)
    ├── UsageError, PoolError, RunFolderError, StorageError, DiskFull     (store/errors.py)
    ├── AskError                 one attempt brought no usable answer; has a cause
    │   ├── RateLimited          429: everyone waits, no attempt is spent
    │   ├── Transient            asked again with back-off
    │   │   ├── TimedOut         no reply in time              (may have been billed)
    │   │   ├── ConnectionLost   refused, reset, torn          (billed only if it was sent)
    │   │   ├── ServerFault      408, 409, 5xx
    │   │   ├── BadReply         a 200 that cannot be read; its raw body is stored
    │   │   └── BrokenOff        a batch's file that breaks off: it is fetched again
    │   └── RowRefused           the row fails, once: 400, 404, 413, 422, too large for the limit
    └── RunStopped               the whole run ends, resumable (exit 3)
        ├── AuthRefused          401, 403
        ├── QuotaExhausted       429 insufficient_quota
        ├── BudgetReached        the next request could pass --budget
        ├── ProviderDown         the breaker gave up
        ├── AllRefused           the canaries were all refused with the same words
        ├── AllUnread            the canaries were all answered in a form that the task cannot read
        ├── BatchRefused         the provider does not take a batch, or does not know it any more
        └── ResultsUnreadable    a batch has ended and its files do not show all results

Choose by type, never by message.
"""

from store.errors import DistillError
from store.records import Cause


class AskError(DistillError):
    """One attempt failed. `status` is the HTTP status or None; `maybe_billed` guards the budget."""

    cause: Cause = "server"
    maybe_billed = False

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
        self.is_outage = status in (502, 503, 504)


class BadReply(Transient):
    """`raw` is what came; it is stored as `malformed` before the row is asked again."""

    cause: Cause = "malformed"
    maybe_billed = True

    def __init__(self, message: str, raw: bytes) -> None:
        super().__init__(message, 200)
        self.raw = raw


class BrokenOff(Transient):
    """Its beginning came: an outage of the server is something else."""

    cause: Cause = "connection"


class RowRefused(AskError):
    """The server will not take this row, whatever we do."""

    def __init__(self, message: str, status: int, cause: Cause) -> None:
        super().__init__(message, status)
        self.cause = cause


class RunStopped(DistillError):
    """The run ends before the pool does; what is stored is kept, the rest stays due."""

    exit_code = 3


class AuthRefused(RunStopped): ...


class QuotaExhausted(RunStopped): ...


class BudgetReached(RunStopped): ...


class ProviderDown(RunStopped): ...


class AllRefused(RunStopped): ...


class AllUnread(RunStopped): ...


class BatchRefused(RunStopped): ...


class ResultsUnreadable(RunStopped): ...
