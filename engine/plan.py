"""How a stage makes requests out of rows, and whose answers count for it beside its own settings'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.keys import Message, Sealer
from engine.tasks.task import Task
from engine.tokens import Tokenizer
from store.records import Item


@dataclass(frozen=True, slots=True)
class Plan:
    """How a stage makes requests out of rows. `fingerprint` (63 bits) covers all that decides a
    request's key beside the row itself."""

    fingerprint: int
    task: Task
    sealer: Sealer
    tokenizer: Tokenizer
    samples: int
    max_tokens: int
    limit: int | None
    only: frozenset[int] | None = None  # positions, for a pilot
    structured: bool = False
    reused: tuple["Earlier", ...] = ()

    @property
    def accepted(self) -> tuple[int, ...]:
        """The fingerprints of all settings whose answers count for the stage."""
        return (self.fingerprint, *(earlier.fingerprint for earlier in self.reused))

    @property
    def recorded(self) -> dict[str, Any]:
        """What a run puts down of it beside its settings."""
        return {"plan": self.fingerprint, "reused": [earlier.fingerprint for earlier in self.reused]}

    def seal(self, item: Item) -> tuple[Sequence[Message], bytes, list[bytes]]:
        """(messages, body, keys of the samples) of a row."""
        messages = self.task.build(item)
        wanted = self.task.schema(item) if self.structured and self.task.schema else None
        body, keys = self.sealer.seal(messages, self.samples, wanted)
        return messages, body, keys

    def kept(
        self, item: Item, keys: list[bytes], is_answered: Callable[[bytes], bool]
    ) -> tuple[list[bytes], int]:
        """The keys of a row's samples, where a sample has only an answer under reused settings the key
        of that one; and the fingerprint of the settings that the row belongs to."""
        belongs = self.fingerprint
        for earlier in self.reused:
            if earlier.plan is None or all(map(is_answered, keys)):
                continue
            before = earlier.plan.seal(item)[2]
            pairs = [*zip(keys, before, strict=True)]
            keys = [was if is_answered(was) and not is_answered(now) else now for now, was in pairs]
            if belongs == self.fingerprint and keys != [now for now, _ in pairs]:
                belongs = earlier.fingerprint
        return keys, belongs


@dataclass(frozen=True, slots=True)
class Earlier:
    """Settings of earlier runs whose answers a stage keeps (`--reuse`). `plan` is None where this
    version cannot make their requests any more: then rows are known by their places alone."""

    fingerprint: int
    plan: Plan | None
