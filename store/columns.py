"""Column names of data sets, and which values are allowed in them.

Names are matched in any case (`Instruction`). An instruction must be text. Elsewhere a number is its text
(`0` is "0"): programs that write JSON or Parquet turn an answer like `42` into a number. true and false are
text too, except in answers, where they make a bad row. Null, NaN and a missing column are the empty text. A
list or an object where text is needed makes a bad row.
"""

import json
import math
from collections.abc import Mapping
from typing import Any


def text_of(value: object) -> str | None:
    """The text that a value stands for; None where it stands for none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return None


def content_of(message: object) -> str | None:
    """The text of a chat message: its content, or the text parts of it; None where there is none."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return text_of(content)
    parts = [p for p in content if isinstance(p, dict) and p.get("type") in ("text", "output_text")]
    if not parts or not all(isinstance(part.get("text"), str) for part in parts):
        return None
    return "".join(part["text"] for part in parts)


# Columns that some reader of ours looks for.
KNOWN = frozenset(
    ("id", "question_id", "instruction", "input", "output", "text", "category", "instances", "messages",
     "conversations", "prompt", "question", "completion", "response", "answer", "prediction", "target",
     "reference", "references", "turns", "candidates", "answers", "user_input", "completion_a",
     "completion_b", "chosen", "rejected", "score", "scores", "model", "models", "judge")
)  # fmt: skip
_LIKELY = {
    "instruction": ("question", "prompt", "user_input", "query", "text", "task"),
    "output": ("completion", "response", "answer", "text"),
}
_CHATS = ("messages", "conversations", "turns")
_NAMES_SHOWN, _NAME_WIDTH = 8, 24


def known_name(name: str) -> str:
    """A column's name without blanks around it, in lower case where that is a name we know."""
    stripped = name.strip()
    return low if (low := stripped.lower()) in KNOWN else stripped


def with_known_names(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns are called as we look for them; where that would make two of one, as it is."""
    if row.keys() <= KNOWN or all(name in KNOWN or known_name(name) not in KNOWN for name in row):
        return row
    renamed = {known_name(name): value for name, value in row.items()}
    return renamed if len(renamed) == len(row) else row


def as_text(value: object) -> str | None:
    """A column's value as text by the rule above; None where it is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return json.dumps(value) if isinstance(value, bool) else text_of(value)


def no_text(name: str, value: object) -> str:
    """Of a column in which a list or an object stands."""
    return f"{name} is not text: {value!r:.60}"


def kind_of(value: object) -> str:
    """A value of JSON by its kind, in JSON's words."""
    kinds = {dict: "object", list: "list", str: "text", bool: "true or false", int: "number", float: "number"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def missing(row: Mapping[str, Any], wanted: str) -> str:
    """That a column is not there or empty, which ones are there, and which may be meant."""
    if wanted in row:
        return f"no {wanted}: it is empty"
    there = f"no {wanted}; {columns_of(row)}"
    if likely := next((name for name in _LIKELY.get(wanted, ()) if name in row), ""):
        return f"{there} (rename `{likely}`?)"
    if chat := next((name for name in _CHATS if name in row), ""):
        return f"{there} (a chat in `{chat}` is not read here)"
    return there


def columns_of(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, as far as a sentence can hold them."""
    if not row:
        return "the row is empty"
    names = [name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…" for name in row]
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"its columns are {shown}" + (" and others" if len(names) > _NAMES_SHOWN else "")
