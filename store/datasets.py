"""Writes a stage's answers as a data set: pool order, atomic, the same bytes each time.

Alpaca's shape (JSON list, JSONL or CSV), OpenAI chat JSONL, Parquet; gzipped by name. The file is written
beside its name and renamed when it is complete, so that nobody ever reads half a data set.
"""

import codecs
import csv
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from store.errors import Damages, UsageError, is_damage, is_intact
from store.files import descriptor_of, is_plain, packed, replacing, shape_of
from store.records import OUTCOMES, Instruction
from store.schema import STAGE_SHIFT

PARQUET_ROWS = 10_000
OF_THE_ROW, OF_THE_ANSWER = ("instruction", "input", "output", "id"), ("sample", "outcome", "model")
KNOWN = {*OUTCOMES, "unparsed"}

POSITIONS = 512  # read together; of a page that is damaged each alone

# With an answer; what it names may be missing, where the ledger is damaged.
_ANSWERS = """
SELECT a.position, a.sample, CAST(w.item AS BLOB), w.checksum,
  CAST(b.raw AS BLOB), b.checksum, p.outcome, p.model
FROM samples a LEFT JOIN rows w ON w.id = ? + a.position
LEFT JOIN requests r ON r.id = a.request LEFT JOIN responses p ON p.id = r.answer AND p.request = r.id
LEFT JOIN bodies b ON b.response = p.id
WHERE a.stage = ? AND a.position >= ? AND a.position < ? AND (r.answer IS NOT NULL OR r.id IS NULL)
  AND (w.id IS NULL OR w.plan IN ({plans}))
ORDER BY a.position, a.sample
"""
# With the last reply to rows that failed because none of theirs could be read.
_ASKED = """
SELECT a.position, a.sample, CAST(w.item AS BLOB), w.checksum,
  CAST(b.raw AS BLOB), b.checksum, p.outcome, p.model
FROM samples a LEFT JOIN rows w ON w.id = ? + a.position
LEFT JOIN requests r ON r.id = a.request LEFT JOIN errors e ON e.id = r.failure AND r.answer IS NULL
LEFT JOIN responses p ON p.request = r.id AND p.id = ifnull(r.answer, (
  SELECT max(q.id) FROM responses q WHERE q.attempt = e.attempt AND q.outcome = 'unparsed'))
LEFT JOIN bodies b ON b.response = p.id
WHERE a.stage = ? AND a.position >= ? AND a.position < ?
  AND (r.answer IS NOT NULL OR r.id IS NULL OR p.id IS NOT NULL)
  AND (w.id IS NULL OR w.plan IN ({plans}))
ORDER BY a.position, a.sample
"""
_NEXT = "SELECT min(position) FROM samples WHERE stage = ? AND position >= ?"


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of a stage with the reply to one of its samples, as they lie in the ledger. `item`: the
    row's JSON as an object. text, reasoning: what whoever reads `raw` finds in it. has_checksum: replies of
    older versions have none, and only reading them shows whether they are damaged."""

    position: int
    sample: int
    item: Mapping[str, Any]
    raw: bytes
    outcome: str
    model: str
    text: str = ""
    reasoning: str = ""
    has_checksum: bool = True


@dataclass(frozen=True, slots=True)
class ExportRow:
    """A line of an export: the pool's row with the teacher's words as its output. reasoning: the thinking
    before it; None where the data set has none."""

    item: Instruction
    sample: int
    outcome: str
    model: str
    reasoning: str | None = None


def stored(
    reader: sqlite3.Connection,
    stage: int,
    outcomes: Sequence[str],
    unparsed: bool = False,
    left_out: Counter[str] | None = None,
    plans: Sequence[int] | None = None,
    damages: Damages | None = None,
) -> Iterator[Stored]:
    """In pool order. `unparsed`: with the rows of which no reply could be read. `left_out` counts rows by
    their outcome that is not asked for. `plans`: only rows that belong to these settings. What is damaged
    is left out, and told to `damages`."""
    damages = Damages("") if damages is None else damages
    wanted = {*outcomes, "unparsed"}
    sql = _ASKED if unparsed else _ANSWERS
    sql = sql.format(plans="w.plan" if plans is None else ", ".join("?" * len(plans)))
    found = _found(reader, stage, sql, plans or (), damages)
    for position, sample, item, of_row, raw, checksum, outcome, model in found:
        try:
            row = orjson.loads(item or b"")
        except ValueError:
            row = None
        row = row if isinstance(row, dict) else None
        id = None if row is None else row.get("id")
        if item is None or raw is None or outcome not in KNOWN:
            damages.add(position, "its row is missing" if item is None else "its reply is missing", id)
        elif outcome not in wanted:
            if left_out is not None:
                left_out[outcome] += 1
        elif not is_intact(raw, checksum):
            damages.add(position, "its checksum differs", id)
        elif row is None or not is_intact(item, of_row):
            damages.add(position, "its text is damaged")
        else:
            yield Stored(position, sample, row, raw, outcome, model, has_checksum=checksum is not None)


def _found(
    reader: sqlite3.Connection, stage: int, sql: str, plans: Sequence[int], damages: Damages
) -> Iterator[tuple[Any, ...]]:
    """Rows of a query, some positions at a time. Where SQLite finds a page damaged, each position alone."""
    base, start = stage << STAGE_SHIFT, 0
    while (first := reader.execute(_NEXT, (stage, start)).fetchone()[0]) is not None:
        start = first + POSITIONS
        try:
            yield from reader.execute(sql, (base, stage, first, start, *plans)).fetchall()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            for position in range(first, start):
                try:
                    yield from reader.execute(sql, (base, stage, position, position + 1, *plans)).fetchall()
                except sqlite3.DatabaseError as error:
                    damages.add(position, str(error))


def write(
    path: Path,
    format: str,
    rows: Iterator[ExportRow],
    samples: int,
    system: str | None,
    reasoning: bool = False,
) -> int:
    """Writes all rows; returns how many. `reasoning`: they have thinking, which gets a place of its own.
    Raises UsageError, StorageError with the old file untouched."""
    if format == "parquet" and is_plain(path):
        with replacing(path) as file:
            return _write_parquet(file, rows, samples, reasoning)
    if format == "parquet":  # it counts its bytes from the beginning, which a pipe or device cannot tell
        with tempfile.TemporaryFile() as spooled, replacing(path) as file:
            count = _write_parquet(spooled, rows, samples, reasoning)
            spooled.seek(0)
            shutil.copyfileobj(spooled, file)
            return count
    if format != "chat" and shape_of(path).kind == "csv":
        # texts as they are: a pool that is read again is the same pool
        names = [
            "instruction",
            "input",
            "output",
            "id",
            *["sample"] * (samples > 1),
            *["reasoning"] * reasoning,
        ]
        count = 0
        with packed(path) as file:
            writer = csv.writer(
                codecs.getwriter("utf-8")(file), delimiter=shape_of(path).separator, lineterminator="\n"
            )
            writer.writerow(names)
            for row in rows:
                count += 1
                own = (row.item.instruction, row.item.input, row.item.output, row.item.id)
                writer.writerow([*own, *[row.sample] * (samples > 1), *[row.reasoning] * reasoning])
        return count
    return write_lines(path, map(orjson.dumps, map(line_of(format, samples, system, reasoning), rows)))


def check_name(path: Path, format: str) -> None:
    """Raises UsageError where a file's name promises another format."""
    shape = shape_of(path)
    if descriptor_of(path) is not None:
        return
    if format == "parquet":
        if shape.kind == "parquet" and not shape.is_gzip:
            return
        if shape.kind == "jsonl" and path.suffix.lower() not in (".jsonl", ".ndjson", ".gz"):
            return  # a name that says nothing
        raise UsageError(
            f"--out {path}: the format is Parquet, but the name says otherwise; end it in .parquet"
        )
    if shape.kind == "csv" and format != "alpaca":
        raise UsageError(f"--out {path}: CSV cannot hold the lists in {format}; name a .jsonl")
    if shape.kind not in ("jsonl", "json", "csv"):
        instead = " or give --format parquet" if shape.kind == "parquet" else ""
        raise UsageError(
            f"--out {path}: {format} is written as JSONL, JSON or CSV, but the name says .{shape.kind}; "
            f"end it in .jsonl, .json or .csv (.gz compresses them){instead}"
        )


def write_lines(path: Path, lines: Iterator[bytes]) -> int:
    """JSON objects as JSONL, or as a list where the name ends in .json, and compressed where it ends in .gz;
    returns how many. Raises UsageError for a name that promises something else."""
    kind = shape_of(path).kind
    if kind not in ("jsonl", "json") and is_plain(path):
        raise UsageError(f"cannot write {path}: these rows are JSON; end the name in .jsonl or .json")
    count = 0
    with packed(path) as file:
        if kind == "json":
            file.write(b"[")
        for line in lines:
            if kind == "json":
                file.write((b",\n" if count else b"\n") + line)
            else:
                file.write(line + b"\n")
            count += 1
        if kind == "json":
            file.write(b"\n]\n")
    return count


Line = Callable[[ExportRow], dict[str, Any]]


def line_of(format: str, samples: int, system: str | None, reasoning: bool) -> Line:
    """What makes a row of a data set of an answer. alpaca, chat or parquet."""
    if format == "parquet":
        further = [*OF_THE_ANSWER, *(["reasoning"] if reasoning else [])]
        return lambda row: (
            {n: getattr(row.item, n) for n in OF_THE_ROW} | {n: getattr(row, n) for n in further}
        )
    head = [{"role": "system", "content": system}] if system else []

    def chat(answer: ExportRow) -> dict[str, Any]:
        said = {"role": "assistant", "content": answer.item.output}
        if answer.reasoning is not None:
            said["reasoning_content"] = answer.reasoning
        return {"messages": [*head, {"role": "user", "content": question(answer.item)}, said]}

    def alpaca(answer: ExportRow) -> dict[str, Any]:
        item = answer.item
        row = {
            "instruction": item.instruction,
            "input": item.input,
            "output": item.output,
            "id": item.id,
        }
        if answer.reasoning is not None:
            row["reasoning"] = answer.reasoning
        return {**row, "sample": answer.sample} if samples > 1 else row

    return chat if format == "chat" else alpaca


def question(item: Instruction) -> str:
    """The prompt as one text: the instruction, an empty line, and the input where there is one."""
    return f"{item.instruction}\n\n{item.input}" if item.input else item.instruction


def _write_parquet(file: IO[bytes], rows: Iterator[ExportRow], samples: int, reasoning: bool) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    own = OF_THE_ROW
    names = [*own, *OF_THE_ANSWER, *(["reasoning"] if reasoning else [])]
    schema = pa.schema([(name, pa.int32() if name == "sample" else pa.string()) for name in names])
    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        while batch := [row for _, row in zip(range(PARQUET_ROWS), rows, strict=False)]:
            columns = [[getattr(a.item if name in own else a, name) for a in batch] for name in names]
            writer.write_table(pa.table(dict(zip(names, columns, strict=True)), schema))
            count += len(batch)
    return count
