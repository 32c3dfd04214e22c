"""Writes a stage's answers as a data set: pool order, atomic, the same bytes each time.

Alpaca's shape (JSON list or JSONL), OpenAI chat JSONL, Parquet. The file is written beside its
name and renamed when it is whole, so that nobody ever reads half a data set.
"""

import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from store.files import is_plain, replacing
from store.records import Instruction
from store.schema import STAGE_SHIFT

PARQUET_ROWS = 10_000

_ANSWERS = """
SELECT a.position, a.sample, w.item, b.raw, p.outcome, p.model
FROM samples a JOIN rows w ON w.id = ? + a.position
JOIN requests r ON r.id = a.request JOIN responses p ON p.id = r.answer
JOIN bodies b ON b.response = p.id
WHERE a.stage = ? AND w.plan IN ({plans}) ORDER BY a.position, a.sample
"""
# With the last reply to rows that failed because none of theirs could be read.
_ASKED = """
SELECT a.position, a.sample, w.item, b.raw, p.outcome, p.model
FROM samples a JOIN rows w ON w.id = ? + a.position
JOIN requests r ON r.id = a.request LEFT JOIN errors e ON e.id = r.failure AND r.answer IS NULL
JOIN responses p ON p.id = ifnull(r.answer, (
  SELECT max(q.id) FROM responses q WHERE q.attempt = e.attempt AND q.outcome = 'unparsed'))
JOIN bodies b ON b.response = p.id
WHERE a.stage = ? AND w.plan IN ({plans}) ORDER BY a.position, a.sample
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of a stage with the reply to one of its samples, as they lie in the ledger. `item`: the
    row's JSON as an object. text, reasoning: what whoever reads `raw` finds in it."""

    position: int
    sample: int
    item: Mapping[str, Any]
    raw: bytes
    outcome: str
    model: str
    text: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
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
) -> Iterator[Stored]:
    """In pool order. `unparsed`: with the rows of which no reply could be read. `left_out` counts rows by
    their outcome that is not asked for. `plans`: only rows that belong to these settings."""
    sql = _ASKED if unparsed else _ANSWERS
    sql = sql.format(plans="w.plan" if plans is None else ", ".join("?" * len(plans)))
    rows = reader.execute(sql, (stage << STAGE_SHIFT, stage, *(plans or ())))
    for position, sample, item, raw, outcome, model in rows:
        if outcome in outcomes or outcome == "unparsed":
            body = raw.encode() if isinstance(raw, str) else raw
            yield Stored(position, sample, orjson.loads(item), body, outcome, model)
        elif left_out is not None:
            left_out[outcome] += 1


def write(
    path: Path,
    format: str,
    rows: Iterator[Answer],
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
    return write_lines(path, map(_chat_line(system) if format == "chat" else _alpaca_line(samples), rows))


def write_lines(path: Path, lines: Iterator[bytes]) -> int:
    """JSON objects as JSONL, or as a list where the name ends in .json; returns how many."""
    with replacing(path) as file:
        return _write_list(file, lines) if path.suffix == ".json" else _write_lines(file, lines)


def _alpaca_line(samples: int) -> Callable[[Answer], bytes]:
    def line(answer: Answer) -> bytes:
        item = answer.item
        row = {
            "instruction": item.instruction,
            "input": item.input,
            "output": item.output,
            "id": item.id,
        }
        if answer.reasoning is not None:
            row["reasoning"] = answer.reasoning
        return orjson.dumps({**row, "sample": answer.sample} if samples > 1 else row)

    return line


def question(item: Instruction) -> str:
    """The prompt as one text: the instruction, an empty line, and the input where there is one."""
    return f"{item.instruction}\n\n{item.input}" if item.input else item.instruction


def _chat_line(system: str | None) -> Callable[[Answer], bytes]:
    head = [{"role": "system", "content": system}] if system else []

    def line(answer: Answer) -> bytes:
        item = answer.item
        said = {"role": "assistant", "content": item.output}
        if answer.reasoning is not None:
            said["reasoning_content"] = answer.reasoning
        return orjson.dumps({"messages": [*head, {"role": "user", "content": question(item)}, said]})

    return line


def _write_lines(file: IO[bytes], lines: Iterator[bytes]) -> int:
    count = 0
    for line in lines:
        file.write(line + b"\n")
        count += 1
    return count


def _write_list(file: IO[bytes], lines: Iterator[bytes]) -> int:
    count = 0
    file.write(b"[")
    for line in lines:
        file.write((b",\n" if count else b"\n") + line)
        count += 1
    file.write(b"\n]\n")
    return count


def _write_parquet(file: IO[bytes], rows: Iterator[Answer], samples: int, reasoning: bool) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    own = ["instruction", "input", "output", "id"]
    names = [*own, "sample", "outcome", "model", *(["reasoning"] if reasoning else [])]
    schema = pa.schema([(name, pa.int32() if name == "sample" else pa.string()) for name in names])
    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        while batch := [row for _, row in zip(range(PARQUET_ROWS), rows, strict=False)]:
            columns = [[getattr(a.item if name in own else a, name) for a in batch] for name in names]
            writer.write_table(pa.table(dict(zip(names, columns, strict=True)), schema))
            count += len(batch)
    return count
