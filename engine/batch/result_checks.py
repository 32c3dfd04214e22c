"""What the files of a batch show, and whether that is all that there is. Decisions, no I/O.

A request without a readable line may have been answered and paid for. It is asked again only when
the files are complete: each of their lines can be read, they come to an end, and they hold as many
results as the provider counts.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from engine.batch.client import Remote
from engine.batch.files import Damaged, Line, NotRun, Stranger, Unclear, damaged, read_line
from engine.batch.line_splitter import Text
from engine.provider.client import KEPT_BYTES
from engine.provider.errors import BadReply
from engine.provider.responses import Reply
from store.provider_batches import Enqueued

MOST_USELESS = 64 * 2**20  # bytes of one file that belong to no request of the batch
A_LINE = 256  # what reading one costs beside its bytes, in bytes
MOST_HELD = 64 * 2**20
DAMAGED_SHARE = 0.1  # more damaged lines than these are a damaged file
CUT_SHORT = ("expired", "cancelled")


@dataclass(slots=True)
class Glance:
    """One reading of all files of a batch. `troubles`: why it is not complete."""

    troubles: list[str] = field(default_factory=list)
    damaged: dict[bytes, bytes] = field(default_factory=dict)  # raw lines of requests that have no other
    damaged_bytes: int = 0
    unreadable: int = 0  # lines that do not show whose they are
    strangers: int = 0
    repeated: int = 0
    found: int = 0  # results that were not known before
    seen: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Results:
    """What is known of a batch's results. `waiting`: requests whose result is not stored yet; `held`:
    lines that bring no answer, which count when all files have been read, because a file may hold a
    better line for the same request."""

    requests: int  # of the batch, with those whose results are stored
    remote: Remote
    waiting: dict[bytes, Enqueued]
    held: dict[bytes, Line] = field(default_factory=dict)
    held_bytes: int = 0

    @property
    def missing(self) -> int:
        return sum(key not in self.held for key in self.waiting)

    @property
    def unclear(self) -> int:
        """Lines that do not say what became of their request."""
        return sum(isinstance(line.meaning, Unclear) for line in self.held.values())

    def hold(self, line: Line) -> None:
        if not isinstance(line.meaning, Reply | BadReply):
            line = replace(line, raw=b"")  # what it says is in its meaning
        self.held[line.key] = line
        self.held_bytes += len(line.raw)

    def let_go(self) -> Line:
        line = self.held.pop(next(iter(self.held)))
        self.held_bytes -= len(line.raw)
        return line

    def take(self, text: Text, glance: Glance) -> Line | None:
        """The line, if it brings something new to a request that waits. `glance` counts all others."""
        line = damaged(text.raw) if text.is_long else read_line(text.raw)
        if isinstance(line, Damaged):
            self._take_damaged(text, line, glance)
        elif isinstance(line, Stranger):
            glance.strangers += 1
        elif isinstance(line, Line):
            if line.key in glance.seen:
                glance.repeated += 1
            elif len(glance.seen) < 2 * self.requests:
                glance.seen.add(line.key)
            else:
                glance.strangers += 1
            if self._is_news(line):
                glance.found += 1
                return line
        return None

    def _is_news(self, line: Line) -> bool:
        if line.key not in self.waiting:
            return False
        held = self.held.get(line.key)
        return held is None or _worth(line) > _worth(held)

    def _take_damaged(self, text: Text, line: Damaged, glance: Glance) -> None:
        if text.is_cut:
            glance.troubles.append("ends in a line that cannot be read")
        elif line.key is None:
            glance.unreadable += 1
        elif line.key in self.waiting:
            glance.damaged[line.key] = line.raw[:KEPT_BYTES] if glance.damaged_bytes < MOST_HELD else b""
            glance.damaged_bytes += len(glance.damaged[line.key])

    def doubt(self, glance: Glance) -> str | None:
        """Why the files cannot be believed to show all results; None where they can."""
        if not (self.missing or self.unclear):
            return None
        return "; ".join(glance.troubles[:2]) or self._damage(glance) or self._doubtful_count()

    def without_damaged(self, glance: Glance) -> bool:
        """Whether all is complete but for a few lines that are damaged where they lie, so that it is
        known whose they are, and that no other reading will mend them."""
        count = self._damaged(glance)
        return count <= DAMAGED_SHARE * self.requests and not (glance.troubles or self._doubtful_count(count))

    def _damage(self, glance: Glance) -> str | None:
        count = self._damaged(glance)
        lines = "1 line of its results" if count == 1 else f"{count:,} lines of its results"
        return f"{lines} cannot be read" if count else None

    def _damaged(self, glance: Glance) -> int:
        return sum(key in self.waiting and key not in self.held for key in glance.damaged)

    def _doubtful_count(self, damaged: int = 0) -> str | None:
        """By the provider's own counts. Those that it counts as completed are paid for; not all
        providers count a request as failed that was executed and refused."""
        remote = self.remote
        stored = self.requests - len(self.waiting)
        paid = stored + damaged + sum(line.is_paid for line in self.held.values())
        not_run = sum(isinstance(line.meaning, NotRun) for line in self.held.values())
        executed = stored + damaged + len(self.held) - not_run - self.unclear
        if remote.completed is None:
            cut_short = remote.status in CUT_SHORT  # then it is no wonder that some have no line
            return None if cut_short else "the provider does not say how many of its requests are completed"
        if paid >= remote.completed or executed >= remote.completed + (remote.failed or 0):
            nothing = not (executed or self.unclear or remote.status in CUT_SHORT)
            return "its files show no result at all" if nothing else None
        if not remote.output_file:
            return f"{remote.completed:,} of its requests are completed, and it names no file of results"
        return f"{remote.completed:,} of its requests are completed, and its files show {paid:,}"


def _worth(line: Line) -> int:
    """Of two lines for one request the better one counts, whichever comes first."""
    if isinstance(line.meaning, Reply):
        return 1 if line.meaning.is_unusable else 2
    return 0 if isinstance(line.meaning, Unclear | BadReply) else 1


def strangers_in(glance: Glance, own: Collection[bytes], stored: int) -> int:
    """Lines of requests that are not in the batch. `own`: those that waited when reading began, beside
    so many whose result was stored."""
    others = sum(key not in own for key in glance.seen)
    return glance.strangers + max(0, others - stored)
