"""Tables as CSV, with every digit, and nothing in them that a spreadsheet would run as a formula."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from store.files import replacing

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets take for the beginning of one


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_inert(head) for head in heads])
    writer.writerows([_inert(value) for value in row] for row in rows)
    return text.getvalue()


def write_csv(path: Path, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Raises UsageError, StorageError."""
    with replacing(path) as file:
        file.write(csv_text(heads, rows).encode())


def _inert(value: Any) -> Any:
    """Names and a model's words come from others."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "replace").decode()
    return f"'{text}" if text.startswith(FORMULA) else text
