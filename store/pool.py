"""Reads pools of instructions as a stream: JSONL, a JSON list, CSV, Parquet, gzip of these, `-`.

A bad row is data, not a crash: it is yielded as a BadRow with its line and the rest goes on.
Positions count usable rows from 0, so that they do not move when a bad row is mended in place
at the end. Deliberately knows nothing about models, prompts or the ledger.
"""

import codecs
import csv
import gzip
import io
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import orjson

from store.errors import PoolError
from store.records import BadRow, Instruction

MAX_ROW_BYTES = 64 * 2**20
LIST_BYTES = 1 << 18
_LIST_GAP = re.compile(r"[\s,]*")
_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8, as surrogateescape shows them
GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"

Bytes: TypeAlias = "io.BufferedReader[Any]"


@dataclass(frozen=True, slots=True)
class _Complaint:
    """Stands where a row should, and says why there is none."""

    reason: str


Raw = tuple[int, object]  # line (or item) number and what stands there, or a _Complaint


class Pool:
    """A pool that can be read several times (but standard input only once).

    `fraction` says how far the current pass is, by bytes of the file as it lies on disk;
    it is 0 where that cannot be known (standard input).
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self.is_stdin = self.source == "-"
        self._size = 0
        self._file: io.FileIO | None = None
        self._opened = ExitStack()
        if not self.is_stdin:
            self._size = self._checked_size(Path(self.source))

    @staticmethod
    def _checked_size(path: Path) -> int:
        if path.is_dir():
            raise PoolError(f"pool {path} is a folder; name a file in it, or '-' for standard input")
        try:
            with path.open("rb"):
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
        try:
            for line, raw in self._raw_rows():
                if isinstance(raw, dict):
                    row = _as_instruction(raw, usable)
                    if isinstance(row, Instruction):
                        usable += 1
                        yield row
                    else:
                        yield BadRow(line, row)
                else:
                    other = f"not an object but {type(raw).__name__}"
                    yield BadRow(line, raw.reason if isinstance(raw, _Complaint) else other)
        except (OSError, EOFError, zlib.error) as error:
            raise PoolError(f"reading pool {self.source} failed: {error}") from error
        finally:
            self._opened.close()

    def _raw_rows(self) -> Iterator[Raw]:
        raw = _unbuffered_stdin() if self.is_stdin else io.FileIO(self.source)
        self._file = raw
        buffered: Bytes = self._opened.enter_context(io.BufferedReader(raw, 1 << 20))
        zipped = buffered.peek(2).startswith(GZIP_MAGIC)
        if zipped:
            unzipped = gzip.GzipFile(fileobj=buffered)
            buffered = io.BufferedReader(cast(io.RawIOBase, unzipped), 1 << 20)
            self._opened.enter_context(buffered)
        head = _first_bytes(buffered)
        if head.startswith(PARQUET_MAGIC):
            return _parquet_rows(buffered, spool=zipped or self.is_stdin)
        if head.startswith(b"["):
            return _list_rows(buffered)
        name = self.source.lower().removesuffix(".gz")
        if name.endswith((".csv", ".tsv")):
            return _csv_rows(buffered, "\t" if name.endswith(".tsv") else ",")
        return _json_lines(buffered)


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
            yield number, _Complaint(f"longer than {MAX_ROW_BYTES >> 20} MiB")
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
        return _Complaint(f"not UTF-8 (byte {error.start}: 0x{line[error.start]:02x})")
    try:
        return _mended(json.loads(text))
    except (ValueError, RecursionError):
        return _Complaint(f"not JSON: {complaint}" + ("; the last line is torn" if torn else ""))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_mended(k): _mended(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_mended(v) for v in value]
    return value


def _list_rows(stream: Bytes) -> Iterator[Raw]:
    """The items of a JSON list, one at a time; counted from 1, since they have no lines."""
    json_decoder = json.JSONDecoder()
    utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    buffer, at, number, size, ended = "", 0, 0, LIST_BYTES, False
    while not (ended and at >= len(buffer)):
        at = _LIST_GAP.match(buffer, at, len(buffer)).end()  # type: ignore[union-attr]
        if number == 0 and buffer.startswith("[", at):
            at, number = at + 1, 1
            continue
        try:
            item, end = json_decoder.raw_decode(buffer, at)
            whole = ended or end < len(buffer)  # a number at the very end might go on
        except (ValueError, RecursionError):
            whole = False
        if whole:
            broken = _ESCAPED.search(buffer, at, end)
            yield number, _Complaint("not UTF-8") if broken else _mended(item)
            number, at, size = number + 1, end, LIST_BYTES
        elif ended or len(buffer) - at > MAX_ROW_BYTES:
            if not buffer.startswith("]", at):
                yield number, _Complaint(f"the JSON list breaks off after item {number - 1}")
            return
        else:
            data = stream.read1(size)
            ended, size = not data, size * 2
            buffer, at = buffer[at:] + utf8.decode(data, final=ended), 0


def _csv_rows(stream: Bytes, delimiter: str) -> Iterator[Raw]:
    csv.field_size_limit(MAX_ROW_BYTES)
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
    reader = csv.DictReader((line.replace("\0", "�") for line in text), delimiter=delimiter)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            text.detach()  # the stream is closed by whoever opened it
            return
        except csv.Error as error:
            yield reader.reader.line_num, _Complaint(f"not CSV: {error}")
            continue
        values = [v for v in row.values() if isinstance(v, str)]
        if any("\udc80" <= c <= "\udcff" for v in values if not v.isascii() for c in v):
            yield reader.line_num, _Complaint("not UTF-8")
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
            yield number + 1, _Complaint(f"the Parquet file breaks off: {error}")


def _as_instruction(row: dict[str, Any], position: int) -> Instruction | str:
    """Alpaca's shape; Self-Instruct's `instances` and FastChat's `question_id`/`text` as well.

    Returns what is wrong with the row where it cannot be used.
    """
    instruction, source = row.get("instruction"), row
    if instruction is None and "question_id" in row:
        instruction = row.get("text")
    if not isinstance(instruction, str) or not instruction.strip():
        empty = not instruction or isinstance(instruction, str)
        return "no instruction" if empty else f"instruction is not text: {instruction!r:.60}"
    if "input" not in row and "instances" in row:
        source = _first_instance(row["instances"])
    given, output = source.get("input") or "", source.get("output") or ""
    if not isinstance(given, str):
        return f"input is not text: {given!r:.60}"
    identity = row.get("id")
    if identity is None:
        identity = row.get("question_id", position)
    return Instruction(str(identity), instruction, given, output if isinstance(output, str) else "")


def _first_instance(instances: object) -> dict[str, Any]:
    first = instances[0] if isinstance(instances, list) and instances else None
    return first if isinstance(first, dict) else {}
