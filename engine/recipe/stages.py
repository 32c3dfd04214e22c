"""A checked recipe as stages that run together: settings, rows, estimates.

A stage that reads files stands for itself. One that reads other stages gets its rows as their
answers come (upstream.py), and is estimated from the answers that are there and imagined ones
(`Expected`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from engine.collect.other_settings import Standing, standing
from engine.collect.plan import Plan, plan_of, role
from engine.collect.rows import Members, Numbered, Rows, Surveyed, contests_of, pool_of
from engine.collect.setting_fields import (
    DEFAULTS,
    POOLED,
    ModelTraits,
    Quota,
    StageSettings,
    Timeouts,
)
from engine.collect.settings import Server, Settings
from engine.collect.upstream import PAGE, USABLE, StageRows, Upstream, UpstreamRecord, answers_at
from engine.environment import default_url, server_values, text_of_file
from engine.provider.pricing import is_loopback
from engine.provider.tokens import tokenizer_for
from engine.recipe.load import RANKED
from engine.recipe.schema import EndpointTable, OfStep, Path_, Recipe
from engine.recipe.steps import placed
from engine.run.job import StageJob
from store.errors import UsageError
from store.files import LEDGER
from store.queries import connect_reader
from store.records import BadRow, Item, Outcome
from store.stage_rows import stage_number

MARK = 10  # hexadecimal digits: of a million rows no two are alike but for one time in two


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A stage that rows are made of. `sample`: which of its answers."""

    upstream: Upstream
    plan: Plan
    rows: Surveyed
    run: Path
    sample: int = 0

    def records(self) -> Iterator[Any]:
        """What comes of each of its rows, by position; None where nothing usable will come."""
        reader = connect_reader(self.run) if (self.run / LEDGER).exists() else None
        number = stage_number(reader, self.upstream.stage) if reader else None
        if isinstance(self.rows, Expected):
            every = self.rows.by_position()
        else:
            every = (item for item in self.rows if not isinstance(item, BadRow))
        items, start = islice(every, self.upstream.limit), 0
        once = replace(self.plan, samples=self.sample + 1)
        try:
            while page := list(islice(items, PAGE)):
                there: dict[int, UpstreamRecord] = {}
                if reader and number is not None:
                    places = range(start, start + len(page))
                    there = answers_at(reader, number, self.upstream, places, self.sample, self.plan.accepted)
                for position, item in enumerate(page, start):
                    stored = there.get(position)
                    if item is None:
                        yield None
                    elif stored and not stored.is_waiting and stored.item == self.plan.task.encode(item):
                        yield stored.record
                    else:
                        (*_, key) = once.seal(item)[2]
                        yield self.plan.task.imagined(item, key.hex()[:MARK])
                start += len(page)
        finally:
            if reader:
                reader.close()


class Expected:
    """What a stage will be asked. `make`, `each` and `limit` as for StageRows."""

    is_stream = False

    def __init__(
        self,
        above: Sequence[Foreseen],
        make: Callable[[Sequence[Any]], Sequence[Item]],
        each: int = 1,
        limit: int | None = None,
    ) -> None:
        self._above, self._make, self._each, self._limit = above, make, each, limit
        self.source = "answers to " + " + ".join(one.rows.source for one in above)

    @property
    def fraction(self) -> float:
        return self._above[0].rows.fraction

    def __iter__(self) -> Iterator[Item | BadRow]:
        return (item for item in self.by_position() if item is not None)

    def by_position(self) -> Iterator[Item | None]:
        return islice(self._made(), self._limit)

    def _made(self) -> Iterator[Item | None]:
        for records in zip(*(one.records() for one in self._above), strict=False):  # (limits may differ)
            made = self._make(records) if any(record is not None for record in records) else []
            yield from made
            yield from [None] * (self._each - len(made))


Served = Mapping[str, tuple[str, str]]  # teacher -> (address, model) of what the recipe serves itself


class Graph:
    """The settings and rows of a recipe's stages in a run folder; `served` tells of its own teachers.
    replaced: stages whose answers under other settings are to be asked again. incomplete: stages that
    do not run now and still have rows to come."""

    def __init__(self, recipe: Recipe, run: Path, served: Served, replaced: Collection[str] = ()) -> None:
        self.given, self.recipe, self.run = recipe, placed(recipe, run), run
        self.settings = {name: _settings(self.recipe, name, served) for name in recipe.order}
        for name in replaced:
            self.settings[name] = self.settings[name].model_copy(update={"replace": True})
        self.incomplete: set[str] = set()
        self._standing: dict[str, Standing] = {}

    def job(self, name: str, asks: bool = True) -> StageJob:
        """A stage, ready to run, or, if it asks nobody, to be looked at: that needs no key. Raises
        UsageError naming the line of what cannot work."""
        settings, table = self.settings[name], self.recipe.stage[name]
        capped = settings.model_copy(update={} if table.budget is None else {"budget": table.budget})
        if asks:
            teacher = self.recipe.teacher[table.teacher]
            places: list[Path_] = [
                ("teacher", table.teacher, "endpoint", n) for n in range(len(teacher.endpoint))
            ]
            tables: list[EndpointTable] = [*teacher.endpoint]
            if len(tables) < len(settings.servers()):
                places.insert(0, ("teacher", table.teacher))
                tables.insert(0, teacher)
            for place, one, server in zip(places, tables, settings.servers(), strict=True):
                is_named = "api_key_env" in one.model_fields_set  # then it is meant, on loopback too
                if server.api_key is None and (is_named or not is_loopback(server.base_url)):
                    words = f"no API key for {server.base_url}: {one.api_key_env} is not set"
                    raise self.recipe.wrong((*place, "api_key_env"), words)
        try:
            capped.check(settings.price(), needs_keys=False)
            plan = self.standing(name).plan
            rows = self._rows(name)
        except UsageError as error:
            raise self.recipe.wrong(("stage", name), str(error)) from None
        above = self.recipe.upstream(name)
        lacking = tuple(one for one in above if one in self.incomplete)
        return StageJob(settings, plan, rows, None, above, table.budget, lacking)

    def standing(self, name: str) -> Standing:
        """What the run folder has of a stage."""
        if name not in self._standing:
            settings = self.settings[name]
            plan = plan_of(settings, tokenizer_for(settings.model))
            self._standing[name] = standing(self.run, settings, plan)
        return self._standing[name]

    def expected(self, name: str) -> Surveyed:
        """The rows of a stage for its estimate: of its files, or of answers, imagined where there are
        none yet."""
        if not self.recipe.upstream(name):
            return self._files(name)
        members, above = self._members(name), []
        make, each = (members.contests, members.each) if members else (_as_they_are, 1)
        inputs = zip(self.given.stage[name].inputs, self.recipe.stage[name].inputs, strict=True)
        for given, one in inputs:
            if (source := str(one)) in self.recipe.stage:
                # The n-th file of a ranking holds one of a row's answers as good as the n-th sample
                rank = RANKED.fullmatch(given.file or "") if isinstance(given, OfStep) else None
                sample = int(rank[1]) - 1 if rank else 0
                upstream, plan = self._upstream(source, name), self.standing(source).plan
                above.append(Foreseen(upstream, plan, self.expected(source), self.run, sample))
        return Expected(above, make, each, self.settings[name].limit)

    def _rows(self, name: str) -> Rows:
        if not self.recipe.upstream(name):
            return Numbered(self._files(name))
        above = [self._upstream(one, name) for one in self.recipe.upstream(name)]
        limit, members = self.settings[name].limit, self._members(name)
        if members is None:
            return StageRows(above, _as_they_are, 1, limit)
        return StageRows(above, members.contests, members.each, limit, members.bad_rows)

    def _files(self, name: str) -> Surveyed:
        stage, settings, path = self.recipe.stage[name], self.settings[name], self.recipe.path
        if stage.task in POOLED:
            assert stage.pool is not None
            return pool_of(settings, path(stage.pool))
        questions = path(stage.questions) if stage.questions else None
        return contests_of(settings, [path(member) for member in stage.named], questions)

    def _members(self, name: str) -> Members | None:
        """How the records of the stages before become contests; None where they are rows as they are."""
        stage = self.recipe.stage[name]
        if stage.task in POOLED:
            return None
        stages = [place for place, member in enumerate(stage.named) if member in self.recipe.stage]
        members = [m if m in self.recipe.stage else self.recipe.path(m) for m in stage.named]
        return Members(self.settings[name], members, stages)

    def _upstream(self, name: str, reader: str) -> Upstream:
        """What a stage takes from another. Models' answers are compared as they are: an empty one too is
        an answer, and often the worst."""
        task, is_whole = role(self.settings[name]), name not in self.incomplete
        compares = self.recipe.stage[reader].task not in POOLED
        outcomes: tuple[Outcome, ...] = (*USABLE, "empty") if compares else USABLE

        def read(row: Mapping[str, Any], text: str) -> Any:
            return task.record(task.decode(row), text)

        return Upstream(name, read, outcomes, is_whole, self._limit_of(name))

    def _limit_of(self, name: str) -> int | None:
        """Of its own, or of the stages that its rows are made of."""
        limits = [self.settings[name].limit, *(self._limit_of(one) for one in self.recipe.upstream(name))]
        return min((limit for limit in limits if limit is not None), default=None)


def _as_they_are(records: Sequence[Any]) -> Sequence[Item]:
    return [record for record in records if record is not None]


def _settings(recipe: Recipe, name: str, served: Served) -> Settings:
    stage = recipe.stage[name]
    teacher = recipe.teacher[stage.teacher]
    url, model = served.get(stage.teacher, (teacher.base_url, teacher.model))
    given = {key: getattr(stage, key) for key in StageSettings.model_fields}
    for key in ModelTraits.model_fields:
        given[key] = getattr(teacher, key) if getattr(stage, key) is None else getattr(stage, key)
    for key, usual in DEFAULTS[stage.task].items():
        given[key] = usual if getattr(stage, key) is None else getattr(stage, key)
    # the teacher's own address, if it has one, then its endpoints
    tables: list[EndpointTable] = list(teacher.endpoint)
    if url is not None or not tables:
        tables.insert(0, teacher.model_copy(update={"base_url": url}))
    servers = []
    try:
        for one in tables:
            address = server_values(one.base_url or default_url(), one.api_key_env)
            servers.append({**address, **{key: getattr(one, key) for key in Quota.model_fields}})
        first, *others = servers
        prompt = text_of_file(recipe.path(stage.prompt)) if stage.prompt else None
    except UsageError as error:
        raise recipe.wrong(("teacher", stage.teacher), str(error)) from None
    own = {
        "task": stage.task,
        "stage": name,
        "teacher": stage.teacher,
        "model": model or "",
        "prompt": prompt,
        "strict": recipe.strict if stage.strict is None else stage.strict,
        "both_orders": stage.both_orders or stage.task == "compare",
        "budget": recipe.budget,
        "others": tuple(Server(**other) for other in others),
    }
    waiting = {key: getattr(teacher, key) for key in Timeouts.model_fields}
    return Settings(**{**given, **first, **waiting, **own})
