"""How the fake provider (provider.py) misbehaves, and what it has seen: `Config`, `Counts`.

`Config` is a value: it is given at the start and replaced as a whole while the server runs.
`Counts` only grows, serialises with orjson as it stands, and knows nothing of how it is served.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Config:
    """All that can be wrong with a provider. Times in seconds, probabilities 0-1 (sum <= 1)."""

    model: str = "gpt-4o"
    seed: int = 0
    scores: bool = False  # asked about answers, its words begin with a score for each
    # answers
    mean_tokens: float = 40
    spread: float = 0.5  # sigma of the lognormal lengths
    default_max_tokens: int = 1024  # where the request names none
    exact_tokens: bool = False  # o200k, else characters / 4
    # thinking, which counts against the bound and is told in usage; another length each time that one asks
    thinking_tokens: float = 0  # median of the lognormal lengths; 0: it does not think
    thinking_sigma: float = 1.0
    thinking_shown: bool = False  # as `reasoning_content` beside the answer
    efforts: Sequence[str] | None = None  # that `reasoning_effort` may be; (): refused, None: all are taken
    overrun_after: int | None = None  # once so many were billed, the bound is not kept to
    overrun: float = 3  # what is billed then, times the bound
    # limits
    rpm: float | None = None
    tpm: float | None = None
    bucket_seconds: float = 60  # of a limit that a full bucket holds; headers tell its level
    charge: Literal["upfront", "larger", "actual"] = "upfront"
    rejected_count: bool = False
    too_large_tokens: float | None = None  # None: the bucket's capacity
    headers: Literal["all", "none", "limits_only_on_429"] = "all"
    snapshot: Literal["reply", "admission"] = "reply"
    retry_after: Literal["seconds", "ms", "date", "none"] = "seconds"
    # time
    latency: float = 0  # median of the service time
    latency_sigma: float = 0
    token_seconds: float = 0  # more of it for each token of the reply
    knee: int | None = None  # served at the same time; the others queue
    # faults, one a request at most
    p_500: float = 0
    p_503: float = 0
    p_429: float = 0
    p_reset_before: float = 0
    p_reset_after: float = 0  # billed
    p_stall: float = 0  # billed and answered after the hold, or not billed and 504
    p_truncate: float = 0  # billed
    p_malformed: float = 0  # billed
    p_empty: float = 0  # billed
    p_filter: float = 0  # billed
    p_filter_400: float = 0
    p_refusal: float = 0  # billed
    p_used_up: float = 0  # thinking takes all of the bound: no text, `length`, billed
    p_huge: float = 0  # billed
    stall_seconds: float = 30
    stall_billed: bool = True
    huge_bytes: int = 8 * 2**20
    bill_abandoned: bool = True  # the client hangs up while we work
    poison: str | None = None
    poison_status: int = 400
    # states
    outage: bool = False
    outage_kind: Literal["503", "drop"] = "503"
    dead_model: bool = False
    bad_key: bool = False
    forbidden: bool = False
    quota_after: int | None = None
    expect_key: str | None = None
    refuse_params: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Config).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {get_args(kind)}")
        if sum(self.odds().values()) > 1 + 1e-9:
            raise ValueError(f"the faults' probabilities add up to more than 1: {self.odds()}")

    def odds(self) -> dict[str, float]:
        """The faults' probabilities by name: `p_500` is `500`."""
        return {f.name[2:]: getattr(self, f.name) for f in fields(self) if f.name[:2] == "p_"}


@dataclass(slots=True)
class Content:
    """One distinct body (SHA-256 of its JSON with sorted keys)."""

    question: str  # its beginning
    asked: int = 0
    drawn: int = 0  # asks that met no limit or global state
    billed: int = 0
    idempotency_keys: list[str] = field(default_factory=list)


@dataclass
class Counts:
    requests: int = 0
    admitted: int = 0
    billed: int = 0
    prompt_tokens: int = 0  # billed
    completion_tokens: int = 0  # billed
    charged_tokens: float = 0  # to the limit
    in_flight: int = 0
    max_in_flight: int = 0
    first_admission: float | None = None  # the loop's clock
    last_admission: float | None = None
    first_admission_wall: float | None = None
    last_admission_wall: float | None = None
    admissions: Counter[int] = field(default_factory=Counter)  # by second since the first
    rejected: Counter[str] = field(default_factory=Counter)  # 429s by kind
    faults: Counter[str] = field(default_factory=Counter)
    contents: dict[str, Content] = field(default_factory=dict)

    def arrive(self) -> None:
        self.requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def admit(self, now: float, tokens: float) -> None:
        wall = time.time()
        if self.first_admission is None:
            self.first_admission, self.first_admission_wall = now, wall
        self.last_admission, self.last_admission_wall = now, wall
        self.admitted += 1
        self.charged_tokens += tokens
        self.admissions[int(now - self.first_admission)] += 1

    def bill(self, key: str, prompt_tokens: int, completion_tokens: int) -> None:
        self.billed += 1
        self.contents[key].billed += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
