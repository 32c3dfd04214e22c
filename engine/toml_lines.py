"""On which line of a TOML text each table and key stands, for complaints that name the line.

The text has been read by tomllib already, so that it is known to be TOML: what stands between a
key and the end of its value is only skipped, by its strings, comments and brackets.
"""

import re
import tomllib

Path_ = tuple[str | int, ...]

_PART = r"(?:[A-Za-z0-9_-]+|\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*')"
_KEY = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)+")
_HEADER = re.compile(rf"(\[\[?)[ \t]*({_KEY})[ \t]*\]")
_ASSIGNMENT = re.compile(rf"({_KEY})[ \t]*=")
_TOKEN = re.compile(
    r'"""(?:\\.|(?!""")[^\\])*"{3,5}'
    r"|'''(?:(?!''').)*'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*"
    r"|[\[{]|[\]}]|\n|.",
    re.DOTALL,
)


def line_numbers(text: str) -> dict[Path_, int]:
    """('stage', 'chinese', 'task') -> its line, from 1. Entries of an array of tables are numbered
    from 0; a table that only its parts name stands where the first of them does."""
    text = text.replace("\r\n", "\n")
    found: dict[Path_, int] = {}
    arrays: dict[Path_, int] = {}  # array of tables -> the entry that is being filled
    table: Path_ = ()
    at = 0
    while at < len(text):
        if blank := _BLANK.match(text, at):
            at = blank.end()
            continue
        line = text.count("\n", 0, at) + 1
        if header := _HEADER.match(text, at):
            table = _table(_parts(header[2]), arrays, is_array=header[1] == "[[")
            _note(found, table, line)
        elif key := _ASSIGNMENT.match(text, at):
            _note(found, (*table, *_parts(key[1])), line)
        at = _end_of_statement(text, at)
    return found


def _note(found: dict[Path_, int], path: Path_, line: int) -> None:
    for end in range(1, len(path) + 1):
        found.setdefault(path[:end], line)


def _parts(key: str) -> list[str]:
    """The names of a dotted key, as tomllib reads their quotes and escapes."""
    parts = []
    inner: object = tomllib.loads(f"{key} = 0")
    while isinstance(inner, dict):
        ((name, inner),) = inner.items()
        parts.append(name)
    return parts


def _table(parts: list[str], arrays: dict[Path_, int], is_array: bool) -> Path_:
    """A header's path: where it goes through an array of tables, its last entry is meant."""
    path: Path_ = ()
    for part in parts:
        path = (*path, part)
        if len(parts) == sum(isinstance(p, str) for p in path) and is_array:
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, arrays[path])
    return path


def _end_of_statement(text: str, at: int) -> int:
    """Behind the line on which a header or a value ends."""
    depth = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        assert token
        at = token.end()
        depth += (token[0] in "[{") - (token[0] in "]}")
        if token[0] == "\n" and depth == 0:
            return at
    return at
