"""Puts the parts for asking in batches together, for engine/session.py.

Apart from it because the openai package is loaded here, which takes a second.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from engine.batch.api import BatchApi
from engine.batch.packing import Limits
from engine.batch.run import Batches, Terms
from engine.budget import Budget
from engine.intake import Intake
from engine.prices import FREE
from engine.settings import Settings
from engine.terminal import plain, tell


@asynccontextmanager
async def batches_of(
    settings: Settings, folder: Path, quiet: bool, intake: Intake, run: int, budget: Budget
) -> AsyncIterator[Batches]:
    """Either `run()` it, or `settle()` what is open before an online run."""
    key = settings.api_key.get_secret_value() if settings.api_key else None
    terms = Terms(
        folder, run, intake.stage, settings.price(batch=True) or FREE, settings.attempts,
        settings.attempts_parse, settings.attempts_empty, settings.give_up, settings.batch_grace,
        Limits(settings.batch_requests, tokens=settings.batch_tokens or float("inf")), settings.batch_abandon,
        settings.give_up_share,
    )  # fmt: skip

    def say(words: str) -> None:
        if not quiet:
            tell(f"{settings.stage}: {plain(words, 400)}\n")

    async with BatchApi(settings.base_url, key, settings.reply_seconds, settings.proxy) as api:
        yield Batches(intake, api, budget, terms, say)
