"""What a run will cost and how long it will take, before anything is paid.

Prompt tokens are counted exactly, row by row. Completion tokens are the teacher's to choose: how they
are foreseen is in completion_tokens.py. Where requests of the run needed more than one paid reply, the cost
has these in it. Time is the largest of what each limit needs; what binds is named.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from engine.collect.plan import Plan
from engine.collect.rows import Surveyed
from engine.collect.settings import Settings
from engine.provider.pricing import Price
from engine.run.completion_tokens import Completion, Range, effort_of
from engine.terminal import counted
from store.errors import PoolError
from store.key_index import ANSWERED, FAILED, TAKEN, KeyIndex
from store.records import BadRow

DAY, MINUTE = 86400.0, 60.0
SECONDS_A_TOKEN, FIRST_TOKEN_SECONDS = 0.02, 1.0  # of a stream, where no run has told


@dataclass(slots=True)
class Survey:
    """What a pass over the pool has counted. `fraction` below 1: it was cut short."""

    rows: int = 0
    bad_rows: int = 0
    requests: int = 0  # that are still to be asked; equal rows count once
    prompt_tokens: int = 0
    known: int = 0  # answered or failed in the run already
    imagined_tokens: int = 0  # of typical replies to the requests, where the task can tell
    fraction: float = 1.0
    longer: dict[int, tuple[int, int]] = field(default_factory=dict)  # than so many tokens: requests, tokens

    @property
    def whole(self) -> bool:
        return self.fraction >= 1.0

    def part(self, share: float) -> "Survey":
        """So much of all of it."""
        rows, bad, requests, prompt, known, imagined = (
            round(n * share)
            for n in (
                self.rows,
                self.bad_rows,
                self.requests,
                self.prompt_tokens,
                self.known,
                self.imagined_tokens,
            )
        )
        longer = {start: (round(n * share), round(t * share)) for start, (n, t) in self.longer.items()}
        return Survey(rows, bad, requests, prompt, known, imagined, longer=longer)

    def lengths(self, starts: Sequence[int]) -> list[tuple[int, int]]:
        """(requests, prompt tokens) up to the first of these lengths, then from each to the next."""
        beyond = [(self.requests, self.prompt_tokens), *(self.longer.get(s, (0, 0)) for s in starts), (0, 0)]
        return [(n - m, t - u) for (n, t), (m, u) in itertools.pairwise(beyond)]


@dataclass(frozen=True, slots=True)
class DeclaredLimits:
    """What the user declared; None for no limit."""

    rpm: float | None
    tpm: float | None
    rpd: float | None
    tpd: float | None
    concurrency: int


@dataclass(frozen=True, slots=True)
class Bound:
    """Tokens that a reply may take: for the answer (None: as many as it likes), beside it to think, and
    the bound that is sent (None: none is)."""

    answer: int | None
    thinking: int
    sent: int | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """As `estimate --json` prints it; cost is None where the price is unknown.

    prompt_tokens: by our count, once for each request; billed_prompt_tokens: as they will be billed.
    completion_tokens: of all paid replies, with thinking_tokens in them (None where the model does not
    think). replies_per_request: how many are paid for on average. effort: None where it does not think;
    not_sent: sampling parameters that were asked for and that the model would refuse.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: Range
    cost_usd: Range | None
    batch_cost_usd: Range | None
    seconds: Range
    bound_by: str
    rows: int
    bad_rows: int
    already_answered: int
    exact_tokens: bool
    completion_from: str
    price_source: str = ""  # `given`, `listed`, `listed: MODEL`, `free: local server`, `unknown`
    thinking_tokens: Range | None = None
    replies_per_request: float = 1.0
    billed_prompt_tokens: int = 0
    effort: str | None = None
    bound: Bound | None = None
    not_sent: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def cost_as_asked(self, batch: bool) -> Range | None:
        """The price of the way in which it is asked."""
        return self.batch_cost_usd if batch else self.cost_usd

    def of(self, requests: int) -> "Estimate":
        """What it said of so many of the requests, to be held against their bill."""
        share = requests / self.requests if self.requests else 0.0

        def part(whole: Range | None) -> Range | None:
            return whole and whole.times(share)

        return replace(
            self,
            requests=requests,
            prompt_tokens=round(self.prompt_tokens * share),
            billed_prompt_tokens=round(self.billed_prompt_tokens * share),
            completion_tokens=self.completion_tokens.times(share),
            thinking_tokens=part(self.thinking_tokens),
            cost_usd=part(self.cost_usd),
            batch_cost_usd=part(self.batch_cost_usd),
        )


def survey(
    pool: Surveyed, plan: Plan, index: KeyIndex, seconds: float | None = None, starts: Sequence[int] = ()
) -> Survey:
    """Counts what is still to be asked; stops after `seconds` and says how far it came. Prompts that are
    longer than one of `starts` are counted apart too.

    Raises PoolError when no row of the pool can be used.
    """
    found = Survey()
    deadline = time.monotonic() + seconds if seconds is not None else math.inf
    number = len(index)
    first_bad: BadRow | None = None
    imagines = plan.task.prior.of_imagined
    for row in pool:
        if plan.limit is not None and found.rows >= plan.limit:
            break
        if isinstance(row, BadRow):
            found.bad_rows += 1
            first_bad = first_bad or row
            continue
        found.rows += 1
        messages, _, keys = plan.seal(row)
        if plan.reused:
            keys, _ = plan.kept(row, keys, index.has_answer)
        tokens = 0
        for key in keys:
            state = next((index.state(i) for i in index.candidates(key)), None)
            if state in (ANSWERED, FAILED):
                found.known += 1
            if state is not None and state != 0:
                continue
            if state is None:
                number += 1
                index.add(key, number, TAKEN)
            else:
                index.mark(next(index.candidates(key)), TAKEN)
            if not tokens:
                tokens = plan.tokenizer.count_messages(messages)
                plan.counted.note(keys[0], tokens)
            found.requests += 1
            found.prompt_tokens += tokens
            for start in starts:
                if tokens > start:
                    requests, prompts = found.longer.get(start, (0, 0))
                    found.longer[start] = requests + 1, prompts + tokens
            if imagines and plan.task.imagine:
                found.imagined_tokens += plan.tokenizer.count(plan.task.imagine(row))
        if time.monotonic() > deadline:
            found.fraction = max(pool.fraction, 1e-6)
            break
    if not found.rows:
        bad = counted(found.bad_rows, "bad row")
        why = f"{bad}; line {first_bad.line}: {first_bad.reason}" if first_bad else "it is empty"
        raise PoolError(f"no usable row in pool {pool.source} ({why})")
    return found


def extrapolated(found: Survey) -> Survey:
    """The whole pool, judged by the part that was read."""
    return found if found.whole else found.part(1 / found.fraction)


def estimate(
    settings: Settings, found: Survey, completion: Completion, limits: DeclaredLimits, exact_tokens: bool
) -> Estimate:
    """Puts a complete survey, prices and limits together."""
    n, sent = found.requests, settings.sent_max_tokens()
    # low: real usage is charged; high: prompt + max_tokens (0 for no bound); expected: the larger of the
    # two. Thinking takes its time as answers do.
    prompt = found.prompt_tokens / found.requests if found.requests else 0.0
    replies = max(1.0, completion.replies)
    a_reply, count = completion.tokens.times(1 / replies), found.requests * replies
    most = sent or a_reply.high
    charges = (max(prompt, most), prompt + a_reply.low, prompt + most)
    spans = [_span(count, charge, a_reply.expected, limits) for charge in charges]
    usual, bound_by = spans[0]
    seconds = Range(usual, min(s for s, _ in spans), max(s for s, _ in spans))
    thinks = bool(completion.thinking or settings.thinking_room)
    return Estimate(
        requests=n,
        prompt_tokens=found.prompt_tokens,
        completion_tokens=completion.tokens.times(n).rounded(),
        cost_usd=_cost(settings.price(batch=False), found, completion),
        batch_cost_usd=_cost(settings.price(batch=True), found, completion),
        seconds=seconds,
        bound_by=bound_by,
        rows=found.rows,
        bad_rows=found.bad_rows,
        already_answered=found.known,
        exact_tokens=exact_tokens,
        completion_from=completion.source,
        price_source=settings.price_source(),
        thinking_tokens=completion.thinking and completion.thinking.times(n).rounded(),
        replies_per_request=round(completion.replies, 4),
        billed_prompt_tokens=round(found.prompt_tokens * completion.prompts),
        effort=effort_of(settings) if thinks else None,
        bound=Bound(settings.answer_bound() or None, settings.thinking_room, sent or None),
        not_sent=settings.unsent(),
    )


def _cost(price: Price | None, found: Survey, completion: Completion) -> Range | None:
    """In USD. Each length of prompt has its own price, and is paid for with every reply."""
    if price is None:
        return None
    each = [price, *(step for _, step in price.steps)]
    lengths = found.lengths([start for start, _ in price.steps])
    a_token = sum(n * float(p.completion) for p, (n, _) in zip(each, lengths, strict=True))
    prompts = completion.prompts * sum(t * float(p.prompt) for p, (_, t) in zip(each, lengths, strict=True))
    fees = completion.replies * sum(n * float(p.request) for p, (n, _) in zip(each, lengths, strict=True))
    return completion.tokens.times(a_token / 1e6).plus((prompts + fees) / 1e6)


def _span(n: float, charge: float, completion: float, limits: DeclaredLimits) -> tuple[float, str]:
    if not n:
        return 0.0, "latency"
    latency = FIRST_TOKEN_SECONDS + SECONDS_A_TOKEN * completion
    spans = [(n / limits.concurrency * latency, "latency")]
    if limits.rpm:
        spans.append((n / limits.rpm * MINUTE, "requests"))
    if limits.tpm:
        spans.append((n * charge / limits.tpm * MINUTE, "tokens"))
    inside = max(spans)
    for amount, a_day, name in ((n, limits.rpd, "requests"), (n * charge, limits.tpd, "tokens")):
        if a_day and amount > a_day:
            full_days = math.ceil(amount / a_day) - 1
            spans.append((full_days * DAY + inside[0] * (amount - full_days * a_day) / amount, name))
    seconds, name = max(spans)
    return seconds + latency, name
