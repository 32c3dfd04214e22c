"""What `generate` and `estimate` do: survey, price, ask for leave, run, say what came of it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from engine.estimate import Estimate, Limits, Survey, estimate, survey
from engine.prices import FREE
from engine.session import Job, Result, run_job
from engine.settings import MOST_CONCURRENT, Settings, plan_of
from engine.show import print_estimate, print_result
from engine.terminal import dollars
from engine.tokens import tokenizer_for
from store.errors import UsageError
from store.folder import LEDGER, held
from store.index import KeyIndex
from store.ledger import connect_writer
from store.pool import Pool
from store.read import completions, connect_reader, load_index

ASK_OVER_USD = 1.0
SURVEY_SECONDS = 2.0  # before a run; `estimate` itself counts everything
PILOT_SEED = 0
ASSUMED_CONCURRENCY = 64  # for the time of a run without limits; the run itself finds its level

Confirm = Callable[[str], bool]


def known_keys(run: Path | None) -> KeyIndex:
    """What a run folder knows already; empty for a folder that is new."""
    index = KeyIndex()
    if run is not None and (run / LEDGER).exists():
        reader = connect_reader(run)
        try:
            load_index(reader, index)
        finally:
            reader.close()
    return index


def _observed(run: Path | None, model: str) -> list[int]:
    if run is None or not (run / LEDGER).exists():
        return []
    reader = connect_reader(run)
    try:
        return completions(reader, model)
    finally:
        reader.close()


def estimate_pool(
    settings: Settings,
    source: str,
    run: Path | None,
    seconds: float | None = None,
    index: KeyIndex | None = None,
) -> Estimate:
    """Surveys a pool and estimates what remains of it; `seconds` bounds the survey."""
    tokenizer = tokenizer_for(settings.model)
    index = (index or known_keys(run)).copy()
    found = survey(Pool(source), plan_of(settings, tokenizer), index, seconds)
    return _told(settings, found, tokenizer.exact, _observed(run, settings.model))


def _told(settings: Settings, found: Survey, exact: bool, observed: Sequence[int]) -> Estimate:
    declared = settings.rpm or settings.tpm
    concurrency = settings.concurrency or (MOST_CONCURRENT if declared else ASSUMED_CONCURRENCY)
    limits = Limits(settings.rpm, settings.tpm, settings.rpd, settings.tpd, concurrency)
    price, batch = settings.price(batch=False), settings.price(batch=True)
    return estimate(found, price, batch, limits, settings.sent_max_tokens(), exact, observed)


def run_pilot(
    settings: Settings, source: str, run: Path, count: int, yes: bool, quiet: bool, confirm: Confirm
) -> Result:
    """Really asks `count` rows drawn at random; their answers stay in the run."""
    settings.check(settings.price())
    tokenizer = tokenizer_for(settings.model)
    plan = plan_of(settings, tokenizer)
    found = survey(Pool(source), plan, KeyIndex())
    count = min(count, found.rows)
    chosen = frozenset(Random(PILOT_SEED).sample(range(found.rows), count))
    share = Survey(count, 0, count * settings.samples, found.prompt_tokens * count // found.rows)
    _ask_leave(settings, _told(settings, share, tokenizer.exact, ()), yes, confirm)
    with held(run):
        connect_writer(run).close()
        price, index = settings.price() or FREE, known_keys(run)
        return run_job(
            Job(settings, price, replace(plan, only=chosen), Pool(source), run, index, None, quiet)
        )


def generate(settings: Settings, source: str, run: Path, yes: bool, quiet: bool, confirm: Confirm) -> int:
    """The main job. Returns the exit code; raises UsageError before anything is asked."""
    settings.check(settings.price())
    pool = Pool(source)
    plan = plan_of(settings, tokenizer_for(settings.model))
    with held(run):
        connect_writer(run).close()
        index = known_keys(run)
        told = None
        if not (pool.is_stream or (quiet and yes)):  # nobody would see it
            told = estimate_pool(settings, source, run, SURVEY_SECONDS, index)
            if not quiet:
                print_estimate(told, settings, batch=settings.batch)
        _ask_leave(settings, told, yes, confirm)
        price = settings.price() or FREE  # an unknown price, once the user has agreed, is booked as zero
        result = run_job(Job(settings, price, plan, pool, run, index, told, quiet))
    if not quiet or result.exit_code:
        print_result(result, settings, price, told, run)
    return result.exit_code


def _unknown_price(settings: Settings) -> str:
    return (
        f"no price is known for model '{settings.model}': give --price-in and --price-out "
        "(USD a million tokens), or --yes to go on without"
    )


def _ask_leave(settings: Settings, told: Estimate | None, yes: bool, confirm: Confirm) -> None:
    """Without --yes: a terminal is asked over $1, another caller needs a budget or a price of zero."""
    price = settings.price()
    if yes or settings.budget is not None or (price is not None and price.free):
        return
    cost = (told.batch_cost_usd if settings.batch else told.cost_usd) if told else None
    interactive = sys.stdin.isatty() and told is not None
    if not interactive:
        if price is None:
            raise UsageError(_unknown_price(settings))
        amount = f" (about {dollars(cost.expected)})" if cost else ""
        raise UsageError(f"this run costs money{amount}: set a cap with --budget USD, or agree with --yes")
    if cost is not None and cost.expected <= ASK_OVER_USD:
        return
    words = (
        f"This may cost {dollars(cost.expected)} ({dollars(cost.low)} to {dollars(cost.high)})"
        if cost
        else ("The price is unknown")
    )
    if not confirm(f"{words}. Go on?"):
        raise UsageError("nothing was asked")
