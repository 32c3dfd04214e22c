"""The tokens that ROUGE compares: rouge-score's own, or words in any script.

`default` is rouge-score's: small ASCII letters and digits, everything else parts them, so that nothing is
left of a Chinese text. `unicode` keeps letters of every script; in scripts written without spaces each
character is a token, as is customary for Chinese ROUGE. Both put English words of over three letters
through Porter's stemmer, as Super-NaturalInstructions and Self-Instruct did, unless told not to. On ASCII
texts the two are the same.
"""

import re
from functools import cache
from typing import Any, Literal

from engine.languages import LETTERS
from evaluators.words import plain_words
from store.errors import UsageError

Tokens = Literal["default", "unicode"]
Asked = Literal["auto", "default", "unicode"]
ASKED: tuple[Asked, ...] = ("auto", "default", "unicode")
STEMMED_FROM = 4  # letters

_NOT_LATIN = re.compile(f"(?![{LETTERS['Latin']}])[^\\W\\d_]")


def asked_of(given: str) -> Asked:
    """Raises UsageError."""
    for known in ASKED:
        if given == known:
            return known
    raise UsageError(f"--tokenizer {given}: unknown; there are {', '.join(ASKED)}")


def tokens_for(references: list[str], asked: Asked) -> Tokens:
    """What a row is compared by. `auto`: unicode where a reference has a letter that is not Latin. The
    references alone decide, so that all models are measured alike."""
    if asked != "auto":
        return asked
    foreign = any(not text.isascii() and _NOT_LATIN.search(text) for text in references)
    return "unicode" if foreign else "default"


@cache
def scorer(tokens: Tokens, stemmer: bool) -> Any:
    """rouge-score's scorer of ROUGE-1, 2 and L."""
    from rouge_score.rouge_scorer import RougeScorer

    own = UnicodeTokenizer(stemmer) if tokens == "unicode" else None
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmer, tokenizer=own)


class UnicodeTokenizer:
    """What rouge-score asks of a tokenizer: `tokenize`."""

    def __init__(self, stemmer: bool) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem if stemmer else None

    def tokenize(self, text: str) -> list[str]:
        words = plain_words(text)
        if self._stem is None:
            return words
        return [self._stem(w) if len(w) >= STEMMED_FROM and w.isascii() else w for w in words]
