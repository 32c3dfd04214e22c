"""What a run folder holds: done, failed by cause, spent, unanswered, utilisation, changed settings."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.collect.other_settings import Other, counting, differences
from store.errors import UsageError
from store.provider_batches import enqueued_count, open_batches_told
from store.queries import connect_reader, endpoint_accounts, last_runs, stage_status, stages
from store.step_records import steps_told


def status_of(run: Path) -> dict[str, Any]:
    """As `status --json` prints it. Raises RunFolderError where there is no ledger."""
    reader = connect_reader(run)
    try:
        reader.execute("BEGIN")
        found: dict[str, Any] = {"stages": {}, "changed": {}, "other_settings": {}}
        found["endpoints"] = endpoint_accounts(reader)
        newest: dict[str, Any] | None = None
        found["batches"] = open_batches_told(reader)
        for number, name in stages(reader):
            found["stages"][name] = stage_status(reader, number)
            found["stages"][name]["unanswered"] -= enqueued_count(reader, number)
            if others := _others(reader, number):
                found["other_settings"][name] = sum(other.rows for other in others)
            runs = last_runs(reader, number, 2)
            if runs and (newest is None or runs[0]["id"] > newest["id"]):
                newest = runs[0]
            known = [run for run in runs if run["settings"]]  # all but those of a damaged ledger
            if len(known) == 2 and (changes := differences(runs[1]["settings"], runs[0]["settings"])):
                found["changed"][name] = changes
    finally:
        reader.close()
    every = found["stages"].values()
    found["spent_usd"] = sum(s["cost_usd"] for s in every)
    found["at_risk_usd"] = sum(s["at_risk_usd"] for s in every)
    found["unanswered"] = sum(s["unanswered"] for s in every)
    used = (newest or {}).get("utilisation") or {}
    found["utilisation"] = {name: used.get(name) for name in ("requests", "tokens")}
    for url, account in found["endpoints"].items():
        account["utilisation"] = used.get("endpoints", {}).get(url, {})
    found["steps"] = steps_told(run)
    found["estimate"] = (newest or {}).get("estimate")
    return found


def _others(reader: sqlite3.Connection, stage: int) -> Sequence[Other]:
    """Answers under other settings; none where a damaged ledger does not know the settings."""
    try:
        return counting(reader, stage).others
    except UsageError:
        return ()
