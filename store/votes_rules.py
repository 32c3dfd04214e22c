"""What is decided about votes without looking at them: sides, turns, names, and what tells studies apart."""

import hashlib
import unicodedata

from store.votes_schema import Pairs, Side

LONGEST_NAME = 60


def fingerprint(a: str, b: str, pairs: Pairs) -> str:
    """What tells one set of questions and answers from another."""
    digest = hashlib.blake2b(digest_size=16)
    for text in (a, b, *(t for p in pairs for t in (p.instruction, p.input, p.answer_a, p.answer_b))):
        said = text.encode(errors="replace")
        digest.update(len(said).to_bytes(8) + said)
    return digest.hexdigest()


def drawn_left(seed: int, pair: int, who: str) -> Side:
    """The model on the left, drawn for each pair and person."""
    return "a" if drawn(seed, pair, who)[0] & 1 else "b"


def drawn(seed: int, pair: int, who: str = "") -> bytes:
    """Random bytes that are always the same for the same."""
    return hashlib.blake2b(f"{seed}\0{pair}\0{who}".encode(), digest_size=8).digest()


def tidy(name: str) -> str:
    """A name as it is shown: one line of visible characters, not too long."""
    text = unicodedata.normalize("NFC", " ".join(name.split()))
    return "".join(c for c in text if unicodedata.category(c)[0] != "C")[:LONGEST_NAME].strip()


def name_key(name: str) -> str:
    """Equal for what people would call the same name."""
    return tidy(name).casefold()
