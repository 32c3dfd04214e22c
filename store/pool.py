"""Reads pools of instructions as a stream: JSONL, JSON lists, CSV, Parquet, gzip of these, `-`.

A bad row is data, not a crash: it is yielded as a BadRow with its line and the rest continues.
Positions count usable rows from 0, so that they do not move when a bad row is mended in place
at the end. Deliberately knows nothing about models, prompts or the ledger.
"""

import io
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson

from store.errors import PoolError
from store.json_rows import json_lines, json_lists
from store.records import KNOWN, BadRow, Instruction, as_text, kind_of, missing, no_text, with_known_names
from store.tables import names_columns, parquet_rows, table_rows
from store.text_streams import PARQUET, Complaint, Raw, Stream, stdin, unpacked

PACKED = {".parquet": "a Parquet file", ".gz": "gzipped"}
TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}  # and what usually separates their fields
LONGEST_HEADER = 1 << 16


class Pool:
    """A pool that can be read several times, or only once where `is_stream` (standard input, a pipe).

    `fraction` says how far the current pass is, by bytes of the file as it lies on disk;
    it is 0 where that cannot be known (standard input).
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self.is_stream = self.source == "-"
        self.line = 0  # of the row that was handed over last, and the row as it stands in the file
        self.raw: dict[str, Any] = {}
        self._size = 0
        self._file: IO[bytes] | None = None
        if self.is_stream:
            return
        path = Path(self.source)
        if path.is_dir():
            raise PoolError(f"pool {path} is a folder; name a file in it, or '-' for standard input")
        try:
            self.is_stream = not stat.S_ISREG(path.stat().st_mode)
            if not self.is_stream:  # opening a pipe would wait for its writer
                path.open("rb").close()
            self._size = path.stat().st_size
        except OSError as error:
            raise PoolError(f"cannot read pool {path}: {error.strerror}") from error

    @property
    def fraction(self) -> float:
        """Share of the file that has been read, 0-1."""
        if self._file is None or not self._size:
            return 0.0
        try:
            return min(1.0, self._file.tell() / self._size)
        except (OSError, ValueError):
            return 1.0

    def __iter__(self) -> Iterator[Instruction | BadRow]:
        """Usable and bad rows in the order of the file. Raises PoolError if it cannot be read."""
        usable = 0
        for line, raw in self.objects():
            self.line, self.raw = line, {} if isinstance(raw, BadRow) else raw
            row = raw.reason if isinstance(raw, BadRow) else as_instruction(raw, usable)
            if isinstance(row, Instruction):
                usable += 1
                yield row
            else:
                yield BadRow(line, row)

    def objects(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        """The rows as they stand in the file, each with its line; for shapes other than a pool's.
        Columns that readers look for have their names in lower case."""
        try:
            file = stdin() if self.source == "-" else io.FileIO(self.source)
            with io.BufferedReader(file, 1 << 20) as packed:
                self._file = packed
                with unpacked(packed, self.source) as (stream, was_packed):
                    seekable = None if was_packed or self.is_stream else packed
                    for line, raw in self._reader(stream, seekable):
                        if isinstance(raw, dict):
                            yield line, raw if raw.keys() <= KNOWN else with_known_names(raw)
                        elif isinstance(raw, Complaint):
                            yield line, BadRow(line, raw)
                        else:
                            yield line, BadRow(line, f"not an object but {kind_of(raw)}")
        except (OSError, EOFError, zlib.error) as error:
            raise PoolError(f"reading pool {self.source} failed: {error}") from error

    def _reader(self, stream: Stream, seekable: "io.BufferedReader[Any] | None") -> Iterator[Raw]:
        """The rows by what the file begins with, and else by its name. `seekable`: the file, where it lies on
        the disk as it is."""
        if stream.starts_with(PARQUET):
            return parquet_rows(stream, seekable)
        line = _first_line(stream)
        name = self.source.lower().removesuffix(".gz")
        usual = next((separator for end, separator in TABLES.items() if name.endswith(end)), "")
        if line.startswith(b"["):
            return json_lists(stream)
        if not line.startswith(b"{") and (usual or names_columns(line)):
            return table_rows(stream, usual or ",")
        wrong = next((end for end in PACKED if self.source.lower().endswith(end)), "")
        if wrong and line and not line.startswith(b"{"):
            raise PoolError(f"pool {self.source} is not {PACKED[wrong]}, though its name ends in {wrong}")
        return json_lines(stream)


def _first_line(stream: Stream) -> bytes:
    """The first line that is not empty; of JSON, which shows itself at once, only as far as it has come."""
    least = 1
    while True:
        held = stream.look(least)
        line = bytes(held[:LONGEST_HEADER]).lstrip()
        is_over = len(held) < least or len(held) >= LONGEST_HEADER
        if line.startswith((b"[", b"{")) or b"\n" in line or b"\r" in line or is_over:
            return line.splitlines()[0] if line else b""
        least = len(held) + 1


def as_instruction(row: dict[str, Any], position: int) -> Instruction | str:
    """Alpaca's shape; Self-Instruct's `instances` and FastChat's `question_id` with `text` or one of
    `turns` as well.

    Returns what is wrong with the row where it cannot be used. An `output` that is no text is left to
    whoever needs one.
    """
    found, source = row.get("instruction"), row
    if found is None and "question_id" in row:
        turns = row.get(
            "turns"
        )  # FastChat's newer questions have a list of them; with one it is the question
        found = row.get("text", turns[0] if isinstance(turns, list) and len(turns) == 1 else None)
    if found is None or (isinstance(found, str) and not found.strip()):
        return missing(row, "instruction")
    if not isinstance(found, str):
        return no_text("instruction", found)
    if "input" not in row and "instances" in row:
        instances = row["instances"]
        first = instances[0] if isinstance(instances, list) and instances else None
        source = first if isinstance(first, dict) else {}
    given = source.get("input", "")
    if not isinstance(given, str) and (given := as_text(given)) is None:
        return no_text("input", source["input"])
    identity = row.get("id")
    if identity is None:
        identity = row.get("question_id", position)
    category, output = row.get("category"), source.get("output", "")
    return Instruction(
        str(identity),
        found,
        given,
        output if isinstance(output, str) else as_text(output) or "",
        category if isinstance(category, str) else "",
    )


@contextmanager
def rereadable(source: str) -> Iterator[str]:
    """A file with what standard input, a pipe or a device holds, while it is wanted; a file is itself.
    Raises PoolError where there is no room for it."""
    path = Path(source)
    if source != "-" and (path.is_file() or path.is_dir() or not path.exists()):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="distill-") as folder:
        copy = Path(folder) / "standard-input"
        try:
            with stdin() if source == "-" else open(source, "rb") as pipe, copy.open("wb") as file:
                shutil.copyfileobj(pipe, file)
        except OSError as error:
            raise PoolError(f"cannot keep a copy of {source} to read it twice: {error.strerror}") from error
        try:
            yield str(copy)
        except PoolError as error:
            raise PoolError(str(error).replace(str(copy), source)) from None


@contextmanager
def spooled(rows: str | os.PathLike[str] | Iterable[Any], name: str) -> Iterator[str]:
    """A file with the rows that a program holds, for as long as it is wanted; a file is itself. name: of the
    file, without its ending. A DataFrame gives its rows. Raises PoolError."""
    if isinstance(rows, str | os.PathLike):
        yield os.fspath(rows)
        return
    with tempfile.TemporaryDirectory(prefix="distill-") as folder:
        path = Path(folder) / f"{name}.jsonl"
        _spool(rows, path)
        try:
            yield str(path)
        except PoolError as error:
            raise PoolError(str(error).replace(str(path), path.name)) from None


def _spool(rows: Iterable[Any], path: Path) -> None:
    if hasattr(rows, "itertuples"):  # a DataFrame itself gives the names of its columns
        rows = rows.to_dict("records")  # type: ignore[attr-defined]
    with path.open("wb") as file:
        for number, row in enumerate(rows, 1):
            try:
                file.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
            except TypeError as error:
                raise PoolError(f"{path.name}: row {number} cannot be written as JSON: {error}") from error
