"""Reads what the judges of a run said: its `judge` and `compare` stages, from the stored raw replies.

They are read here and now: a better reader than the one of the run costs nothing.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.answers import clean
from engine.collect.other_settings import Counting, counting
from engine.collect.plan import role
from engine.provider.responses import answer_of
from engine.tasks.datasets import by_file, verdict
from engine.tasks.multi_answer import question
from engine.terminal import plain, tell
from evaluators.judge.judgements import Judgement, won
from evaluators.judge.reviews import ReviewSource
from store.damage import Damages, words_of
from store.datasets import Stored, stored
from store.errors import UsageError
from store.queries import connect_reader, stage_status, stages
from store.records import Contest

JUDGING = ("judge", "compare")
READABLE = ("stop", "length")  # a reply that was cut may have said its scores before


def read_run(run: Path, names: list[str], judge: str | None = None) -> list[ReviewSource]:
    """A source for each stage, in the order of `names`, or every stage in which somebody judged. `judge`:
    instead of the model's name. Raises UsageError, RunFolderError."""
    reader = connect_reader(run)
    try:
        there = {name: (number, counting(reader, number)) for number, name in stages(reader)}
        judged = [name for name, (_, counted) in there.items() if counted.settings.task in JUDGING]
        for name in names:
            if name not in judged:
                raise UsageError(f"{run}: nobody judged in a stage '{name}'; {_told(judged)}")
        if not judged:
            raise UsageError(f"{run}: nobody judged in it; its stages are: {', '.join(there) or 'none yet'}")
        return [_source(reader, run, name, *there[name], judge) for name in names or judged]
    finally:
        reader.close()


def _told(judged: list[str]) -> str:
    return f"stages with judges are: {', '.join(judged)}" if judged else "no stage of it has a judge"


def _source(
    reader: sqlite3.Connection, run: Path, name: str, number: int, counted: Counting, judge: str | None
) -> ReviewSource:
    damages = Damages(name)
    found = list(_judgements(reader, number, counted, judge or counted.settings.model, damages))
    if words := words_of([damages], run):
        tell(f"distill: {plain(words, 1000)}\n")
    total = stage_status(reader, number)["total"]
    return ReviewSource(name, found, unanswered=max(0, (total or 0) - len(found)))


def _judgements(
    reader: sqlite3.Connection, number: int, counted: Counting, judge: str, damages: Damages
) -> Iterator[Judgement]:
    """Of one setting: judgements after two prompts are two measurements."""
    task = role(counted.settings)
    for row in stored(reader, number, READABLE, unparsed=True, plans=counted.plans, damages=damages):
        try:
            contest, text = task.decode(row.item), clean(answer_of(row.raw)[0])
        except Exception:  # of an older version's body, which has no checksum, or of a damaged row
            damages.add(row.position, "it cannot be read", row.item.get("id"))
            continue
        if isinstance(contest, Contest):
            yield _judgement(contest, task.record(contest, text), text, row, judge, damages.stage)


def _judgement(contest: Contest, record: Any, text: str, row: Stored, judge: str, stage: str) -> Judgement:
    preferred = isinstance(record, str)
    said = verdict(contest, None if preferred else record, text)
    (_, answer_a, _), (_, answer_b, _) = by_file(contest, (0.0, 0.0))
    return Judgement(
        question=contest.id,
        a=said.first,
        b=said.second,
        judge=judge,
        score_a=said.score_first,
        score_b=said.score_second,
        win=_preferred(record, contest.order) if preferred else _won(said.score_first, said.score_second),
        a_first=contest.order[0] < contest.order[1],
        category=contest.category,
        prompt=question(contest),
        lengths=(len(answer_a), len(answer_b)),
        reason=text,
        source=stage,
        line=row.position,
    )


def _won(score_a: float | None, score_b: float | None) -> float | None:
    return None if score_a is None or score_b is None else won(score_a, score_b)


def _preferred(preference: str, order: tuple[int, ...]) -> float:
    """What the file that was named first has of it."""
    if preference == "tie":
        return 0.5
    return float(order[0 if preference == "first" else 1] == min(order))
