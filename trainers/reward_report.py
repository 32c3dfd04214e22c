"""A reward model measured on comparisons: each answer scored once, then the figures. `evaluate reward`."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from trainers.comparisons import Group, read_groups
from trainers.preferences import Judged, report_on, share, words
from trainers.progress import Display
from trainers.scoring import Readable, Scorer, scored


def run_evaluation(reward: Path, data: Path, limit: int | None, json: bool, quiet: bool) -> int:
    """Prints the report. Raises UsageError, PoolError."""
    groups, read = read_groups(data, limit)
    with Display(quiet) as display:
        if read.bad:
            display.say(f"{read.bad:,} rows are unusable: {'; '.join(read.bad_shown)}")
        if read.both_ways:
            display.say(f"{read.both_ways:,} pairs are given both ways and left out")
        scorer = Scorer(reward)
        report = measured_on(scorer, groups, display)
        if scorer.marked:
            display.say(f"{scorer.marked:,} answers {scorer.read_as_text}")
    report |= {"bad_rows": read.bad, "ties": read.ties, "equal_answers": read.equal}
    report["both_ways"] = read.both_ways
    text = orjson.dumps(report).decode() if json else "\n".join(shown(report))
    sys.stdout.write(text + "\n")
    return 0


def measured_on(scorer: Scorer, groups: Sequence[Group], display: Display) -> dict[str, Any]:
    """The figures on all pairs of these groups."""
    questions = [(group.prompt, answer) for group in groups for answer in group.answers]
    answers = [scorer.readable(question) for question in questions]
    rewards = np.zeros(len(answers))
    done = 0
    for places, values in scored(scorer, answers):
        rewards[places] = values
        display.scored(done := done + len(places), len(answers))
    short = sum(answer.short for answer in answers)
    counted = {"answers": len(answers), "cut": short, "alike": _alike(groups, answers)}
    return report_on(judged(groups, rewards)) | counted


def _alike(groups: Sequence[Group], answers: Sequence[Readable]) -> int:
    """Pairs whose answers read the same, most often since both were cut: half right, whatever the model."""
    found = first = 0
    for group in groups:
        found += sum(answers[first + b].tokens == answers[first + w].tokens for b, w in group.pairs)
        first += len(group.answers)
    return found


def judged(groups: Sequence[Group], rewards: Any) -> Judged:
    """rewards: of all answers, group by group."""
    found: list[tuple[float, float, int, int, int]] = []
    first = 0
    for number, group in enumerate(groups):
        for (better, worse), margin in group.pairs.items():
            gap = rewards[first + better] - rewards[first + worse]
            lengths = len(group.answers[better]), len(group.answers[worse])
            found.append((gap, math.nan if margin is None else margin, *lengths, number))
        first += len(group.answers)
    gaps, margins, better_lengths, worse_lengths, prompts = np.array(found, np.float64).reshape(-1, 5).T
    return Judged(gaps, margins, better_lengths, worse_lengths, prompts.astype(np.int64))


def shown(report: dict[str, Any]) -> list[str]:
    """For people: sentences and three small tables."""
    told = [*words(report)]
    if report["cut"]:
        told.append(f"{report['cut']:,} of {report['answers']:,} answers were too long and read in part.")
    if report["alike"]:
        told.append(f"{report['alike']:,} pairs read the same within the model's length: half right.")
    for heading, rows in (("margin", report["by_margin"]), ("length", report["by_length"])):
        told += ["", f"{'by ' + heading:<40} pairs  accuracy  (95 %)            longer wins"]
        told += [_row(bucket) for bucket in rows if bucket["pairs"]]
    found = report["calibration"]
    told += ["", f"calibration of σ(Δr): Brier {found['brier']:.3f} (0.25: no idea), ECE {found['ece']:.3f}"]
    told += [
        f"  says {share(b['confidence'])}, is right {share(b['accuracy'])} ({b['pairs']:,} pairs)"
        for b in found["bins"]
        if b["pairs"]
    ]
    return told


def _row(bucket: dict[str, Any]) -> str:
    span = f"({share(bucket['low'])} to {share(bucket['high'])})"
    return (
        f"  {bucket['of']:<38} {bucket['pairs']:>5}  {share(bucket['accuracy']):>8}  {span:<18}"
        f"  {share(bucket['length_baseline'])}"
    )
