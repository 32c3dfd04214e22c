"""What a report is made of, before it is a page: sections of blocks. Values only.

A teacher's words are plain text everywhere here; they become HTML in the templates, which escape all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from evaluators.report.figures import Figure, FigureTable


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph. weak: it says what a reader must not overlook before believing a number."""

    text: str
    weak: bool = False
    kind: ClassVar[str] = "words"


@dataclass(frozen=True, slots=True)
class Heading:
    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with a short value each."""

    pairs: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True, slots=True)
class Listing:
    """A table. caption: what it shows. folded: what it is called where it is folded away."""

    table: FigureTable
    caption: str
    folded: str = ""
    kind: ClassVar[str] = "listing"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure with its numbers beside it."""

    figure: Figure
    kind: ClassVar[str] = "drawing"


@dataclass(frozen=True, slots=True)
class Quote:
    """Somebody's words: what they are, and the text as it came."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A row behind a number: where it stands, a few facts, and its words."""

    title: str
    about: str
    quotes: Sequence[Quote]


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows behind a number, folded away. summary: what they are, how they were drawn."""

    summary: str
    samples: Sequence[Sample]
    kind: ClassVar[str] = "samples"


Block: TypeAlias = Words | Heading | Facts | Listing | Drawing | Samples


@dataclass(frozen=True, slots=True)
class Headline:
    """A number for the front. weak: the reason why it proves little, where there is one."""

    value: str
    label: str
    note: str = ""
    weak: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """id: its anchor. about: a sentence under the title."""

    id: str
    title: str
    about: str
    blocks: Sequence[Block]
    headlines: Sequence[Headline] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Report:
    """left_out: (what, why) of what could not be told."""

    title: str
    about: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    left_out: Sequence[tuple[str, str]]

    @property
    def headlines(self) -> list[tuple[str, Headline]]:
        return [(section.id, found) for section in self.sections for found in section.headlines]
