"""Fills the files of batches: with what the pool has due, then with what other batches have left."""

import asyncio
from collections import deque
from pathlib import Path

from engine.batch.files import Due, Leftover, Parcel
from engine.batch.quota import BatchLimits
from engine.collect.stage import Intake
from engine.limits.budget import Budget
from engine.provider.pricing import Price
from engine.provider.tokens import Tokenizer
from store.key_index import DUE
from store.records import Request


class Packer:
    """`await pack(path, limits)` for a sealed parcel, or None when nothing is due now."""

    def __init__(self, intake: Intake, budget: Budget, price: Price, tokenizer: Tokenizer) -> None:
        self._intake, self._budget, self._price, self._tokenizer = intake, budget, price, tokenizer
        self._due: deque[Due] = deque()
        self._leftovers: deque[Leftover] = deque()

    def leave(self, leftover: Leftover) -> None:
        """To be asked again, once the pool has been read to its end."""
        self._leftovers.append(leftover)

    async def pack(self, path: Path, limits: BatchLimits) -> Parcel | None:
        """As far as limits and budget go; what it holds is reserved. Raises BudgetReached."""
        parcel: Parcel | None = None
        try:
            while (due := await self._next_due()) is not None:
                if parcel and not (parcel.takes(due, limits) and self._budget.has_room(due.worst)):
                    self._due.appendleft(due)
                    break
                await self._budget.reserve(due.worst)
                parcel = parcel or Parcel(path)
                parcel.add(due)
            if parcel:
                await asyncio.to_thread(parcel.seal)
        except BaseException:
            if parcel:
                parcel.discard()
            raise
        return parcel

    async def _next_due(self) -> Due | None:
        while not (self._due or self._intake.ended):
            chunk = await self._intake.next()
            self._due.extend(self._fresh(request) for request in chunk.due)
        return self._due.popleft() if self._due else self._next_left()

    def _next_left(self) -> Due | None:
        while self._leftovers:
            if (due := self._leftovers[0].next()) is None:
                self._leftovers.popleft()
            elif wanted := self._wanted(due):
                return wanted
        return None

    def _fresh(self, request: Request) -> Due:
        prompt = request.prompt_tokens
        if not self._tokenizer.exact:  # no byte-level tokenizer makes more tokens than bytes
            prompt = len(request.body)
        worst = self._price.worst(prompt, request.max_tokens)
        return Due(request.id, request.key, request.body, request.prompt_tokens, worst, 0)

    def _wanted(self, due: Due) -> Due | None:
        """Of a batch that an earlier process made, only what this pool asks for is asked again."""
        if due.own:
            return due
        if not self._intake.crowd.take_over(due.request, self._intake):
            self._intake.index.mark(due.request, DUE)
            return None
        return due.taken_over()
