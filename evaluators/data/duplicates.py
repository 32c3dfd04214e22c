"""Exact and near duplicates, within and across data sets.

Exact: equal except for case and punctuation. Near: the share of common word trigrams (Jaccard) is at least
the threshold. MinHash with LSH (datasketch) finds candidates. Each one is then measured exactly, so no pair
is wrong, but some pairs near the threshold may be missed. A cluster is everything that pairs connect, so
its ends may be further apart. Each level contains the ones before.

datasketch makes the sketches and chooses the bands. Its index takes half a gigabyte for 52,000 texts. Here
the sketches lie side by side (512 bytes each), and each band is sorted in turn. Texts are not kept: about a
kilobyte for each distinct one.
"""

import hashlib
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import orjson

from evaluators.records import DataSet, Field, data_sets, field_of, plain_words
from evaluators.tables import Sheet, Value, publish
from store.datasets import write_lines
from store.errors import UsageError

PERMUTATIONS = 128
WEIGHTS = (0.1, 0.9)  # of false positives, which cost a comparison, and of false negatives, which stay
MIXING = 0x9E3779B97F4A7C15  # odd, so that a band's hashes mix into 64 bits without loss


class Near:
    """All sets that were added; `pairs` when all are there."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        bands = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=WEIGHTS)
        self._threshold, self._bands, self._band = threshold, int(bands.b), int(bands.r)
        self._none: Any = MinHash(num_perm=PERMUTATIONS, hashfunc=int)  # what comes in is hashed already
        self._sketches = bytearray()
        self._keys = array("q")
        self._sets: list[array[int]] = []

    def add(self, key: int, hashes: "array[int]") -> None:
        """hashes: 32 bits each, every one once."""
        sketch = self._none.copy()
        sketch.update_batch(hashes)
        self._sketches += sketch.hashvalues.tobytes()
        self._keys.append(key)
        self._sets.append(hashes)

    def pairs(self, together: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
        """Keys of sets whose similarity is at least the threshold; none that are `together` already."""
        import numpy as np

        sketches = np.frombuffer(self._sketches, np.uint32).reshape(-1, PERMUTATIONS)
        for band in range(self._bands):
            mixed: Any = np.zeros(len(sketches), np.uint64)
            for column in sketches[:, band * self._band : (band + 1) * self._band].T:
                mixed = (mixed ^ column) * np.uint64(MIXING)
            order = np.argsort(mixed, kind="stable")
            ends: Any = np.flatnonzero(np.diff(mixed[order])) + 1
            for group in np.split(order, ends):  # those with this band in common
                for one, other in combinations(group.tolist(), 2):
                    keys = self._keys[one], self._keys[other]
                    if together(*keys):
                        continue
                    a, b = self._sets[one], self._sets[other]
                    both = len(set(a).intersection(b))
                    if both >= self._threshold * (len(a) + len(b) - both):
                        yield keys


LEVELS = ("exact", "normalised", "near")
SHINGLE = 3  # words
CLUSTERS_SHOWN, ROWS_SHOWN = 10, 5
TEXT = 160  # characters of an example


@dataclass
class Groups:
    """Which rows belong together (union-find; a group's first row stands for it)."""

    parent: "array[int]" = field(default_factory=lambda: array("q"))

    def add(self) -> int:
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def first(self, row: int) -> int:
        while self.parent[row] != row:
            self.parent[row] = self.parent[self.parent[row]]
            row = self.parent[row]
        return row

    def join(self, one: int, other: int) -> None:
        a, b = sorted((self.first(one), self.first(other)))
        self.parent[b] = a

    def clusters(self) -> list[list[int]]:
        """Of two rows or more, the largest first."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for row in range(len(self.parent)):
            found[self.first(row)].append(row)
        return sorted(
            (rows for rows in found.values() if len(rows) > 1), key=lambda rows: (-len(rows), rows[0])
        )


@dataclass
class Places:
    """Where each row stands: its file and line."""

    file: "array[int]" = field(default_factory=lambda: array("i"))
    line: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass(frozen=True)
class DuplicateReport:
    field: Field
    threshold: float
    sets: Sequence[DataSet]
    empty: Counter[str]
    places: Places
    levels: dict[str, Groups]

    def as_json(self) -> dict[str, Any]:
        found = {level: groups.clusters() for level, groups in self.levels.items()}
        shown = {
            row for clusters in found.values() for c in clusters[:CLUSTERS_SHOWN] for row in c[:ROWS_SHOWN]
        }
        # the rows that are shown, read once more; of a stream nothing is left but the line
        texts: dict[int, dict[str, Any]] = {
            n: {"file": self.name(n), "id": None, "line": self.places.line[n], "text": None} for n in shown
        }
        numbers = {(self.places.file[n], self.places.line[n]): n for n in shown}
        for file, one in enumerate(self.sets):
            for row in one if not one.pool.is_stream else ():
                if (number := numbers.get((file, row.line))) is not None:
                    texts[number] |= {"id": row.id, "text": row.text(self.field)[:TEXT]}
        files = {o.name: {"rows": o.rows, "empty": self.empty[o.name], "bad_rows": o.bad} for o in self.sets}
        told: dict[str, Any] = {
            "field": self.field,
            "threshold": self.threshold,
            "files": files,
            "rows": len(self.places.file),
        }
        for level, clusters in found.items():
            rows, extra = sum(map(len, clusters)), Counter(self.name(r) for c in clusters for r in c[1:])
            told[level] = {
                "clusters": len(clusters),
                "rows": rows,
                "extra": rows - len(clusters),
                "share": (rows - len(clusters)) / len(self.places.file) if self.places.file else None,
                "extra_by_file": {one.name: extra[one.name] for one in self.sets},
                "across": sum(len({self.places.file[row] for row in c}) > 1 for c in clusters),
                "examples": [
                    {**self._size(c), "rows": [texts[row] for row in c[:ROWS_SHOWN]]}
                    for c in clusters[:CLUSTERS_SHOWN]
                ],
            }
        return told

    def _size(self, cluster: list[int]) -> dict[str, Any]:
        return {"size": len(cluster), "files": dict(Counter(map(self.name, cluster)))}

    def name(self, row: int) -> str:
        return self.sets[self.places.file[row]].name

    def lines(self) -> Iterator[dict[str, Any]]:
        """All clusters, the largest first."""
        for level, groups in self.levels.items():
            for cluster in groups.clusters():
                rows = [{"file": self.name(row), "line": self.places.line[row]} for row in cluster]
                yield {"level": level, **self._size(cluster), "rows": rows}


def run_duplicates(
    files: list[Path],
    names: list[str] | None,
    field: str,
    threshold: float,
    json: bool,
    csv: Path | None,
    out: Path | None,
) -> int:
    """Raises UsageError, PoolError."""
    report = measure(data_sets(files, names), field, threshold)
    if out is not None:
        write_lines(out, map(orjson.dumps, report.lines()))
    told = report.as_json()
    publish(told, sheets(told), json, csv)
    return 0


def measure(sets: Sequence[DataSet], field: str, threshold: float) -> DuplicateReport:
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold must be a share above 0 and at most 1, not {threshold:g}")
    chosen, near = field_of(field), Near(threshold)
    report = DuplicateReport(
        chosen, threshold, sets, Counter(), Places(), {level: Groups() for level in LEVELS}
    )
    groups = report.levels["near"]
    exact: dict[bytes, int] = {}
    normalised: dict[bytes, int] = {}
    for file, one in enumerate(sets):
        for row in one:
            text = row.text(chosen)
            report.empty[one.name] += not text.strip()
            report.places.file.append(file)
            report.places.line.append(row.line)
            for level in report.levels.values():
                number = level.add()
            if not text.strip():
                continue
            # a row joins the first that is equal in each sense; an empty one joins none
            words = plain_words(text)
            same = exact.setdefault(_digest([text]), number)
            alike = normalised.setdefault(_digest(words) if words else _digest([text, ""]), number)
            report.levels["exact"].join(same, number)
            for level in (report.levels["normalised"], groups):
                level.join(alike, number)
                level.join(same, number)
            if alike == number and words:
                near.add(number, shingles(words))
    for earlier, later in near.pairs(lambda a, b: groups.first(a) == groups.first(b)):
        groups.join(earlier, later)
    return report


def shingles(words: Sequence[str]) -> "array[int]":
    """The hashes of a text's word trigrams, each once, sorted; a text of fewer words is one of its own."""
    size = min(SHINGLE, len(words))
    runs: Iterable[str] = (" ".join(words[at : at + size]) for at in range(len(words) - size + 1))
    return array("I", sorted({zlib.crc32(run.encode(errors="replace")) for run in runs}))


def _digest(parts: Sequence[str]) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(errors="replace"), digest_size=16).digest()


def sheets(report: dict[str, Any]) -> list[Sheet]:
    columns = ["level", "clusters", "rows in them", "beyond the first", "share", "across files"]
    rows: list[list[Value]] = [
        [level, own["clusters"], own["rows"], own["extra"], own["share"], own["across"]]
        for level, own in ((level, report[level]) for level in LEVELS)
    ]
    many = len(report["files"]) > 1
    examples: list[list[Value]] = []
    for level in LEVELS:
        for cluster in report[level]["examples"][:5]:
            shown = (f"{row['file']} {row['line']}" if many else str(row["line"]) for row in cluster["rows"])
            examples.append([level, cluster["size"], ", ".join(shown), cluster["rows"][0]["text"]])
    files = ", ".join(f"{name} {one['rows']:,}" for name, one in report["files"].items())
    note = f"`{report['field']}` of {files} rows; near: Jaccard of word trigrams ≥ {report['threshold']:g}."
    tables = [Sheet("Duplicates", columns, rows, [note])]
    if examples:
        tables.append(Sheet("The largest clusters", ["level", "rows", "lines", "text"], examples))
    return tables
