"""`--metrics-port`: what a run knows of itself, as Prometheus metrics on loopback while it goes.

    async with serving(port) as board:      # the port is taken before anything is asked
        board.add(Source(stage, model, view, ledger))

Everything is read when it is scraped, from the run's state, its teacher and the budget: asking a
teacher costs nothing more for it (a latency is put into its bucket as it is counted, see stats.py).
Counters begin at zero with the process, as Prometheus wants; what the ledger holds from before is in
the gauges. `prometheus_client` is imported when a port is asked for, and only then.
"""

import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.collect.stats import LATENCY_BOUNDS, RunState
from engine.limits.endpoints import Endpoint
from engine.run.progress import View
from engine.terminal import tell
from store.errors import UsageError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

HOST = "127.0.0.1"
LABELS = ("stage", "model")

Sample = tuple[tuple[str, ...], float]  # values of the labels beside stage and model; the number


@dataclass(frozen=True, slots=True)
class MeteredStage:
    """A stage that is being asked, and where it is read. `ledger`: the file whose size is told."""

    stage: str
    model: str
    view: View
    ledger: Path


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: name without its suffix, help, further labels, and how it is read."""

    name: str
    help: str
    read: Callable[[MeteredStage], Iterable[Sample]]
    labels: tuple[str, ...] = ()


def _one(value: float | None) -> Iterator[Sample]:
    """A number without further labels; None is not told."""
    if value is not None:
        yield (), float(value)


def _requests(source: MeteredStage) -> Iterator[Sample]:
    """Requests that have ended, by outcome or cause: a malformed reply is no answer."""
    state = source.view.state
    ended = (state.outcomes, state.unusable, state.retry_causes, state.refusals)
    for name, count in (pair for counted in ended for pair in counted.items()):
        yield (name,), count
    yield ("rate_limit",), state.limited


def _counted(counts: Callable[[RunState], Mapping[str, int]]) -> Callable[[MeteredStage], Iterator[Sample]]:
    """What a run has counted by name."""
    return lambda source: (((name,), count) for name, count in counts(source.view.state).items())


def _used(source: MeteredStage) -> Iterator[Sample]:
    for endpoint in source.view.teacher.endpoints:
        for name, share in endpoint.limiter.utilisation().items():
            if share is not None:
                yield (endpoint.url, name), share


def _limits(source: MeteredStage) -> Iterator[Sample]:
    for endpoint in source.view.teacher.endpoints:
        limiter = endpoint.limiter
        for name, bucket in (("requests", limiter.requests), ("tokens", limiter.tokens)):
            if bucket.limit is not None:
                yield (endpoint.url, name), bucket.limit


def _each(read: Callable[[Endpoint], float]) -> Callable[[MeteredStage], Iterator[Sample]]:
    """A number of every server of the stage's teacher."""
    return lambda source: (((e.url,), float(read(e))) for e in source.view.teacher.endpoints)


def _ledger_bytes(source: MeteredStage) -> Iterator[Sample]:
    total = 0
    for path in (source.ledger, source.ledger.with_name(source.ledger.name + "-wal")):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return _one(total)


COUNTERS = (
    Family(
        "distill_requests",
        "Requests that ended, by outcome of the answer or cause of the failure",
        _requests,
        ("result",),
    ),
    Family("distill_requests_sent", "Requests sent", lambda s: _one(s.view.state.asked)),
    Family("distill_rate_limited", "Replies with status 429", lambda s: _one(s.view.state.limited)),
    Family(
        "distill_retries",
        "Attempts that failed for a transient reason",
        _counted(lambda state: state.retry_causes),
        ("cause",),
    ),
    Family(
        "distill_tokens",
        "Tokens as billed, of every stored reply",
        _counted(lambda state: {"prompt": state.billed_prompt, "completion": state.billed_completion}),
        ("kind",),
    ),
    Family(
        "distill_reasoning_tokens",
        "Of the completion tokens: thinking, where the server reports it",
        lambda s: _one(s.view.state.reasoning_tokens),
    ),
    Family(
        "distill_estimated_replies",
        "Replies whose tokens distill counted itself, because the server does not report them",
        lambda s: _one(s.view.state.estimated),
    ),
    Family(
        "distill_unusable_replies",
        "Paid replies that hold no answer, by outcome",
        _counted(lambda state: state.unusable),
        ("outcome",),
    ),
    Family(
        "distill_unusable_cost_usd",
        "Of the cost: replies that hold no answer, in US dollars",
        lambda s: _one(s.view.state.unusable_micro / 1e6),
    ),
    Family(
        "distill_cost_usd",
        "Cost of the replies of this process in US dollars",
        lambda s: _one(s.view.state.cost_micro / 1e6),
    ),
    Family(
        "distill_breaker_probes",
        "Probes sent during an outage",
        _each(lambda e: e.breaker.probes),
        ("endpoint",),
    ),
)
GAUGES = (
    Family("distill_rows", "Pool rows x samples in all, where known", lambda s: _one(s.view.state.total)),
    Family(
        "distill_rows_done", "Pool rows x samples with a stored answer", lambda s: _one(s.view.state.done)
    ),
    Family(
        "distill_rows_known",
        "Of the rows done: those answered before this process",
        lambda s: _one(s.view.state.known),
    ),
    Family(
        "distill_rows_failed",
        "Pool rows x samples that have failed",
        _counted(lambda state: state.failed),
        ("cause",),
    ),
    Family("distill_rows_bad", "Pool rows that cannot be used", lambda s: _one(s.view.state.bad_rows)),
    Family(
        "distill_requests_in_flight",
        "Requests sent and not answered yet",
        lambda s: _one(s.view.state.in_flight),
    ),
    Family(
        "distill_requests_queued",
        "Requests that wait for room in a limit",
        _each(lambda e: e.limiter.waiting),
        ("endpoint",),
    ),
    Family(
        "distill_limit_utilisation_ratio",
        "Share of a limit that is used, since the start",
        _used,
        ("endpoint", "limit"),
    ),
    Family("distill_limit_per_minute", "A limit as known now, per minute", _limits, ("endpoint", "limit")),
    Family(
        "distill_limit_paused_seconds",
        "How long all requests still wait after a 429",
        _each(lambda e: e.limiter.paused_seconds),
        ("endpoint",),
    ),
    Family(
        "distill_breaker_open",
        "1 during an outage, when only probes are sent",
        _each(lambda e: e.breaker.is_open),
        ("endpoint",),
    ),
    Family(
        "distill_spent_usd",
        "Known spending of the run folder, including earlier runs",
        lambda s: _one(s.view.budget.spent / 1e6),
    ),
    Family(
        "distill_at_risk_usd",
        "The most that requests without an answer can cost, including earlier runs",
        lambda s: _one((s.view.budget.lost + s.view.budget.in_flight) / 1e6),
    ),
    Family(
        "distill_budget_usd",
        "The hard cap, if one is set",
        lambda s: _one(None if s.view.budget.cap is None else s.view.budget.cap / 1e6),
    ),
    Family("distill_ledger_bytes", "Size of the ledger and its write-ahead log", _ledger_bytes),
)
LATENCY = "distill_request_duration_seconds"


class Board:
    """The sources of a process, as a collector of prometheus_client: one stage or many."""

    def __init__(self) -> None:
        self._sources: list[MeteredStage] = []

    def add(self, source: MeteredStage) -> None:
        """From now on it is told of, to the end of the process: a counter must not vanish."""
        self._sources.append(source)

    def collect(self) -> Iterator["Metric"]:
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )
        from prometheus_client.utils import floatToGoString

        for kind, families in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for family in families:
                metric = kind(family.name, family.help, labels=(*LABELS, *family.labels))
                for source in self._sources:
                    for values, number in family.read(source):
                        metric.add_metric((source.stage, source.model, *values), number)
                yield metric
        latencies = HistogramMetricFamily(LATENCY, "From request to complete answer", labels=LABELS)
        bounds = [*map(floatToGoString, LATENCY_BOUNDS), "+Inf"]
        for source in self._sources:
            spread = source.view.state.spread
            buckets = list(zip(bounds, spread.cumulative(), strict=True))
            latencies.add_metric((source.stage, source.model), buckets, spread.sum)
        yield latencies


@contextlib.asynccontextmanager
async def serving(port: int | None) -> AsyncIterator[Board]:
    """A board, served at http://127.0.0.1:PORT/metrics (0: any port) unless `port` is None.

    Raises UsageError for a port that cannot be used.
    """
    board = Board()
    if port is None:
        yield board
        return
    from aiohttp import web
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
    except OSError as error:
        bound.close()
        words = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise UsageError(
            f"--metrics-port {port}: the port {words}; name another, or 0 for a free one"
        ) from None
    # the board, and what the process itself uses (process_resident_memory_bytes, process_cpu_seconds_total)
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(board)  # duck-typed: it asks for `collect` only

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    try:
        await runner.setup()
        await web.SockSite(runner, bound).start()
        tell(f"metrics: http://{HOST}:{bound.getsockname()[1]}/metrics\n")
        yield board
    finally:
        await runner.cleanup()
        bound.close()
