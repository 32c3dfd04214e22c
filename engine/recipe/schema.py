"""The tables of a recipe, each checked by itself: teachers, stages, steps; and their dependency order.

Error messages name the line of the table or key. Lines are found by a scan of the text, which tomllib has
already parsed: strings, comments and brackets are only skipped.
"""

import graphlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from engine.collect.setting_fields import (
    Address,
    Dollars,
    ModelTraits,
    Quota,
    StageSettings,
    Task,
    Timeouts,
)
from store.errors import UsageError

Path_ = tuple[str | int, ...]

_PART = r"(?:[A-Za-z0-9_-]+|\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*')"
_KEY = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)+")
_HEADER = re.compile(rf"(\[\[?)[ \t]*({_KEY})[ \t]*\]")
_ASSIGNMENT = re.compile(rf"({_KEY})[ \t]*=")
_TOKEN = re.compile(
    r'"""(?:\\.|(?!""")[^\\])*"{3,5}'
    r"|'''(?:(?!''').)*'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|[\[{]|[\]}]|\n|.",
    re.DOTALL,
)


def line_numbers(text: str) -> dict[Path_, int]:
    """('stage', 'chinese', 'task') -> its line, from 1. Entries of an array of tables are numbered
    from 0; a table that only its parts name stands where the first of them does."""
    text = text.replace("\r\n", "\n")
    found: dict[Path_, int] = {}
    arrays: dict[Path_, int] = {}  # array of tables -> the entry that is being filled
    table: Path_ = ()
    at = 0
    while at < len(text):
        if blank := _BLANK.match(text, at):
            at = blank.end()
            continue
        line = text.count("\n", 0, at) + 1
        if header := _HEADER.match(text, at):
            parts, table = _parts(header[2]), ()
            for part in parts:
                table = (*table, part)
                if len(parts) == sum(isinstance(p, str) for p in table) and header[1] == "[[":
                    arrays[table] = arrays.get(table, -1) + 1
                if table in arrays:  # of an array of tables its last entry is meant
                    table = (*table, arrays[table])
            _note(found, table, line)
        elif key := _ASSIGNMENT.match(text, at):
            _note(found, (*table, *_parts(key[1])), line)
        at = _end_of_statement(text, at)
    return found


def _note(found: dict[Path_, int], path: Path_, line: int) -> None:
    for end in range(1, len(path) + 1):
        found.setdefault(path[:end], line)


def _parts(key: str) -> list[str]:
    """The names of a dotted key, as tomllib reads their quotes and escapes."""
    parts, inner = [], cast(object, tomllib.loads(f"{key} = 0"))
    while isinstance(inner, dict):
        ((name, inner),) = inner.items()
        parts.append(name)
    return parts


def _end_of_statement(text: str, at: int) -> int:
    """Behind the line on which a header or a value ends."""
    depth = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        assert token
        at = token.end()
        depth += (token[0] in "[{") - (token[0] in "]}")
        if token[0] == "\n" and depth == 0:
            return at
    return at


Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$")]


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class OfStep(Table):
    """What a step leaves: its folder or, where it writes files, one of them."""

    step: str
    file: str | None = None


class OfStage(Table):
    """A stage's answers, exported for a step."""

    stage: str
    format: str | None = None
    outcome: str = "stop,length"
    min_margin: Annotated[float, Field(ge=0)] = 0.0
    reasoning: str = "drop"


# Commands that read stages (`stage = …`) in this run's ledger; by which flag they take its folder
READ_THE_RUN = {"evaluate judge": ("--run",), "evaluate ranking": ("--run",), "evaluate shares": ()}
Member = str | OfStep  # a stage or a file; or a file that a step makes
Value = OfStage | OfStep | bool | int | float | str
Names = Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]


class EndpointTable(Table, Quota, Address):
    """A server: its address, the variable that holds its key, its limits and price."""


class TeacherTable(EndpointTable, ModelTraits, Timeouts):
    """A model and who serves it. `serve`: what `distill serve` is to serve while the recipe runs;
    `after`: steps that must be done before it can be asked."""

    model: str | None = None
    serve: str | OfStep | None = None
    after: Names = ()
    endpoint: tuple[EndpointTable, ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that come before it."""
        return (*self.after, self.serve.step) if isinstance(self.serve, OfStep) else self.after


class StageTable(Table, StageSettings, ModelTraits):
    """One stage; flags of the same names say what each key means. How the model thinks goes before what its
    teacher says."""

    task: Task
    teacher: str
    pool: str | None = None
    source: Annotated[str | None, Field(alias="from")] = None
    questions: str | None = None
    answers: Member | tuple[Member, ...] = ()
    against: Member | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """The models' answers that it reads, stages or files, in order."""
        given = self.answers if isinstance(self.answers, tuple) else (self.answers,)
        return (*given, self.against) if self.against is not None else given

    @property
    def named(self) -> tuple[str, ...]:
        """Of these the stages and files; all of them once what steps make has a place."""
        return tuple(member for member in self.members if isinstance(member, str))

    @property
    def inputs(self) -> tuple[Member, ...]:
        """Everything that may be a stage."""
        return (self.source,) if self.source is not None else self.members


class StepTable(Table):
    """A command of ours over whole files; its further keys are the command's flags (steps.py)."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Value | tuple[Value, ...]]

    run: str
    after: Names = ()

    @property
    def flags(self) -> dict[str, tuple[Value, ...]]:
        found = {k: v if isinstance(v, tuple) else (v,) for k, v in self.__pydantic_extra__.items()}
        if self.run in READ_THE_RUN and "stage" in found:  # needed, as those are that are exported
            found["stage"] = tuple(OfStage(stage=s) if isinstance(s, str) else s for s in found["stage"])
        return found

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages and steps that must be complete before it."""
        values = [value for several in self.flags.values() for value in several]
        stages = [value.stage for value in values if isinstance(value, OfStage)]
        steps = [value.step for value in values if isinstance(value, OfStep)]
        return tuple(dict.fromkeys([*stages, *steps, *self.after]))


class Recipe(Table):
    """Teachers, stages and steps by name; stages and steps are its nodes. files: where to get each file that
    it names. lacking: files that are not there, where that is no error; None where it is one."""

    budget: Dollars | None = None
    files: dict[str, str] = {}
    lacking: list[str] | None = None
    strict: bool = False
    teacher: dict[Name, TeacherTable]
    stage: dict[Name, StageTable]
    step: dict[Name, StepTable] = {}
    file: Path = Path()
    lines: dict[Path_, int] = {}

    def wrong(self, where: Path_, words: str) -> UsageError:
        """A complaint about a place in the recipe."""
        return wrong(self.file, self.lines, where, words)

    def upstream(self, name: str) -> tuple[str, ...]:
        """The stages that a stage reads, row by row."""
        given = (one for one in self.stage[name].inputs if isinstance(one, str))
        return tuple(one for one in given if one in self.stage)

    def needs(self, name: str) -> tuple[str, ...]:
        """The stages and steps that come before a node."""
        if name in self.step:
            return self.step[name].needs
        teacher = self.teacher.get(self.stage[name].teacher)
        return (*self.upstream(name), *self.made(name), *(teacher.steps if teacher else ()))

    def made(self, name: str) -> tuple[str, ...]:
        """The steps that make rows of a stage."""
        return tuple(member.step for member in self.stage[name].inputs if isinstance(member, OfStep))

    def lacks(self, text: str, where: Path_, before: str = "") -> None:
        """A file that it names is not there. Raises UsageError where that is an error."""
        if self.lacking is None:
            origin = f"; get it from {self.files[text]}" if text in self.files else ""
            raise self.wrong(where, f"{before}there is no file {self.path(text)}{origin}")
        self.lacking.append(text)

    def path(self, text: str) -> Path:
        """A file that the recipe names, which is meant relative to it."""
        return self.file.parent / Path(text).expanduser()

    @property
    def nodes(self) -> list[str]:
        """In an order in which each follows what it needs."""
        graph = {name: self.needs(name) for name in (*self.stage, *self.step)}
        return list(graphlib.TopologicalSorter(graph).static_order())

    @property
    def order(self) -> list[str]:
        """The stages, each after what it reads."""
        return [name for name in self.nodes if name in self.stage]

    @property
    def phases(self) -> dict[str, int]:
        """When a node's turn comes. In each phase the stages are asked together, then the steps are
        run; what needs a step and is a stage, or comes after one, waits for the next phase."""
        found: dict[str, int] = {}
        for name in self.nodes:
            later = name in self.stage
            above = [found[one] + (later and one in self.step) for one in self.needs(name)]
            found[name] = max(above, default=0)
        return found


def wrong(file: Path, lines: Mapping[Path_, int], where: Path_, words: str) -> UsageError:
    """The complaint at the nearest place that has a line."""
    for end in range(len(where), 0, -1):
        if where[:end] in lines:
            place = ".".join(str(part) for part in where if not isinstance(part, int))
            return UsageError(f"{file}, line {lines[where[:end]]}: {place}: {words}")
    return UsageError(f"{file}: {'.'.join(map(str, where)) + ': ' if where else ''}{words}")
