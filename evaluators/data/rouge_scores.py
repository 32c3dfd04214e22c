"""ROUGE of many rows: which references belong to which prediction, and how alike they are.

They are joined by id, else by instruction and input, else by line. An id joins only where the two rows do not
ask different things (places in a file are often written as ids). A line joins only rows that have neither id
nor prompt in common with what they could be joined to. Several references of one prompt, in one row or
several, are all kept: the best counts. References are held in memory, predictions pass by.

Each row is scored by rouge-score by itself, in one process or several: the same numbers in the same order.
Importing it takes seconds (nltk), so extra processes pay only for large files.

The `default` tokens are rouge-score's own: lower-case ASCII letters and digits, so nothing is left of a
Chinese text. `unicode` keeps letters of every script. In scripts without spaces each character is a token,
as is usual for Chinese ROUGE. Both stem English words of more than three letters (Porter), as Super-
NaturalInstructions and Self-Instruct did, unless told not to. On ASCII texts both give the same numbers.
"""

import hashlib
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

from engine.tasks.languages import LETTERS
from evaluators.records import plain_words
from store.errors import PoolError, UsageError
from store.pool import Pool
from store.records import BadRow, as_text, columns_of

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
    if not read.rows:
        why = read.first_bad or "it is empty"
        raise PoolError(f"no reference in {pool.source}: {why}; expected rows with {', '.join(EXPECTED)}")
    return read


def _why(raw: dict[str, Any] | BadRow, line: int) -> str:
    if isinstance(raw, BadRow):
        return f"line {line}: {raw.reason}"
    return f"line {line}: none of the expected fields holds text; {columns_of(raw)}"


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
        given = {} if isinstance(raw, BadRow) else raw
        text = next((value for name in PREDICTED if isinstance(value := given.get(name), str)), None)
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
        if told.unmatched:
            why = f"none of its {told.unmatched:,} predictions has a partner there by id or by prompt"
        else:
            why = (
                f"no prediction: {told.first_bad or 'it is empty'}; expected rows with {', '.join(PREDICTED)}"
            )
        raise PoolError(f"{pool.source} against {references.source}: {why}")


def _partner(raw: dict[str, Any], place: int, references: References) -> tuple[Reference | None, str]:
    identity, prompt = _identity(raw), _prompt(raw)
    found = _find(references, identity, prompt)
    if found is not None:
        return found, "id" if identity is not None and references.by_id.get(identity) is found else "prompt"
    nameless = (identity is None and prompt is None) or not references.named
    if nameless and place < len(references.by_place):
        return references.by_place[place], "line"
    return None, ""


def _expected(row: dict[str, Any]) -> list[str] | None:
    """The texts of the first field that has any; Self-Instruct's tasks have theirs in an instance."""
    for source in (row, _instance(row)):
        for name in EXPECTED:
            value = source.get(name)
            several = value if isinstance(value, list) else [value]
            texts = [text for one in several if one is not None and (text := as_text(one)) is not None]
            if texts:
                return texts
    return None


def _instance(row: dict[str, Any]) -> dict[str, Any]:
    instances = row.get("instances")
    several = instances if isinstance(instances, list) else []
    return next((one for one in several if isinstance(one, dict)), {})


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


Tokens = Literal["default", "unicode"]
Asked = Literal["auto", "default", "unicode"]
ASKED: tuple[Asked, ...] = ("auto", "default", "unicode")
STEMMED_FROM = 4  # letters

_NOT_LATIN = re.compile(f"(?![{LETTERS['Latin']}])[^\\W\\d_]")


def asked_of(given: str) -> Asked:
    """Raises UsageError."""
    for known in ASKED:
        if given == known:
            return known
    raise UsageError(f"--tokenizer {given}: unknown; choose from {', '.join(ASKED)}")


def tokens_for(references: list[str], asked: Asked) -> Tokens:
    """What a row is compared by. `auto`: unicode where a reference has a letter that is not Latin. The
    references alone decide, so that all models are measured alike."""
    if asked != "auto":
        return asked
    foreign = any(not text.isascii() and _NOT_LATIN.search(text) for text in references)
    return "unicode" if foreign else "default"


@cache
def scorer(tokens: Tokens, stemmer: bool) -> Any:
    """rouge-score's scorer of ROUGE-1, 2 and L."""
    from rouge_score.rouge_scorer import RougeScorer

    own = UnicodeTokenizer(stemmer) if tokens == "unicode" else None
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmer, tokenizer=own)


class UnicodeTokenizer:
    """What rouge-score asks of a tokenizer: `tokenize`."""

    def __init__(self, stemmer: bool) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem if stemmer else None

    def tokenize(self, text: str) -> list[str]:
        words = plain_words(text)
        if self._stem is None:
            return words
        return [self._stem(w) if len(w) >= STEMMED_FROM and w.isascii() else w for w in words]


AT_ONCE = 64  # rows that a process takes
FEW = 400  # rows, for which starting processes takes longer than scoring
METRICS = ("rouge1", "rouge2", "rougeL")
Scores = tuple[float, ...]  # of METRICS, F-measures


class Pair(NamedTuple):
    """What is compared: any of the references will do."""

    references: Sequence[str]
    prediction: str
    tokens: Tokens
    stemmer: bool


def score(pair: Pair) -> Scores:
    """The best F-measure over the references, for each metric by itself (rouge-score's `score_multi`)."""
    found = scorer(pair.tokens, pair.stemmer).score_multi(pair.references, pair.prediction)
    return tuple(float(found[metric].fmeasure) for metric in METRICS)


ScoreAll: TypeAlias = Callable[[Sequence[Pair]], Iterator[Scores]]


@contextmanager
def scoring(processes: int | None = None) -> Iterator[ScoreAll]:
    """Gives a function that scores pairs in the order given. processes: as many as there are cores, started
    for the first batch that is large enough, unless a number is given."""
    with ExitStack() as stack:
        started: list[ProcessPoolExecutor] = []

        def score_all(pairs: Sequence[Pair]) -> Iterator[Scores]:
            if processes == 1 or (processes is None and not started and len(pairs) <= FEW):
                return map(score, pairs)
            if not started:  # spawned, not forked: threads may be running here
                pool = ProcessPoolExecutor(processes or cores(), multiprocessing.get_context("spawn"))
                started.append(stack.enter_context(pool))
            return started[0].map(score, pairs, chunksize=AT_ONCE)

        yield score_all


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
