"""Writes a stage's answers as a data set: pool order, atomic, the same bytes each time.

Alpaca's shape (JSON list or JSONL), OpenAI chat JSONL, Parquet. The file is written beside its
name and renamed when it is whole, so that nobody ever reads half a data set.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import orjson

from store.errors import StorageError, UsageError
from store.records import Instruction, Outcome
from store.schema import STAGE_SHIFT

FORMATS = ("alpaca", "chat", "parquet")
PARQUET_ROWS = 10_000

_ANSWERS = """
SELECT a.position, a.sample, w.item, b.raw, p.outcome, p.model
FROM samples a JOIN rows w ON w.id = ? + a.position
JOIN requests r ON r.id = a.request JOIN responses p ON p.id = r.answer
JOIN bodies b ON b.response = p.id
WHERE a.stage = ? ORDER BY a.position, a.sample
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """A line of an export: the pool's row with the teacher's words as its output."""

    item: Instruction
    sample: int
    outcome: str
    model: str


def answers(
    reader: sqlite3.Connection,
    stage: int,
    outcomes: Sequence[Outcome],
    text_of: Callable[[bytes], str],
) -> Iterator[Answer]:
    """In pool order. `text_of` reads a raw body; lone surrogates become U+FFFD."""
    rows = reader.execute(_ANSWERS, (stage << STAGE_SHIFT, stage))
    for _, sample, item, raw, outcome, model in rows:
        if outcome in outcomes:
            row = orjson.loads(item)
            text = text_of(raw.encode() if isinstance(raw, str) else raw)
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            yield Answer(
                Instruction(row["id"], row["instruction"], row["input"], text),
                sample,
                outcome,
                model,
            )


def write(path: Path, format: str, rows: Iterator[Answer], samples: int, system: str | None) -> int:
    """Writes all rows; returns how many. Raises StorageError with the old file untouched."""
    with _replacing(path) as file:
        if format == "parquet":
            return _write_parquet(file, rows, samples)
        lines = map(_chat_line(system) if format == "chat" else _alpaca_line(samples), rows)
        if path.suffix == ".json":
            return _write_list(file, lines)
        return _write_lines(file, lines)


def check_format(format: str) -> None:
    if format not in FORMATS:
        raise UsageError(f"--format {format}: unknown; there are {', '.join(FORMATS)}")


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            beside.unlink()


def _alpaca_line(samples: int) -> Callable[[Answer], bytes]:
    def line(answer: Answer) -> bytes:
        item = answer.item
        row = {
            "instruction": item.instruction,
            "input": item.input,
            "output": item.output,
            "id": item.id,
        }
        return orjson.dumps({**row, "sample": answer.sample} if samples > 1 else row)

    return line


def _chat_line(system: str | None) -> Callable[[Answer], bytes]:
    head = [{"role": "system", "content": system}] if system else []

    def line(answer: Answer) -> bytes:
        item = answer.item
        asked = f"{item.instruction}\n\n{item.input}" if item.input else item.instruction
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": item.output}]
        return orjson.dumps({"messages": [*head, *turns]})

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


def _write_parquet(file: IO[bytes], rows: Iterator[Answer], samples: int) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["instruction", "input", "output", "id", "sample", "outcome", "model"]
    types = [pa.string()] * 4 + [pa.int32(), pa.string(), pa.string()]
    schema = pa.schema(list(zip(names, types, strict=True)))
    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        while batch := [row for _, row in zip(range(PARQUET_ROWS), rows, strict=False)]:
            columns = [
                [getattr(a.item, name) if name in names[:4] else getattr(a, name) for a in batch]
                for name in names
            ]
            writer.write_table(pa.table(dict(zip(names, columns, strict=True)), schema))
            count += len(batch)
    return count
