"""When a stage stops, and how.

Whether what came before its first answer speaks against the run, and not against its rows: a refused
parameter or a dead model must not burn a pool, nor a judge whom nobody can read, nor a teacher whose replies
hold no answer. In the end what is outstanding lands or is cut off, online or in batches, and of several
errors one speaks for all.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence

from engine.collect.outcomes import Again, Failed, Unusable
from engine.collect.stage import Intake
from engine.collect.stats import RunState
from engine.limits.circuit_breaker import Effort
from engine.limits.endpoints import Endpoint, Teacher
from engine.provider.errors import AllEmpty, AllRefused, AllUnread, RunStopped, TooManyUnusable
from store.errors import DistillError

DRAIN_SECONDS = 5.0
CANARIES = 10
# Where they stand among the pending rows: the first, and rows further and further away.
CANARY_PLACES = (0, 1, 4, 12, 36, 100, 250, 600, 1200, 2500)
MANY = 100  # refusals one after the other, in words of their own
EMPTY_CANARIES = 3  # empty replies without a thought may be a weak model's answers to hard rows
# Refusals of these kinds are seldom a row's fault.
OF_THE_RUN = (301, 302, 303, 307, 308, 403, 404, 405, 407, 410, 511)
ELSEWHERE = ("too_large", "not_found", "auth")  # others may have larger limits, the model, our access


def is_doubtful(failed: Failed | Unusable) -> bool:
    """Whether the row may have failed by the run's fault."""
    if isinstance(failed, Unusable):
        return failed.outcome in ("empty", "other")
    return (failed.refused and failed.about != "row") or failed.cause == "unparsed"


def against_the_run(failures: Collection[Failed | Unusable], first: bool = True) -> RunStopped | None:
    """Why nothing more is to be asked, or None. `failures`: doubtful ones of different rows, while no
    row has been answered; `first`: none was answered before them either."""
    empty = [failed for failed in failures if isinstance(failed, Unusable)]
    if any(one.thought for one in empty) or len(empty) >= EMPTY_CANARIES:
        return AllEmpty(_words(len(empty), "answered, but with no answer to use", empty[-1].words, first))
    failed = [one for one in failures if isinstance(one, Failed)]
    unread = [one for one in failed if one.cause == "unparsed"]
    if len(unread) >= CANARIES:
        return AllUnread(_words(len(unread), "answered, but unreadable", unread[-1].words, first))
    own = [one for one in failed if first and (one.about == "run" or one.status == 404)]
    if own or (not unread and len(failed) >= CANARIES and _are_alike(failed)):
        return AllRefused(_words(len(failed), "refused", (own or failed)[-1].words, first))
    return None


def is_of_the_run(failed: Failed) -> bool:
    """Whether a refusal, though others were answered, may be meant for everybody."""
    return failed.refused and failed.about not in ("row", "filter")


def are_in_a_row(failures: Sequence[Failed]) -> bool:
    """Whether refusals since the last answer are so many and so alike that rows from elsewhere should be
    asked before the others."""
    last = failures[-CANARIES:]
    if _are_seldom_a_row(last):
        return len(last) >= CANARIES and _are_alike(last)
    # Others are a row's fault as a rule: these must agree in their words too, or be very many.
    several = len({(one.status, one.words) for one in last}) > 1
    return len(failures) >= (MANY if several else CANARIES) and _are_alike(
        failures[-MANY:] if several else last
    )


def are_the_last(failures: Sequence[Failed]) -> bool:
    """Whether a run that ends with these refusals ends because of them."""
    return are_in_a_row(failures) and _are_seldom_a_row(failures[-CANARIES:])


def _are_seldom_a_row(failures: Collection[Failed]) -> bool:
    return all(one.status in OF_THE_RUN or one.about == "run" for one in failures)


def elsewhere(teacher: Teacher, endpoint: Endpoint, effort: Effort, failed: Failed) -> Again | Failed:
    """What one of several endpoints refuses another may take: a row fails by the word of one that has
    answered others, or of all. An endpoint that answers nobody rests."""
    others = [e for e in teacher.endpoints if e is not endpoint]
    endpoint.refusals += 1
    if endpoint.refusals >= CANARIES and failed.about not in ("row", "filter"):
        endpoint.proven = False  # it has begun to refuse everybody
    doubtful = failed.status == 404 or endpoint.refusals >= CANARIES or any(e.proven for e in others)
    if doubtful and not endpoint.proven:
        teacher.put_to_rest(endpoint, AllRefused(failed.words))
        return Again(0.0)
    if endpoint.number in effort.refused_by or all(e.number in effort.refused_by for e in others):
        return failed
    if endpoint.proven and failed.cause not in ELSEWHERE and failed.status not in OF_THE_RUN:
        return failed
    if failed.status in OF_THE_RUN:
        endpoint.proven = False  # its next one is a canary again
    effort.refused_by += (endpoint.number,)
    return Again(0.0)


def mostly_unusable(state: RunState, most: float) -> RunStopped | None:
    """Why a stage ends that pays for replies which hold no answer, or None. `most`: the share of the last
    hundred replies that may be such."""
    share = state.unusable_share()
    if share <= most:
        return None
    kinds = ", ".join(f"{outcome} {count:,}" for outcome, count in state.unusable.most_common())
    return TooManyUnusable(
        f"{share:.0%} of the last 100 replies were paid for and hold no answer ({kinds or 'unreadable'}): "
        "raise --thinking-tokens or --max-tokens, lower --reasoning-effort, or look at the replies with "
        "bin/distill browse. --give-up-share 1 continues anyway"
    )


def _are_alike(failures: Collection[Failed]) -> bool:
    return len({failed.status for failed in failures}) == 1


def _words(count: int, what: str, words: str, first: bool) -> str:
    rows = "the first row was" if count == 1 else f"the first {count:,} rows were all"
    if not first:
        rows = f"{count:,} more rows, from other places, were all"
    return f"{rows} {what}, so nothing more is sent: {words}"


@contextlib.asynccontextmanager
async def asking(
    intake: Intake, stopped: Callable[[], DistillError | None]
) -> AsyncIterator[asyncio.TaskGroup]:
    """The group in which all tasks of a stage live. In the end raises what `stopped` says, or the
    first error of a task."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
            await intake.wait_for_others()
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None
    finally:
        intake.over()
    if reason := stopped():
        raise reason


async def landed(
    tasks: Collection[asyncio.Task[None]],
    changed: asyncio.Event,
    drain: Callable[[], float | None],
    has_reply: Callable[[asyncio.Task[None]], bool] = lambda _task: False,
) -> None:
    """Waits until no task is left; once `drain` says so many seconds, for no longer than that. A task that
    has its reply waits for the disk alone, as the ledger does before it closes: it may end."""
    deadline: float | None = None
    loop = asyncio.get_running_loop()
    while tasks:
        if (seconds := drain()) is not None:
            deadline = min(deadline or loop.time() + seconds, loop.time() + seconds)
        changed.clear()
        try:
            async with asyncio.timeout_at(deadline):
                await changed.wait()
        except TimeoutError:
            for task in list(tasks):
                if not has_reply(task):
                    task.cancel()
            await asyncio.wait(list(tasks))


def first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of our own errors, else the first of all: one sentence for one cause."""
    ours, _ = errors.split(DistillError)
    first = (ours or errors).exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
