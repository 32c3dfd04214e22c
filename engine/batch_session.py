"""Puts the parts for asking in batches together, for engine/session.py.

Apart from it because the openai package is loaded here, which takes a second.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from engine.batch_api import BatchApi
from engine.batches import Batches, Terms
from engine.budget import Budget
from engine.feed import Feed
from engine.packing import Limits
from engine.prices import FREE
from engine.settings import Settings
from engine.state import RunState
from engine.terminal import plain, tell
from engine.tokens import Tokenizer
from store.ledger import Ledger


@asynccontextmanager
async def batches_of(
    settings: Settings,
    tokenizer: Tokenizer,
    folder: Path,
    quiet: bool,
    ledger: Ledger,
    feed: Feed,
    stage: int,
    run: int,
    budget: Budget,
    state: RunState,
) -> AsyncIterator[Batches]:
    """Either `run()` it, or `settle()` what is open before an online run."""
    key = settings.api_key.get_secret_value() if settings.api_key else None
    limits = Limits(settings.batch_requests, tokens=settings.batch_tokens or float("inf"))
    price = settings.price(batch=True) or FREE
    terms = Terms(
        folder, run, stage, price, settings.attempts, settings.give_up, settings.batch_grace, limits
    )

    def say(words: str) -> None:
        if not quiet:
            tell(f"{settings.stage}: {plain(words, 400)}\n")

    async with BatchApi(settings.base_url, key, settings.timeout, settings.proxy) as api:
        yield Batches(feed, ledger, api, budget, tokenizer, terms, state, say)
