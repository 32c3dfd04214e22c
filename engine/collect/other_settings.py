"""Answers that a stage has under other settings: how many, what differs, what to do.

A row belongs to the settings under which it was placed (`rows.plan`, a fingerprint). Each run stores its
settings, so the difference can be named. Answers to another prompt are another data set. Before anything is
paid the user decides whether they are kept (`--reuse`), asked again (`--replace`) or left alone (another
`--stage`). What a run has kept, later runs with the same settings keep too, and so does `export`.
"""

import contextlib
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.collect.plan import (
    Earlier,
    Plan,
    recorded_fingerprint,
    recorded_plan,
    recorded_settings,
    settings_of_stage,
)
from engine.collect.settings import Settings
from engine.provider.tokens import tokenizer_for
from engine.tasks.languages import find_language
from engine.terminal import plain, tell
from store.errors import UsageError
from store.files import LEDGER
from store.key_index import KeyIndex, load_index
from store.queries import connect_reader
from store.stage_rows import (
    answered_by_plan,
    answered_row,
    items_of,
    rows_by_plan,
    settings_of_runs,
    stage_number,
)

# What decides a request's key beside the row; nothing else in the settings can change one.
KEYED = ("model", "system", "prompt", "params", "task", "to", "field", "language", "structured")
USUAL = {  # where nothing is said
    "prompt": "the task's own", "field": "instruction", "language": "English", "structured": False,
}  # fmt: skip
JUDGING = ("score", "judge", "compare")
ONLY_FOR = {"to": ("translate",), "field": ("translate",), "language": JUDGING}
SHOWN = 60  # characters of a value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Why the keys of a run differ from an earlier one's: `temperature: 1.0 -> 0.7`."""
    changes = []
    for name in KEYED:
        if name == "params":
            a, b = old.get(name) or {}, new.get(name) or {}
            changes += [_change(k, a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
        elif (before := value_of(old, name)) != (now := value_of(new, name)):
            changes.append(_change(name, before, now))
    return changes


def value_of(settings: Mapping[str, Any], name: str) -> object:
    """What a setting comes to, whether it was said or not; None where it does not matter."""
    value = settings.get(name)
    if settings.get("task") not in ONLY_FOR.get(name, (settings.get("task"),)):
        return None
    if value is None:
        return USUAL.get(name)
    if name == "to":
        with contextlib.suppress(UsageError):
            return find_language(value).name  # `zh` and `Chinese` are the same request
    return value


def _change(name: str, old: object, new: object) -> str:
    return f"{name}: {_short(old)} -> {_short(new)}"


def _short(value: object) -> str:
    text = "not sent" if value is None else " ".join(str(value).split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


IMPORTED = "imported"  # marks the settings of an import
Recorded = Mapping[str, Any]  # the settings of a run, as the ledger remembers them


@dataclass(frozen=True, slots=True)
class Other:
    """Rows that have an answer under other settings. `changes`: what differs in the run's; empty where
    the ledger does not tell. can_be_kept: they answer the same question."""

    plan: int
    rows: int
    changes: tuple[str, ...]
    can_be_kept: bool = True

    @property
    def why(self) -> str:
        return plain("; ".join(self.changes), 300) or "the ledger does not say which"


@dataclass(frozen=True, slots=True)
class Standing:
    """A stage as a run finds it. `plan`: the run's, with the settings whose answers it keeps. `rows`:
    that the stage has; `others`: of these with an answer under settings that the run does not keep."""

    plan: Plan
    rows: int = 0
    others: tuple[Other, ...] = ()

    def as_json(self) -> dict[str, Any] | None:
        """As `estimate --json` prints it."""
        if not self.others:
            return None
        rows = sum(other.rows for other in self.others)
        return {"rows": rows, "of": self.rows, "changes": [[*other.changes] for other in self.others]}

    @property
    def words(self) -> str:
        return other_words(self.others, self.rows)


def other_words(others: Sequence[Other], rows: int) -> str:
    """`20,000 of 20,000 rows already have an answer under other settings (temperature: 1.0 -> 0.7)`"""
    count = sum(other.rows for other in others)
    whys = [other.why if len(others) == 1 else f"{other.rows:,} with {other.why}" for other in others]
    have = "row already has" if rows == 1 else "rows already have"
    return f"{count:,} of {rows:,} {have} an answer under other settings ({', '.join(whys)})"


def standing(run: Path | None, settings: Settings, plan: Plan) -> Standing:
    """What the ledger has of a stage, for a run with these settings. Raises UsageError where `--reuse`
    cannot be."""
    if run is None or not (run / LEDGER).exists():
        return Standing(plan)
    reader = connect_reader(run)
    try:
        number = stage_number(reader, settings.stage)
        return Standing(plan) if number is None else _standing(reader, number, settings, plan)
    finally:
        reader.close()


def settled(
    found: Standing, settings: Settings, confirm: Callable[[str], bool] | None, quiet: bool = False
) -> Plan:
    """The plan to run, when the user has said what becomes of answers under other settings. confirm: None
    where nobody can be asked. Raises UsageError with the choices."""
    if not found.others:
        return found.plan
    where = f"stage '{plain(settings.stage, 40)}': {found.words}"
    if settings.replace:
        if not quiet:
            tell(f"{where}; they are asked again\n")
        return found.plan
    if confirm and sys.stdin.isatty() and confirm(f"{where}. Ask them again under the new settings?"):
        return found.plan
    raise UsageError(
        f"{where}: --reuse keeps these answers and asks only rows without one, --replace asks them again "
        "under the new settings, --stage NAME collects into another stage"
    )


def kept_by(reader: sqlite3.Connection, stage: int, plan: Plan) -> Plan:
    """The plan with the settings whose answers earlier runs under it have kept."""
    recorded = _by_plan(reader, stage)
    return _keeping(plan, recorded.get(plan.fingerprint, {}).get("reused", ()), recorded)


def _standing(reader: sqlite3.Connection, number: int, settings: Settings, plan: Plan) -> Standing:
    rows = rows_by_plan(reader, number)
    recorded = _by_plan(reader, number)
    before = recorded.get(plan.fingerprint, {}).get("reused", ())
    kept = [] if settings.replace else [*before]
    strange = [one for one in rows if one != plan.fingerprint and one not in kept]
    counts = answered_by_plan(reader, number, strange)
    strange = [one for one in counts if not _asks_the_same(reader, number, one, plan)]
    if strange and plan.fingerprint in recorded and settings.limit is None:
        strange = [] if _has_answers_to_all(reader, number, strange, plan) else strange
    others = [_other(one, counts[one], recorded.get(one), settings.public()) for one in strange]
    others += _in_another_order(reader, number, settings, plan)
    if settings.reuse:
        _check_kept(settings, others)
        return Standing(_keeping(plan, [*kept, *strange], recorded), sum(rows.values()))
    return Standing(_keeping(plan, kept, recorded), sum(rows.values()), tuple(others))


@dataclass(frozen=True, slots=True)
class Counting:
    """The settings that a stage's data set is made of: of the newest run that has rows there. `plans`:
    theirs, with those whose answers it keeps; `rows` have an answer under these, `others` under others
    (counted where there are several). `kept`: of `rows` those that are answered under other settings."""

    settings: Settings
    plans: tuple[int, ...]
    rows: int = 0
    others: tuple[Other, ...] = ()
    kept: tuple[Other, ...] = ()


def counting(reader: sqlite3.Connection, stage: int) -> Counting:
    """What an export takes of a stage. Raises UsageError where the ledger is damaged, and remembers no
    settings of it."""
    rows = rows_by_plan(reader, stage)
    settings_of_stage(reader, stage)
    newest = ran = next(settings_of_runs(reader, stage))
    for ran in settings_of_runs(reader, stage):
        if recorded_fingerprint(ran) in rows:
            break
    else:  # an older version's fingerprints
        ran = newest
    settings, chosen = recorded_settings(ran), recorded_fingerprint(ran)
    if len(rows) < 2:
        return Counting(settings, tuple(rows))
    if chosen not in rows:
        chosen = max(rows, key=rows.__getitem__)
    kept = [chosen, *ran.get("reused", ())]
    counts = answered_by_plan(reader, stage, [*rows])
    plan = recorded_plan(ran, tokenizer_for(settings.model))
    strange = [one for one in counts if one not in kept]
    kept += [one for one in strange if plan and _asks_the_same(reader, stage, one, plan)]
    recorded = _by_plan(reader, stage)
    others = [_other(one, counts[one], recorded.get(one), ran) for one in strange if one not in kept]
    reused = [
        _other(one, counts[one], recorded.get(one), ran) for one in ran.get("reused", ()) if counts.get(one)
    ]
    taken = sum(counts[n] for n in counts if n in kept)
    return Counting(settings, tuple(kept), taken, tuple(others), tuple(reused))


def _by_plan(reader: sqlite3.Connection, stage: int) -> dict[int, Recorded]:
    """For each plan the settings of the newest run under it (of imports, where nothing else ran)."""
    found: dict[int, Recorded] = {}
    imports: dict[int, Recorded] = {}
    for recorded in settings_of_runs(reader, stage):
        into = imports if recorded.get(IMPORTED) else found
        if (plan := recorded_fingerprint(recorded)) is not None:
            into.setdefault(plan, recorded)
    return imports | found


def _keeping(plan: Plan, kept: Sequence[int], recorded: Mapping[int, Recorded]) -> Plan:
    """The plan with further settings whose answers count for it."""
    reused = []
    for fingerprint in dict.fromkeys(kept):
        settings = recorded.get(fingerprint)
        before = recorded_plan(settings, plan.tokenizer) if settings else None
        if before is None or before.fingerprint != fingerprint:
            reused.append(Earlier(fingerprint, None))
        else:
            reused.append(Earlier(fingerprint, replace(before, samples=plan.samples)))
    return replace(plan, reused=tuple(reused))


def _asks_the_same(reader: sqlite3.Connection, stage: int, other: int, plan: Plan) -> bool:
    """Whether a plan differs in its fingerprint alone, as another version may have made it."""
    row = answered_row(reader, stage, other)
    if row is None:
        return True
    item, sample, key = row
    try:
        keys = replace(plan, samples=sample + 1).seal(plan.task.decode(item))[2]
    except (KeyError, TypeError):  # a row of another task
        return False
    return keys[sample] == key


def _has_answers_to_all(reader: sqlite3.Connection, stage: int, plans: Sequence[int], plan: Plan) -> bool:
    """Whether the rows under these plans have answers to the run's settings as well: who goes back to
    settings that are answered already asks nothing and mixes nothing."""
    index = KeyIndex()
    load_index(reader, index)
    for item in items_of(reader, stage, plans):
        try:
            keys = plan.seal(plan.task.decode(item))[2]
        except (KeyError, TypeError):  # a row of another task
            return False
        if not all(map(index.has_answer, keys)):
            return False
    return True


def _other(plan: int, rows: int, recorded: Recorded | None, now: Recorded) -> Other:
    """Rows under a plan, with the settings of its run beside those of another."""
    if recorded is None:
        return Other(plan, rows, ())
    changes = differences(recorded, now) or ["prompts of another version of distill"]
    asks_the_same = all(value_of(recorded, name) == value_of(now, name) for name in ("task", "field"))
    return Other(plan, rows, tuple(changes), asks_the_same)


def _in_another_order(
    reader: sqlite3.Connection, stage: int, settings: Settings, plan: Plan
) -> Sequence[Other]:
    """Scores show the answers in an order that is drawn with the seed: another seed is another question."""
    newest = next(settings_of_runs(reader, stage), {})
    before = newest.get("seed")
    if settings.task != "score" or newest.get("task") != "score" or before in (None, settings.seed):
        return ()
    count = answered_by_plan(reader, stage, [plan.fingerprint]).get(plan.fingerprint, 0)
    change = f"seed: {before} -> {settings.seed}"
    return [Other(plan.fingerprint, count, (change,), can_be_kept=False)] if count else ()


def _check_kept(settings: Settings, others: Sequence[Other]) -> None:
    for other in others:
        if not other.can_be_kept:
            words = f"stage '{plain(settings.stage, 40)}' has answers to another question ({other.why})"
            raise UsageError(f"--reuse: {words}: take the setting back, or use --replace or another --stage")
