"""Values of data sets as texts: what stands where a text should.

Programs that write JSON or Parquet turn an answer like `42` into a number. It is the answer all the same,
also when it is 0. Anything else that is not text (true, lists, objects) has no spelling of its own and is a
fault of the row.
"""

import math


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
