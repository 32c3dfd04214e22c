"""Which references belong to which prediction: by id, else by instruction and input, else by line.

An id joins only where the two rows do not ask different things (places in a file are often written as
ids). A line joins only rows that have neither id nor prompt in common with what they could be joined to.
Several references of one prompt, in one row or several, are all kept: the best counts. References are held
in memory, predictions pass by.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from store.columns import as_text, columns_of
from store.errors import PoolError
from store.pool import Pool
from store.records import BadRow

PREDICTED = ("prediction", "output", "completion", "response", "text")
EXPECTED = ("references", "target", "output", "reference", "text")
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Reference:
    """All that may be said to one prompt. id: of its first row, or its place."""

    place: int
    id: str
    line: int
    prompt: bytes | None
    texts: list[str]


@dataclass(frozen=True, slots=True)
class Joined:
    """A prediction with its reference. nth: how many of its file came before for the same one."""

    reference: Reference
    nth: int
    line: int
    text: str


@dataclass
class References:
    """A file of references, by all that can find them."""

    source: str
    rows: list[Reference] = field(default_factory=list)
    by_id: dict[str, Reference] = field(default_factory=dict)
    by_prompt: dict[bytes, Reference] = field(default_factory=dict)
    by_place: list[Reference] = field(default_factory=list)  # of each row of the file, bad ones left out
    bad: int = 0
    first_bad: str = ""
    empty: int = 0

    @property
    def named(self) -> bool:
        """Whether rows can be told by more than their line."""
        return bool(self.by_id or self.by_prompt)


@dataclass
class Joining:
    """What became of a file of predictions."""

    by: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    first_bad: str = ""
    unmatched: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    found: set[int] = field(default_factory=set)  # places of references with a prediction


def read_references(pool: Pool) -> References:
    """Raises PoolError where there is none."""
    read = References(pool.source)
    for line, raw in pool.objects():
        texts = _expected(raw) if not isinstance(raw, BadRow) else None
        if isinstance(raw, BadRow) or texts is None:
            read.bad += 1
            read.first_bad = read.first_bad or _why(raw, line)
            continue
        _take(read, line, raw, texts)
    if not read.rows:
        why = read.first_bad or "it is empty"
        raise PoolError(f"no reference in {pool.source}: {why}; expected rows with {', '.join(EXPECTED)}")
    return read


def _why(raw: dict[str, Any] | BadRow, line: int) -> str:
    if isinstance(raw, BadRow):
        return f"line {line}: {raw.reason}"
    return f"line {line}: none of the fields is there as text; {columns_of(raw)}"


def _take(read: References, line: int, raw: dict[str, Any], texts: list[str]) -> None:
    identity, prompt = _identity(raw), _prompt(raw)
    known = _find(read, identity, prompt)
    if known is None:
        known = Reference(len(read.rows), identity or str(len(read.by_place)), line, prompt, [])
        read.rows.append(known)
    known.texts.extend(texts)
    read.by_place.append(known)
    read.empty += not any(text.strip() for text in texts)
    if identity is not None:
        read.by_id.setdefault(identity, known)
    if prompt is not None:
        read.by_prompt.setdefault(prompt, known)


def _find(read: References, identity: str | None, prompt: bytes | None) -> Reference | None:
    """By id, if that does not ask another thing, else by prompt."""
    known = read.by_id.get(identity) if identity is not None else None
    if known is not None and (prompt is None or known.prompt in (None, prompt)):
        return known
    return read.by_prompt.get(prompt) if prompt is not None else None


def joined(pool: Pool, references: References, told: Joining) -> Iterator[Joined]:
    """The predictions that have a reference, in the order of their file. Raises PoolError where none has."""
    seen: Counter[int] = Counter()
    place = -1
    for line, raw in pool.objects():
        text = _predicted(raw) if not isinstance(raw, BadRow) else None
        if isinstance(raw, BadRow) or text is None:
            told.bad += 1
            told.first_bad = told.first_bad or _why(raw, line)
            continue
        place += 1
        reference, how = _partner(raw, place, references)
        if reference is None:
            told.unmatched += 1
            told.examples += [{"id": _identity(raw), "line": line}] * (len(told.examples) < SHOWN)
            continue
        told.by[how] += 1
        told.found.add(reference.place)
        yield Joined(reference, seen[reference.place], line, text)
        seen[reference.place] += 1
    if not told.found:
        raise _nothing(pool, references, told)


def _partner(raw: dict[str, Any], place: int, references: References) -> tuple[Reference | None, str]:
    identity, prompt = _identity(raw), _prompt(raw)
    found = _find(references, identity, prompt)
    if found is not None:
        return found, "id" if identity is not None and references.by_id.get(identity) is found else "prompt"
    nameless = (identity is None and prompt is None) or not references.named
    if nameless and place < len(references.by_place):
        return references.by_place[place], "line"
    return None, ""


def _nothing(pool: Pool, references: References, told: Joining) -> PoolError:
    if told.unmatched:
        why = f"none of its {told.unmatched:,} predictions is found there by id or by instruction and input"
    else:
        why = f"no prediction: {told.first_bad or 'it is empty'}; expected rows with {', '.join(PREDICTED)}"
    return PoolError(f"{pool.source} against {references.source}: {why}")


def _predicted(row: dict[str, Any]) -> str | None:
    return next((value for name in PREDICTED if isinstance(value := row.get(name), str)), None)


def _expected(row: dict[str, Any]) -> list[str] | None:
    """The texts of the first field that has any; Self-Instruct's tasks have theirs in an instance."""
    for source in (row, _instance(row)):
        for name in EXPECTED:
            texts = _texts(source.get(name))
            if texts:
                return texts
    return None


def _texts(value: object) -> list[str]:
    several = value if isinstance(value, list) else [value]
    return [text for one in several if one is not None and (text := as_text(one)) is not None]


def _instance(row: dict[str, Any]) -> dict[str, Any]:
    instances: Iterable[Any] = row.get("instances") or []
    return (
        next((one for one in instances if isinstance(one, dict)), {}) if isinstance(instances, list) else {}
    )


def _identity(row: dict[str, Any]) -> str | None:
    value = row.get("id") if row.get("id") is not None else row.get("question_id")
    return None if value is None else str(value).strip()


def _prompt(row: dict[str, Any]) -> bytes | None:
    instruction = row.get("instruction")
    if not isinstance(instruction, str):
        return None
    source = row if "input" in row else _instance(row)
    given = source.get("input")
    words = f"{instruction.strip()}\0{(as_text(given) or '').strip()}"
    return hashlib.blake2b(words.encode(errors="replace"), digest_size=16).digest()
