"""What the collecting commands and `estimate` do: survey, price, ask for leave, run, say what came of it."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import orjson
from rich.text import Text

from engine.collect.other_settings import Standing, settled, standing
from engine.collect.plan import Plan, plan_of
from engine.collect.rows import Numbered, Surveyed
from engine.collect.settings import MOST_CONCURRENT, Settings
from engine.provider.tokens import tokenizer_for
from engine.run.completion_tokens import UNSEEN, Paid, Range, Seen, expected_completion
from engine.run.estimate import DeclaredLimits, Estimate, Survey, estimate, extrapolated, survey
from engine.run.job import Control, Job, StageJob, StageResult
from engine.run.results import print_bad_rows, print_result
from engine.run.session import run_job
from engine.run.tables import TAKEN_AS_FREE, print_estimate, tell_shown
from engine.terminal import dollars, exact_dollars, tell
from store.costs import paid_requests
from store.errors import UsageError
from store.files import LEDGER
from store.key_index import KeyIndex, known_keys
from store.queries import account, connect_reader
from store.run_folder import held
from store.schema import connect_writer

ASK_OVER_USD = 1.0
SURVEY_SECONDS = 2.0  # before a run; `estimate` itself counts everything
PILOT_SEED = 0
ASSUMED_CONCURRENCY = 64  # for the time of a run without limits; the run itself finds its level

Confirm = Callable[[str], bool] | None  # None: nobody can be asked


def observed(run: Path | None, settings: Settings, pilot: int = 0) -> Seen:
    """What requests to this model have cost in the run, in this role and asked in this way."""
    if run is None or not (run / LEDGER).exists():
        return UNSEEN
    reader = connect_reader(run)
    try:
        found = paid_requests(
            reader,
            settings.model,
            settings.task,
            settings.params(),
            settings.most_output(),
            settings.thinking_room > 0,
        )
    finally:
        reader.close()
    return Seen([Paid(*each) for each in found], pilot)


def estimate_pool(
    settings: Settings,
    pool: Surveyed,
    run: Path | None,
    seconds: float | None = None,
    index: KeyIndex | None = None,
    plan: Plan | None = None,
    pilot: int = 0,
) -> Estimate:
    """Surveys a pool and estimates what remains of it; `seconds` bounds the survey. pilot: requests that
    were asked just now to learn from."""
    plan = plan or plan_of(settings, tokenizer_for(settings.model))
    index = (index or known_keys(run)).copy()
    found = survey(pool, plan, index, seconds, price_steps(settings))
    return told(settings, plan, found, observed(run, settings, pilot))


def estimate_stage(
    settings: Settings, pool: Surveyed, run: Path | None, pilot: int = 0
) -> tuple[Estimate, Standing]:
    """What `estimate` tells of all rows, and how the stage stands in its run.
    Raises UsageError, PoolError."""
    settings.price()  # raises UsageError before the pool is counted
    found = standing(run, settings, plan_of(settings, tokenizer_for(settings.model)))
    return estimate_pool(settings, pool, run, plan=found.plan, pilot=pilot), found


def price_steps(settings: Settings) -> tuple[int, ...]:
    """Lengths of prompts from which any of the servers charges another price."""
    prices = [settings.price_of(server, batch) for server in settings.servers() for batch in (False, True)]
    return tuple(sorted({start for price in prices if price for start, _ in price.steps}))


def told(settings: Settings, plan: Plan, found: Survey, seen: Seen = UNSEEN) -> Estimate:
    """The estimate of a survey, under the settings' limits and prices."""
    # without limits a run finds its own level
    concurrency = sum(
        server.concurrency or (MOST_CONCURRENT if server.rpm or server.tpm else ASSUMED_CONCURRENCY)
        for server in settings.servers()
    )
    rpm, tpm, rpd, tpd = (settings.together(name) for name in ("rpm", "tpm", "rpd", "tpd"))
    limits = DeclaredLimits(rpm, tpm, rpd, tpd, concurrency)
    found = extrapolated(found)
    imagined = found.imagined_tokens / found.requests if found.requests else 0.0
    completion = expected_completion(settings, plan.task.prior, imagined, found.requests, seen)
    return estimate(settings, found, completion, limits, plan.tokenizer.exact)


def run_estimate(settings: Settings, pool: Surveyed, run: Path | None, sent: int, as_json: bool) -> int:
    """`estimate`: on stdout a table or one JSON object. sent: rows of the pilot."""
    told, found = estimate_stage(settings, pool, run, sent)
    if as_json:
        shown = {**told.as_json(), "other_settings": found.as_json()}
        sys.stdout.write(orjson.dumps(shown).decode() + "\n")
        return 0
    print_estimate(told, settings, to_stdout=True, batch=settings.batch)
    if warning := budget_warning(run, settings.budget, told.cost_as_asked(settings.batch)):
        print(warning)
    if found.others:
        print(f"{found.words}: generate will need --reuse, --replace or another --stage")
    return 0


def run_pilot(
    settings: Settings,
    pool: Surveyed,
    run: Path | None,
    count: int,
    yes: bool,
    quiet: bool,
    confirm: Confirm = None,
    control: Control | None = None,
) -> int:
    """Really asks `count` rows drawn at random, whose answers stay in the run; returns how many have ended.
    Raises UsageError before anything is asked, or what has stopped it."""
    if run is None:
        raise UsageError("--pilot needs --run DIR: the answers that it buys are kept there")
    if count < 1:
        raise UsageError(f"--pilot {count}: must be at least 1 row")
    settings = settings.model_copy(update={"batch": False})  # a pilot is for now, not for tomorrow
    settings.check(settings.price())
    plan = plan_of(settings, tokenizer_for(settings.model))
    plan = settled(standing(run, settings, plan), settings, confirm, quiet)
    found = survey(pool, plan, KeyIndex(), starts=price_steps(settings))
    count = min(count, found.rows)
    chosen = frozenset(Random(PILOT_SEED).sample(range(found.rows), count))
    part = replace(
        found.part(count / found.rows), rows=count, bad_rows=0, requests=count * settings.samples, known=0
    )
    ask_leave(settings, told(settings, plan, part), yes, confirm)
    with held(run):
        connect_writer(run).close()
        job = StageJob(settings, replace(plan, only=chosen), Numbered(pool))
        whole = Job(
            [job], run, known_keys(run), settings.budget, quiet, settings.metrics_port, control=control
        )
        (result,) = run_job(whole)
    if result.stopped:
        raise result.stopped
    return result.state.ended


def collect(settings: Settings, pool: Surveyed, run: Path, yes: bool, quiet: bool, confirm: Confirm) -> int:
    """The main job as the command line shows it: one stage over one pool. Returns the exit code; raises
    UsageError before anything is asked."""
    result = run_stage(settings, pool, run, yes, quiet, confirm)
    if not quiet or result.exit_code:
        print_result(settings.stage, result, run)
    print_bad_rows({settings.stage: result})
    return result.exit_code


def run_stage(
    settings: Settings,
    pool: Surveyed,
    run: Path,
    yes: bool,
    quiet: bool,
    confirm: Confirm = None,
    control: Control | None = None,
) -> StageResult:
    """Surveys, prices, asks for leave and runs. control: of whoever has started this thread. Raises
    UsageError before anything is asked."""
    settings.check(settings.price())
    plan = plan_of(settings, tokenizer_for(settings.model))
    with held(run):
        connect_writer(run).close()
        plan = settled(standing(run, settings, plan), settings, confirm, quiet)
        index = known_keys(run)
        expected = None
        if not pool.is_stream and (control or not (quiet and yes)):  # else nobody would see it
            expected = estimate_pool(settings, pool, run, SURVEY_SECONDS, index, plan=plan)
            if not quiet:
                print_estimate(expected, settings, batch=settings.batch)
                cost = expected.cost_as_asked(settings.batch)
                if warning := budget_warning(run, settings.budget, cost):
                    tell_shown(Text(warning, style="bold"))
        elif not quiet and settings.is_taken_as_free:
            tell(f"{TAKEN_AS_FREE}\n")
        ask_leave(settings, expected, yes, confirm)
        job = StageJob(settings, plan, Numbered(pool), expected)
        whole = Job([job], run, index, settings.budget, quiet, settings.metrics_port, control=control)
        return run_job(whole)[0]


def budget_warning(run: Path | None, cap: float | None, cost: Range | None) -> str | None:
    """Where the cap of a folder will be reached long before all that is estimated is asked."""
    if cap is None or cost is None or not cost.high:
        return None
    spent = 0
    if run is not None and (run / LEDGER).exists():
        with contextlib.closing(connect_reader(run)) as reader:
            spent = sum(account(reader))
    left = max(0.0, cap - spent / 1e6)
    if left >= cost.low:
        return None
    before = f" ({exact_dollars(spent)} are spent or at risk)" if spent else ""
    return (
        f"the budget of {exact_dollars(round(cap * 1e6))}{before} is enough for about "
        f"{left / cost.expected:.0%} of what is pending: the run will stop there, and you can continue it "
        "with a larger budget"
    )


def ask_leave(settings: Settings, told: Estimate | None, yes: bool, confirm: Confirm) -> None:
    """Without --yes: a terminal is asked over $1, another caller needs a budget or a price of zero."""
    ask_leave_for([(settings, told)], yes, confirm)


def ask_leave_for(stages: Sequence[tuple[Settings, Estimate | None]], yes: bool, confirm: Confirm) -> None:
    """The same for several stages, whose costs add up."""
    paid = [(s, told) for s, told in stages if (price := s.price()) is None or not price.free]
    if yes or all(settings.budget is not None for settings, _ in paid):
        return
    unknown = next((settings for settings, _ in paid if settings.price() is None), None)
    costs = [told.cost_as_asked(s.batch) if told else None for s, told in paid]
    cost = sum_of([c for c in costs if c is not None]) if all(costs) else None
    if confirm is None or not (sys.stdin.isatty() and all(told for _, told in paid)):
        if unknown is not None:
            raise UsageError(f"{unknown.no_price()}; or pass --yes to continue without a price")
        amount = f" (about {dollars(cost.expected)})" if cost else ""
        raise UsageError(f"this run costs money{amount}: set a cap with --budget USD, or agree with --yes")
    if cost is not None and cost.expected <= ASK_OVER_USD:
        return
    words = (
        f"This may cost {dollars(cost.expected)} ({dollars(cost.low)} to {dollars(cost.high)})"
        if cost
        else "The price is unknown"
    )
    if not confirm(f"{words}. Continue?"):
        raise UsageError("aborted; nothing was sent")


def sum_of(ranges: Sequence[Range]) -> Range:
    """Together; the bounds as if all erred in the same way."""
    return Range(sum(r.expected for r in ranges), sum(r.low for r in ranges), sum(r.high for r in ranges))
