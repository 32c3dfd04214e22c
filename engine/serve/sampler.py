"""The next token of each row: what its grammar allows (xgrammar: Dong et al., arXiv 2411.15100), drawn by its
own parameters.

A row draws one number a token from its own generator, so that its numbers do not depend on the other rows in
the batch. The last digits of its logits do: see `Student.repeats`.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson
import torch

from engine.serve.http import Refused
from engine.serve.model_loader import Student

GREEDY_BELOW = 1e-4
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
PARAM = "response_format"
PLACE_IN_XGRAMMAR = re.compile(r"^\[[\d:]+\] \S+:\d+: ")  # [hour] file:line:


class Grammars:
    """Compiles schemas for one model's vocabulary; a schema that was seen is at hand."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._compiler: Any = None

    def compiled(self, response_format: Mapping[str, Any] | None) -> Any:
        """The grammar of a reply, or None where it is free. Raises Refused for a schema that is none."""
        kind = (response_format or {}).get("type", "text")
        if response_format is None or kind == "text":
            return None
        if self._compiler is None:
            try:
                import xgrammar
            except ImportError as error:
                words = "response_format needs xgrammar: pip install 'distill[schemas]'"
                raise Refused(400, words, PARAM, "unsupported_parameter") from error
            told = xgrammar.TokenizerInfo.from_huggingface(
                self._student.texts.tokenizer,
                vocab_size=self._student.vocabulary,
                stop_token_ids=sorted(self._student.ends),
            )
            self._compiler = xgrammar.GrammarCompiler(told, max_threads=2)
        schema = response_format["json_schema"]["schema"] if kind == "json_schema" else ANY_OBJECT
        try:
            # No white space but one after a sign: small models write it for ever.
            return self._compiler.compile_json_schema(orjson.dumps(schema).decode(), any_whitespace=False)
        except (RuntimeError, ValueError, TypeError) as error:
            words = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            words = PLACE_IN_XGRAMMAR.sub("", words)
            raise Refused(400, f"the schema cannot be followed: {words}", PARAM, "invalid_value") from error


def matcher(grammar: Any) -> Any:
    """A row's place in its grammar, from the beginning; None where it has none."""
    if grammar is None:
        return None
    import xgrammar

    return xgrammar.GrammarMatcher(grammar)


def keep_allowed(logits: torch.Tensor, matchers: Sequence[Any]) -> None:
    """Puts -inf where the row's grammar does not go on. matchers: one for each row, None where it is free."""
    held = [place for place, one in enumerate(matchers) if one is not None]
    if not held:
        return
    import xgrammar

    allowed = xgrammar.allocate_token_bitmask(len(matchers), logits.shape[-1])
    for place in held:
        matchers[place].fill_next_token_bitmask(allowed, place)
    xgrammar.apply_token_bitmask_inplace(logits, allowed.to(logits.device), indices=held)


class SamplingParams(Protocol):
    """How a row is sampled."""

    temperature: float
    top_p: float
    draws: random.Random


def next_tokens(logits: torch.Tensor, rows: Sequence[SamplingParams]) -> list[int]:
    """logits: (rows, vocabulary) float32; -inf where a token must not come. Draws by the inverse of the
    distribution function, in float64: the sum of many small numbers counts."""
    found = logits.argmax(-1)
    places = [place for place, row in enumerate(rows) if row.temperature >= GREEDY_BELOW]
    if places:
        drawn = [rows[place] for place in places]
        temperatures = logits.new_tensor([row.temperature for row in drawn])
        chances = (logits[places] / temperatures[:, None]).softmax(-1).double()
        cut = [place for place, row in enumerate(drawn) if row.top_p < 1]
        if cut:
            chances[cut] = nucleus(chances[cut], [drawn[place].top_p for place in cut])
        below = chances.cumsum(-1)
        wanted = chances.new_tensor([row.draws.random() for row in drawn]) * below[:, -1]
        tokens = torch.searchsorted(below, wanted[:, None], right=True)[:, 0]
        found[places] = tokens.clamp(max=logits.shape[-1] - 1)
    return [int(token) for token in found.tolist()]


def nucleus(chances: torch.Tensor, top_p: Sequence[float]) -> torch.Tensor:
    """The likeliest tokens that together reach top_p, at least one; the others get 0. (Holtzman et al.,
    arXiv 1904.09751)"""
    ordered, places = chances.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    outside = before >= chances.new_tensor(top_p)[:, None]
    outside[:, 0] = False
    return chances.masked_fill(outside.scatter(-1, places, outside), 0.0)
