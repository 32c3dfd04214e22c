"""Files as streams of UTF-8 text: unpacks gzip, converts UTF-16, and refuses what is not text.

Also the JSON in such text. Knows nothing about rows.
"""

import codecs
import contextlib
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from store.errors import PoolError
from store.files import storable

MAX_ROW_BYTES = 64 * 2**20
PIECE = 1 << 18
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MARKS = (
    (b"\xff\xfe\0\0", "utf-32-le", "UTF-32"),
    (b"\0\0\xfe\xff", "utf-32-be", "UTF-32"),
    (b"\xff\xfe", "utf-16-le", "UTF-16"),
    (b"\xfe\xff", "utf-16-be", "UTF-16"),
)
_ZIP = "a zip archive or an Excel workbook: unpack it, or save the sheet as CSV"
_HTML = "a web page, not data: open its address in a browser to see why"
_FOREIGN = (
    (GZIP, "compressed twice: unpack it once with gunzip"),
    (b"PK\x03\x04", _ZIP),
    (b"PK\x05\x06", _ZIP),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it with `zstd -d`"),
    (b"BZh91AY&SY", "compressed with bzip2: unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "compressed with xz: unpack it with unxz"),
    (b"\x04\x22\x4d\x18", "compressed with lz4: unpack it with `lz4 -d`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook: save the sheet as CSV"),
    (b"ARROW1", "an Arrow file: write it as Parquet or JSONL"),
    (b"SQLite format 3\0", "a SQLite database: write its rows as JSONL (for a run folder: distill export)"),
    (b"%PDF-", "a PDF"),
    (b"<!doctype html", _HTML),
    (b"<html", _HTML),
    (b"version https://git-lfs", "a Git LFS pointer, not the data: fetch it with `git lfs pull`"),
)


class Complaint(str):
    """Why there is no row. (A row may well be a text, which is another thing.)"""


Raw = tuple[int, object]  # line (or item) number and what stands there, or a Complaint


def too_long() -> Complaint:
    return Complaint(f"longer than {MAX_ROW_BYTES >> 20} MiB")


def parsed(line: bytes, encoding: str, torn: bool = False) -> object:
    """A JSON value, or a Complaint. Lone surrogates are legal in JSON escapes, though not in Unicode: they
    become U+FFFD. Readers of JSON keep the last of two equal names and say nothing: this one complains."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        complaint = str(error)
    else:
        row = value if isinstance(value, dict) else {}
        is_doubtful = any(line.count(b'"%b"' % name.encode()) > 1 for name in row)
        if not is_doubtful and (value is not row or any(isinstance(inner, list) for inner in row.values())):
            is_doubtful = _may_repeat_in_a_list(value, line)
        return _once_each(line) if is_doubtful else value
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        where = f" (byte {error.start}: 0x{line[error.start]:02x})" if encoding == "UTF-8" else ""
        return Complaint(f"not {encoding}{where}")
    try:
        return storable(json.loads(text))
    except (ValueError, RecursionError):
        return Complaint(f"not JSON: {complaint}" + ("; the last line is incomplete" if torn else ""))


def _may_repeat_in_a_list(value: object, text: bytes) -> bool:
    """Whether a name may stand twice in one of a list of rows."""
    lists = value.values() if isinstance(value, dict) else (value,)
    several = next((rows for rows in lists if isinstance(rows, list)), ())
    first = next((one for one in several if isinstance(one, dict)), {})
    return any(text.count(b'"%b"' % name.encode()) > len(several) for name in first)


def _once_each(text: bytes) -> object:
    """The value, with a complaint in the place of each object that has a name twice with different values."""

    def checked(pairs: list[tuple[str, Any]]) -> object:
        found = dict(pairs)
        for name, value in pairs:
            if isinstance(value, Complaint):
                return value
            if value != found[name]:
                return Complaint(f"'{name:.40}' appears twice with different values")
        return found

    return json.loads(text, object_pairs_hook=checked)


class Stream:
    """Bytes that can be looked at before they are taken, and given back.

    Hands over what has come: never waits for more of a pipe than it was asked for. `encoding` is
    what the file was written in; the bytes are UTF-8.
    """

    def __init__(self, read: Callable[[int], bytes], source: str, encoding: str = "UTF-8") -> None:
        self._read, self._held = read, bytearray()
        self.source, self.encoding = source, encoding

    def look(self, least: int) -> bytearray:
        """All that is held: at least so many bytes, unless the stream ends before. Nothing is taken."""
        while len(self._held) < least and self._more():
            pass
        return self._held

    def starts_with(self, prefix: bytes) -> bool:
        """Compared byte by byte, so that a short first line of a pipe is not waited beyond."""
        size = 1
        while size <= len(prefix) and self.look(size)[:size].lower() == prefix[:size].lower():
            size += 1
        return size > len(prefix)

    def read1(self, size: int = PIECE) -> bytes:
        """What is held, or else the next piece; empty at the end."""
        if not self._held:
            return self._read(size)
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def read(self, size: int = PIECE) -> bytes:
        """So many bytes, fewer at the end only."""
        self.look(size)
        return self.read1(size) if self._held else b""

    def readline(self, limit: int) -> bytes:
        """Up to and with the next line break; the beginning of a line that is longer than `limit`."""
        searched, end = 0, -1
        while end < 0 and searched < limit:
            end = self._held.find(b"\n", searched)
            searched = len(self._held)
            if end < 0 and not self._more():
                break
        size = min(limit, end + 1 if end >= 0 else len(self._held))
        line = bytes(self._held[:size])
        del self._held[:size]
        return line

    def skip_line(self) -> None:
        """The rest of a line that is too long."""
        while (piece := self.readline(PIECE)) and not piece.endswith(b"\n"):
            pass

    def give_back(self, data: bytes) -> None:
        self._held[:0] = data

    def _more(self) -> bool:
        piece = self._read(max(PIECE, len(self._held)))
        self._held += piece
        return bool(piece)


@contextlib.contextmanager
def unpacked(packed: "io.BufferedReader[Any]", source: str) -> Iterator[tuple[Stream, bool]]:
    """(the stream, whether it was compressed). Raises PoolError for formats that are not read."""
    stream = Stream(packed.read1, source)
    if not stream.starts_with(GZIP):
        yield _as_text(stream), False
        return
    with gzip.GzipFile(fileobj=stream, mode="rb") as inner:  # type: ignore[call-overload]
        yield _as_text(Stream(inner.read1, source)), True


def stdin() -> io.FileIO:
    """Unbuffered: a pipe must hand over its rows as they come, not by the megabyte."""
    return io.FileIO(sys.stdin.fileno(), closefd=False)


def _as_text(stream: Stream) -> Stream:
    for magic, what in _FOREIGN:
        if stream.starts_with(magic):
            raise PoolError(f"pool {stream.source} is {what}")
    if stream.starts_with(BYTE_ORDER_MARK):
        stream.read(len(BYTE_ORDER_MARK))
        return stream
    for mark, codec, name in _MARKS:
        if stream.starts_with(mark) and len(stream.look(len(mark) + 1)) > len(mark):
            stream.read(len(mark))
            return Stream(_converted(stream, codec), stream.source, name)
    if 0 in stream.look(2)[:2]:  # UTF-16 without a mark: every second byte of ASCII in it is zero
        first, second, third, fourth = (*stream.look(4)[:4], 1, 1, 1, 1)[:4]
        if second == fourth == 0 and first and third:
            return Stream(_converted(stream, "utf-16-le"), stream.source, "UTF-16")
        if first == third == 0 and second and fourth:
            return Stream(_converted(stream, "utf-16-be"), stream.source, "UTF-16")
    return stream


def _converted(stream: Stream, codec: str) -> Callable[[int], bytes]:
    """Reads another encoding as UTF-8. What is broken becomes a byte that UTF-8 cannot hold, so
    that its row is refused and not mended in silence."""
    codecs.register_error("distill-broken", lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]
    decoder = codecs.getincrementaldecoder(codec)("distill-broken")

    def read(size: int) -> bytes:
        while True:
            piece = stream.read1(size)
            text = decoder.decode(piece, not piece)
            if text or not piece:
                return text.encode("utf-8", "surrogatepass")

    return read
