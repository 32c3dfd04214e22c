"""Whether stages and steps of a recipe are complete: they have all that they take their rows from.

A stage is complete when what its rows are made of is, and a run of it would ask nothing: rows that
have failed for good do not count, all others are pending. A step is complete when what it needs is,
and what it has left came of just that. Reads the ledger and the pools, asks nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.collect.rows import Gone
from engine.recipe.stages import Graph
from engine.recipe.step_runner import is_as_recorded
from engine.recipe.steps import Step
from engine.run.build import StageJob
from store.key_index import ANSWERED, DUE, KeyIndex, Known
from store.queries import Page, has_row, placed_page
from store.records import BadRow
from store.stage_rows import stage_number
from store.step_records import is_whole, record_of

PAGE = 4096


@dataclass(frozen=True, slots=True)
class Lack:
    """What keeps a stage or step from being complete: the first one, from the pools on, that is not."""

    name: str
    words: str


class Completeness:
    """Of a recipe in a run folder, as it is now; what was found is kept."""

    def __init__(self, graph: Graph, steps: Mapping[str, Step], run: Path, index: KeyIndex) -> None:
        self._graph, self._steps, self._run, self._index = graph, steps, run, index
        self._found: dict[str, Lack | None] = {}

    def lack(self, name: str) -> Lack | None:
        """None where a stage or step is complete."""
        if name not in self._found:
            above = (found for one in self._sources(name) if (found := self.lack(one)))
            self._found[name] = next(above, None) or self._own(name)
        return self._found[name]

    def _sources(self, name: str) -> list[str]:
        """What it takes its rows from. (A stage's teacher brings none.)"""
        recipe = self._graph.given
        if name in recipe.step:
            return [*recipe.step[name].needs]
        return [*recipe.upstream(name), *recipe.made(name)]

    def _own(self, name: str) -> Lack | None:
        if name in self._steps:
            step, record = self._steps[name], record_of(self._run, name)
            if not is_whole(self._run, record):
                return Lack(name, f"step '{name}' has not come to its end")
            if not step.is_last and not is_as_recorded(self._graph.given, step, self._run, record):
                return Lack(name, f"step '{name}' was run with another command or on other data than now")
            return None
        known = Known(self._run, self._index)
        try:
            number = stage_number(known.reader, name)
            if number is None:
                return Lack(name, f"stage '{name}' has not run")
            pending, rows = _Census(known, number, self._graph.job(name, asks=False)).count()
        finally:
            known.close()
        return Lack(name, pending_words(name, pending, rows)) if pending else None


def pending_words(name: str, pending: int, rows: int) -> str:
    are = "row is" if rows == 1 else "rows are"
    return f"stage '{name}' is incomplete: {pending:,} of {rows:,} {are} pending"


class _Census:
    """Counts the rows of a stage that a run would do something about."""

    def __init__(self, known: Known, stage: int, job: StageJob) -> None:
        self._known, self._stage, self._job = known, stage, job
        self._page: Page = ({}, [])
        self._start = -PAGE

    def count(self) -> tuple[int, int]:
        """(pending, all)"""
        rows = pending = 0
        limit = self._job.plan.limit
        for row in self._job.rows.placed(self._known.reader):
            if isinstance(row, tuple):
                if limit is not None and rows >= limit:
                    break
                rows += 1
                pending += self._is_pending(row[0], self._job.plan.task.encode(row[1]))
            elif isinstance(row, Gone):
                pending += has_row(self._known.reader, self._stage, row.position)
            elif not isinstance(row, BadRow):  # nothing more will come
                break
        return pending, max(rows, pending)

    def _is_pending(self, position: int, item: bytes) -> bool:
        """Whether it does not stand in its place, or a sample of it has neither an answer nor failed."""
        if not self._start <= position < self._start + PAGE:
            self._turn_to(position - position % PAGE)
        items, requests = self._page
        there = items.get(position)
        if there is None or there[0] != item:
            return True
        numbers = [one.get(position) for one in requests]
        states = [DUE if number is None else self._known.index.state(number) for number in numbers]
        is_kept = there[1] != self._job.plan.fingerprint  # of settings of which only answers count
        return any(state == DUE or (is_kept and state != ANSWERED) for state in states)

    def _turn_to(self, start: int) -> None:
        plan, self._start = self._job.plan, start
        where = (start, start + PAGE)
        self._page = placed_page(self._known.reader, self._stage, plan.accepted, plan.samples, *where)
