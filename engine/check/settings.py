"""Settings of runs that are damaged: found again where one bit is wrong, else made up from their stage.

The rows of a stage carry a fingerprint of all that decided their requests. Settings that have it are those
that were written, so that a wrong bit can be found by trying.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

import orjson

from engine.collect.plan import plan_of, settings_in
from engine.provider.tokens import Tokenizer
from store.schema import STAGE_SHIFT

MADE_UP = "settings of runs made up from their stage (prompt, system message and parameters are lost)"
MOST_TRIED = 64 << 10  # bytes of settings; a system prompt may be long, but not that long


def is_json(text: str | bytes | bytearray) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except ValueError:
        return False


def mend_settings(
    connection: sqlite3.Connection, log: Callable[[Mapping[str, Any]], None], done: Counter[str]
) -> None:
    """Settings, estimates and utilisations of runs that are no JSON any more."""
    runs = connection.execute("SELECT id, stage, CAST(settings AS BLOB), estimate, utilisation FROM runs")
    for run, stage, raw, *texts in runs.fetchall():
        for name, text in zip(("estimate", "utilisation"), texts, strict=True):
            if text is not None and not is_json(text):
                connection.execute(f"UPDATE runs SET {name} = NULL WHERE id = ?", (run,))
                done["estimates and utilisations dropped"] += 1
        if is_json(raw):
            continue
        log({"what": "settings", "run": run, "was": raw.decode(errors="backslashreplace")})
        if (found := _with_one_bit_right(connection, stage, raw)) is not None:
            done["settings of runs restored"] += 1
        else:
            found = orjson.dumps(_of_stage(connection, stage)).decode()
            done[MADE_UP] += 1
        connection.execute("UPDATE runs SET settings = ? WHERE id = ?", (found, run))


def _with_one_bit_right(connection: sqlite3.Connection, stage: int, raw: bytes) -> str | None:
    first, last = stage << STAGE_SHIFT, (stage + 1) << STAGE_SHIFT
    rows = connection.execute("SELECT DISTINCT plan FROM rows WHERE id >= ? AND id < ?", (first, last))
    plans = {plan for (plan,) in rows}
    if not plans or len(raw) > MOST_TRIED:
        return None
    tried = bytearray(raw)
    for place in range(8 * len(raw)):
        tried[place // 8] ^= 1 << place % 8
        if is_json(tried) and _fingerprint(tried.decode()) in plans:
            return tried.decode()
        tried[place // 8] ^= 1 << place % 8
    return None


def _fingerprint(text: str) -> int | None:
    if (found := settings_in(text)) is None:
        return None
    settings, params = found
    return plan_of(settings, cast(Tokenizer, None), params).fingerprint  # nothing is counted here


def _of_stage(connection: sqlite3.Connection, stage: int) -> dict[str, Any]:
    """The least that a stage can be exported with."""
    told = connection.execute("SELECT name, task, samples FROM stages WHERE id = ?", (stage,)).fetchone()
    name, task, samples = told or (f"stage-{stage}", "generate", 1)
    model = connection.execute(
        "SELECT p.model FROM responses p JOIN attempts t ON t.id = p.attempt JOIN runs u ON u.id = t.run "
        "WHERE u.stage = ? AND p.model <> '' LIMIT 1",
        (stage,),
    ).fetchone()
    return {
        "stage": name,
        "task": task,
        "samples": max(1, samples),
        "model": model[0] if model else "unknown",
    }
