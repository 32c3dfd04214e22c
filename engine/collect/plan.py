"""How a stage makes requests from rows: task, sampling, fingerprint.

`role` finds a task by name and builds its plan from settings. A plan also knows which other settings'
answers count for the stage (`--reuse`).
"""

import hashlib
import sqlite3
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import ValidationError

from engine.collect.request_key import KEY_VERSION, Sealer, canonical
from engine.collect.setting_fields import TASKS
from engine.collect.settings import Settings
from engine.provider.tokens import Tokenizer
from engine.tasks import compare, generate, judge, score, translate
from engine.tasks.languages import Language, find_language
from engine.tasks.task import Task
from store.errors import UsageError
from store.records import Item, Message


class PromptTokens:
    """Prompt tokens of rows by their first key, in the order of the pool: what the estimate has counted is
    not counted again by the run. 12 bytes a row."""

    AHEAD = 8  # rows that are looked through: others may have been answered since
    MISSES = 64  # after so many in a row they are those of another pool

    def __init__(self) -> None:
        self._heads, self._tokens = array("Q"), array("I")
        self._at = self._misses = 0

    def note(self, key: bytes, tokens: int) -> None:
        self._heads.append(int.from_bytes(key[:8], "big"))
        self._tokens.append(tokens)

    def take(self, key: bytes) -> int | None:
        """What was counted for this key, if it is the next one or soon after."""
        if not self._heads:
            return None
        head = int.from_bytes(key[:8], "big")
        for at in range(self._at, min(self._at + self.AHEAD, len(self._heads))):
            if self._heads[at] == head:
                self._at, self._misses = at + 1, 0
                return self._tokens[at]
        self._misses += 1
        if self._misses > self.MISSES:
            self._heads, self._tokens, self._at = array("Q"), array("I"), 0
        return None


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
    counted: PromptTokens = field(default_factory=PromptTokens, repr=False, compare=False)

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


def role(settings: Settings) -> Task:
    """The task that a stage's settings describe. Raises UsageError."""
    s = settings
    match s.task:
        case generate.NAME:
            return generate.task(s.prompt, s.system)
        case translate.NAME:
            return translate.task(s.prompt, s.system, *translation_of(s))
        case score.NAME:
            return score.task(s.system, s.language, s.structured)
        case compare.NAME:
            return compare.task(s.system, s.language, s.structured)
        case judge.NAME:
            return judge.task(s.prompt, s.system, s.language, s.structured)
    raise UsageError(f"task '{s.task}' is unknown; choose from {', '.join(TASKS)}")


def translation_of(settings: Settings) -> tuple[Language, translate.Field]:
    """Into which language, and which part of the rows. Raises UsageError."""
    return find_language(settings.to or ""), translate.check_field(settings.field or "instruction")


def settings_of_stage(reader: sqlite3.Connection, stage: int) -> Settings:
    """Those of a stage's last run, as the ledger remembers them (without keys). Raises UsageError where the
    ledger is damaged and remembers none."""
    texts = reader.execute("SELECT settings FROM runs WHERE stage = ? ORDER BY id DESC", (stage,))
    for (text,) in texts:
        if (found := settings_in(text)) is not None:
            return found[0]
    raise UsageError(
        f"the settings of stage {stage} are damaged; the next run of the same command writes them again"
    )


def settings_in(text: str) -> tuple[Settings, Mapping[str, Any]] | None:
    """A run's settings and the parameters that it sent, from its row in the ledger; None where they cannot
    be read."""
    try:
        told = orjson.loads(text)
        known = {name: told[name] for name in Settings.model_fields if name in told}
        settings = Settings(**known)
        params = told.get("params")
        role(settings)
        return settings, params if isinstance(params, Mapping) else settings.params()
    except (ValueError, TypeError, AttributeError, UsageError):  # pydantic's errors are ValueErrors
        return None


def plan_of(settings: Settings, tokenizer: Tokenizer, params: Mapping[str, Any] | None = None) -> Plan:
    """How the stage makes requests out of rows. params: those that were sent, of an earlier run."""
    return _plan_of(settings, settings.params() if params is None else params, tokenizer)


def recorded_plan(recorded: Mapping[str, Any], tokenizer: Tokenizer) -> Plan | None:
    """The plan of a run, of its settings as the ledger remembers them, with the parameters that were
    sent then; None where this version can make nothing of them."""
    try:
        return _plan_of(recorded_settings(recorded), recorded["params"], tokenizer)
    except (ValidationError, UsageError, KeyError):
        return None


def recorded_fingerprint(recorded: Mapping[str, Any]) -> int | None:
    """By which the rows of a run are known; runs of older versions did not put it down."""
    if isinstance(known := recorded.get("plan"), int):
        return known
    try:
        settings = recorded_settings(recorded)
        return _fingerprint(settings, recorded["params"], role(settings))
    except (ValidationError, UsageError, KeyError):
        return None


def recorded_settings(recorded: Mapping[str, Any]) -> Settings:
    """Of a run, as the ledger remembers them: without keys."""
    return Settings(**{name: recorded[name] for name in Settings.model_fields if name in recorded})


def _plan_of(settings: Settings, params: Mapping[str, Any], tokenizer: Tokenizer) -> Plan:
    task = role(settings)
    return Plan(
        _fingerprint(settings, params, task),
        task,
        Sealer(settings.model, params),
        tokenizer,
        settings.samples,
        settings.most_output(),
        settings.limit,
        structured=settings.structured,
    )


def _fingerprint(settings: Settings, params: Mapping[str, Any], task: Task) -> int:
    """63 bits over the task's prompts, the model and the parameters: all that a key is made of
    beside the row."""
    decisive = [KEY_VERSION, task.name, *task.decisive, settings.model, canonical(params)]
    decisive += ["structured"] * settings.structured
    digest = hashlib.sha256(orjson.dumps(decisive, option=orjson.OPT_SORT_KEYS)).digest()
    return int.from_bytes(digest[:8], "big") >> 1
