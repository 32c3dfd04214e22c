"""Reads pools of instructions as a stream: JSONL, a JSON list, CSV, Parquet, gzip of these, `-`.

A bad row is data, not a crash: it is yielded as a BadRow with its line and the rest goes on.
Positions count usable rows from 0, so that they do not move when a bad row is mended in place
at the end. Deliberately knows nothing about models, prompts or the ledger.
"""

import csv
import gzip
import io
import json
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import orjson

from store.errors import PoolError
from store.records import BadRow, Instruction

MAX_ROW_BYTES = 64 * 2**20
GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"

# The gaps of a JSON list: what may stand between two items, and inside one.
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_BETWEEN = re.compile(rb'(?:[^"\[\]{},]++|%s)*+' % _TEXT, re.DOTALL)  # up to a comma or a bracket
_INSIDE = re.compile(rb'(?:[^"\[\]{}]++|%s)*+' % _TEXT, re.DOTALL)  # up to a bracket
_PIECE = 1 << 16

Bytes: TypeAlias = "io.BufferedReader[Any]"
Raw = tuple[int, object]  # line (or item) number and what stands there, or a Complaint


class Complaint(str):
    """Why there is no row. (A row may well be a text, which is another thing.)"""


class Pool:
    """A pool that can be read several times, or only once where `is_stream` (standard input, a pipe).

    `fraction` says how far the current pass is, by bytes of the file as it lies on disk;
    it is 0 where that cannot be known (standard input).
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self.is_stream = self.source == "-"
        self._size = 0
        self._file: Bytes | None = None
        if not self.is_stream:
            self._size = self._checked_size(Path(self.source))

    def _checked_size(self, path: Path) -> int:
        if path.is_dir():
            raise PoolError(f"pool {path} is a folder; name a file in it, or '-' for standard input")
        try:
            self.is_stream = not stat.S_ISREG(path.stat().st_mode)
            if not self.is_stream:  # opening a pipe would wait for its writer
                path.open("rb").close()
            return path.stat().st_size
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
        with self._reading():
            for line, raw in self._raw_rows():
                row = as_instruction(raw, usable) if isinstance(raw, dict) else _no_object(raw)
                if isinstance(row, Instruction):
                    usable += 1
                    yield row
                else:
                    yield BadRow(line, row)

    def objects(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        """The rows as they stand in the file, each with its line; for shapes other than a pool's."""
        with self._reading():
            for line, raw in self._raw_rows():
                yield line, raw if isinstance(raw, dict) else BadRow(line, _no_object(raw))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error) as error:
            raise PoolError(f"reading pool {self.source} failed: {error}") from error

    def _raw_rows(self) -> Iterator[Raw]:
        raw = _unbuffered_stdin() if self.source == "-" else io.FileIO(self.source)
        with io.BufferedReader(raw, 1 << 20) as packed:
            self._file = packed
            if not packed.peek(2).startswith(GZIP_MAGIC):
                yield from self._of_shape(packed, spool=self.is_stream)
                return
            # GzipFile buffers by itself; a buffer around it would lose what came before a tear.
            with gzip.GzipFile(fileobj=packed) as unpacked:
                yield from self._of_shape(cast(Bytes, unpacked), spool=True)

    def _of_shape(self, stream: Bytes, spool: bool) -> Iterator[Raw]:
        head = _first_bytes(stream)
        name = self.source.lower().removesuffix(".gz")
        if head.startswith(PARQUET_MAGIC):
            return _parquet_rows(stream, spool)
        if head.startswith(b"[") and not name.endswith(".jsonl"):
            return _list_rows(stream)
        if name.endswith((".csv", ".tsv")) or _is_csv_header(stream):
            return _csv_rows(stream, "\t" if name.endswith(".tsv") else ",")
        return _json_lines(stream)


def _no_object(raw: object) -> str:
    return raw if isinstance(raw, Complaint) else f"not an object but {type(raw).__name__}"


def _is_csv_header(stream: Bytes) -> bool:
    """A table without a name to tell it (standard input): its first line names the columns."""
    line = stream.peek(4096)[:4096].lstrip().split(b"\n", 1)[0]
    return not line.startswith((b"{", b"[")) and b"instruction" in re.split(rb'[,\s"]+', line)


_TOO_LONG = Complaint(f"longer than {MAX_ROW_BYTES >> 20} MiB")


def _unbuffered_stdin() -> io.FileIO:
    """A pipe must hand over its rows as they come, not by the megabyte."""
    return io.FileIO(sys.stdin.fileno(), closefd=False)


def _first_bytes(stream: Bytes) -> bytes:
    """The first bytes that are not white space, after skipping a UTF-8 byte order mark."""
    if stream.peek(3)[:3] == b"\xef\xbb\xbf":
        stream.read(3)
    return stream.peek(4096)[:4096].lstrip()[:8]


def _json_lines(stream: Bytes) -> Iterator[Raw]:
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, _TOO_LONG
        elif stripped := line.strip():
            yield number, _parsed(stripped, torn=not line.endswith(b"\n"))


def _parsed(line: bytes, torn: bool) -> object:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _parsed_leniently(line, str(error), torn)


def _parsed_leniently(line: bytes, complaint: str, torn: bool) -> object:
    """Lone surrogates are legal in JSON escapes, though not in Unicode: they become U+FFFD."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Complaint(f"not UTF-8 (byte {error.start}: 0x{line[error.start]:02x})")
    try:
        return _mended(json.loads(text))
    except (ValueError, RecursionError):
        return Complaint(f"not JSON: {complaint}" + ("; the last line is torn" if torn else ""))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_mended(k): _mended(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_mended(v) for v in value]
    return value


def _list_rows(stream: Bytes) -> Iterator[Raw]:
    """The items of a JSON list, cut at the commas between them and parsed one by one, so that a
    bad one costs no other and a pipe hands them over as they come."""
    data, at, start, depth, number = b"", 0, 0, 0, 0
    while True:
        at = (_INSIDE if depth > 1 else _BETWEEN).match(data, at).end()  # type: ignore[union-attr]
        sign = data[at : at + 1]
        if sign in (b"", b'"'):  # the end of the piece, or a text that goes on in the next one
            too_long = len(data) - start > MAX_ROW_BYTES
            piece = b"" if too_long else stream.read1(max(_PIECE, len(data) - start))
            if not piece:
                break
            data, at, start = data[start:] + piece, at - start, 0
            continue
        depth += (sign in b"[{") - (sign in b"]}")
        at += 1
        if depth == 0 or (depth == 1 and sign == b","):
            if item := data[start : at - 1].strip():
                number += 1
                yield number, _parsed(item, torn=False)
            start = at
            if depth == 0:
                return
        elif depth == 1 and sign == b"[":
            start = at
    why = _TOO_LONG if too_long else "the file ends in the middle"
    yield number + 1, Complaint(f"the JSON list breaks off after item {number}: {why}")


def _csv_rows(stream: Bytes, delimiter: str) -> Iterator[Raw]:
    with io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="") as text:
        yield from _table_rows(text, delimiter)


def _table_rows(text: io.TextIOWrapper, delimiter: str) -> Iterator[Raw]:
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.DictReader((line.replace("\0", "�") for line in text), delimiter=delimiter)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.reader.line_num, Complaint(f"not CSV: {error}")
            continue
        values = [v for v in row.values() if isinstance(v, str)]
        if any("\udc80" <= c <= "\udcff" for v in values if not v.isascii() for c in v):
            yield reader.line_num, Complaint("not UTF-8")
        else:
            yield reader.line_num, row


def _parquet_rows(stream: Bytes, spool: bool) -> Iterator[Raw]:
    """Parquet is read from its end: what cannot seek cheaply goes through a temporary file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as spooled:
        source: IO[bytes] = stream
        if spool:
            shutil.copyfileobj(stream, spooled)
            source = spooled
        try:
            number = 0
            for batch in pq.ParquetFile(source).iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pa.ArrowException, UnicodeDecodeError) as error:
            yield number + 1, Complaint(f"the Parquet file breaks off: {error}")


def as_instruction(row: dict[str, Any], position: int) -> Instruction | str:
    """Alpaca's shape; Self-Instruct's `instances` and FastChat's `question_id`/`text` as well.

    Returns what is wrong with the row where it cannot be used.
    """
    instruction, source = row.get("instruction"), row
    if instruction is None and "question_id" in row:
        instruction = row.get("text")
    if not instruction or (isinstance(instruction, str) and not instruction.strip()):
        return "no instruction"
    if not isinstance(instruction, str):
        return f"instruction is not text: {instruction!r:.60}"
    if "input" not in row and "instances" in row:
        source = _first_instance(row["instances"])
    given, output = source.get("input") or "", source.get("output") or ""
    if not isinstance(given, str):
        return f"input is not text: {given!r:.60}"
    identity = row.get("id")
    if identity is None:
        identity = row.get("question_id", position)
    category = row.get("category")
    return Instruction(
        str(identity),
        instruction,
        given,
        output if isinstance(output, str) else "",
        category if isinstance(category, str) else "",
    )


def _first_instance(instances: object) -> dict[str, Any]:
    first = instances[0] if isinstance(instances, list) and instances else None
    return first if isinstance(first, dict) else {}
