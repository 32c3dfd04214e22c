"""What a word is, where words are counted or compared: in scripts written without spaces each character.

`word_count` is for lengths: pieces between white space, as the paper's figures count. `plain_words` is for
comparing texts: no case, no punctuation, compatible forms made one (NFKC).
"""

import re
import unicodedata

from engine.tasks.language_check import PACKED
from engine.tasks.languages import LETTERS

PACKED_LETTERS = "".join(LETTERS[script] for script in PACKED) + "\U00020000-\U0003ffff"
_PACKED = re.compile(f"[{PACKED_LETTERS}]")
_WORD = re.compile(rf"[{PACKED_LETTERS}]|[^\W_{PACKED_LETTERS}]+")


def word_count(text: str) -> int:
    """Pieces between white space; a character of a script without spaces is a piece of its own."""
    if text.isascii():
        return len(text.split())
    spaced, packed = _PACKED.subn(" ", text)
    return packed + sum(any(c.isalnum() for c in piece) or not packed for piece in spaced.split())


def plain_words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.lower())
