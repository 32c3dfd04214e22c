"""Why the requests of two runs differ: their settings side by side, as the ledger remembers them."""

import contextlib
from collections.abc import Mapping
from typing import Any

from engine.languages import find_language
from store.errors import UsageError

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
